# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find what arming left for the capture boot: no typo and no lost file may cost a dump."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings

__all__ = ["read_capture_settings"]

_LONGEST_TEXT = 1 << 20
"""In characters: a file that is damaged must not take the memory of the capture boot."""


def read_capture_settings(root: Path) -> CaptureSettings:
    """The settings that production handed over; defaults for what is missing."""
    path = root / CAPTURE_SETTINGS_FILE
    try:
        with open(path, encoding="utf-8") as file:
            settings = CaptureSettings.from_json(file.read(_LONGEST_TEXT))
    except (OSError, UnicodeDecodeError) as error:
        settings = CaptureSettings(problems=(f"{error}; defaults are used",))
    return dataclasses.replace(
        settings, problems=tuple(f"{path}: {problem}" for problem in settings.problems)
    )
