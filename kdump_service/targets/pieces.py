# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was written to a file, piece by piece, with a checksum of each that was made before it was written."""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

__all__ = ["Piece", "Pieces"]

_LEAST_BYTES = 1 << 20
"""Pieces that follow one another are joined until they have so many bytes: 100,000 of them, which take 2 MiB,
are 100 GiB."""


class Piece(NamedTuple):
    """A range of the file, as it was last written."""

    offset: int
    length: int
    checksum: int
    """CRC-32 as zlib has it."""

    @property
    def end(self) -> int:
        """Where the next byte is."""
        return self.offset + self.length


class Pieces:
    """The pieces of one file, in order. What is written again counts by its last content."""

    def __init__(self) -> None:
        self._offsets = array("Q")
        self._lengths = array("Q")
        self._checksums = array("I")
        self._pending: dict[int, None] = {}
        """Offsets of those that were not taken by :meth:`take`, in the order in which they were written."""
        self._open = -1
        """Offset of the one that may still grow."""

    def __len__(self) -> int:
        return len(self._offsets)

    def __iter__(self) -> Iterator[Piece]:
        return map(Piece, self._offsets, self._lengths, self._checksums)

    def add(self, offset: int, data: bytes | memoryview, read: Callable[[int, int], bytes]) -> list[Piece]:
        """Note what is about to be written.

        ``read`` gives what is in the file now; it is asked where only a part of an older piece is written
        anew. Returns those of them that were not any more what had been written.
        """
        length = len(data)
        if not length:
            return []
        first = bisect_right(self._offsets, offset) - 1
        if first >= 0 and self._end(first) <= offset:
            first += 1
        first = max(first, 0)
        last = bisect_left(self._offsets, offset + length)
        if first < last:
            return self._replace(first, last, offset, memoryview(data), read)
        before = first - 1
        if before >= 0 and self._offsets[before] == self._open and self._end(before) == offset:
            self._lengths[before] += length
            self._checksums[before] = zlib.crc32(data, self._checksums[before])
            if self._lengths[before] >= _LEAST_BYTES:
                self._open = -1
            return []
        self._insert(first, Piece(offset, length, zlib.crc32(data)))
        self._open = offset if length < _LEAST_BYTES else -1
        return []

    def take(self, offset: int, *, all_of_them: bool) -> list[Piece]:
        """Those from ``offset`` on that were not taken before; without ``all_of_them`` not the last one,
        whose neighbour is still to be written."""
        self._open = -1
        if not self._offsets:
            return []
        final = self._offsets[-1]
        taken = [at for at in self._pending if at >= offset and (all_of_them or at != final)]
        for at in taken:
            del self._pending[at]
        return [self._at(bisect_left(self._offsets, at)) for at in sorted(taken)]

    def take_again(self) -> None:
        """Let :meth:`take` return all of them once more."""
        self._pending = dict.fromkeys(self._offsets)

    def gaps(self, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Offset and length of what no piece covers."""
        position = 0
        for piece in self:
            if piece.offset > position:
                yield position, piece.offset - position
            position = piece.end
        if position < size_bytes:
            yield position, size_bytes - position

    def _replace(
        self, first: int, last: int, offset: int, data: memoryview, read: Callable[[int, int], bytes]
    ) -> list[Piece]:
        """Let the data take the place of what stands in the pieces from ``first`` to ``last``."""
        old = [self._at(index) for index in range(first, last)]
        start, end = min(old[0].offset, offset), max(old[-1].end, offset + len(data))
        damaged = []
        if (start, end) != (offset, offset + len(data)):
            content = bytearray(end - start)
            for piece in old:
                found = read(piece.offset, piece.length)
                if zlib.crc32(found) != piece.checksum:
                    damaged.append(piece)
                content[piece.offset - start : piece.end - start] = found.ljust(piece.length, b"\0")
            content[offset - start : offset - start + len(data)] = data
            data = memoryview(content)
        for piece in old:
            self._pending.pop(piece.offset, None)
        del self._offsets[first:last], self._lengths[first:last], self._checksums[first:last]
        self._insert(first, Piece(start, len(data), zlib.crc32(data)))
        self._open = -1
        return damaged

    def _insert(self, index: int, piece: Piece) -> None:
        self._offsets.insert(index, piece.offset)
        self._lengths.insert(index, piece.length)
        self._checksums.insert(index, piece.checksum)
        self._pending[piece.offset] = None

    def _at(self, index: int) -> Piece:
        return Piece(self._offsets[index], self._lengths[index], self._checksums[index])

    def _end(self, index: int) -> int:
        return self._offsets[index] + self._lengths[index]
