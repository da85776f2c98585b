# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is there room on a disk for what somebody is about to write?"""

from __future__ import annotations

import os
from pathlib import Path

from kdump_service.errors import KdumpError
from kdump_service.quantity import format_bytes

__all__ = ["check_room"]


def check_room(folder: Path, needed_bytes: int, error: type[KdumpError], needs: str) -> None:
    """Raises ``error`` if less is free in ``folder``; ``needs`` says who needs it: ``a build needs``."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise error(
            f"{folder}: {format_bytes(free)} are free, and {needs} {format_bytes(needed_bytes)}",
            "Make room in /var.",
        )
