# SPDX-License-Identifier: LGPL-2.1-or-later
"""From configuration and machine to what is to be loaded, and to what the capture boot must know."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kdump_service.arm.command_line import capture_command_line, check_length
from kdump_service.arm.environment import CaptureEnvironment, choose_environment
from kdump_service.arm.identity import armed_identity
from kdump_service.arm.images import find_kernel
from kdump_service.arm.loader import FileIdentity, Loader, LoadRequest
from kdump_service.atomic_file import write_atomically
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.config import Config
from kdump_service.kernel.files import KernelFiles

__all__ = ["Plan", "mount_point_of", "plan_load", "write_capture_settings"]


@dataclass(frozen=True)
class Plan:
    """What to load, and why not something better."""

    request: LoadRequest
    environment: CaptureEnvironment


def plan_load(kernel_files: KernelFiles, config: Config) -> Plan:
    """What to load on this machine under this configuration. Raises CannotArm or one of its kinds."""
    kernel = find_kernel(kernel_files.root, kernel_files.release, config)
    environment = choose_environment(kernel_files, config, kernel)
    machine = platform.machine()
    running_watchdogs = [each.timeout_sec for each in kernel_files.watchdogs if each.outlives_the_kernel]
    command_line = capture_command_line(
        kernel_files.command_line,
        machine,
        config,
        environment.name,
        watchdog_sec=min(running_watchdogs, default=0),
    )
    check_length(command_line, machine)
    request = LoadRequest(FileIdentity.of(kernel), FileIdentity.of(environment.initramfs), command_line)
    if environment.name == "initramfs":
        # It is of the places only, not of all settings, which will hold it.
        known = {**environment.files, CAPTURE_SETTINGS_FILE: environment.places.to_json()}
        unnamed = replace(request, added_files=tuple(known.items()))
        identity = armed_identity(unnamed, config.target, kernel_files.root)
        settings = _completed(environment.places, kernel_files, config, identity)
        files = {**environment.files, CAPTURE_SETTINGS_FILE: settings.to_json()}
        request = replace(request, added_files=tuple(sorted(files.items())))
    return Plan(request, environment)


def mount_point_of(path: str, mount_points: Iterable[str]) -> str:
    """Which of ``mount_points`` holds ``path``, by their names alone: the target may be one that hangs."""
    parents = {str(parent) for parent in (Path(path), *Path(path).parents)}
    return max((point for point in mount_points if point in parents), key=len, default="/")


def _completed(
    places: CaptureSettings, kernel_files: KernelFiles, config: Config, identity: str
) -> CaptureSettings:
    return replace(
        places,
        boot_id=kernel_files.boot_id,
        host=kernel_files.host_name,
        armed_identity=identity,
        armed_uptime_seconds=_armed_uptime_sec(kernel_files, identity),
        config=config,
    )


def _armed_uptime_sec(kernel_files: KernelFiles, identity: str) -> float:
    """How long this kernel ran before it was armed with what has this identity; 0 if that is not known.

    Where settings in force say it, the number stays: with another one, what is loaded would not be what is
    wanted, and each look at the machine a reload.
    """
    if not identity:
        return 0.0
    for text in _settings_in_force(kernel_files):
        said = CaptureSettings.from_json(text)
        # A version may not have said it.
        if (said.boot_id, said.armed_identity) == (kernel_files.boot_id, identity) and (
            said.armed_uptime_seconds
        ):
            return said.armed_uptime_seconds
    return round(kernel_files.uptime_sec(), 1)


def _settings_in_force(kernel_files: KernelFiles) -> Iterator[str]:
    """Those that are loaded with a small image, then those on disk; none where nothing is loaded."""
    loaded = Loader(kernel_files).loaded_request()
    if loaded is None:
        return
    yield dict(loaded.added_files).get(CAPTURE_SETTINGS_FILE, "")
    with contextlib.suppress(OSError, UnicodeDecodeError):
        yield (kernel_files.root / CAPTURE_SETTINGS_FILE).read_text(encoding="utf-8")


def write_capture_settings(kernel_files: KernelFiles, config: Config, identity: str = "") -> None:
    """Write what a capture boot with the root file system reads. Raises OSError.

    ``identity`` is :func:`armed_identity` of what is loaded; empty where nobody knows.
    """
    place = CaptureSettings(target_mount_point=mount_point_of(config.target, kernel_files.mount_points))
    path = kernel_files.root / CAPTURE_SETTINGS_FILE
    text = _completed(place, kernel_files, config, identity).to_json(indent=2) + "\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return  # spare the disk a write at each reload
    except (OSError, UnicodeDecodeError):
        pass  # not there yet or damaged: written anew below, where failures count
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, text)
