# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files of kernel modules, with those that they need."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

from kdump_service.errors import ProgramFailed
from kdump_service.process import run

__all__ = ["module_files"]

logger = logging.getLogger(__name__)


def module_files(release: str, names: Iterable[str]) -> list[Path]:
    """Files of kernel modules, in the order of loading; none for what is built in, or what this kernel does
    not have (modprobe(8), -D)."""
    found: list[Path] = []
    for name in names:
        try:
            said = run(["modprobe", "-S", release, "-D", name], timeout_sec=20)
        except ProgramFailed as error:
            logger.info("left out of the image: %s", error)
            continue
        for line in said.splitlines():
            words = line.split()
            if words and words[0] == "insmod" and Path(words[1]) not in found:
                found.append(Path(words[1]))
    return found
