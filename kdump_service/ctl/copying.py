# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copy a dump that came as a descriptor: sparse as it is, whole or not at all, for its owner's eyes only."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from kdump_service.errors import BadVmcore, ConfigError, KdumpError, TargetFull, TargetUnusable

__all__ = ["OutputFile", "copy", "open_output", "terminable"]

_CHUNK_BYTES = 8 << 20
"""Of one copy_file_range(2): what a disk writes in a moment, so that progress shows and ^C is heard."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_COPY_RANGE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)
"""copy_file_range(2): other kinds of files, other file systems; a filter of system calls."""
_CANNOT_LINK = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class OutputFile:
    """What is written to: a new file, standard output, or a device or pipe that has a name."""

    def __init__(self, name: str, descriptor: int, *, seekable: bool) -> None:
        self.name = name
        self.descriptor = descriptor
        self.seekable = seekable
        """Whether holes can be left."""

    def write(self, data: bytes | memoryview) -> int:
        """All of it. Raises TargetFull or TargetUnusable."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.descriptor, view) :]
        except OSError as error:
            raise write_error(self.name, error) from error
        return len(data)

    def flush(self) -> None:
        """Nothing waits here; tarfile asks for it."""


def write_error(name: str, error: OSError) -> KdumpError:
    """The error of ours for one of writing."""
    if error.errno in _NO_ROOM:
        return TargetFull(f"{name}: {error.strerror}", "Make room, or write to another folder.")
    return TargetUnusable(f"{name}: {error.strerror}")


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as ^C does, so that it cleans up behind itself."""

    def end(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def open_output(path: str, *, force: bool) -> Iterator[OutputFile]:
    """Where to write; ``-`` is standard output, which may be no terminal.

    A file is called ``PATH.incomplete`` until the context ends well; if it does not, it is removed. A file
    that is there already stays untouched unless ``force`` is given, and then until the new one is whole.
    Raises TargetUnusable, TargetFull, or ConfigError.
    """
    if path == "-":
        if sys.stdout.isatty():
            raise ConfigError(
                "a dump is not written to a terminal", "Redirect standard output, or use -o FILE."
            )
        sys.stdout.flush()
        yield OutputFile("standard output", sys.stdout.fileno(), seekable=False)
        return
    final = Path(path)
    try:
        there = final.stat()
    except FileNotFoundError:
        there = None
    except OSError as error:
        raise write_error(path, error) from error
    if there is not None and stat.S_ISDIR(there.st_mode):
        raise TargetUnusable(f"{path} is a folder", "Name a file.")
    if there is not None and not stat.S_ISREG(there.st_mode):
        yield from _open_special(path)
        return
    if (there is not None or final.is_symlink()) and not force:
        raise TargetUnusable(f"{path}: File exists", "Remove it, or write it anew with --force.")
    yield from _open_new(final, force=force)


def _open_special(path: str) -> Iterator[OutputFile]:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield OutputFile(path, descriptor, seekable=False)
    finally:
        os.close(descriptor)


def _open_new(final: Path, *, force: bool) -> Iterator[OutputFile]:
    partial = final.with_name(f"{final.name}.incomplete")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if force:
            partial.unlink(missing_ok=True)
        descriptor = os.open(partial, flags, 0o600)
    except FileExistsError as error:
        raise TargetUnusable(
            f"{partial}: File exists", "If nobody writes it, remove it, or use --force."
        ) from error
    except OSError as error:
        raise write_error(str(partial), error) from error
    try:
        yield OutputFile(str(final), descriptor, seekable=True)
        try:
            os.fsync(descriptor)
            _give_name(partial, final, force=force)
        except OSError as error:
            raise write_error(str(final), error) from error
    finally:
        os.close(descriptor)
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _give_name(partial: Path, final: Path, *, force: bool) -> None:
    """Rename, but not over a file that came to be meanwhile, unless that is meant."""
    if not force:
        try:
            final.hardlink_to(partial)
            return
        except OSError as error:
            if error.errno not in _CANNOT_LINK:
                raise
    partial.rename(final)


def copy(
    source: int, output: OutputFile, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Copy all of an open file, holes as holes where that can be; its length.

    ``progress`` is called with bytes. Raises BadVmcore if the source cannot be read or becomes shorter,
    TargetFull or TargetUnusable.
    """
    size = os.fstat(source).st_size
    if output.seekable:
        for begin, end in _data_extents(source, size):
            _copy_extent(source, output, begin, end, lambda done: progress(done, size))
        try:
            os.ftruncate(output.descriptor, size)
        except OSError as error:
            raise write_error(output.name, error) from error
    else:
        _copy_by_reading(source, output, 0, size, lambda done: progress(done, size))
    progress(size, size)
    return size


def _data_extents(source: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file has data: all of it where the file system knows of no holes (lseek(2), SEEK_DATA)."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(source, end, os.SEEK_DATA)
            end = os.lseek(source, begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # nothing but a hole up to the end
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise BadVmcore(f"the dump cannot be read: {error.strerror}") from error
            begin, end = end, size
        yield begin, min(end, size)


def _copy_extent(
    source: int, output: OutputFile, begin: int, end: int, progress: Callable[[int], None]
) -> None:
    position = begin
    while position < end:
        try:
            count = os.copy_file_range(
                source, output.descriptor, min(_CHUNK_BYTES, end - position), position, position
            )
        except OSError as error:
            if error.errno in _CANNOT_COPY_RANGE:
                break
            raise write_error(output.name, error) from error
        if not count:
            break  # also what some file systems say who cannot do it: reading tells the difference
        position += count
        progress(position)
    if position < end:
        try:
            os.lseek(output.descriptor, position, os.SEEK_SET)
        except OSError as error:
            raise write_error(output.name, error) from error
        _copy_by_reading(source, output, position, end, progress)


def _copy_by_reading(
    source: int, output: OutputFile, begin: int, end: int, progress: Callable[[int], None]
) -> None:
    buffer = bytearray(1 << 20)
    position = begin
    while position < end:
        view = memoryview(buffer)[: min(len(buffer), end - position)]
        try:
            count = os.preadv(source, [view], position)
        except OSError as error:
            raise BadVmcore(f"the dump cannot be read: {error.strerror}") from error
        if not count:
            raise BadVmcore(f"the dump became shorter while it was read: {position} bytes of {end}")
        output.write(view[:count])
        position += count
        progress(position)
