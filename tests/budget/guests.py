# SPDX-License-Identifier: LGPL-2.1-or-later
"""Counts what this process does with guests, and what it makes for the cache. The harness of tests/vm counts:

    guests.COUNTED.boots += 1
    with guests.making("tree-0123456789abcdef"):
        build(folder)

The plugin takes the difference of each phase of a case: who counts in a thread of its own may count too late.
"""

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from pathlib import Path

__all__ = ["COUNTED", "MADE", "RUNNING", "Guests", "Made", "making", "processor_seconds"]


@dataclass
class Guests:
    """What guests did."""

    boots: int = 0
    """Production boots: cold starts and resets, those after a hang of the emulation too."""
    captures: int = 0
    """Crashes that a capture kernel took over."""
    restored: int = 0
    """Guests that began as a snapshot, without a boot."""
    hangs: int = 0
    """Resets because the emulation hung; each is one of `boots`."""
    lost: int = 0
    """Machines of which nothing more was heard."""

    def __add__(self, other: "Guests") -> "Guests":
        return Guests(*(mine + theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: "Guests") -> "Guests":
        return Guests(*(mine - theirs for mine, theirs in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Made:
    """An entry that was made for the cache, without the entries that were made for it in turn."""

    name: str
    wall: float
    cpu: float
    boots: int
    captures: int


COUNTED = Guests()
MADE: list[Made] = []
RUNNING: set[int] = set()
"""Processes of machines that run, to be taken out when they have been waited for."""


def processor_seconds() -> float:
    """User and system time of this process, of its machines, and of its children that have ended and been
    waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used) + sum(map(_of_process, RUNNING))


def _of_process(pid: int) -> float:
    """utime and stime of proc(5); also of one that has ended and was not waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def making(name: str) -> Iterator[None]:
    """While the entry `name` (`<kind>-<key>`) is made: its boots and captures are not those of the case that
    happens to be the first to need it."""
    guests, made = replace(COUNTED), len(MADE)
    wall, cpu = time.monotonic(), processor_seconds()
    try:
        yield
    finally:
        inner = MADE[made:]
        taken = COUNTED - guests
        MADE.append(
            Made(
                name,
                time.monotonic() - wall - sum(entry.wall for entry in inner),
                processor_seconds() - cpu - sum(entry.cpu for entry in inner),
                taken.boots,
                taken.captures,
            )
        )
        COUNTED.boots, COUNTED.captures = guests.boots, guests.captures
