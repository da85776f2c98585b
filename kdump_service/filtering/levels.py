# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dump levels: which classes of pages a dump leaves out, in makedumpfile's bits (makedumpfile(8), -d)."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["DumpLevel"]


class DumpLevel(IntFlag):
    """Bits of a dump level; a set bit leaves its class out."""

    ZERO = 1
    """Pages of zeros. In kdump-compressed files they cost a descriptor, in ELF files a hole."""
    CACHE = 2
    """Page cache without private data."""
    CACHE_PRIVATE = 4
    """All page cache."""
    USER = 8
    """Memory of processes: anonymous pages and huge pages."""
    FREE = 16
    """Free pages."""
