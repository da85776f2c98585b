# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kernel can do by its configuration, as distributions install it."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["configuration_file", "unpacks_lz4_among_archives"]

_PLACES = ("boot/config-{release}", "usr/lib/modules/{release}/config")
"""Debian and openSUSE have one of them, Fedora both."""


def configuration_file(root: Path, release: str) -> Path | None:
    """Where the configuration of the kernel of this release is; None where there is none."""
    places = (root / place.format(release=release) for place in _PLACES)
    return next((place for place in places if place.is_file()), None)


def unpacks_lz4_among_archives(root: Path, release: str) -> bool:
    """Whether a kernel unpacks an archive that is compressed with LZ4, and then those that follow: before
    Linux 5.14 it took the zeros between them for damage (commit 2c484419efc0). False if that is not known."""
    number = re.match(r"(\d+)\.(\d+)", release)
    file = configuration_file(root, release)
    if number is None or (int(number[1]), int(number[2])) < (5, 14) or file is None:
        return False
    return "CONFIG_RD_LZ4=y" in file.read_text("utf-8", "replace").splitlines()
