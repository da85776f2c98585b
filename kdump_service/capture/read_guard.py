# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory that kills whoever reads it costs its page, also where one process reads alone.

While it reads, a process has a note of what in shared memory. If that kills it, who is started in its place
reads the same range page by page; and if it is a page alone that has killed, nobody reads it again.
"""

from __future__ import annotations

import mmap
import signal
import struct
from collections.abc import Iterator

from kdump_service.vmcore.reader import PAGE_BYTES, Step

__all__ = ["ReadGuard"]

_NOTE = struct.Struct("=QQ")  # offset and length
_MOST_PAGES = 64
"""After so many bad pages the memory is given up: each has cost a process or two."""


class ReadGuard:
    """What is known of bad pages of one file; see vmcore.reader.Guard."""

    def __init__(self) -> None:
        self._note = mmap.mmap(-1, _NOTE.size)  # shared with children
        self._suspect: list[tuple[int, int]] = []
        """Ranges that have killed, from offset to end."""
        self.bad: list[int] = []
        """Offsets of pages that have killed."""
        self._notes = True

    def steps(self, offset: int, length: int) -> Iterator[Step]:
        """See Guard."""
        end = offset + length
        if not any(first < end and offset < last for first, last in self._suspect):
            self._write_note(offset, length)
            yield Step(offset, length, readable=True)
            self._write_note(0, 0)
            return
        while offset < end:
            page = offset // PAGE_BYTES * PAGE_BYTES
            part = min(page + PAGE_BYTES, end) - offset
            readable = page not in self.bad
            if readable:
                self._write_note(offset, part)
            yield Step(offset, part, readable)
            self._write_note(0, 0)
            offset += part

    def be_quiet(self) -> None:
        """Make no notes from now on: where several processes read, they find out by themselves."""
        self._notes = False

    def blame(self, number: int) -> bool:
        """After a process was killed by this signal: whether another will not stumble over the same."""
        offset, length = _NOTE.unpack_from(self._note)
        self._note[:] = bytes(_NOTE.size)
        if number not in (signal.SIGBUS, signal.SIGSEGV) or not length or len(self.bad) >= _MOST_PAGES:
            return False
        first, last = offset // PAGE_BYTES, (offset + length - 1) // PAGE_BYTES
        self._suspect.append((first * PAGE_BYTES, (last + 1) * PAGE_BYTES))
        if first == last:
            if first * PAGE_BYTES in self.bad:
                return False
            self.bad.append(first * PAGE_BYTES)
        return True

    def _write_note(self, offset: int, length: int) -> None:
        if self._notes:
            _NOTE.pack_into(self._note, 0, offset, length)
