# SPDX-License-Identifier: LGPL-2.1-or-later
"""Replace files of the administrator: whole or not at all, with the owner and the rights that they have."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from kdump_service.atomic_file import sync_folder
from kdump_service.errors import ConfigError

__all__ = ["put_text"]


def put_text(root: Path, path: str, text: str | None) -> None:
    """Make a file what the text is; None removes it. Raises ConfigError."""
    try:
        if text is None:
            (root / path.lstrip("/")).unlink(missing_ok=True)
        else:
            _replace(_true_path(root, path), text.encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be written: {error.strerror}",
            "Make its file system writable, or make the change where the file comes from.",
        ) from error


def _true_path(root: Path, path: str) -> Path:
    """Behind a link, what it leads to: the link itself stays."""
    named = root / path.lstrip("/")
    if not named.is_symlink():
        return named
    target = named.readlink()
    return root / str(target).lstrip("/") if target.is_absolute() else named.parent / target


def _replace(path: Path, content: bytes) -> None:
    try:
        old = path.stat()
    except FileNotFoundError:
        old = None
        path.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(old.st_mode) if old else 0o644
    temporary = path.with_name(f".{path.name}.kdump-new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            made = os.fstat(descriptor)
            # Only where there is something to change: the ESP's file system knows neither owners nor modes.
            if old and (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
                os.fchown(descriptor, old.st_uid, old.st_gid)
            if stat.S_IMODE(made.st_mode) != mode:
                os.fchmod(descriptor, mode)
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)
