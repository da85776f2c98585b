# SPDX-License-Identifier: LGPL-2.1-or-later
"""Sets of page frames.

A machine of a terabyte has 268 million frames, a bitmap of 32 MiB. What a dump keeps of them is mostly long
runs, so the bitmap is held in pieces, each compressed: a few hundred KiB where it matters.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kdump_service.errors import BadVmcore

__all__ = [
    "CHUNK_PAGES",
    "MOST_PFN",
    "BoolArray",
    "PfnBitmap",
    "chunks_of",
    "fill_range",
    "running_counts",
    "runs_of",
]

CHUNK_PAGES = 1 << 18
"""Frames handled at once: 1 GiB of pages of 4 KiB. A power of two, so that naturally aligned groups of pages
(a free block of the buddy allocator, a huge page) lie within one chunk."""

MOST_PFN = 1 << 36
"""Addresses of 48 bits in pages of 4 KiB. A file that claims more would keep us busy for hours."""

_ZLIB_LEVEL = 1
_FULL = zlib.compress(b"\xff" * (CHUNK_PAGES // 8), _ZLIB_LEVEL)

BoolArray = NDArray[np.bool_]


def chunks_of(end_pfn: int) -> int:
    """How many chunks hold the frames below ``end_pfn``."""
    return -(-end_pfn // CHUNK_PAGES)


def fill_range(bits: BoolArray, chunk: int, first_pfn: int, end_pfn: int, value: bool = True) -> None:
    """Set the bits of a chunk that stand for these frames; those outside of it are left out."""
    base = chunk * CHUNK_PAGES
    start, end = max(first_pfn - base, 0), min(end_pfn - base, CHUNK_PAGES)
    if start < end:
        bits[start:end] = value


def running_counts(bits: BoolArray) -> NDArray[np.uint32]:
    """How many bits are set up to each one, itself included: a MiB for a chunk, and nothing beside it."""
    return np.cumsum(bits, dtype=np.uint32)


def runs_of(bits: BoolArray, base: int = 0) -> NDArray[np.int64]:
    """Runs of set bits, as rows of first frame and number of frames."""
    padded = np.zeros(len(bits) + 2, np.int8)
    padded[1:-1] = bits
    edges = np.flatnonzero(np.diff(padded))
    starts, ends = edges[0::2], edges[1::2]
    return np.stack([starts + base, ends - starts], axis=1).astype(np.int64)


class PfnBitmap:
    """A set of page frames below ``end_pfn``, filled chunk by chunk."""

    def __init__(self, end_pfn: int) -> None:
        """Raises BadVmcore if that is more than MOST_PFN."""
        if end_pfn > MOST_PFN:
            raise BadVmcore(f"claims memory up to page frame {end_pfn:#x}, which is too much to be read here")
        self.end_pfn = end_pfn
        self._chunks: dict[int, bytes] = {}  # those with any frame
        self._counts = np.zeros(chunks_of(end_pfn), np.int64)
        self._last: tuple[int, BoolArray] | None = None

    def __len__(self) -> int:
        """How many frames are in the set."""
        return int(self._counts.sum())

    def __contains__(self, pfn: int) -> bool:
        if not 0 <= pfn < self.end_pfn:
            return False
        chunk, within = divmod(pfn, CHUNK_PAGES)
        return bool(self.bits(chunk)[within])

    @property
    def chunk_count(self) -> int:
        """Chunks up to ``end_pfn``."""
        return len(self._counts)

    def count(self, chunk: int) -> int:
        """How many frames of a chunk are in the set."""
        return int(self._counts[chunk])

    def counts(self) -> NDArray[np.int64]:
        """The same for all chunks."""
        return self._counts

    def set_bits(self, chunk: int, bits: BoolArray) -> None:
        """Replace a chunk by ``CHUNK_PAGES`` bits."""
        count = int(np.count_nonzero(bits))
        if not count:
            self._chunks.pop(chunk, None)
        elif count == CHUNK_PAGES:
            self._chunks[chunk] = _FULL
        else:
            packed = np.packbits(bits, bitorder="little").tobytes()
            self._chunks[chunk] = zlib.compress(packed, _ZLIB_LEVEL)
        self._counts[chunk] = count
        self._last = None

    def packed(self, chunk: int) -> bytes:
        """A chunk as bytes, the first frame in the lowest bit: the form of kdump-compressed files."""
        data = self._chunks.get(chunk)
        return bytes(CHUNK_PAGES // 8) if data is None else zlib.decompress(data)

    def bits(self, chunk: int) -> BoolArray:
        """A chunk, one element a frame; not to be written to."""
        if self._last is None or self._last[0] != chunk:
            packed = np.frombuffer(self.packed(chunk), np.uint8)
            self._last = (chunk, np.unpackbits(packed, bitorder="little").view(np.bool_))
        return self._last[1]

    def runs(self) -> Iterator[NDArray[np.int64]]:
        """Runs of frames in order, as ``runs_of`` gives them; none crosses the end of a chunk."""
        for chunk in np.flatnonzero(self._counts).tolist():
            yield runs_of(self.bits(chunk), chunk * CHUNK_PAGES)
