# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is armed on this machine, as far as a rehearsal has to know it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kdump_service.arm.loader import FileIdentity, Loader, LoadRequest
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.config import Config
from kdump_service.errors import CannotRehearse, ImageUnreadable
from kdump_service.kernel.cmdline import split_words, word_name
from kdump_service.kernel.files import KernelFiles

__all__ = ["TARGET_UNIT", "Armed", "armed_now"]

TARGET_UNIT = "etc/systemd/system/kdump-target.mount"
_BY_UUID = "/dev/disk/by-uuid/"


@dataclass(frozen=True)
class Armed:
    """What would be started by a crash now."""

    request: LoadRequest
    reserved_bytes: int
    identity: str
    """What a rehearsal proves; see arm.identity. Empty if unknown."""
    release: str
    config: Config
    target_kind: str
    """Type of the target's file system."""
    target_uuid: str
    target_folder: str
    """Where the target is in the capture boot."""
    target_mount_point: str

    @property
    def processors(self) -> int:
        """How many the capture boot starts."""
        named = [
            int(value)
            for word in split_words(self.request.command_line)
            if word_name(word) in ("nr_cpus", "maxcpus") and (value := word.partition("=")[2]).isdecimal()
        ]
        return max(1, min([*named, os.cpu_count() or 1]))


def armed_now(kernel_files: KernelFiles) -> Armed:
    """Look. Raises CannotRehearse where nothing is armed that could be rehearsed."""
    request = Loader(kernel_files).loaded_request()
    if request is None:
        raise CannotRehearse("nothing is armed that the service knows", "Run: kdumpctl arm")
    return armed_of(request, kernel_files.crash_size_bytes, kernel_files.release)


def armed_of(request: LoadRequest, reserved_bytes: int, release: str) -> Armed:
    """The same for a request that is known. Raises CannotRehearse."""
    files = dict(request.added_files)
    if CAPTURE_SETTINGS_FILE not in files or TARGET_UNIT not in files:
        raise CannotRehearse(
            "the capture boot uses the root file system, and only the small capture image can be rehearsed",
            "See kdumpctl check for why there is none; kdumpctl test crashes the machine itself.",
        )
    for file in (request.kernel, request.initramfs):
        try:
            if FileIdentity.of(Path(file.path)) != file:
                raise CannotRehearse(f"{file.path} has changed since it was armed", "Run: kdumpctl arm")
        except ImageUnreadable as error:
            raise CannotRehearse(str(error), "Run: kdumpctl arm") from error
    settings = CaptureSettings.from_json(files[CAPTURE_SETTINGS_FILE])
    if settings.problems:
        problem = settings.problems[0]
        raise CannotRehearse(f"what the capture boot is told is damaged: {problem}", "Run: kdumpctl arm")
    unit = dict(
        line.split("=", 1) for line in files[TARGET_UNIT].replace("%%", "%").splitlines() if "=" in line
    )
    if not unit["What"].startswith(_BY_UUID):
        raise CannotRehearse(
            f"the target's file system has no UUID by which another disk could stand for it ({unit['What']})",
            "Give it one, as with tune2fs -U random.",
        )
    return Armed(
        request=request,
        reserved_bytes=reserved_bytes,
        identity=settings.armed_identity,
        release=release,
        config=settings.config,
        target_kind=unit["Type"],
        target_uuid=unit["What"].removeprefix(_BY_UUID),
        target_folder=settings.target_folder,
        target_mount_point=settings.target_mount_point,
    )
