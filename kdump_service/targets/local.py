# SPDX-License-Identifier: LGPL-2.1-or-later
"""Folders on mounted file systems.

Nobody but root may read a dump: folders are made 0700 and files 0600, never over what exists, never through
a symbolic link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kdump_service.atomic_file import sync_folder, temporary_of, write_atomically
from kdump_service.errors import ProgramFailed, TargetFull, TargetUnusable, VerificationFailed
from kdump_service.process import run
from kdump_service.quantity import format_bytes
from kdump_service.targets.contract import Can, StoredFile
from kdump_service.targets.flusher import Flusher, FlusherDied
from kdump_service.targets.pieces import Piece, Pieces
from kdump_service.targets.read_back import ReadBack

__all__ = ["LocalPlace", "LocalTarget", "LocalUpload", "check_room", "place_of_file"]

_FLUSH_BYTES = min(32 << 20, max(1 << 20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32))
"""Written data of a dump is flushed in pieces of this size, so that the page cache of a small capture kernel
never fills with it: large enough for a disk to stream, and a small part of the memory, which until then it
occupies. Measured with crashkernel=128M, where 32 MiB of it left the capture too little to run."""
_FLUSHES_AT_ONCE = 4
"""Of what may be unflushed, a quarter is flushed while the rest is written."""
_MOUNT_TIMEOUT_SEC = 60
_MOST_SAME_NAMES = 100
_LOSES_DATA = "The disk, or what lies between, loses data: check it."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Advice(NamedTuple):
    """What to do about an error."""

    full: str
    taken: str
    unusable: str


_FOR_DUMPS = _Advice(
    full="Make room on the target, or lower KeepFree=.",
    taken="Check that the target is mounted and can be written.",
    unusable="Check that the target is mounted and can be written.",
)
_FOR_ONE_FILE = _Advice(
    full="Make room, or write to another folder.",
    taken="Remove it, or write it anew with --force.",
    unusable="",
)


def _target_error(error: OSError, path: Path, advice: _Advice = _FOR_DUMPS) -> TargetFull | TargetUnusable:
    if error.errno in _FULL:
        return TargetFull(f"{path}: {error.strerror}", advice.full)
    if error.errno == errno.EEXIST:
        return TargetUnusable(f"{path}: {error.strerror}", advice.taken)
    return TargetUnusable(f"{path}: {error.strerror}", advice.unusable)


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def check_room(folder: Path, keep_free_bytes: int) -> None:
    """Raise TargetFull if production would come back to less room than KeepFree= grants it."""
    free = _free_bytes(folder)
    if free < keep_free_bytes:
        raise TargetFull(
            f"{folder}: {format_bytes(free)} are left, less than KeepFree={keep_free_bytes >> 20}M",
            "Make room on the target, or lower KeepFree=.",
        )


class LocalTarget:
    """A folder in which each dump gets a folder of its own; see Target."""

    def __init__(
        self,
        folder: Path,
        *,
        mount_point: Path | None = None,
        keep_free_bytes: int = 0,
        kept_room: Mapping[str, int] | None = None,
    ) -> None:
        """If the file system that held the folder at arming (``mount_point``) is not mounted, its mount unit
        (/etc/fstab) is started: a dump must not end up below a mount point, where production would not see
        it. ``kept_room``: so many bytes are kept for a small file of this name."""
        self._folder = folder
        self._mount_point = mount_point
        self._keep_free_bytes = keep_free_bytes
        self._kept_room = dict(kept_room or {})

    def opened(self, name: str) -> LocalPlace:
        """See Target."""
        return LocalPlace(
            self._folder / name,
            keep_free_bytes=self._keep_free_bytes,
            flush_bytes=_FLUSH_BYTES,
            begin_again=True,
            kept_room=self._kept_room,
        )

    def open(self, name: str) -> LocalPlace:
        """See Target; a name that is taken gets ``.2``, ``.3`` ..."""
        if self._mount_point is not None:
            _ensure_mounted(self._mount_point)
        folder = self._folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for attempt in range(1, _MOST_SAME_NAMES):
                path = folder / (name if attempt == 1 else f"{name}.{attempt}")
                try:
                    path.mkdir(mode=0o700)
                except FileExistsError:
                    continue
                sync_folder(folder)
                return self.opened(path.name)
        except OSError as error:
            raise _target_error(error, folder) from error
        raise TargetUnusable(f"{folder}: {_MOST_SAME_NAMES} dumps are named {name}")


class LocalPlace:
    """A folder that takes files; see Place."""

    can = Can.REWRITE | Can.READ_BACK

    def __init__(
        self,
        folder: Path,
        *,
        keep_free_bytes: int = 0,
        flush_bytes: int = 0,
        begin_again: bool = False,
        replace: bool = False,
        kept_room: Mapping[str, int] | None = None,
        advice: _Advice = _FOR_DUMPS,
    ) -> None:
        """``flush_bytes``: so much may be written and not flushed; 0 leaves that to the kernel.
        ``begin_again``: incomplete files are our own, and may be begun anew. ``replace``: files that have the
        names of new ones are replaced, complete or not. ``kept_room``: see LocalTarget."""
        self._folder = folder
        self._keep_free_bytes = keep_free_bytes
        self._flush_bytes = flush_bytes
        self._begin_again = begin_again or replace
        self._replace = replace
        self._advice = advice
        self._kept_room = dict(kept_room or {})

    @property
    def name(self) -> str:
        """See Place."""
        return self._folder.name

    def room_bytes(self, *, is_log: bool = False) -> int:
        """See Place."""
        try:
            return max(_free_bytes(self._folder) - (0 if is_log else self._keep_free_bytes), 0)
        except OSError as error:
            raise _target_error(error, self._folder, self._advice) from error

    def keep_room(self) -> None:
        """See to it that there is the room that is to be kept. What has it is the file into which the content
        is written before it gets its name."""
        for name, size_bytes in self._kept_room.items():
            self._keep_room_for(name, size_bytes)

    def _keep_room_for(self, name: str, size_bytes: int) -> None:
        path = temporary_of(self._folder / name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _target_error(error, path, self._advice) from error

    def put(self, name: str, content: bytes) -> StoredFile:
        """See Place."""
        path = self._folder / name
        try:
            write_atomically(path, content)
            self._check_what_was_put(path, content)
            if name in self._kept_room:
                # If there is no room any more, what was just put is there all the same.
                with contextlib.suppress(TargetFull):
                    self._keep_room_for(name, self._kept_room[name])
            return _stored(name, path.lstat())
        except OSError as error:
            raise _target_error(error, path, self._advice) from error

    def _check_what_was_put(self, path: Path, content: bytes) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, descriptor)
            back = ReadBack(path, descriptor)
            opened.callback(back.close)
            if not back.is_as_written(Piece(0, len(content), zlib.crc32(content))):
                raise TargetUnusable(f"{path} is not what was written", _LOSES_DATA)

    def files(self) -> list[StoredFile]:
        """See Place."""
        try:
            return [
                _stored(path.name, path.lstat())
                for path in sorted(self._folder.iterdir())
                if not path.name.startswith(".")  # of put() and keep_room()
            ]
        except OSError as error:
            raise _target_error(error, self._folder, self._advice) from error

    def release_room(self) -> None:
        """See Place."""
        try:
            for name in self._kept_room:
                temporary_of(self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise _target_error(error, self._folder, self._advice) from error

    def discard(self) -> None:
        """See Place."""
        try:
            for path in self._folder.iterdir():
                path.unlink()
            self._folder.rmdir()
        except OSError as error:
            raise _target_error(error, self._folder, self._advice) from error

    def create(self, name: str, *, is_log: bool = False) -> LocalUpload:
        """See Place. The name, NAME.incomplete, is durable at once."""
        path = self._folder / f"{name}.incomplete"
        keep_free_bytes = 0 if is_log else self._keep_free_bytes
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        flags |= os.O_TRUNC if self._begin_again else os.O_EXCL
        try:
            check_room(self._folder, keep_free_bytes)
            if not self._replace and os.path.lexists(self._folder / name):
                path = self._folder / name
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            descriptor = os.open(path, flags, 0o600)
            try:
                sync_folder(self._folder)
            except OSError:
                os.close(descriptor)
                raise
        except OSError as error:
            raise _target_error(error, path, self._advice) from error
        return LocalUpload(
            path,
            descriptor,
            keep_free_bytes=keep_free_bytes,
            flush_bytes=self._flush_bytes,
            replace=self._replace,
            advice=self._advice,
        )


def place_of_file(path: Path, *, replace: bool = False) -> tuple[LocalPlace, str]:
    """The place for a file that somebody names, and what it is called there. ``replace``: if there is one, it
    is replaced."""
    return LocalPlace(path.parent, replace=replace, advice=_FOR_ONE_FILE), path.name


class LocalUpload:
    """A file while it is written; see Upload."""

    can = LocalPlace.can
    rewritable = True

    def __init__(
        self,
        path: Path,
        descriptor: int,
        *,
        keep_free_bytes: int,
        flush_bytes: int,
        replace: bool,
        advice: _Advice,
    ) -> None:
        """``descriptor`` is open for reading and writing, and closed with this. For the rest see
        LocalPlace."""
        self._path = path
        self._descriptor = descriptor
        self._keep_free_bytes = keep_free_bytes
        self._flush_bytes = flush_bytes
        self._replace = replace
        self._advice = advice
        self._unflushed_bytes = 0
        self._head_bytes = 0
        self._pieces = Pieces()
        self._damaged: list[Piece] = []
        self._read_back: ReadBack | None = None
        self._flusher: Flusher | None = None
        self._flushing_bytes = 0
        """What the flusher is to flush."""
        self._sent_end = 0
        """Up to there pieces were given to it to read them back."""

    @property
    def size_bytes(self) -> int:
        """See Upload."""
        with self._translated():
            return os.fstat(self._descriptor).st_size

    def reserve(self, size_bytes: int) -> None:
        """See Upload."""
        self._head_bytes = size_bytes
        with self._translated():
            os.posix_fallocate(self._descriptor, 0, size_bytes)
            check_room(self._path.parent, self._keep_free_bytes)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """See Upload. Raises TargetFull before the file system's last bytes are taken."""
        view = memoryview(data)
        with self._translated():
            if self._head_bytes <= offset < self._sent_end:
                self._finish_beside()  # what is written anew must not be compared with what it was
            self._damaged += self._pieces.add(offset, view, self.read_at)
            while len(view) > 0:
                written = os.pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
                self._unflushed_bytes += written
            if self._flush_bytes and self._unflushed_bytes >= self._flush_bytes // _FLUSHES_AT_ONCE:
                self._flush_beside()

    def set_size(self, size_bytes: int) -> None:
        """See Upload; what was not written is a hole."""
        with self._translated():
            os.ftruncate(self._descriptor, size_bytes)

    def read_at(self, offset: int, length: int) -> bytes:
        """See Upload."""
        parts = []
        with self._translated():
            while length > 0 and (part := os.pread(self._descriptor, length, offset)):
                parts.append(part)
                offset += len(part)
                length -= len(part)
        return b"".join(parts)

    def flush(self) -> None:
        """See Upload. What was written leaves the memory, too: a later read comes from the disk."""
        with self._translated():
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        self._unflushed_bytes = 0

    def _flush_beside(self) -> None:
        """Keep the disk at work, and what is written and not flushed below its limit."""
        limit = self._flush_bytes
        try:
            if self._flusher is None:
                self._flusher = Flusher(self._path, self._descriptor)
            flusher = self._flusher
            flusher.collect()
            if self._unflushed_bytes + self._flushing_bytes >= limit:
                flusher.wait_for_flush()
            if not flusher.flushes:
                check_room(self._path.parent, self._keep_free_bytes)
                # What stands before the pages is written more than once, and read back at the end.
                self._send(flusher, self._pieces.take(self._head_bytes, all_of_them=False))
        except (FlusherDied, BlockingIOError):  # there are no more processes, or it was killed
            self._go_on_without_flusher()

    def _send(self, flusher: Flusher, pieces: list[Piece]) -> None:
        flusher.flush(pieces)
        self._flushing_bytes, self._unflushed_bytes = self._unflushed_bytes, 0
        self._sent_end = max([self._sent_end, *(piece.end for piece in pieces)])

    def _finish_beside(self, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
        """Wait for all that is done beside."""
        if self._flusher is not None:
            try:
                self._flusher.wait_for_all(advance)
            except FlusherDied:
                self._go_on_without_flusher()
            self._sent_end = 0

    def _go_on_without_flusher(self) -> None:
        """Do it here. What was read back is read once more: nobody knows how far that had come."""
        if self._flusher is not None:
            self._damaged += self._flusher.damaged
            self._flusher.close()
            self._flusher = None
            self._pieces.take_again()
        self._sent_end = 0
        self.flush()
        check_room(self._path.parent, self._keep_free_bytes)

    @property
    def read_back_bytes(self) -> tuple[int, int]:
        """See Upload."""
        read, cached = 0, 0
        if self._read_back is not None:
            read, cached = self._read_back.bytes, self._read_back.cached_bytes
        if self._flusher is not None:
            read, cached = read + self._flusher.read_back_bytes, cached + self._flusher.cached_bytes
        return read, cached

    def verify(self, advance: Callable[[int, int], object] = lambda done, total: None) -> None:
        """See Upload. What nobody wrote must be zeros."""
        self.flush()
        with self._translated():
            if self._flusher is not None:
                try:
                    self._flusher.wait_for_flush()
                    self._send(self._flusher, self._pieces.take(0, all_of_them=True))
                except FlusherDied:
                    self._go_on_without_flusher()
                self._finish_beside(advance)
            if self._flusher is not None:
                self._damaged += self._flusher.damaged
                self._flusher.damaged.clear()
            self._compare(self._pieces.take(0, all_of_them=True), advance)
            if self._damaged:
                first = min(self._damaged)
                raise VerificationFailed(
                    f"{self._path}: {len(self._damaged)} pieces of the file are not what was written, the "
                    f"first at offset {first.offset:#x} with a length of {first.length}",
                    _LOSES_DATA,
                )
            for offset, length in self._pieces.gaps(os.fstat(self._descriptor).st_size):
                found = self._back().first_data(offset, length)
                if found is not None:
                    raise VerificationFailed(f"{self._path}: nobody wrote the byte at offset {found:#x}")

    def _compare(
        self, pieces: list[Piece], advance: Callable[[int, int], object] = lambda done, total: None
    ) -> None:
        total = sum(piece.length for piece in pieces)
        done = 0
        for piece in pieces:
            if not self._back().is_as_written(piece):
                self._damaged.append(piece)
            done += piece.length
            advance(done, total)

    def _back(self) -> ReadBack:
        if self._read_back is None:
            self._read_back = ReadBack(self._path, self._descriptor)
        return self._read_back

    def publish(self, name: str) -> StoredFile:
        """See Upload. What came meanwhile and has that name is replaced only if that was asked for, else
        TargetUnusable is raised."""
        try:
            # Else the name may survive a power cut that the content does not.
            with self._translated():
                os.fsync(self._descriptor)
            self.verify()
            final = self._path.with_name(name)
            with self._translated(final):
                if self._replace:
                    self._path.rename(final)
                else:
                    _rename_without_replacing(self._path, final)
                self._path = final
                sync_folder(final.parent)
        finally:
            stored = self.abandon()
        return stored

    def abandon(self) -> StoredFile:
        """See Upload."""
        with self._translated():
            try:
                status = os.fstat(self._descriptor)
            finally:
                os.close(self._descriptor)
                if self._read_back is not None:
                    self._read_back.close()
                if self._flusher is not None:
                    self._flusher.close()
        return _stored(self._path.name, status)

    @contextlib.contextmanager
    def _translated(self, path: Path | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _target_error(error, path or self._path, self._advice) from error


def _stored(name: str, status: os.stat_result) -> StoredFile:
    return StoredFile(name, status.st_size, status.st_blocks * 512)  # stat(2): units of 512 bytes


def _rename_without_replacing(path: Path, final: Path) -> None:
    try:
        os.link(path, final, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # as of FAT, which has no links
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        path.rename(final)
    else:
        path.unlink()


def _ensure_mounted(mount_point: Path) -> None:
    if os.path.ismount(mount_point):
        return
    try:
        # systemctl takes a path for its mount unit (systemctl(1)); its job may be under way already, waiting
        # for the disk or a check, and is then waited for.
        run(["systemctl", "start", str(mount_point)], timeout_sec=_MOUNT_TIMEOUT_SEC)
    except ProgramFailed as error:
        raise TargetUnusable(
            f"{mount_point} is not mounted and cannot be",
            "Check its line in /etc/fstab, and that its disk is there.",
        ) from error
