# SPDX-License-Identifier: LGPL-2.1-or-later
"""A folder on a mounted file system.

Nobody but root may read a dump: folders are made 0700 and files 0600, never over what exists, never through
a symbolic link. Data is flushed as it is written, so that the page cache of a small capture kernel never
fills with it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kdump_service.atomic_file import sync_folder
from kdump_service.errors import ProgramFailed, TargetFull, TargetUnusable
from kdump_service.process import run
from kdump_service.quantity import format_bytes
from kdump_service.record import DumpFile

__all__ = ["LocalDumpFolder", "LocalFile", "check_room", "room_for_dump"]

_FLUSH_BYTES = min(32 << 20, max(1 << 20, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 32))
"""Written data is flushed in pieces of this size: large enough for a disk to stream, and a small part of the
memory, which until then it occupies. Measured with crashkernel=128M, where 32 MiB of it left the capture too
little to run."""
_MOUNT_TIMEOUT_SEC = 60
_MOST_SAME_NAMES = 100


def _target_error(error: OSError, path: Path) -> TargetFull | TargetUnusable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TargetFull(f"{path}: {error.strerror}", "Make room on the target, or lower KeepFree=.")
    return TargetUnusable(f"{path}: {error.strerror}", "Check that the target is mounted and can be written.")


def room_for_dump(folder: Path, keep_free_bytes: int) -> int:
    """Bytes that a dump in this folder may take. Raises TargetUnusable."""
    try:
        status = os.statvfs(folder)
    except OSError as error:
        raise _target_error(error, folder) from error
    return max(status.f_bavail * status.f_frsize - keep_free_bytes, 0)


def check_room(folder: Path, keep_free_bytes: int) -> None:
    """Raise TargetFull if production would come back to less room than KeepFree= grants it."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < keep_free_bytes:
        raise TargetFull(
            f"{folder}: {format_bytes(free)} are left, less than KeepFree={keep_free_bytes >> 20}M",
            "Make room on the target, or lower KeepFree=.",
        )


class LocalFile:
    """A file of a dump folder while it is written; a Sink."""

    def __init__(self, path: Path, keep_free_bytes: int) -> None:
        self.path = path
        self._keep_free_bytes = keep_free_bytes
        self._unflushed_bytes = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _target_error(error, path) from error

    rewritable = True

    def reserve(self, size_bytes: int) -> None:
        """Take room for the file's first bytes. Raises TargetFull or TargetUnusable."""
        try:
            os.posix_fallocate(self._descriptor, 0, size_bytes)
        except OSError as error:
            raise _target_error(error, self.path) from error
        check_room(self.path.parent, self._keep_free_bytes)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``. Raises TargetFull before the file system's last bytes are taken."""
        view = memoryview(data)
        try:
            while len(view) > 0:
                written = os.pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
                self._unflushed_bytes += written
        except OSError as error:
            raise _target_error(error, self.path) from error
        if self._unflushed_bytes >= _FLUSH_BYTES:
            self.flush()
            check_room(self.path.parent, self._keep_free_bytes)

    def set_size(self, size_bytes: int) -> None:
        """Make the file this long; what was not written is a hole."""
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            raise _target_error(error, self.path) from error

    def read_at(self, offset: int, length: int) -> bytes:
        """Read back from the file."""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError as error:
            raise _target_error(error, self.path) from error

    def flush(self) -> None:
        """Bring what was written to the disk, and out of memory: a later read comes from the disk."""
        try:
            os.fdatasync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise _target_error(error, self.path) from error
        self._unflushed_bytes = 0

    def close(self, final_name: str | None = None) -> DumpFile:
        """Sync, give the file its final name if it has earned one, and say what it became."""
        try:
            os.fsync(self._descriptor)
            status = os.fstat(self._descriptor)
            if final_name is not None:
                self.path = self.path.rename(self.path.with_name(final_name))
            sync_folder(self.path.parent)
        except OSError as error:
            raise _target_error(error, self.path) from error
        finally:
            os.close(self._descriptor)
        return DumpFile(self.path.name, status.st_size, status.st_blocks * 512)  # stat(2): units of 512 bytes


class LocalDumpFolder:
    """The folder of one dump below a target folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, target: Path, mount_point: Path | None, name: str) -> LocalDumpFolder:
        """Make the folder ``name`` below ``target``; a name that is taken gets ``.2``, ``.3`` ...

        If the file system that held the target at arming is not mounted, its mount unit (/etc/fstab) is
        started: a dump must not end up below a mount point, where production would not see it.
        Raises TargetUnusable or TargetFull.
        """
        if mount_point is not None:
            _ensure_mounted(mount_point)
        try:
            target.mkdir(mode=0o700, parents=True, exist_ok=True)
            for attempt in range(1, _MOST_SAME_NAMES):
                path = target / (name if attempt == 1 else f"{name}.{attempt}")
                try:
                    path.mkdir(mode=0o700)
                except FileExistsError:
                    continue
                sync_folder(target)
                return cls(path)
        except OSError as error:
            raise _target_error(error, target) from error
        raise TargetUnusable(f"{target}: {_MOST_SAME_NAMES} dumps are named {name}")

    def create_file(self, name: str, keep_free_bytes: int) -> LocalFile:
        """Make a file in the folder, its name durable at once. Raises TargetUnusable or TargetFull."""
        file = LocalFile(self.path / name, keep_free_bytes)
        try:
            sync_folder(self.path)
        except OSError as error:
            raise _target_error(error, self.path) from error
        return file


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
