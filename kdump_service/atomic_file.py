# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small files of which after a crash either the old or the new content is there, whole and on disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["sync_folder", "temporary_of", "write_atomically"]


def write_atomically(path: Path, content: str | bytes, *, mode: int = 0o600) -> None:
    """Write a file so that after a crash either the old or the new content is there, whole and on disk.
    Text is written as UTF-8.

    Raises OSError, or UnicodeEncodeError for half a surrogate pair; the old content then stays, unless it is
    the folder that could not be synced. A symbolic link in place of the file is replaced, not followed.
    """
    temporary = temporary_of(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            # Written before it is cut to its length: it may have the room that was kept for it.
            file.write(content.encode() if isinstance(content, str) else content)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except (OSError, UnicodeEncodeError):
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def temporary_of(path: Path) -> Path:
    """Where the content is written before it gets the name ``path``. One that exists is written over: it may
    have been made to have the room."""
    return path.with_name(f".{path.name}.new")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
