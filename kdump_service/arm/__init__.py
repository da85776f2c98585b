# SPDX-License-Identifier: LGPL-2.1-or-later
"""Production boot: from a booted machine to a loaded crash kernel."""
