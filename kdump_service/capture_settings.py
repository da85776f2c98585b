# SPDX-License-Identifier: LGPL-2.1-or-later
"""What production hands to the capture boot: the configuration, who the machine is, and where the target is.

In the capture boot the daemon's view of the machine is gone. The small image gets this with each load; for a
capture boot with the root file system it is written to disk. Who writes and who reads may be of different
versions: an image is armed until the next one is built, and a crash may come amid an upgrade.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from kdump_service.config import Config
from kdump_service.folders import STATE_FOLDER

__all__ = ["CAPTURE_SETTINGS_FILE", "CaptureSettings"]

CAPTURE_SETTINGS_FILE = f"{STATE_FOLDER}/capture.json"
"""Written when arming, read in the capture boot."""

_SCHEMA = 1
"""Counts up when a field gets another meaning; a field that is added needs no new one."""
_LONGEST_NAME = 64
"""A host has at most so many characters (__NEW_UTS_LEN of linux/utsname.h), and so has a SHA-256."""
_LONGEST_PATH_BYTES = 4095
"""PATH_MAX of linux/limits.h, without the NUL."""
_LONGEST_UPTIME_SEC = 1 << 32
"""A century."""


@dataclass(frozen=True)
class CaptureSettings:
    """The settings of one capture boot. What is empty is not known, or left to the capture boot."""

    boot_id: str = ""
    """The kernel's id of the boot that armed (/proc/sys/kernel/random/boot_id)."""
    host: str = ""
    armed_identity: str = ""
    """What arm.identity computed of kernel, image, command line and target; a SHA-256, hexadecimal."""
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
        dump. A field that is missing, as in what an older version wrote, has its default; so has one that
        cannot be used, of which ``problems`` tell. Who may refuse, does so if there are any."""
        try:
            document: Any = json.loads(text)
            if not isinstance(document, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            return cls(problems=(f"{error}; defaults are used",))
        problems = []
        schema = document.get("schema", _SCHEMA)
        if type(schema) is not int or not 1 <= schema <= _SCHEMA:
            problems.append(f"schema {schema!r:.40} is not known; what is known of it is used")
        config_document = document.get("config")
        if not isinstance(config_document, dict):
            problems.append("config: not a JSON object; defaults are used")
            config_document = {}
        config, config_problems = Config.from_json(config_document)
        values: dict[str, Any] = {}
        for name, checked in _CHECKED.items():
            if name in document:
                try:
                    values[name] = checked(document[name])
                except ValueError as error:
                    problems.append(f"{name}: {error}; the default is used")
        return cls(config=config, problems=(*problems, *config_problems), **values)


def _name(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError(f"{value!r:.40} is not a text of at most {_LONGEST_NAME} characters")
    return value


def _place(value: object) -> str:
    """An absolute path that the kernel takes, or nothing."""
    if not isinstance(value, str) or value[:1] not in ("", "/"):
        raise ValueError(f"{value!r:.40} is not an absolute path")
    if "\0" in value or len(os.fsencode(value)) > _LONGEST_PATH_BYTES:  # half a surrogate pair raises, too
        raise ValueError(f"{value!r:.40} is not a path")
    return value


def _seconds(value: object) -> float:
    """A duration; with what is none, the record would be none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number")
    if not 0 <= value <= _LONGEST_UPTIME_SEC:  # which is false for NaN, too
        raise ValueError(f"{value!r:.40} is not a duration in seconds")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r:.40} is neither true nor false")
    return value


_CHECKED: dict[str, Callable[[object], object]] = {
    "boot_id": _name,
    "host": _name,
    "armed_identity": _name,
    "armed_uptime_seconds": _seconds,
    "target_folder": _place,
    "target_mount_point": _place,
    "fallback_folder": _place,
    "fallback_mount_point": _place,
    "small_image": _flag,
}
"""By field: what returns its value, or raises ValueError. The configuration has checks of its own."""
