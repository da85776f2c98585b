# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is there room on a disk for what somebody is about to write; and was there, where it was written?"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kdump_service.errors import KdumpError
from kdump_service.quantity import format_bytes

__all__ = ["MAKE_ROOM", "NO_ROOM", "check_room", "no_room_in"]

MAKE_ROOM = "Make room in /var."
"""What to do."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def check_room(folder: Path, needed_bytes: int, error: type[KdumpError], needs: str) -> None:
    """Raises ``error`` if less is free in ``folder``; ``needs`` says who needs it: ``a build needs``."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free < needed_bytes:
        raise error(
            f"{folder}: {format_bytes(free)} are free, and {needs} {format_bytes(needed_bytes)}",
            MAKE_ROOM,
        )


def no_room_in(said: str) -> str:
    """The first line of what a program said (in the C locale) that tells of a full disk; empty if none
    does."""
    reasons = [os.strerror(code) for code in NO_ROOM]
    return next((line for line in said.splitlines() if any(reason in line for reason in reasons)), "")
