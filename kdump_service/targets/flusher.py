# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process beside the one that writes a file: it flushes what was written, and reads it back.

So the disk works while pages are compressed. One flush is under way at a time; of what is flushed, as much
is read back until the next flush is asked for as the disk has time for.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdump_service.targets.pieces import Piece
from kdump_service.targets.read_back import ReadBack

__all__ = ["Flusher", "FlusherDied"]

_REQUEST = struct.Struct("<I")  # number of pieces that follow, which can be read back after the flush
_PIECE = struct.Struct("<QQI")
_REPLY = struct.Struct("<BQQIQQ")
"""Kind; then, of _FAILED the errno; of _COMPARED bytes, bytes from a cache, whether it is damaged, and which
piece it is."""
_FLUSHED, _COMPARED, _FAILED = 1, 2, 3
_HIGHEST_DESCRIPTOR = 1024
_DEATH_SEC = 2.0
"""What it has to go when it was killed."""


class FlusherDied(Exception):
    """The process ended, as one does that is killed for want of memory; what it was asked for is not done."""


class Flusher:
    """The process, as it is seen by the one that writes."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Start it for the file at ``path``, which ``descriptor`` is open for. Raises OSError."""
        requests, self._requests = os.pipe()
        self._replies, replies = os.pipe()
        self.flushes = 0
        """Asked for, and not done yet: 0 or 1."""
        self.comparing = 0
        """Pieces that were not compared yet."""
        self.damaged: list[Piece] = []
        self.read_back_bytes = self.cached_bytes = 0
        """What was read back; see ReadBack."""
        self.sent_bytes = self.compared_bytes = 0
        """Of the pieces, so many are to be read back, and so many were."""
        try:
            self._pid = os.fork()
        except OSError:
            for each in (requests, self._requests, self._replies, replies):
                os.close(each)
            raise
        if not self._pid:
            try:
                _become_flusher(requests, replies, descriptor)
                _serve(requests, replies, path, descriptor)
            finally:
                os._exit(0)  # whatever happens: the parent's code must not go on here
        os.close(requests)
        os.close(replies)

    def flush(self, pieces: Sequence[Piece]) -> None:
        """Have all flushed that is written by now, and then these pieces read back. Not while a flush is
        under way. Raises FlusherDied."""
        self.flushes += 1
        self.comparing += len(pieces)
        self.sent_bytes += sum(piece.length for piece in pieces)
        data = _REQUEST.pack(len(pieces)) + b"".join(_PIECE.pack(*piece) for piece in pieces)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._requests, view) :]
        except BrokenPipeError:
            raise FlusherDied from None

    def collect(self) -> None:
        """Take what it has told by now. Raises OSError if a flush failed, FlusherDied."""
        while select.select([self._replies], [], [], 0)[0]:
            self._take()

    def wait_for_flush(self) -> None:
        """Wait for the flush that is under way. Raises as collect."""
        while self.flushes:
            self._take()

    def wait_for_all(self, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Wait until all was read back; ``advance`` is told how many bytes that are, and of how many. Raises
        as collect."""
        while self.flushes or self.comparing:
            self._take()
            advance(self.compared_bytes, self.sent_bytes)

    def close(self) -> None:
        """End it. One that sleeps in the kernel is left behind."""
        os.close(self._requests)
        os.kill(self._pid, signal.SIGKILL)
        gone_by = time.monotonic() + _DEATH_SEC
        # Its end of the pipe ends with it.
        while left := select.select([self._replies], [], [], max(gone_by - time.monotonic(), 0))[0]:
            if not os.read(self._replies, 1 << 16):
                break
        os.waitpid(self._pid, 0 if left else os.WNOHANG)
        os.close(self._replies)

    def _take(self) -> None:
        reply = _read(self._replies, _REPLY.size)
        if reply is None:
            raise FlusherDied
        kind, first, second, damaged, offset, length = _REPLY.unpack(reply)
        if kind == _FAILED:
            raise OSError(first, os.strerror(first))
        if kind == _FLUSHED:
            self.flushes -= 1
            return
        self.comparing -= 1
        self.read_back_bytes += first
        self.cached_bytes += second
        self.compared_bytes += length
        if damaged:
            self.damaged.append(Piece(offset, length, 0))


def _become_flusher(*kept: int) -> None:
    gc.freeze()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # who writes ends it
    first = 3
    for descriptor in (*sorted(kept), _HIGHEST_DESCRIPTOR):
        os.closerange(first, descriptor)
        first = descriptor + 1


def _serve(requests: int, replies: int, path: Path, descriptor: int) -> None:
    try:
        back = ReadBack(path, descriptor)
        backlog: deque[Piece] = deque()
        while True:
            if not backlog or select.select([requests], [], [], 0)[0]:
                pieces = _request(requests)
                if pieces is None:
                    return
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                backlog += pieces
                _write(replies, _REPLY.pack(_FLUSHED, 0, 0, 0, 0, 0))
                continue
            piece = backlog.popleft()
            before = back.bytes, back.cached_bytes
            damaged = not back.is_as_written(piece)
            numbers = (back.bytes - before[0], back.cached_bytes - before[1])
            _write(replies, _REPLY.pack(_COMPARED, *numbers, damaged, piece.offset, piece.length))
    except OSError as error:
        with contextlib.suppress(OSError):  # who writes is gone
            _write(replies, _REPLY.pack(_FAILED, error.errno or errno.EIO, 0, 0, 0, 0))


def _request(descriptor: int) -> list[Piece] | None:
    head = _read(descriptor, _REQUEST.size)
    if head is None:
        return None
    body = _read(descriptor, _REQUEST.unpack(head)[0] * _PIECE.size)
    return None if body is None else list(_pieces(body))


def _pieces(body: bytes) -> Iterator[Piece]:
    for values in _PIECE.iter_unpack(body):
        yield Piece(*values)


def _read(descriptor: int, length: int) -> bytes | None:
    """Exactly so many bytes; None at the end of the pipe."""
    parts = []
    while length:
        part = os.read(descriptor, length)
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
