# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make cache`: makes what the cases of `make test` need of the cache, and says what each entry cost.

Two processes at work on it, since most of it keeps one processor busy; whichever needs what the other is at
waits for it. Cases would make the same, each when it is the first to need it.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.budget.calibration import calibrate
from tests.budget.guests import MADE, Made, processor_seconds
from tests.budget.ledger import Invocation, write

from .lab import Lab
from .makedumpfile import Makedumpfile
from .oracle import bitmaps
from .reference import reference_vmcore
from .symbols import kernel_module

REPO = Path(__file__).parents[2]
PROCESSES = 2


def _bitmaps(lab: Lab) -> object:
    return bitmaps(lab.cache, Makedumpfile(lab.cache), reference_vmcore(lab.cache, lab.suite))


# In the order in which they are begun: what takes longest, or is waited for by others, first.
STEPS: dict[str, Callable[[Lab], object]] = {
    "tree": lambda lab: lab.tree,
    "makedumpfile": lambda lab: Makedumpfile(lab.cache),
    "reference vmcore": lambda lab: reference_vmcore(lab.cache, lab.suite),
    "snapshot": lambda lab: lab.snapshot,
    "grub": lambda lab: lab.boot_loader_disk("grub-bios"),
    "systemd-boot": lambda lab: lab.boot_loader_disk("systemd-boot"),
    "symbols": lambda lab: lab.vmlinux,
    "module": lambda lab: kernel_module(lab.cache, lab.tree, "null_dereference"),
    "bitmaps": lambda lab: bitmaps(
        lab.cache, Makedumpfile(lab.cache), reference_vmcore(lab.cache, lab.suite)
    ),
}


def _make(step: str) -> list[Made]:
    """In a process of its own: what was made in it for this step."""
    before = len(MADE)
    with tempfile.TemporaryDirectory(prefix="kdump-cache-") as work:
        STEPS[step](Lab(REPO, Path(work)))
    return MADE[before:]


def main() -> int:
    """Fill the cache; raises what the makers raise."""
    folder = os.environ.pop("KDUMP_TEST_LEDGER", None)
    calibration = calibrate() if folder else 0.0
    began, cpu = time.monotonic(), processor_seconds()
    with multiprocessing.Pool(PROCESSES, maxtasksperchild=1) as pool:
        made = [entry for entries in pool.imap_unordered(_make, STEPS) for entry in entries]
        pool.close()
        pool.join()
    invocation = Invocation(
        what="make cache",
        part=None,
        calibration=calibration,
        wall=time.monotonic() - began,
        cpu=processor_seconds() - cpu,
        made=made,
    )
    for entry in sorted(made, key=lambda entry: entry.cpu, reverse=True):
        print(f"{entry.cpu:6.0f} processor seconds, {entry.wall:4.0f} s of wall: {entry.name}")
    print(f"{invocation.cpu:6.0f} processor seconds, {invocation.wall:4.0f} s of wall: the cache is filled")
    if folder:
        write(Path(folder), invocation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
