# SPDX-License-Identifier: LGPL-2.1-or-later
"""Places that arming and building both know."""

from __future__ import annotations

from kdump_service.folders import RUN_FOLDER

__all__ = ["BUILD_ANEW_FILE", "BUILD_STATUS_FILE", "STATE_POINT", "TARGET_FILE", "TARGET_POINT"]

TARGET_FILE = "kdump/target.mount"
"""Device (as mount(8) takes it), type and options of the file system that is the target's; added when
arming."""
TARGET_POINT = "/kdump/target"
STATE_POINT = "/kdump/state"
"""Where the capture boot mounts the file systems of target and state."""

BUILD_ANEW_FILE = f"{RUN_FOLDER}/build-anew"
"""While it is there, the next build takes no image for current."""
BUILD_STATUS_FILE = f"{RUN_FOLDER}/build.json"
"""How far a build is, and what became of the last one."""
