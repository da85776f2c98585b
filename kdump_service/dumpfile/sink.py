# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a dump writer needs of the place that it writes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["FilePart", "ReadableSink", "Sink"]


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
