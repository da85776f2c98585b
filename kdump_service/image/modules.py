# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of kernel modules, with those that they need, and the firmware that they ask for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from kdump_service.errors import ProgramFailed
from kdump_service.process import run

__all__ = ["find_firmware", "firmware_names", "module_files"]

logger = logging.getLogger(__name__)

_FIRMWARE_FOLDERS = ("updates/{release}", "updates", "{release}", "")
_FIRMWARE_SUFFIXES = ("", ".zst", ".xz")
"""Where the kernel looks, below /usr/lib/firmware (drivers/base/firmware_loader/main.c, fw_path)."""


def module_files(release: str, names: Iterable[str]) -> list[Path]:
    """Files of kernel modules, in the order of loading; none for what is built in, or what this kernel does
    not have (modprobe(8), -D)."""
    found: list[Path] = []
    for name in names:
        try:
            said = run(["modprobe", "-S", release, "-D", name], timeout_sec=20)
        except ProgramFailed as error:
            logger.info("left out of the image: %s", error)
            continue
        for line in said.splitlines():
            words = line.split()
            if words and words[0] == "insmod" and Path(words[1]) not in found:
                found.append(Path(words[1]))
    return found


def firmware_names(modules: Iterable[Path]) -> tuple[str, ...]:
    """What these modules may ask the kernel for, as names below the folder of firmware (modinfo(8))."""
    files = [str(path) for path in modules]
    try:
        said = run(["modinfo", "-F", "firmware", *files], timeout_sec=20) if files else ""
    except ProgramFailed as error:
        logger.warning("firmware that is installed later will not be noticed: %s", error)
        said = ""
    return tuple(sorted(set(said.split())))


def find_firmware(root: Path, release: str, name: str) -> Path | None:
    """The file that the kernel of this release would take; None if it is not installed."""
    for folder in _FIRMWARE_FOLDERS:
        for suffix in _FIRMWARE_SUFFIXES:
            path = root / "usr/lib/firmware" / folder.format(release=release) / f"{name}{suffix}"
            if path.is_file():
                return path
    return None
