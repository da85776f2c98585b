# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which environment the capture boot gets: the small image of our own, or the crashed system's root file
system."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from kdump_service.arm.images import find_initramfs, release_of
from kdump_service.capture_settings import CaptureSettings
from kdump_service.config import Config
from kdump_service.errors import ImageMissing, NotSupported
from kdump_service.folders import FALLBACK_FOLDER
from kdump_service.image.dracut import dracut_is_installed
from kdump_service.image.layout import STATE_POINT, TARGET_FILE, TARGET_POINT
from kdump_service.image.recipe import Recipe, Storages, find_storages, needed_drivers, recipe_of
from kdump_service.image.store import ImageStore
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import holder_of
from kdump_service.kernel.storage import Storage

__all__ = ["CaptureEnvironment", "NothingBuiltYet", "choose_environment"]


@dataclass(frozen=True)
class CaptureEnvironment:
    """What the capture boot runs in."""

    name: Literal["initramfs", "rootfs"]
    initramfs: Path
    files: dict[str, str] = field(default_factory=dict)
    """Files to be added to the initramfs, besides the settings."""
    places: CaptureSettings = field(default_factory=CaptureSettings)
    """The settings as far as they tell where target and state are in the capture boot."""
    wanted: Recipe | None = None
    """The image that should be built; None if that is what is used already, or none can be."""
    buildable: str = ""
    """The release of the kernel for which an image can be built; empty if none can."""
    remark: str = ""
    """A code of kdump-problems(7): why it is not what was configured. Empty if it is."""
    explanation: str = ""
    """A sentence, and one that says what to do."""


class NothingBuiltYet(ImageMissing):
    """There is no initramfs of the system's own to serve until the small image is built."""

    def __init__(self, error: ImageMissing, wanted: Recipe) -> None:
        super().__init__(str(error), f"The capture image is being built. {_WAIT}")
        self.wanted = wanted


def choose_environment(kernel_files: KernelFiles, config: Config, kernel: Path) -> CaptureEnvironment:
    """What there is now. Raises ImageMissing where there is nothing; NothingBuiltYet if that will change.

    While an image is not built yet, or cannot be, the machine is armed with what there is: the last good
    image if it brings the same target up, else the system's own initramfs.
    """
    if config.image or config.environment == "rootfs":
        return _rootfs(kernel_files, config, kernel)
    release = release_of(kernel) or kernel_files.release
    try:
        storages = find_storages(kernel_files, config)
    except NotSupported as error:
        why = f"The small capture image cannot be used: {error}. {error.hint}"
        return _rootfs(kernel_files, config, kernel, "image-not-supported", why)
    recipe = recipe_of(kernel_files, config, release, storages)
    store = ImageStore(kernel_files.root)
    current = store.current(recipe)
    can_build = dracut_is_installed(kernel_files.root)
    buildable = release if can_build else ""
    if current is not None:
        return replace(_small(kernel_files, config, storages, current.path), buildable=buildable)
    last = store.last_good(release)
    if last is not None and needed_drivers(storages) <= set(last.recipe.all_drivers):
        changed = store.changed_source(last) or "its recipe"
        why = f"The capture image is out of date ({changed} has changed)"
        if not can_build:
            why += (
                f", and dracut is not installed, so that none can be built; the old one is used. {_INSTALL}"
            )
            return _small(kernel_files, config, storages, last.path, None, "image-tools-missing", why)
        why += f"; the old one is used until it is built anew. {_WAIT}"
        outdated = _small(kernel_files, config, storages, last.path, recipe, "image-outdated", why)
        return replace(outdated, buildable=buildable)
    if not can_build:
        why = (
            "dracut is not installed, so no small capture image can be built; the capture boot uses the root "
            f"file system. {_INSTALL}"
        )
        return _rootfs(kernel_files, config, kernel, "image-tools-missing", why)
    why = "The capture image is not built yet; until then the capture boot uses the root file system."
    try:
        rootfs = _rootfs(kernel_files, config, kernel, "image-building", f"{why} {_WAIT}", recipe)
    except ImageMissing as error:
        raise NothingBuiltYet(error, recipe) from error
    return replace(rootfs, buildable=buildable)


_INSTALL = "Install it (Debian: dracut-core), or set Environment=rootfs."
_WAIT = "Wait, and see: journalctl -u 'kdump-build-image@*'"


def _rootfs(
    kernel_files: KernelFiles,
    config: Config,
    kernel: Path,
    remark: str = "",
    explanation: str = "",
    wanted: Recipe | None = None,
) -> CaptureEnvironment:
    release = release_of(kernel) or kernel_files.release
    initramfs = find_initramfs(kernel_files.root, release, config)
    return CaptureEnvironment("rootfs", initramfs, wanted=wanted, remark=remark, explanation=explanation)


def _small(
    kernel_files: KernelFiles,
    config: Config,
    storages: Storages,
    image: Path,
    wanted: Recipe | None = None,
    remark: str = "",
    explanation: str = "",
) -> CaptureEnvironment:
    files = {
        "etc/machine-id": f"{kernel_files.machine_id}\n",
        "etc/hostname": f"{kernel_files.host_name}\n",
        TARGET_FILE: f"{storages.target.early_name} {storages.target.kind} {storages.target.options}\n",
        "etc/systemd/system/kdump-target.mount": _mount_unit(
            "Target of the Dump", storages.target, TARGET_POINT
        ),
        "etc/systemd/system/kdump-capture.target.wants/kdump-target.mount": "-> ../kdump-target.mount",
    }
    target = kernel_files.true_path(config.target)
    places = CaptureSettings(
        target_folder=_place(kernel_files, target, storages.target, TARGET_POINT),
        target_mount_point=TARGET_POINT,
        small_image=True,
    )
    if storages.state is not None:
        # Mounted only if the target fails; by a name that needs no udev, which does not run where the target
        # is mounted.
        files["etc/systemd/system/kdump-state.mount"] = _mount_unit(
            "State of the Crashed System",
            replace(storages.state, device=storages.state.early_name),
            STATE_POINT,
        )
        fallback = kernel_files.true_path(f"/{FALLBACK_FOLDER}")
        places = replace(
            places,
            fallback_folder=_place(kernel_files, fallback, storages.state, STATE_POINT),
            fallback_mount_point=STATE_POINT,
        )
    return CaptureEnvironment(
        "initramfs", image, files, places, wanted=wanted, remark=remark, explanation=explanation
    )


def _place(kernel_files: KernelFiles, path: str, storage: Storage, point: str) -> str:
    """Where a folder of production is in the capture boot, which mounts its whole file system at
    ``point``."""
    holder = holder_of(path, kernel_files.mounts)
    inside = PurePosixPath(path).relative_to(holder.point if holder else "/")
    return str(PurePosixPath(point) / storage.folder.lstrip("/") / inside)


def _mount_unit(description: str, storage: Storage, point: str) -> str:
    return f"""\
[Unit]
Description={description}
DefaultDependencies=no
[Mount]
What={_escaped(storage.device)}
Where={point}
Type={storage.kind}
Options={storage.options}
"""


def _escaped(text: str) -> str:
    """systemd.unit(5): a percent sign begins a specifier."""
    return text.replace("%", "%%")
