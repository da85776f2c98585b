# SPDX-License-Identifier: LGPL-2.1-or-later
"""A memory image as page frames: which there are, and what is in them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Protocol

import numpy as np

from kdump_service.errors import BadVmcore
from kdump_service.pfn import CHUNK_PAGES, BoolArray, fill_range
from kdump_service.vmcore.reader import Vmcore

__all__ = ["ElfPages", "PageSource"]

_MOST_PFN = 1 << 40
"""52 bits of physical address, the most that an architecture has, in pages of 4 KiB."""


class PageSource(Protocol):
    """What the formats give to those who copy pages."""

    @property
    def page_bytes(self) -> int:
        """Size of a page frame."""

    @property
    def end_pfn(self) -> int:
        """One more than the last frame: max_mapnr of kdump-compressed files."""

    def existing(self, chunk: int) -> BoolArray:
        """The frames that the machine had, CHUNK_PAGES of them: bitmap 1 of kdump-compressed files."""

    def present(self, chunk: int) -> BoolArray:
        """Those of them whose contents this image has."""

    def read_pages(self, first_pfn: int, count: int, target: memoryview) -> None:
        """Fill ``target`` with the contents of present frames. Raises OSError or BadVmcore."""


class ElfPages:
    """The pages of an ELF core."""

    def __init__(self, core: Vmcore) -> None:
        """Raises BadVmcore if the segments claim more than any machine has."""
        self._core = core
        self.page_bytes = core.page_bytes
        self._memory = list(_merged((load.physical_address, load.memory_bytes) for load in core.loads))
        self._extents = core.extents
        self._starts = [extent.start for extent in self._extents]
        self._file = list(_merged((extent.start, extent.end - extent.start) for extent in self._extents))
        last = max((end for _, end in self._memory), default=0)
        self.end_pfn = -(-last // self.page_bytes)
        if self.end_pfn > _MOST_PFN:
            raise BadVmcore(f"a segment claims physical memory up to {last:#x}")

    def existing(self, chunk: int) -> BoolArray:
        """See PageSource."""
        return self._bits(self._memory, chunk)

    def present(self, chunk: int) -> BoolArray:
        """See PageSource. A frame of which a part is missing counts; that part reads as zeros."""
        return self._bits(self._file, chunk)

    def read_pages(self, first_pfn: int, count: int, target: memoryview) -> None:
        """See PageSource."""
        base = first_pfn * self.page_bytes
        end = base + count * self.page_bytes
        position = base
        index = max(bisect_right(self._starts, base) - 1, 0)
        for extent in self._extents[index:]:
            start, stop = max(extent.start, base), min(extent.end, end)
            if extent.start >= end:
                break
            if stop <= start:
                continue
            if start > position:
                target[position - base : start - base] = bytes(start - position)
            self._core.read_into(extent.offset + start - extent.start, target[start - base : stop - base])
            position = stop
        if position < end:
            target[position - base :] = bytes(end - position)

    def _bits(self, ranges: list[tuple[int, int]], chunk: int) -> BoolArray:
        bits = np.zeros(CHUNK_PAGES, np.bool_)
        base = chunk * CHUNK_PAGES * self.page_bytes
        limit = base + CHUNK_PAGES * self.page_bytes
        index = max(bisect_right(ranges, (base, 0)) - 1, 0)
        for start, end in ranges[index:]:
            if start >= limit:
                break
            fill_range(bits, chunk, start // self.page_bytes, -(-end // self.page_bytes))
        return bits


def _merged(pieces: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Start and end of what these pieces (start, length) cover, in order."""
    current: tuple[int, int] | None = None
    for start, length in sorted(pieces):
        if not length:
            continue
        if current is not None and start <= current[1]:
            current = (current[0], max(current[1], start + length))
            continue
        if current is not None:
            yield current
        current = (start, start + length)
    if current is not None:
        yield current
