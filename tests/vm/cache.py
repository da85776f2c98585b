# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps what is slow to make: one folder of entries, each made once, whole or not at all.

What an entry holds is its maker's business; the cache only promises that a folder under its final name is
complete.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.budget import guests

__all__ = ["Cache", "digest", "digest_tree", "say", "set_reporter", "slow_step"]


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_reporter: Callable[[str], None] = _to_stderr


def set_reporter(reporter: Callable[[str], None]) -> None:
    """Send the one-line notes on slow steps elsewhere than to standard error (pytest captures that)."""
    global _reporter  # noqa: PLW0603 - one process, one terminal
    _reporter = reporter


def say(line: str) -> None:
    """Tell the person who waits what is going on."""
    _reporter(line)


@contextlib.contextmanager
def slow_step(doing: str) -> Iterator[None]:
    """Say what is begun, and when it ends how many seconds it took."""
    say(f"{doing} ...")
    start = time.monotonic()
    try:
        yield
    except BaseException:
        say(f"{doing}: failed after {time.monotonic() - start:.1f} s")
        raise
    say(f"{doing}: {time.monotonic() - start:.1f} s")


def digest(*parts: str | bytes) -> str:
    """A short name for these parts in this order: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        # The length keeps ("ab", "c") apart from ("a", "bc").
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def digest_tree(root: Path) -> str:
    """A short name for every name, mode, link target and byte under `root`; times and owners do not count."""
    parts: list[str | bytes] = []
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        parts += [str(path.relative_to(root)), oct(mode)]
        if stat.S_ISLNK(mode):
            parts.append(str(path.readlink()))
        elif stat.S_ISREG(mode):
            parts.append(path.read_bytes())
    return digest(*parts)


def _default_folder() -> Path:
    if folder := os.environ.get("KDUMP_TEST_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kdump-service"


class Cache:
    """Entries `<kind>-<key>` in $KDUMP_TEST_CACHE, else in kdump-service of the user's cache folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or _default_folder()).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)

    def entry(self, kind: str, key: str, build: Callable[[Path], None], *, doing: str, keep: int = 0) -> Path:
        """The folder of this entry, after `build` has filled it if nobody had before.

        `build` gets an empty folder under a temporary name; it becomes the entry by a rename, so a build that
        was stopped half way never passes for a whole one. A second process waits for the first. With `keep`,
        only that many entries of this kind, the last used, stay.
        """
        final = self.folder / f"{kind}-{key}"
        with self._locked(f"{kind}-{key}"):
            if not final.exists():
                unfinished = self.folder / f".unfinished-{kind}-{key}"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                with slow_step(doing), guests.making(f"{kind}-{key}"):
                    build(unfinished)
                unfinished.rename(final)
            os.utime(final)
        if keep:
            self._prune(kind, keep)
        return final

    @contextlib.contextmanager
    def _locked(self, name: str) -> Iterator[None]:
        # The lock file stays: to remove it would let two processes lock two different files of one name.
        locks = self.folder / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / name).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prune(self, kind: str, keep: int) -> None:
        entries = sorted(self.folder.glob(f"{kind}-*"), key=lambda entry: entry.stat().st_mtime, reverse=True)
        for entry in entries[keep:]:
            shutil.rmtree(entry, ignore_errors=True)
