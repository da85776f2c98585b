# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dump engine: reads a memory image, filters it, writes a dump and proves it."""
