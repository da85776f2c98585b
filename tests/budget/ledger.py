# SPDX-License-Identifier: LGPL-2.1-or-later
"""The ledger of a run: a folder with one file for each invocation of pytest, written by the plugin."""

import json
import math
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .guests import Guests, Made

__all__ = ["BrokenLedger", "Case", "Invocation", "read_ledger", "write"]

TREE = "tree-"
"""Begins the name of an entry of the cache that all others are made from."""


class BrokenLedger(Exception):
    """The ledger says nothing, or nothing that can be understood."""


@dataclass
class Case:
    """What became of a case, and what it took. `outcome` is none while it runs, and where its worker died."""

    cpu: float = 0
    outcome: str = ""
    guests: Guests = field(default_factory=Guests)


@dataclass
class Invocation:
    """One invocation of pytest, with all its workers."""

    what: str
    part: str | None
    calibration: float
    """Processor seconds of tests/budget/calibration.py at its start."""
    exit_status: int = 0
    wall: float = 0
    cpu: float = 0
    """User and system seconds of all processes, with what is in no case, such as collection."""
    cases: dict[str, Case] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)

    @property
    def guests(self) -> Guests:
        return sum((case.guests for case in self.cases.values()), Guests())

    @property
    def empty_cache(self) -> bool:
        """Whether it began with nothing, or as good as nothing, in the cache."""
        return any(entry.name.startswith(TREE) for entry in self.made)


def write(folder: Path, invocation: Invocation) -> None:
    """Add a file to the ledger in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"\W+", "-", f"{invocation.what} {invocation.part or ''}").strip("-")
    path = folder / f"pytest-{words[:100]}-{os.getpid()}.json"
    path.write_text(json.dumps(asdict(invocation), indent=1))


def read_ledger(folder: Path) -> list[Invocation]:
    """All invocations of a run, by name of their file."""
    paths = sorted(folder.glob("*.json"))
    if not paths:
        raise BrokenLedger(f"{folder}: no invocation of pytest has written here ($KDUMP_TEST_LEDGER)")
    return [_read(path) for path in paths]


def _read(path: Path) -> Invocation:
    try:
        said = json.loads(path.read_text())
        said["cases"] = {
            name: Case(case["cpu"], case["outcome"], Guests(**case["guests"]))
            for name, case in said["cases"].items()
        }
        said["made"] = [Made(**entry) for entry in said["made"]]
        read = Invocation(**said)
        _check(read)
        return read
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BrokenLedger(f"{path}: this is no ledger of an invocation: {error!r}") from error


def _check(read: Invocation) -> None:
    """Raises ValueError or TypeError for what no run writes."""
    guests = [case.guests for case in read.cases.values()]
    counts = [value for each in guests for value in asdict(each).values()]
    for entry in read.made:
        counts += [entry.boots, entry.captures]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a number of guests is none")
    times = [read.wall, read.cpu, *(case.cpu for case in read.cases.values())]
    times += [time for entry in read.made for time in (entry.wall, entry.cpu)]
    if not all(0 <= time < math.inf for time in times) or not 0 < read.calibration < math.inf:
        raise ValueError("a time is none")
    names = [*read.cases, *(entry.name for entry in read.made), read.what]
    if not all(isinstance(word, str) for word in (*names, *(case.outcome for case in read.cases.values()))):
        raise TypeError("a name is none")
