# SPDX-License-Identifier: LGPL-2.1-or-later
"""What arming left for the capture boot. Reading it never fails: no typo and no lost file may cost a dump."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from kdump_service.config import CAPTURE_SETTINGS_FILE, Config

__all__ = ["CaptureSettings", "read_capture_settings"]

_LONGEST_UPTIME_SEC = 1 << 32
"""A century."""


class CaptureSettings(NamedTuple):
    """The configuration of the boot that crashed, and who it was."""

    config: Config = Config()
    boot_id: str = ""
    host: str = ""
    small_image: bool = False
    """Whether this boot runs in the small image, which has no file system of its own."""
    target_folder: str = ""
    """Where the target is in this boot; empty: where the configuration says."""
    target_mount_point: Path | None = None
    fallback_folder: str = ""
    """Where log and record go if the target fails; empty: where the service keeps its state."""
    fallback_mount_point: Path | None = None
    armed_identity: str = ""
    """Of kernel, image, command line and target that were armed."""
    armed_uptime_seconds: float = 0.0
    """How old the kernel was then."""
    problems: tuple[str, ...] = ()
    """What could not be used; defaults stand in its place."""

    @property
    def environment(self) -> str:
        """What this boot runs in, as ``Environment=`` has it; empty if nothing was left for it."""
        if self.small_image:
            return "initramfs"
        return "rootfs" if self.boot_id else ""


def read_capture_settings(root: Path) -> CaptureSettings:
    """Read what :func:`kdump_service.arm.plan.write_capture_settings` wrote; defaults for what is missing."""
    path = root / CAPTURE_SETTINGS_FILE
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        return CaptureSettings(problems=(f"{path}: {error}; defaults are used",))
    config_document = document.get("config")
    config, problems = Config.from_json(config_document if isinstance(config_document, dict) else {})

    def text(key: str) -> str:
        value = document.get(key)
        return value if isinstance(value, str) else ""

    def seconds(key: str) -> float:
        value = document.get(key)
        if isinstance(value, (int, float)) and 0 <= value <= _LONGEST_UPTIME_SEC:
            return float(value)
        return 0.0  # with what is no duration, the record would be none

    def folder(key: str) -> Path | None:
        value = text(key)
        return Path(value) if value.startswith("/") else None

    return CaptureSettings(
        config=config,
        boot_id=text("boot_id"),
        host=text("host"),
        small_image=document.get("small_image") is True,
        target_folder=text("target_folder"),
        target_mount_point=folder("target_mount_point"),
        fallback_folder=text("fallback_folder"),
        fallback_mount_point=folder("fallback_mount_point"),
        armed_identity=text("armed_identity"),
        armed_uptime_seconds=seconds("armed_uptime_seconds"),
        problems=tuple(f"{path}: {problem}" for problem in problems),
    )
