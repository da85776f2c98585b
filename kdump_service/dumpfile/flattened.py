# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read makedumpfile's flattened format, in which a dump can be written to what is only appended to.

Layout (makedumpfile.h, struct makedumpfile_header and makedumpfile_data_header): a block of 4096 bytes with
the signature; then records, each an offset and a number of bytes, big-endian, and so many bytes that belong
there; the last record has -1 for both. What no record writes is zeros. ``makedumpfile -R`` makes the plain
file of it, and crash and drgn read it as it is.
"""

from __future__ import annotations

import heapq
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.reader import ByteSource

__all__ = ["END", "FLATTENED_SIGNATURE", "HEADER_BLOCK", "RECORD", "FlattenedFile"]

FLATTENED_SIGNATURE = b"makedumpfile\0\0\0\0"
_HEADER = struct.Struct(">16sqq")  # signature, type, version
_HEADER_BLOCK_BYTES = 4096  # MAX_SIZE_MDF_HEADER
_TYPE, _VERSION = 1, 1
HEADER_BLOCK = _HEADER.pack(FLATTENED_SIGNATURE, _TYPE, _VERSION).ljust(_HEADER_BLOCK_BYTES, b"\0")
"""The first bytes of a flattened file."""
RECORD = struct.Struct(">qq")
"""What stands before the bytes of a record: their offset, and how many they are."""
END = (-1, -1)
"""The last record."""

_MOST_RECORDS = 1 << 24
"""1 TiB in records of 64 KiB, which makedumpfile writes. The index takes 24 bytes for each."""
_MOST_SIZE_BYTES = 1 << 62


class FlattenedFile:
    """The content of a flattened file, also of one whose end is missing, as far as it goes; a ByteSource."""

    def __init__(self, file: ByteSource) -> None:
        """Takes the file over once it is indexed. Raises OSError or BadVmcore."""
        self._file = file
        self.stored_bytes = file.stored_bytes  # records hold the content as it is
        self.truncated = False
        """Whether the end record is missing."""
        self._first = b""
        self._starts, self._ends, self._places = array("Q"), array("Q"), array("Q")
        """Pieces of the content in order, and where they stand in the file."""
        _check_header(file.read(0, _HEADER.size))
        starts, lengths, places = self._records()
        self.size_bytes = 0
        """Length of the content."""
        for start, end, place in _pieces(starts, lengths, places):
            self._starts.append(start)
            self._ends.append(end)
            self._places.append(place)
            self.size_bytes = end

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes of the content; fewer only at its end. Raises OSError or BadVmcore."""
        parts = []
        end = min(offset + length, self.size_bytes)
        if offset < min(len(self._first), end):
            parts.append(self._first[offset:end])
            offset += len(parts[0])
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while offset < end:
            # The last piece ends where the content does, so there is always a next one.
            if self._ends[index] <= offset:
                index += 1
                continue
            start = self._starts[index]
            if start > offset:
                part = bytes(min(start, end) - offset)
            else:
                size = min(self._ends[index], end) - offset
                place = self._places[index] + offset - start
                part = self._file.read(place, size)
                if len(part) < size:
                    raise BadVmcore(f"ends within the record at offset {place:#x}")
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def put_back(self, first: bytes) -> None:
        """Have the content begin with these bytes, which were not written yet when the file was cut off."""
        self._first = first

    def close(self) -> None:
        """Done with it."""
        self._file.close()

    def _records(self) -> tuple[array[int], array[int], array[int]]:
        """Start and length in the content, and place in the file, of each record."""
        starts, lengths, places = array("Q"), array("Q"), array("Q")
        position = _HEADER_BLOCK_BYTES
        while True:
            record = self._file.read(position, RECORD.size)
            if len(record) < RECORD.size:
                self.truncated = True
                break
            start, length = RECORD.unpack(record)
            if (start, length) == END:
                break
            if start < 0 or length <= 0 or start + length > _MOST_SIZE_BYTES:
                raise BadVmcore(
                    f"the record at offset {position:#x} claims {length} bytes for offset {start}"
                )
            position += RECORD.size
            if position + length > self._file.size_bytes:
                self.truncated = True
                length = max(self._file.size_bytes - position, 0)
            if len(starts) == _MOST_RECORDS:
                raise BadVmcore(f"has more than {_MOST_RECORDS} records")
            if length:
                starts.append(start)
                lengths.append(length)
                places.append(position)
            position += length
        return starts, lengths, places


def _check_header(data: bytes) -> None:
    if len(data) < _HEADER.size:
        raise BadVmcore(f"ends after {len(data)} bytes, within the header of the flattened format")
    signature, kind, version = _HEADER.unpack(data)
    if signature != FLATTENED_SIGNATURE:
        raise BadVmcore(f"begins with {data[:16].hex(' ')}, not with the header of the flattened format")
    if (kind, version) != (_TYPE, _VERSION):
        raise BadVmcore(f"is of type {kind}, version {version} of the flattened format; only 1, 1 is known")


def _pieces(starts: array[int], lengths: array[int], places: array[int]) -> Iterator[tuple[int, int, int]]:
    """What is to be read where: start, end and place in the file, in order of the start and without overlap;
    where records overlap, the last one in the file counts.

    A sweep over the starts, with the records that cover the current position in a heap, the last one on top.
    """
    position = 0
    covering: list[tuple[int, int]] = []  # negated number of the record, its end

    def pieces_to(limit: int) -> Iterator[tuple[int, int, int]]:
        nonlocal position
        while covering and position < limit:
            number, end = -covering[0][0], covering[0][1]
            if end <= position:
                heapq.heappop(covering)
                continue
            stop = min(end, limit)
            yield position, stop, places[number] + position - starts[number]
            position = stop
        position = limit

    order = np.argsort(np.frombuffer(starts, np.uint64), kind="stable") if starts else ()
    for index in order:
        number = int(index)
        yield from pieces_to(starts[number])
        heapq.heappush(covering, (-number, starts[number] + lengths[number]))
    yield from pieces_to(_MOST_SIZE_BYTES)
