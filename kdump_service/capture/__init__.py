# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capture boot: from a crash to a dump. Light on purpose: no asyncio, no D-Bus, no arming code."""
