# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk that stands for the target's: of the same type and UUID, so that the capture takes it for the
target."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from kdump_service.errors import CannotRehearse, ProgramFailed
from kdump_service.process import run

__all__ = ["make_scratch"]

_MKFS_SEC = 120.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _ext(kind: str) -> tuple[Callable[[str], list[str]], str]:
    return (lambda uuid: ["mke2fs", "-q", "-F", "-t", kind, "-U", uuid]), "e2fsprogs"


_MAKERS: dict[str, tuple[Callable[[str], list[str]], str]] = {
    "ext2": _ext("ext2"),
    "ext3": _ext("ext3"),
    "ext4": _ext("ext4"),
    "xfs": (lambda uuid: ["mkfs.xfs", "-q", "-f", "-m", f"uuid={uuid}"], "xfsprogs"),
    "btrfs": (lambda uuid: ["mkfs.btrfs", "-q", "-f", "-U", uuid], "btrfs-progs"),
    "f2fs": (lambda uuid: ["mkfs.f2fs", "-q", "-f", "-U", uuid], "f2fs-tools"),
    # What udev shows as its UUID is the volume id: 1234-ABCD.
    "vfat": (lambda uuid: ["mkfs.vfat", "-i", uuid.replace("-", "")], "dosfstools"),
}
"""By type: the command, to which the file is added, and the package that has it."""


def make_scratch(path: Path, size_bytes: int, kind: str, uuid: str) -> None:
    """Make a sparse file with an empty file system in it. Raises CannotRehearse or OSError."""
    if kind not in _MAKERS:
        raise CannotRehearse(
            f"the target's file system is of type {kind}; a rehearsal can make {', '.join(sorted(_MAKERS))}",
            "kdumpctl test crashes the machine itself.",
        )
    command, package = _MAKERS[kind]
    words = command(uuid)
    if shutil.which(words[0], path=_PATH) is None:
        raise CannotRehearse(f"{words[0]} is not installed", f"Install it (package {package}).")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.ftruncate(descriptor, size_bytes)
    finally:
        os.close(descriptor)
    try:
        run([*words, str(path)], timeout_sec=_MKFS_SEC)
    except ProgramFailed as error:
        raise CannotRehearse(f"the scratch target cannot be made: {error}") from error
