# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is the crash kernel loaded, and is it what the files say now?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kdump_service.arm.images import release_in_name, release_of
from kdump_service.arm.loader import FileIdentity, LoadRequest
from kdump_service.config import Config, read_config
from kdump_service.errors import ImageUnreadable
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.problems import PROBLEM_CODES, Problem, Severity, found
from kdump_service.service.state import ArmState, Status

__all__ = ["configuration_problems", "image_problems", "state_problems"]


def state_problems(status: Status) -> Iterator[Problem]:
    """What the manager says. While an earlier crash kernel is loaded, no failure to load is fatal."""
    armed = status.state is ArmState.ARMED and status.loaded
    if status.reason:
        severity = Severity.FATAL
        if armed:
            kind = PROBLEM_CODES.get(status.reason)
            severity = Severity.NOTE if kind and kind.severity is Severity.NOTE else Severity.WARNING
        what, _, remedy = status.explanation.partition(". ")
        yield Problem(status.reason, severity, what.rstrip(".") + "." if what else "", remedy)
    elif not armed:
        yield found(
            "not-yet-armed",
            "The crash kernel is being loaded."
            if status.state is ArmState.ARMING
            else "The service has not loaded the crash kernel yet.",
            "Wait a moment. If it stays so, see: journalctl -u kdump.service",
        )


def configuration_problems(root: Path, config: Config) -> Iterator[Problem]:
    """What the configuration files say now, compared with what is in force."""
    on_disk, errors = read_config(root)
    for error in errors:
        yield found("bad-configuration", f"{error}.", error.hint)
    if on_disk != config:
        yield found(
            "configuration-not-loaded",
            "The configuration files have changed since they were read.",
            "Run: systemctl reload kdump.service",
        )


def image_problems(kernel_files: KernelFiles, loaded: LoadRequest | None) -> Iterator[Problem]:
    """What is loaded, compared with the files that it was loaded from."""
    if loaded is None:
        return
    root = kernel_files.root
    for what, identity in (("kernel", loaded.kernel), ("initramfs", loaded.initramfs)):
        try:
            same = FileIdentity.of(Path(identity.path)) == identity
        except ImageUnreadable:
            same = False
        if not same:
            yield found(
                "image-stale",
                f"The {what} {_on_machine(root, identity.path)} has changed or is gone since it was loaded.",
                "Run: kdumpctl rebuild",
            )
    kernel_release = release_of(Path(loaded.kernel.path))
    image_release = release_in_name(loaded.initramfs.path)
    if kernel_release and image_release and kernel_release != image_release:
        yield found(
            "image-mismatch",
            f"The loaded kernel is {kernel_release}, its initramfs "
            f"{_on_machine(root, loaded.initramfs.path)} is for {image_release}: its modules do not fit, "
            "and the root file system may not be found.",
            "Set Kernel= and Image= to files of one release.",
        )
    release = kernel_release or release_in_name(loaded.kernel.path)
    uses_modules = (root / "proc/modules").exists()  # not so with CONFIG_MODULES=n
    if release and uses_modules and not any((root / folder / release).is_dir() for folder in _MODULE_FOLDERS):
        yield found(
            "modules-missing",
            f"There is no folder /lib/modules/{release}: drivers that are not in the initramfs cannot be "
            "loaded.",
            "Reinstall the package of that kernel, or reboot into an installed one.",
        )
    if kernel_files.kexec_loading_disabled:
        yield found(
            "loading-locked",
            f"{kernel_files.kexec_loading_disabled}: what is loaded cannot be replaced when files change.",
            "Reboot after changes of kernel, initramfs or configuration.",
        )


_MODULE_FOLDERS = ("usr/lib/modules", "lib/modules")


def _on_machine(root: Path, path: str) -> str:
    return f"/{Path(path).relative_to(root)}" if Path(path).is_relative_to(root) else path
