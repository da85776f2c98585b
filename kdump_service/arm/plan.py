# SPDX-License-Identifier: LGPL-2.1-or-later
"""From configuration and machine to what is to be loaded, and to what the capture boot must know.

In the capture boot the daemon's view of the machine is gone. What it needs is written at arming to one
JSON file: the configuration, who the machine is, and where the target is mounted.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from pathlib import Path

from kdump_service.arm.command_line import capture_command_line, check_length
from kdump_service.arm.images import find_images
from kdump_service.arm.loader import LoadRequest
from kdump_service.config import CAPTURE_SETTINGS_FILE, Config
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import write_atomically

__all__ = ["mount_point_of", "plan_load", "write_capture_settings"]

CAPTURE_SETTINGS_SCHEMA = 1


def plan_load(kernel_files: KernelFiles, config: Config) -> LoadRequest:
    """What to load on this machine under this configuration. Raises CannotArm or one of its kinds."""
    images = find_images(kernel_files.root, kernel_files.release, config)
    machine = platform.machine()
    command_line = capture_command_line(kernel_files.command_line, machine, config)
    check_length(command_line, machine)
    return LoadRequest.of(images, command_line)


def mount_point_of(path: str, mount_points: Iterable[str]) -> str:
    """Which of ``mount_points`` holds ``path``, by their names alone: the target may be one that hangs."""
    parents = {str(parent) for parent in (Path(path), *Path(path).parents)}
    return max((point for point in mount_points if point in parents), key=len, default="/")


def write_capture_settings(kernel_files: KernelFiles, config: Config) -> None:
    """Write what the capture boot reads. Raises OSError."""
    document = {
        "schema": CAPTURE_SETTINGS_SCHEMA,
        "boot_id": kernel_files.boot_id,
        "host": kernel_files.host_name,
        "target_mount_point": mount_point_of(config.target, kernel_files.mount_points),
        "config": config.to_json(),
    }
    path = kernel_files.root / CAPTURE_SETTINGS_FILE
    text = json.dumps(document, indent=2) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return  # spare the disk a write at each reload
    except (OSError, UnicodeDecodeError):
        pass  # not there yet or damaged: written anew below, where failures count
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, text)
