# SPDX-License-Identifier: LGPL-2.1-or-later
"""What production hands to the capture boot: the configuration, who the machine is, and where the target is.

In the capture boot the daemon's view of the machine is gone. The small image gets this with each load; for a
capture boot with the root file system it is written to disk. Who writes and who reads may be of different
versions: an image is armed until the next one is built, and a crash may come amid an upgrade.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from kdump_service.config import Config
from kdump_service.folders import STATE_FOLDER

__all__ = ["CAPTURE_SETTINGS_FILE", "CaptureSettings"]

CAPTURE_SETTINGS_FILE = f"{STATE_FOLDER}/capture.json"
"""Written when arming, read in the capture boot."""

_SCHEMA = 1
_LONGEST_UPTIME_SEC = 1 << 32
"""A century."""


@dataclass(frozen=True)
class CaptureSettings:
    """The settings of one capture boot. What is empty is not known, or left to the capture boot."""

    boot_id: str = ""
    """Of the boot that armed."""
    host: str = ""
    armed_identity: str = ""
    """Of kernel, image, command line and target that were armed."""
    armed_uptime_seconds: float = 0.0
    """How old the kernel was then."""
    config: Config = field(default_factory=Config)
    target_folder: str = ""
    """Where the target is in the capture boot; empty: where the configuration says."""
    target_mount_point: str = ""
    fallback_folder: str = ""
    """Where log and record go if the target fails; empty: where the service keeps its state."""
    fallback_mount_point: str = ""
    small_image: bool = False
    """Whether the capture boot runs in the small image, which has no file system of its own."""
    problems: tuple[str, ...] = ()
    """What could not be used of what was handed over, which defaults stand for; not handed over itself."""

    @property
    def environment(self) -> str:
        """What the capture boot runs in, as ``Environment=`` has it; empty if nothing was left for it."""
        if self.small_image:
            return "initramfs"
        return "rootfs" if self.boot_id else ""

    def to_json(self, indent: int | None = None) -> str:
        """For the file."""
        document: dict[str, Any] = {
            "schema": _SCHEMA,
            "boot_id": self.boot_id,
            "host": self.host,
            "armed_identity": self.armed_identity,
            "armed_uptime_seconds": self.armed_uptime_seconds,
            "config": self.config.to_json(),
        }
        for name in ("target_folder", "target_mount_point", "fallback_folder", "fallback_mount_point"):
            if value := getattr(self, name):
                document[name] = value
        if self.small_image:
            document["small_image"] = True
        return json.dumps(document, indent=indent)

    @classmethod
    def from_json(cls, text: str) -> CaptureSettings:
        """Read what ``to_json`` of any version wrote. Never fails: no lost and no damaged value may cost a
        dump. What cannot be used is in ``problems``."""
        try:
            document: Any = json.loads(text)
            if not isinstance(document, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            return cls(problems=(f"{error}; defaults are used",))
        config_document = document.get("config")
        config, problems = Config.from_json(config_document if isinstance(config_document, dict) else {})

        def word(key: str) -> str:
            value = document.get(key)
            return value if isinstance(value, str) else ""

        def mount_point(key: str) -> str:
            value = word(key)
            return value if value.startswith("/") else ""

        def seconds(key: str) -> float:
            value = document.get(key)
            if isinstance(value, int | float) and 0 <= value <= _LONGEST_UPTIME_SEC:
                return float(value)
            return 0.0  # with what is no duration, the record would be none

        return cls(
            boot_id=word("boot_id"),
            host=word("host"),
            armed_identity=word("armed_identity"),
            armed_uptime_seconds=seconds("armed_uptime_seconds"),
            config=config,
            target_folder=word("target_folder"),
            target_mount_point=mount_point("target_mount_point"),
            fallback_folder=word("fallback_folder"),
            fallback_mount_point=mount_point("fallback_mount_point"),
            small_image=document.get("small_image") is True,
            problems=tuple(problems),
        )
