# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find what arming left for the capture boot: no typo and no lost file may cost a dump."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings

__all__ = ["read_capture_settings"]


def read_capture_settings(root: Path) -> CaptureSettings:
    """The settings that production handed over; defaults for what is missing."""
    path = root / CAPTURE_SETTINGS_FILE
    try:
        settings = CaptureSettings.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        settings = CaptureSettings(problems=(f"{error}; defaults are used",))
    return dataclasses.replace(
        settings, problems=tuple(f"{path}: {problem}" for problem in settings.problems)
    )
