# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a target is, for those who write to it and for those who add another one.

A *target* is what the configuration names. It is opened once for each dump, and then is a *place*, which
takes small files whole and large ones by an *upload*. Nobody outside of this room knows what lies behind: a
folder, a server, a pipe. All methods raise TargetFull or TargetUnusable, and nothing else but what they say.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["Can", "Place", "StoredFile", "Target", "Upload", "end_upload"]


class Can(enum.Flag):
    """What a place, and so each upload to it, is able to do."""

    REWRITE = enum.auto()
    """Bytes can be put anywhere and in any order, also where there are some already. Without it they are put
    one after the other."""
    READ_BACK = enum.auto()
    """What was put can be read again while the upload is open."""


class StoredFile(NamedTuple):
    """A file that is in its place."""

    name: str
    bytes: int
    """Its length."""
    disk_bytes: int
    """What it takes there; less than its length where it has holes."""


class Upload(Protocol):
    """A large file on its way; a Sink (dumpfile/sink.py) as well. Until it is published, its name or the lack
    of one says that it is incomplete."""

    @property
    def can(self) -> Can:
        """What the place can."""

    @property
    def rewritable(self) -> bool:
        """See Sink: whether it can REWRITE."""

    @property
    def size_bytes(self) -> int:
        """The length of the file as it is now."""

    def reserve(self, size_bytes: int) -> None:
        """Make sure that there is room for the file's first bytes, whatever is written behind them."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Put all of ``data`` at an offset; what is never written reads as zeros."""

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long."""

    def read_at(self, offset: int, length: int) -> bytes:
        """Read back; fewer bytes only at the end of the file. Only where it can READ_BACK."""

    def flush(self) -> None:
        """Bring what was put to where it outlives a loss of power."""

    def verify(self, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Flush, and read back what was not read back yet. Only where it can READ_BACK. Raises
        VerificationFailed if a piece, also one that was read before, is not what was written.

        ``advance`` is told how many bytes were read, and of how many.
        """

    @property
    def read_back_bytes(self) -> tuple[int, int]:
        """So many bytes were read back from the medium, and so many that may have come from a cache on the
        way."""

    def publish(self, name: str) -> StoredFile:
        """Verify the file where it can READ_BACK, give it its final name, and close it. What fails to be
        verified keeps its name."""

    def abandon(self) -> StoredFile:
        """Close the file as it is; its name goes on saying that it is incomplete. Flush it before, if it is
        to outlive a loss of power."""


def end_upload(upload: Upload, name: str, *, whole: bool) -> StoredFile:
    """Publish the file if it is whole. Else what there is of it is flushed, and stays incomplete; if that
    cannot be, the file is closed all the same before the error is raised."""
    if whole:
        return upload.publish(name)
    try:
        upload.flush()
    finally:
        stored = upload.abandon()
    return stored


class Place(Protocol):
    """Where the files of one dump go."""

    @property
    def can(self) -> Can:
        """What it is able to do."""

    @property
    def name(self) -> str:
        """What the dump is called there."""

    def room_bytes(self, *, is_log: bool = False) -> int:
        """How many bytes a dump may take there. A log may take what is kept free for production, too."""

    def put(self, name: str, content: bytes) -> StoredFile:
        """Put a small file, in place of one of that name. Afterwards, also if that is after a loss of power,
        it is there as a whole, or what was there before is. Where room is kept for it, there is room again
        for the next time, if that can be had."""

    def files(self) -> list[StoredFile]:
        """The files of the dump that are there, complete or not, by name."""

    def keep_room(self) -> None:
        """See to it that there is the room that is to be kept. Raises TargetFull if there is none."""

    def release_room(self) -> None:
        """Give it back."""

    def discard(self) -> None:
        """Take away all that was put and uploaded there."""

    def create(self, name: str, *, is_log: bool = False) -> Upload:
        """Begin a large file. A log may take the room that is kept free for production (``KeepFree=``)."""


class Target(Protocol):
    """What the configuration names."""

    def open(self, name: str) -> Place:
        """Make a place for a dump of that name; if the name is taken, of another that begins with it."""

    def opened(self, name: str) -> Place:
        """The place that another process has opened, which then had this name; nothing is looked at."""
