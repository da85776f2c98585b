# SPDX-License-Identifier: LGPL-2.1-or-later
"""Has the capture image built: by a unit of its own, which may do what the service may not."""

from __future__ import annotations

import re
from pathlib import Path

from kdump_service.errors import ImageNotBuilt, ProgramFailed
from kdump_service.image.layout import BUILD_ANEW_FILE, BUILD_STATUS_FILE
from kdump_service.own_state import read_json
from kdump_service.process import run

__all__ = ["BUILD_UNITS", "build_by_unit", "build_progress"]

BUILD_UNITS = "kdump-build-image@*"
"""As journalctl(1) takes it."""
_BUILD_SEC = 1800.0
"""Half a minute where it was measured; slow disks and processors may need much longer, but not for ever."""


def build_progress(root: Path) -> float:
    """How far the build is that is under way, from 0 to 1; -1 if it does not tell."""
    done = read_json(root / BUILD_STATUS_FILE, dict).get("done")
    return float(done) if isinstance(done, int | float) and 0 <= done <= 1 else -1.0


def build_by_unit(release: str, root: Path = Path("/"), *, anew: bool = False) -> None:
    """Build for the kernel of this release, ``anew`` also if the image is current; returns when the image is
    there. Raises ImageNotBuilt, with the reason that the unit left."""
    status = root / BUILD_STATUS_FILE
    status.unlink(missing_ok=True)
    if anew:
        (root / BUILD_ANEW_FILE).touch()
    try:
        # The form that systemd-escape(1) gives: all but letters, digits and :_. becomes \\x and two digits.
        escaped = re.sub(r"[^A-Za-z0-9:_.]", lambda match: f"\\x{ord(match[0]):02x}", release)
        run(["systemctl", "start", f"kdump-build-image@{escaped}.service"], timeout_sec=_BUILD_SEC)
    except ProgramFailed as error:
        said = read_json(status, dict)
        reason, hint = said.get("error"), said.get("hint")
        if isinstance(reason, str) and isinstance(hint, str):
            raise ImageNotBuilt(reason, hint) from None
        raise ImageNotBuilt(str(error), f"See: journalctl -u '{BUILD_UNITS}'") from error
    finally:
        # Where the unit did not come to it.
        (root / BUILD_ANEW_FILE).unlink(missing_ok=True)
