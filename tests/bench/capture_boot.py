# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench.capture_boot`, which is `make bench-capture`: capture boots, ours and kdump-tools'.

Both run in the same virtual machine with the same packages, in turns, and write level 31 to /var/crash on a
disk of its own. `crashes` is one crash and its clocks, `target_disk` sees the writing, `kdump_tools` makes
Debian's disk, `builds` builds images, `capture_series` adds it all up. Prints, writes JSON, and fails on no
figure.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.vm.cache import Cache, say
from tests.vm.lab import Lab
from tests.vm.machine import CommandFailed, MachineLost

from .builds import Build, measure_build
from .capture_series import Series, as_document, tables
from .crashes import KDUMP_TOOLS, OURS, Contestant, CrashCase, contestants, crash_once
from .kdump_tools import versions
from .report import surroundings
from .target_disk import TargetDisk

__all__ = ["main"]

REPO = Path(__file__).parents[2]
MEMORIES_MIB = (2048, 8192)
SIZES_MIB = (256, 192, 160, 144, 128, 112, 96)
QUICK_SIZES_MIB = (256, 128)
TRIES = 3
LOST_MOST = 2  # machines that may be lost, by the host's doing, before a crash is given up


@dataclass(frozen=True)
class Bench:
    """Where things are made, and how."""

    work: Path
    target: TargetDisk
    keep: Path | None

    def crash(self, contestant: Contestant, case: CrashCase, series: Series) -> None:
        """One crash into the series. Raises MachineLost if the machine cannot be had again and again."""
        for lost in range(LOST_MOST + 1):
            try:
                crash = crash_once(contestant, case, self.work / "machine", self.target, self.keep)
            except MachineLost as error:
                say(f"{contestant.name}, {case}: machine lost, {str(error).splitlines()[0]}")
                series.lost += 1
                if lost == LOST_MOST:
                    raise
            else:
                break
            finally:
                shutil.rmtree(self.work / "machine", ignore_errors=True)
        series.crashes.append(crash)
        told = crash.failure or ", ".join(f"{name} {value:.1f} s" for name, value in crash.seconds.items())
        say(f"{contestant.name}, {case}: {told}")

    def go_down(
        self, both: Sequence[Contestant], memory_mib: int, sizes: Sequence[int], tries: int, series: Series
    ) -> Iterator[None]:
        """Crash machines with ever less reserved, until each contestant has failed; yields after each."""
        running = list(both)
        for size in sizes:
            case = CrashCase(memory_mib, size)
            for number in range(tries):
                # In turns, so that what else the host does hits both; there and back, so that nobody always
                # comes after the other one.
                for contestant in running[:: -1 if number % 2 else 1]:
                    say(f"{contestant.name}, {case}: try {number + 1} of {tries}")
                    self.crash(contestant, case, series)
                    if series.crashes[-1].failure:
                        running.remove(contestant)
                    yield


def main() -> int:
    arguments = _arguments()
    if os.geteuid() != 0:
        print("make bench-capture makes root file systems for its machines: run it as root", file=sys.stderr)
        return 2
    # Ended from outside, it says what it has, and leaves no disks behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = time.monotonic()
    cache = Cache()
    series = Series()
    builds: list[Build] = []
    status = 0
    around = surroundings(versions(cache))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-capture-") as folder:
        work = Path(folder)
        bench = Bench(work, TargetDisk(work / "target"), arguments.keep)
        both = list(_named(arguments.only, contestants(Lab(REPO, work / "lab", cache=cache), cache)))
        try:
            for memory_mib in arguments.memory:
                for _ in bench.go_down(both, memory_mib, arguments.size, arguments.tries, series):
                    # Each time: whatever ends a run of hours, what it measured is there.
                    _write(as_document(around, series, builds, arguments.tries), arguments.output)
            if not arguments.quick:
                builds = [measure_build(each, work / "machine") for each in both]
        except KeyboardInterrupt:
            say("stopped; what was measured so far follows")
        except (MachineLost, CommandFailed) as error:
            say(f"{error}\ngiven up; what was measured so far follows")
            status = 1
    _write(as_document(around, series, builds, arguments.tries), arguments.output)
    print(f"\n{tables(series, builds)}")
    print(f"\n{arguments.output}; {time.monotonic() - began:.0f} s")
    return status


def _write(document: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


def _named(only: str | None, both: Sequence[Contestant]) -> Iterator[Contestant]:
    return (each for each in both if only in (None, each.name))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.capture_boot", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one try with 2 GiB, 256M and 128M: five minutes"
    )
    parser.add_argument("--tries", type=int, help=f"crashes of each machine; default: {TRIES}")
    parser.add_argument(
        "--memory", action="append", type=int, metavar="MIB", help="may be given several times"
    )
    parser.add_argument(
        "--size", action="append", type=int, metavar="MIB", help="crashkernel=; may be given several times"
    )
    parser.add_argument(
        "--only", choices=(OURS, KDUMP_TOOLS), help="without the other one, so without ratios"
    )
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="consoles and dumps go there")
    parser.add_argument("--output", type=Path, default=REPO / "build/bench-capture.json")
    arguments = parser.parse_args()
    arguments.tries = arguments.tries or (1 if arguments.quick else TRIES)
    arguments.memory = arguments.memory or (MEMORIES_MIB[:1] if arguments.quick else MEMORIES_MIB)
    sizes = arguments.size or (QUICK_SIZES_MIB if arguments.quick else SIZES_MIB)
    arguments.size = sorted(sizes, reverse=True)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
