# SPDX-License-Identifier: LGPL-2.1-or-later
"""`python -m tests.bench`, which is `make bench`: makes or takes vmcores, measures, prints, writes JSON."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.vm.cache import Cache, say
from tests.vm.makedumpfile import Makedumpfile

from .capture import Capture, measure_captures
from .contestants import named
from .guests import GUESTS, benchmark_vmcore
from .measure import CommandFailed, memory_of_run, timed_run, warm
from .plan import FULL, QUICK_CASES, Case, Figures, Result, Terabyte, verdicts
from .report import (
    as_document,
    captures_table,
    case_table,
    disturbance,
    goals_table,
    surroundings,
    terabyte_lines,
)
from .terabyte import LEVEL, filter_command, write_terabyte

REPO = Path(__file__).parents[2]
FULL_ROUNDS, QUICK_ROUNDS = 5, 3
TERABYTE_ROUNDS = 3
PARTS = ("files", "terabyte", "capture")


def main() -> int:
    arguments = _arguments()
    if os.geteuid() != 0:
        print("make bench makes root file systems for its guests: run it as root", file=sys.stderr)
        return 2
    cases = _cases(arguments) if "files" in arguments.part else []
    cache = Cache()
    makedumpfile = Makedumpfile(cache)
    vmcores = {guest: benchmark_vmcore(cache, guest) for guest in dict.fromkeys(case.guest for case in cases)}
    around = surroundings(makedumpfile.version)
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else FULL_ROUNDS)
    began = time.monotonic()
    results: list[Result] = []
    found: Terabyte | None = None
    captures: list[Capture] = []
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    # The dumps go to the disk of the checkout, for all alike.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.output.parent) as folder:
        output = Path(folder) / "dump"
        try:
            for case in cases:
                vmcore = vmcores[case.guest]
                results.append(_measured(case, vmcore, output, makedumpfile, rounds, arguments.memory))
                print(f"\n{case_table(results[-1])}", flush=True)
            if "terabyte" in arguments.part:
                found = _terabyte(Path(folder) / "terabyte", output, makedumpfile)
                print(f"\n{terabyte_lines(found)}", flush=True)
            if "capture" in arguments.part:
                captures = measure_captures(makedumpfile, Path(folder) / "capture")
                print(f"\n{captures_table(captures)}", flush=True)
        except KeyboardInterrupt:
            say("stopped; what was measured so far follows")
    goals = verdicts(results, found)
    print(f"\n{goals_table(goals)}")
    if disturbed := disturbance(results):
        print(f"\n{disturbed}")
    document = as_document(around, results, found, captures, goals)
    arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"\n{arguments.output}; {time.monotonic() - began:.0f} s")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the loaded guest of 2 GiB, few modes, 3 rounds")
    parser.add_argument("--rounds", type=int, help=f"default: {FULL_ROUNDS}")
    parser.add_argument("--guest", action="append", choices=list(GUESTS), help="may be given several times")
    parser.add_argument("--level", action="append", type=int, help="may be given several times")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        type=re.compile,
        help="modes in whose names it is found, and makedumpfile -l",
    )
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not look at the memory")
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="may be given several times; default: all of them"
    )
    parser.add_argument("--output", type=Path, default=REPO / "build/bench.json")
    arguments = parser.parse_args()
    arguments.part = arguments.part or (PARTS[:1] if arguments.quick else PARTS)
    return arguments


def _cases(arguments: argparse.Namespace) -> list[Case]:
    cases = [
        case
        for case in (QUICK_CASES if arguments.quick else FULL)
        if case.guest in (arguments.guest or GUESTS)
        and (arguments.level is None or case.level in arguments.level)
    ]
    if arguments.only is None:
        return cases
    kept = named("makedumpfile -l (")
    return [
        replace(
            case,
            contestants=tuple(
                each for each in case.contestants if arguments.only.search(each.name) or each in kept
            ),
        )
        for case in cases
    ]


def _measured(
    case: Case, vmcore: Path, output: Path, makedumpfile: Makedumpfile, rounds: int, memory: bool
) -> Result:
    result = Result(case, {contestant: Figures() for contestant in case.contestants})
    commands = {
        contestant: contestant.command(makedumpfile, vmcore, output, case.level)
        for contestant in case.contestants
    }
    shown = f"{case.guest}, level {case.level}"
    warm(vmcore)
    if memory:
        # First, so that programs and libraries are in the page cache when it counts.
        say(f"{shown}: memory")
        for contestant, command in commands.items():
            with _failures_of(result.figures[contestant]) as figures:
                figures.memory = memory_of_run(command, output)
    for number in range(rounds):
        say(f"{shown}: round {number + 1} of {rounds}")
        warm(vmcore)
        # There and back, so that nobody always comes after the same other one.
        order = list(commands.items())[:: -1 if number % 2 else 1]
        for contestant, command in order:
            with _failures_of(result.figures[contestant]) as figures:
                figures.runs.append(timed_run(command, output)[0])
    return result


@contextmanager
def _failures_of(figures: Figures) -> Iterator[Figures]:
    """One that fails ends neither the others nor the benchmark; makedumpfile's threads abort at times."""
    try:
        yield figures
    except CommandFailed as error:
        figures.failures.append(str(error))


def _terabyte(vmcore: Path, output: Path, makedumpfile: Makedumpfile) -> Terabyte:
    say("1 TiB: making the vmcore")
    write_terabyte(vmcore)
    found = Terabyte()
    filtering = filter_command(vmcore, workers=2)
    for number in range(TERABYTE_ROUNDS):
        say(f"1 TiB: filtering, round {number + 1} of {TERABYTE_ROUNDS}")
        run, said = timed_run(filtering)
        found.filter_seconds.append(json.loads(said)["seconds"])
        found.filter_cpu_seconds.append(run.cpu_seconds)
    say("1 TiB: whole dump")
    [ours] = named("kdump zstd, 2")
    _once(found.convert, ours.command(makedumpfile, vmcore, output, LEVEL), output)
    say("1 TiB: makedumpfile filters")
    dry = [
        *makedumpfile.command("makedumpfile"),
        "--dry-run",
        "-l",
        "-d",
        str(LEVEL),
        str(vmcore),
        str(output),
    ]
    _once(found.makedumpfile, dry, None)
    return found


def _once(figures: Figures, command: Sequence[str], output: Path | None) -> None:
    with _failures_of(figures):
        figures.runs.append(timed_run(command, output)[0])
        figures.memory = memory_of_run(command, output)


if __name__ == "__main__":
    sys.exit(main())
