# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump writer needs of the place that it writes to."""

from __future__ import annotations

from typing import Protocol

__all__ = ["DumpWriter", "Sink"]


class Sink(Protocol):
    """A file that is being made. Methods raise OSError or an error of the target."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset; what is never written reads as zeros."""

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read back; fewer bytes only at the end of the file."""


class DumpWriter(Protocol):
    """A dump format."""

    def write(self, offset: int, data: memoryview) -> int:
        """Take the source's bytes from ``offset``; calls come in order. Returns how many bytes were in
        pages of zeros."""

    def skip(self, offset: int, length: int) -> None:
        """Take note that these bytes of the source cannot be read; they become zeros."""

    def finish(self) -> None:
        """Mark the dump as whole. Until then the file itself says that it is incomplete."""

    def read_back(self, offset: int, length: int) -> bytes:
        """The source's bytes as the file gives them back."""
