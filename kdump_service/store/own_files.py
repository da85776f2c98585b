# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open what nobody but this user, root in production, can have made.

Some distributions let everybody write to /var/crash, so what lies there is not believed for its name: folders
are opened once and everything else is done beneath that descriptor, where nobody can swap names in between.
And a target may be a disk or a share that has stopped answering: whoever asks it gets an error after a while,
not a wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from kdump_service.errors import KdumpError

__all__ = [
    "FOLDER_FLAGS",
    "beneath",
    "names_in",
    "open_own_file",
    "open_own_folder",
    "own_folder",
    "read_text",
    "within",
]

Result = TypeVar("Result")
FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_hanging: dict[Path, threading.Thread] = {}
"""Acts that did not end in time."""
_lock = threading.Lock()


def open_own_folder(name: str, parent: int) -> int:
    """Open a folder of ours that nobody else can write to, beneath an open one. Raises OSError."""
    return _checked(os.open(name, FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=parent), name, stat.S_IFDIR)


def open_own_file(name: str, folder: int) -> int:
    """Open a regular file of ours for reading, beneath an open folder; no link, no pipe. Raises OSError."""
    # O_NONBLOCK: the opening of a named pipe would wait for its writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    descriptor = _checked(os.open(name, flags, dir_fd=folder), name, stat.S_IFREG)
    os.set_blocking(descriptor, True)
    return descriptor


def _checked(descriptor: int, name: str, kind: int) -> int:
    status = os.fstat(descriptor)
    problem = ""
    if stat.S_IFMT(status.st_mode) != kind:
        problem = "is of another kind than expected"
    elif status.st_uid != os.geteuid():
        problem = f"belongs to user {status.st_uid}"
    elif status.st_mode & stat.S_IWOTH or (status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid()):
        problem = f"can be written by others (mode {stat.S_IMODE(status.st_mode):o})"
    if problem:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, problem, name)
    return descriptor


@contextlib.contextmanager
def beneath(folder: Path) -> Iterator[int]:
    """A descriptor of a folder that an administrator named; follows links in its path. Raises OSError."""
    descriptor = os.open(folder, FOLDER_FLAGS)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def own_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder of ours, of which only the last name must be no link. Raises OSError."""
    with beneath(path.parent) as parent:
        descriptor = open_own_folder(path.name, parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def names_in(folder: int) -> list[str]:
    """What an open folder holds. Raises OSError."""
    return os.listdir(folder)


def read_text(name: str, folder: int, most_bytes: int) -> str:
    """A text file of ours. Raises OSError, or ValueError if it is larger or not in UTF-8."""
    with open(open_own_file(name, folder), "rb") as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"larger than {most_bytes} bytes")
    return content.decode("utf-8")


def within(limit_sec: float, path: Path, act: Callable[[], Result]) -> Result:
    """Do ``act``, which looks at ``path``; TimeoutError if that takes longer.

    A process that waits for a dead network share cannot be interrupted, so the act is left behind in a thread
    of its own, and as long as it hangs there, no other is sent after it. Raises what ``act`` raises, if that
    is an OSError, a ValueError or an error of ours.
    """
    silent = TimeoutError(errno.ETIMEDOUT, f"does not answer for {limit_sec:g} s", str(path))
    results: list[Result] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            results.append(act())
        except (OSError, ValueError, KdumpError) as error:
            failures.append(error)

    with _lock:
        if path in _hanging and _hanging[path].is_alive():
            raise silent
        _hanging.pop(path, None)
    thread = threading.Thread(target=run, name="look-at-target", daemon=True)
    thread.start()
    thread.join(limit_sec)
    if thread.is_alive():
        with _lock:
            _hanging[path] = thread
        raise silent
    if failures:
        raise failures[0]
    return results[0]
