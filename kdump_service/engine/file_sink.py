# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plain file as the place that a dump is written to, for conversions."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kdump_service.atomic_file import sync_folder
from kdump_service.errors import TargetFull, TargetUnusable

__all__ = ["FileSink"]


class FileSink:
    """Writes NAME.incomplete, and calls it NAME when it is whole; a Sink."""

    rewritable = True

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        """Raises TargetUnusable, also if there is a file of that name and ``replace`` is not given."""
        self.final_path = path
        self._replace = replace
        self.path = path.with_name(f"{path.name}.incomplete")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            if not replace and os.path.lexists(path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            self._descriptor = os.open(self.path, flags | (os.O_TRUNC if replace else os.O_EXCL), 0o600)
        except OSError as error:
            raise self._translated(error) from error

    def reserve(self, size_bytes: int) -> None:
        """See Sink."""
        try:
            os.posix_fallocate(self._descriptor, 0, size_bytes)
        except OSError as error:
            raise self._translated(error) from error

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """See Sink."""
        view = memoryview(data)
        try:
            while view:
                written = os.pwrite(self._descriptor, view, offset)
                view = view[written:]
                offset += written
        except OSError as error:
            raise self._translated(error) from error

    def set_size(self, size_bytes: int) -> None:
        """See Sink."""
        try:
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            raise self._translated(error) from error

    def commit(self) -> int:
        """Sync the file, close it and give it its name; returns its length. What came meanwhile and has that
        name is replaced only if that was asked for, else TargetUnusable is raised."""
        try:
            length = os.fstat(self._descriptor).st_size
            # Else the name may survive a power cut that the content does not.
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            if self._replace:
                self.path.rename(self.final_path)
            else:
                self._rename_without_replacing()
            sync_folder(self.final_path.parent)
        except OSError as error:
            raise self._translated(error) from error
        return length

    def _rename_without_replacing(self) -> None:
        try:
            os.link(self.path, self.final_path, follow_symlinks=False)
        except FileExistsError:
            raise
        except OSError:  # as of FAT, which has no links
            if os.path.lexists(self.final_path):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            self.path.rename(self.final_path)
        else:
            self.path.unlink()

    def leave(self) -> None:
        """Close the file; it keeps the name that says that it is incomplete."""
        os.close(self._descriptor)

    def _translated(self, error: OSError) -> TargetFull | TargetUnusable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return TargetFull(f"{self.path}: {error.strerror}", "Make room, or write to another folder.")
        if error.errno == errno.EEXIST:
            name = self.final_path if os.path.lexists(self.final_path) else self.path
            return TargetUnusable(f"{name}: {error.strerror}", "Remove it, or write it anew with --force.")
        return TargetUnusable(f"{self.path}: {error.strerror}")
