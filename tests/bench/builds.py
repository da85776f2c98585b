# SPDX-License-Identifier: LGPL-2.1-or-later
"""What building the capture image takes in a machine that runs."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.vm.cache import say
from tests.vm.machine import Machine

from .crashes import Contestant

__all__ = ["Build", "measure_build"]

MEMORY_MIB = 2048
BUILD_SEC = 900.0


@dataclass(frozen=True)
class Build:
    """Of one contestant."""

    contestant: str
    seconds: float
    image_bytes: int


def measure_build(contestant: Contestant, work: Path) -> Build:
    """Take the image away and have it built anew, as the contestant itself would.

    Raises MachineLost or CommandFailed.
    """
    say(f"{contestant.name}: building its image")
    with Machine(contestant.disk(), work, memory_mib=MEMORY_MIB, files=contestant.files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed(BUILD_SEC)
        machine.run("systemctl is-system-running --wait", check=False, timeout_sec=BUILD_SEC)
        machine.run(contestant.forget_image)
        began = time.monotonic()
        machine.run(contestant.build_image, timeout_sec=BUILD_SEC)
        seconds = time.monotonic() - began
        size = int(machine.run(f"stat -L -c %s {contestant.images}").stdout)
    shutil.rmtree(work)
    say(f"{contestant.name}: {seconds:.1f} s, {size / (1 << 20):.1f} MiB")
    return Build(contestant.name, round(seconds, 2), size)
