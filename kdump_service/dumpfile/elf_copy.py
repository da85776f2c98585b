# SPDX-License-Identifier: LGPL-2.1-or-later
"""An ELF core that equals /proc/vmcore byte for byte, with pages of zeros as holes.

Opens in crash, drgn and gdb as it is. Until it is finished, bit 0 of e_flags says that it is incomplete.
"""

from __future__ import annotations

import struct

from kdump_service.dumpfile.sink import ReadableSink
from kdump_service.vmcore.elf import ELF_FLAGS_INCOMPLETE, ELF_FLAGS_OFFSET, ElfHeader

__all__ = ["ElfCopyWriter", "data_runs", "with_incomplete_flag"]

_HOLE_BYTES = 4096
"""Zeros are looked for in units of the smallest page and the usual file system block."""
_ZEROS = bytes(_HOLE_BYTES)


def with_incomplete_flag(header: ElfHeader, head: bytes) -> bytes:
    """The first bytes of a core, with the flag set in e_flags."""
    flags = struct.pack(header.byte_order + "I", header.flags | ELF_FLAGS_INCOMPLETE)
    return head[:ELF_FLAGS_OFFSET] + flags + head[ELF_FLAGS_OFFSET + 4 :]


def data_runs(data: memoryview) -> list[tuple[int, int]]:
    """Start and end of each run of pages that are not all zero. The last page may be short."""
    runs: list[tuple[int, int]] = []
    for start in range(0, len(data), _HOLE_BYTES):
        end = min(start + _HOLE_BYTES, len(data))
        # Copying a page to compare it is faster than comparing the view, which goes item by item.
        if bytes(data[start:end]) == _ZEROS[: end - start]:
            continue
        if runs and runs[-1][1] == start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs


class ElfCopyWriter:
    """Writes the copy into a sink."""

    def __init__(self, sink: ReadableSink, header: ElfHeader, source_bytes: int) -> None:
        self._sink = sink
        self._header = header
        self._original_flags = struct.pack(header.byte_order + "I", header.flags)
        # Full length from the start: a dump that ends early still opens, and its lost part reads as zeros.
        sink.set_size(source_bytes)

    def write(self, offset: int, data: memoryview) -> int:
        """Take the source's bytes from ``offset``; calls come in order. Returns how many bytes were in pages
        of zeros."""
        if offset == 0:
            self._sink.write_at(0, with_incomplete_flag(self._header, bytes(data)))
            return 0
        written = 0
        for start, end in data_runs(data):
            self._sink.write_at(offset + start, data[start:end])
            written += end - start
        return len(data) - written

    def skip(self, offset: int, length: int) -> None:
        """Take note that these bytes of the source cannot be read; they become a hole."""

    def finish(self) -> None:
        """Restore the original flags: from here on the file equals its source."""
        self._sink.write_at(ELF_FLAGS_OFFSET, self._original_flags)

    def read_back(self, offset: int, length: int) -> bytes:
        """The source's bytes as the file gives them back."""
        return self._sink.read_at(offset, length)
