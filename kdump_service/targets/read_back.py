# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read back from the medium what was written to it."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from kdump_service.targets.pieces import Piece

__all__ = ["ReadBack"]

_ALIGNMENT = 4096
"""Of offsets, lengths and memory: that of the largest logical block of a disk (open(2), O_DIRECT)."""
_BUFFER_BYTES = 1 << 20


class ReadBack:
    """A second look at a file that is open for writing, and was flushed.

    It goes round the page cache (O_DIRECT), where what was written may still be, whatever became of it on
    the disk. Where a file system does not offer that, pages are dropped from the cache first, and may stay.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """``descriptor`` is what the file at ``path`` is written by."""
        self._written_by = descriptor
        self._buffer = mmap.mmap(-1, _BUFFER_BYTES + 2 * _ALIGNMENT)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags | os.O_DIRECT)
            self.direct = True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._descriptor = os.open(path, flags)
            self.direct = False
        self.bytes = self.cached_bytes = 0
        """So many were read back; of the second, nobody knows whether they came from the medium."""

    def close(self) -> None:
        """Close the descriptor that was opened for it."""
        os.close(self._descriptor)
        self._buffer.close()

    def is_as_written(self, piece: Piece) -> bool:
        """Read it, and compare checksums; what cannot be read (EIO) is not as it was written."""
        checksum = length = 0
        try:
            for part in self.read(piece.offset, piece.length):
                checksum = zlib.crc32(part, checksum)
                length += len(part)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EREMOTEIO, errno.EBADMSG, errno.EUCLEAN):
                raise
            return False
        if self.direct:
            self.bytes += length
        else:
            self.cached_bytes += length
        return (length, checksum) == (piece.length, piece.checksum)

    def first_data(self, offset: int, length: int) -> int | None:
        """Where in a range that nobody wrote a byte is that is not zero; None if there is none."""
        end = offset + length
        while offset < end:
            try:
                offset = os.lseek(self._descriptor, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # holes up to the end of the file
                    return None
                raise
            if offset >= end:
                return None
            hole = min(os.lseek(self._descriptor, offset, os.SEEK_HOLE), end)
            for part in self.read(offset, hole - offset):
                if part.count(0) < len(part):
                    return offset + next(at for at, byte in enumerate(part) if byte)
                offset += len(part)
        return None

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """The bytes in parts; fewer at the end of the file."""
        end = offset + length
        while offset < end:
            start = offset // _ALIGNMENT * _ALIGNMENT
            stop = min(-(-end // _ALIGNMENT) * _ALIGNMENT, start + _BUFFER_BYTES)
            with memoryview(self._buffer) as view, view[: stop - start] as target:
                count = self._fill(start, target)
                part = bytes(target[offset - start : min(count, end - start)])
            if not part:
                return
            yield part
            offset += len(part)

    def _fill(self, start: int, target: memoryview) -> int:
        if not self.direct:
            os.posix_fadvise(self._written_by, start, len(target), os.POSIX_FADV_DONTNEED)
        try:
            return os.preadv(self._descriptor, [target], start)
        except OSError as error:
            if not self.direct or error.errno != errno.EINVAL:
                raise
        # Opened with O_DIRECT, and does not read so.
        flags = os.O_RDONLY | os.O_CLOEXEC
        plain = os.open(f"/proc/self/fd/{self._descriptor}", flags)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, plain)
            os.dup2(plain, self._descriptor, inheritable=False)
        self.direct = False
        return self._fill(start, target)
