# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the capture image of this machine has to hold: found out anew at each arming, in milliseconds."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdump_service.config import Config
from kdump_service.errors import NotSupported
from kdump_service.folders import STATE_FOLDER
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import Mount, holder_of
from kdump_service.kernel.storage import Storage, drivers_of, storage_of

__all__ = ["UNIT_SETTINGS_FOLDERS", "Recipe", "Storages", "find_storages", "needed_drivers", "recipe_of"]

logger = logging.getLogger(__name__)

SCHEMA = 1
"""Counts up when the way of building changes so that older images will not do."""

# To mount what is in the image (loop, squashfs), and to be rehearsed in a virtual machine.
_ALWAYS = ("loop", "squashfs", "virtio_blk", "virtio_pci")

UNIT_SETTINGS_FOLDERS = (
    "etc/systemd/system/kdump-capture.service.d",
    "usr/lib/systemd/system/kdump-capture.service.d",
)
"""Their drop-ins go into the image."""


@dataclass(frozen=True)
class Storages:
    """The file systems that a capture boot mounts."""

    target: Storage
    state: Storage | None
    """Where the service keeps its state, and the log of a crash whose target failed; None if it cannot be
    had."""


@dataclass(frozen=True)
class Recipe:
    """Two images of one recipe, made of the same files, are the same."""

    release: str
    """Of the kernel, as ``uname -r`` prints it."""
    drivers: tuple[str, ...]
    unit_settings: tuple[tuple[str, str], ...] = ()
    """Drop-ins of the capture's unit: path, and SHA-256 of the content."""
    watchdog_drivers: tuple[str, ...] = ()
    """Of watchdogs that run. They are often started after the machine is armed: an image that has more of
    them serves, so that none is built at each boot."""
    schema: int = SCHEMA

    @property
    def all_drivers(self) -> tuple[str, ...]:
        """What goes in, sorted."""
        return tuple(sorted({*self.drivers, *self.watchdog_drivers}))

    def serves(self, wanted: Recipe) -> bool:
        """Whether an image of this recipe does where one of ``wanted`` is wanted."""
        same = dataclasses.replace(self, watchdog_drivers=wanted.watchdog_drivers) == wanted
        return same and set(wanted.watchdog_drivers) <= set(self.all_drivers)

    def to_json(self) -> dict[str, Any]:
        """For the manifest of an image."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Recipe:
        """The opposite. Raises ValueError, TypeError or KeyError."""
        return cls(
            release=str(document["release"]),
            drivers=tuple(document["drivers"]),
            unit_settings=tuple((path, digest) for path, digest in document["unit_settings"]),
            watchdog_drivers=tuple(document.get("watchdog_drivers", ())),
            schema=int(document["schema"]),
        )


def find_storages(kernel_files: KernelFiles, config: Config) -> Storages:
    """The file systems of target and state. Raises NotSupported where a small image cannot mount the
    target's."""
    target = _storage_below(kernel_files, config.target)
    try:
        state = _storage_below(kernel_files, f"/{STATE_FOLDER}")
    except NotSupported:
        state = None
    return Storages(target, state)


def _storage_below(kernel_files: KernelFiles, path: str) -> Storage:
    mounts = kernel_files.mounts
    named = _holder(path, mounts)
    if named.may_hang:  # links on it would hang, too
        raise NotSupported(f"{named.point} is a file system of type {named.kind}", "Set Environment=rootfs.")
    return storage_of(kernel_files.root, _holder(kernel_files.true_path(path), mounts))


def _holder(path: str, mounts: list[Mount]) -> Mount:
    holder = holder_of(path, mounts)
    if holder is None:
        raise NotSupported(f"no file system holds {path}", "See: findmnt")
    return holder


def recipe_of(kernel_files: KernelFiles, config: Config, release: str, storages: Storages) -> Recipe:
    """For a kernel of this release."""
    drivers = {*needed_drivers(storages), *config.extra_drivers.split()}
    if storages.state is not None:
        drivers |= set(storages.state.drivers)
    return Recipe(
        release=release,
        drivers=tuple(sorted(drivers)),
        unit_settings=tuple(_unit_settings(kernel_files.root)),
        watchdog_drivers=tuple(sorted(_watchdog_drivers(kernel_files))),
    )


def needed_drivers(storages: Storages) -> set[str]:
    """Those without which an image does not bring the target up."""
    return {*_ALWAYS, *storages.target.drivers}


def _watchdog_drivers(kernel_files: KernelFiles) -> set[str]:
    """Of watchdogs that run: PID 1 of the capture boot feeds them, or they reset the machine amid it."""
    found: set[str] = set()
    for watchdog in kernel_files.watchdogs:
        if watchdog.outlives_the_kernel:
            device = (kernel_files.root / "sys/class/watchdog" / watchdog.name / "device").resolve()
            found |= drivers_of(kernel_files.root, device)
    return found - {""}


def _unit_settings(root: Path) -> list[tuple[str, str]]:
    found = []
    for folder in UNIT_SETTINGS_FOLDERS:
        for path in sorted((root / folder).glob("*.conf")):
            try:
                found.append((f"/{path.relative_to(root)}", hashlib.sha256(path.read_bytes()).hexdigest()))
            except OSError as error:  # a link to nowhere, a folder: systemd has no use for it, either
                logger.warning("%s: cannot be read, ignoring: %s", path, error.strerror)
    return found
