# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump writer needs of the place that it writes to."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import BinaryIO, Protocol

__all__ = ["FilePart", "ReadableSink", "Sink", "StreamSink"]

_ZEROS = bytes(1 << 20)


@dataclass(frozen=True)
class FilePart:
    """A piece of a file and its SHA-256 in hexadecimal: one line of an integrity manifest."""

    name: str
    offset: int
    length: int
    sha256: str


class Sink(Protocol):
    """A file that is being made. Methods raise OSError or an error of the target."""

    @property
    def rewritable(self) -> bool:
        """Whether bytes can be put where there are some already."""

    def reserve(self, size_bytes: int) -> None:
        """Make sure that there is room for the file's first bytes, whatever is written behind them."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset; what is never written reads as zeros."""

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long."""


class ReadableSink(Sink, Protocol):
    """One that gives back what it got."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read back; fewer bytes only at the end of the file."""


class StreamSink:
    """A Sink that writes the bytes as they are to a stream, in order only; what is left out becomes zeros."""

    rewritable = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._end = 0

    def reserve(self, size_bytes: int) -> None:
        """See Sink. A stream has no room of its own."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Append. Raises ValueError for what should have been written before."""
        if offset < self._end:
            raise ValueError(f"a stream at {self._end} cannot be written at {offset}")
        self.set_size(offset)
        _write_all(self._stream, data)
        self._end += len(data)

    def set_size(self, size_bytes: int) -> None:
        """Append zeros up to this length."""
        while self._end < size_bytes:
            part = memoryview(_ZEROS)[: size_bytes - self._end]
            _write_all(self._stream, part)
            self._end += len(part)

    def close(self) -> None:
        """Nothing is kept back. The stream stays open."""
        self._stream.flush()


def _write_all(stream: BinaryIO, data: bytes | memoryview) -> None:
    """Write also to a stream that takes only a part at a time, as one without a buffer does."""
    view = memoryview(data)
    while view:
        written = stream.write(view)
        if not written:
            raise BlockingIOError(errno.EAGAIN, "the stream takes nothing at this moment")
        view = view[written:]
