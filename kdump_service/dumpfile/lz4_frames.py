# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same ELF core, compressed as a sequence of LZ4 frames: ``lz4 -d`` gives it back.

Each window of the source is one frame of independent blocks with content size and checksums
(LZ4 Frame Format, version 1.6.2), so frames can be found and checked without unpacking those before.
The first frame holds the ELF header and stands in a slot of fixed size, filled up with a skippable frame, so
that it can be replaced when the dump is finished and its incomplete flag goes.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from dataclasses import dataclass

import lz4.frame

from kdump_service.dumpfile.elf_copy import with_incomplete_flag
from kdump_service.dumpfile.sink import Sink
from kdump_service.errors import VerificationFailed
from kdump_service.vmcore.elf import ElfHeader

__all__ = ["Lz4FramesWriter"]

_SKIPPABLE_MAGIC = 0x184D2A50
_SKIPPABLE_HEADER_BYTES = 8
_SLOT_SLACK_BYTES = 256
"""Two first frames differ in one flag byte; their compressed sizes differ by a few bytes at most."""


def _frame(data: memoryview | bytes) -> bytes:
    result: bytes = lz4.frame.compress(
        data,
        compression_level=0,
        block_size=lz4.frame.BLOCKSIZE_MAX1MB,
        block_linked=False,
        content_checksum=True,
        block_checksum=True,
        store_size=True,
    )
    return result


@dataclass(frozen=True)
class _FramePlace:
    source_offset: int
    source_bytes: int
    file_offset: int
    file_bytes: int


class Lz4FramesWriter:
    """Writes frames into a sink; see DumpWriter."""

    def __init__(self, sink: Sink, header: ElfHeader, source_bytes: int) -> None:
        self._sink = sink
        self._header = header
        self._source_bytes = source_bytes
        self._head = b""
        self._slot_bytes = 0
        self._end = 0
        self._frames: list[_FramePlace] = []

    def write(self, offset: int, data: memoryview) -> int:
        """Append one frame."""
        if offset == 0:
            self._head = bytes(data)
            incomplete = _frame(with_incomplete_flag(self._header, self._head))
            self._slot_bytes = len(incomplete) + _SKIPPABLE_HEADER_BYTES + _SLOT_SLACK_BYTES
            self._fill_slot(incomplete)
            self._end = self._slot_bytes
            return 0
        self._append(offset, _frame(data), len(data))
        return 0

    def skip(self, offset: int, length: int) -> None:
        """Append a frame of zeros, to keep what follows in its place."""
        self._append(offset, _frame(bytes(length)), length)

    def finish(self) -> None:
        """Replace the first frame by one without the incomplete flag."""
        self._fill_slot(_frame(self._head))

    def read_back(self, offset: int, length: int) -> bytes:
        """Unpack the frames that hold these bytes; their checksums are verified on the way."""
        parts = []
        position = offset
        while position < offset + length:
            if position < len(self._head):
                content = self._unpack(0, self._slot_bytes)
                start = position
            else:
                index = bisect_right(self._frames, position, key=lambda frame: frame.source_offset) - 1
                place = self._frames[index]
                content = self._unpack(place.file_offset, place.file_bytes)
                start = position - place.source_offset
            part = content[start : start + offset + length - position]
            if not part:
                break
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def _append(self, offset: int, frame: bytes, source_bytes: int) -> None:
        self._sink.write_at(self._end, frame)
        self._frames.append(_FramePlace(offset, source_bytes, self._end, len(frame)))
        self._end += len(frame)

    def _fill_slot(self, frame: bytes) -> None:
        padding = self._slot_bytes - len(frame) - _SKIPPABLE_HEADER_BYTES
        if padding < 0:
            raise VerificationFailed("the first LZ4 frame does not fit into its slot")
        skippable = struct.pack("<II", _SKIPPABLE_MAGIC, padding) + bytes(padding)
        self._sink.write_at(0, frame + skippable)

    def _unpack(self, file_offset: int, file_bytes: int) -> bytes:
        try:
            content: bytes = lz4.frame.decompress(self._sink.read_at(file_offset, file_bytes))
        except RuntimeError as error:
            raise VerificationFailed(
                f"the LZ4 frame at offset {file_offset:#x} cannot be unpacked"
            ) from error
        return content
