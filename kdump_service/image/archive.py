# SPDX-License-Identifier: LGPL-2.1-or-later
"""Writes cpio archives in the form "newc", which the kernel unpacks as an initramfs.

Form: Documentation/driver-api/early-userspace/buffer-format.rst. Archives can stand one behind the other,
each beginning at a multiple of four bytes; a later one adds to what an earlier one brought.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO

__all__ = ["Archive", "small_archive"]

_LARGEST_FILE_BYTES = (1 << 32) - 1


class Archive:
    """One archive while it is written. Everything in it belongs to root, and has no times, so that the same
    content gives the same bytes."""

    def __init__(self, output: BinaryIO) -> None:
        self._output = output
        self._written = 0
        self._inode = 0
        self._folders: set[str] = set()

    def folder(self, path: str, mode: int = 0o755) -> None:
        """Add a folder, and those above it that are not there yet."""
        pure = PurePosixPath(path.strip("/"))
        for each in (*reversed(pure.parents), pure):
            name = str(each)
            if name != "." and name not in self._folders:
                self._folders.add(name)
                self._entry(name, stat.S_IFDIR | (mode if each == pure else 0o755), b"")

    def file(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Add a file with this content."""
        self._entry(self._placed(path), stat.S_IFREG | mode, content)

    def copy(self, path: str, source: Path) -> None:
        """Add a copy of a file, link, folder or device node. Raises OSError."""
        status = source.lstat()
        if stat.S_ISDIR(status.st_mode):
            self.folder(path, stat.S_IMODE(status.st_mode))
        elif stat.S_ISLNK(status.st_mode):
            self.link(path, os.readlink(source))  # noqa: PTH115  (Path would tidy it up)
        elif stat.S_ISREG(status.st_mode):
            with open(source, "rb") as content:
                size = os.fstat(content.fileno()).st_size
                self._head(self._placed(path), status.st_mode, size)
                shutil.copyfileobj(content, self._output, 1 << 20)
                self._written += size
                self._pad()
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            self._head(self._placed(path), status.st_mode, 0, status.st_rdev)

    def link(self, path: str, to: str) -> None:
        """Add a symbolic link."""
        self._entry(self._placed(path), stat.S_IFLNK | 0o777, to.encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        """Write the end of the archive; what is written behind it begins at a multiple of 512."""
        self._head("TRAILER!!!", 0, 0)
        self._write(bytes(-self._written % 512))

    def _placed(self, path: str) -> str:
        pure = PurePosixPath(path.strip("/"))
        if str(pure.parent) != ".":
            self.folder(str(pure.parent))
        return str(pure)

    def _entry(self, name: str, mode: int, content: bytes) -> None:
        self._head(name, mode, len(content))
        self._write(content)
        self._pad()

    def _head(self, name: str, mode: int, size: int, device: int = 0) -> None:
        if size > _LARGEST_FILE_BYTES:
            raise ValueError(f"{name}: {size} bytes are too many for an initramfs")
        self._inode += 1
        raw = name.encode("utf-8", "surrogateescape") + b"\0"
        numbers = (
            self._inode, mode, 0, 0, 2 if stat.S_ISDIR(mode) else 1, 0, size, 0, 0,
            os.major(device), os.minor(device), len(raw), 0,
        )  # fmt: skip
        self._write(b"070701" + b"".join(b"%08X" % number for number in numbers) + raw)
        self._pad()

    def _pad(self) -> None:
        self._write(bytes(-self._written % 4))

    def _write(self, data: bytes) -> None:
        self._output.write(data)
        self._written += len(data)


def small_archive(files: dict[str, str]) -> bytes:
    """An archive of text files, by path. A text that begins with ``-> `` is the target of a symbolic link."""
    output = io.BytesIO()
    archive = Archive(output)
    for path, text in sorted(files.items()):
        if text.startswith("-> "):
            archive.link(path, text[3:])
        else:
            archive.file(path, text.encode("utf-8", "surrogateescape"))
    archive.close()
    return output.getvalue()
