# SPDX-License-Identifier: LGPL-2.1-or-later
"""One dump: open its files, delete it, keep it. Callers name what they want by fixed words, no paths."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from pathlib import Path

from kdump_service.errors import DumpMissing, InvalidArgument, TargetUnusable
from kdump_service.record import LOG_FILE, RECORD_FILE
from kdump_service.store import history
from kdump_service.store.dumps import PATIENCE_SEC, Presence, StoredDump, image_name
from kdump_service.store.own_files import (
    FOLDER_FLAGS,
    beneath,
    names_in,
    open_own_file,
    open_own_folder,
    own_folder,
    within,
)

__all__ = ["WORDS", "delete", "keep", "occupied_bytes", "open_file"]

logger = logging.getLogger(__name__)

WORDS = ("image", "log", "record")
_DEEPEST = 8
"""Folders within a dump folder; the service itself makes none."""


def open_file(dump: StoredDump, what: str) -> int:
    """A descriptor for reading a file of the dump: its ``image``, ``log`` or ``record``.

    Raises InvalidArgument for other words, DumpMissing where there is no such file, TargetUnusable where the
    target cannot be read. What is opened is a regular file that we made, in a folder that we made.
    """
    names = {
        "image": [image_name(dump.record)],
        "log": [LOG_FILE, f"{LOG_FILE}.incomplete"],
        "record": [RECORD_FILE],
    }.get(what)
    if names is None:
        raise InvalidArgument(f"{what!r:.40} is none of {', '.join(WORDS)}")
    if dump.presence is Presence.UNREACHABLE:
        raise TargetUnusable(f"{dump.folder} cannot be looked at now", "Check that the target is mounted.")
    missing = DumpMissing(f"{dump.name} has no {what}", "To see what is there: kdumpctl info")
    if not any(names):
        raise missing

    def open_first() -> int:
        with own_folder(dump.folder) as folder:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    return open_own_file(name, folder)
        raise missing

    try:
        return within(PATIENCE_SEC, dump.folder.parent, open_first)
    except FileNotFoundError as error:
        raise missing from error
    except OSError as error:
        raise TargetUnusable(f"{error.filename or dump.folder}: {error.strerror}") from error


def keep(root: Path, dump: StoredDump, kept: bool) -> None:
    """Have the limits of the store pass the dump over, or no longer. Raises TargetUnusable."""
    try:
        history.keep(root, dump.name, kept)
    except OSError as error:
        raise TargetUnusable(f"{error.filename}: {error.strerror}") from error


def occupied_bytes(dump: StoredDump) -> int:
    """Room that the dump takes on its file system, as the file system counts it. Raises OSError."""
    with own_folder(dump.folder) as folder:
        sizes = [os.stat(name, dir_fd=folder, follow_symlinks=False).st_blocks for name in names_in(folder)]
    return sum(sizes) * 512  # stat(2): units of 512 bytes


def delete(root: Path, dump: StoredDump) -> None:
    """Delete the folder with all that is in it; if it is gone already, forget the crash.

    Raises TargetUnusable, which names what cannot be removed. The record goes last, so that a dump whose
    deletion was cut off is still listed, and can be deleted.
    """
    if dump.presence is Presence.UNREACHABLE:
        raise TargetUnusable(f"{dump.folder} cannot be looked at now", "Check that the target is mounted.")
    if dump.presence is Presence.MISSING:
        try:
            history.forget(root, dump.name)
        except OSError as error:
            raise TargetUnusable(f"{error.filename}: {error.strerror}") from error
        return
    _into_history(root, dump)
    try:
        within(PATIENCE_SEC, dump.folder.parent, dump.folder.parent.stat)
        with contextlib.suppress(FileNotFoundError):  # somebody else has deleted it meanwhile
            _remove(dump.folder)
        history.keep(root, dump.name, False)
    except OSError as error:
        raise TargetUnusable(
            f"{dump.folder} cannot be deleted: {error.filename or dump.name}: {error.strerror}",
            "Remove what is in its way, then try again.",
        ) from error


def _remove(path: Path) -> None:
    with beneath(path.parent) as parent:
        folder = open_own_folder(path.name, parent)
        try:
            _empty(folder, path, _DEEPEST)
        finally:
            os.close(folder)
        os.rmdir(path.name, dir_fd=parent)
        os.fsync(parent)


def _into_history(root: Path, dump: StoredDump) -> None:
    """The record outlives the dump; but a disk that is full is no reason to delete nothing from it."""
    try:
        if not history.is_known(root, dump):
            history.remember(root, dump)
    except OSError as error:
        logger.warning("%s: the record of the crash goes with the dump, ignoring: %s", dump.name, error)


def _empty(folder: int, path: Path, depth: int) -> None:
    """Remove all that is beneath an open folder. Links are removed, not followed; mounts are not entered."""
    device = os.fstat(folder).st_dev
    for name in sorted(names_in(folder), key=lambda name: name == RECORD_FILE):
        try:
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=folder)
                continue
            if status.st_dev != device or not depth:
                raise OSError(errno.EBUSY, "is a mount point" if depth else "lies too deep")
            inner = os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            try:
                _empty(inner, path / name, depth - 1)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=folder)
        except FileNotFoundError:
            continue  # gone is what it should be
        except OSError as error:
            # With the whole path: what the error has is a name in some folder.
            where = error.filename if str(error.filename or "").startswith("/") else path / name
            raise OSError(error.errno, error.strerror, str(where)) from error
