# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is run on what, and the figures that are to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from .contestants import EVERYBODY, MAIN, MOST, QUICK, Contestant
from .measure import Memory, Run

__all__ = ["FULL", "QUICK_CASES", "Case", "Figures", "Result", "Terabyte", "Verdict", "verdicts"]

LOADED = ("8g-loaded", "2g-loaded")
"""Where the goals are looked at: on the first of these that was measured."""
MOST_MEMORY_KIB = 96 << 10
MOST_FILTER_SEC = 30.0


@dataclass(frozen=True)
class Case:
    """All that is run on one vmcore at one dump level."""

    guest: str
    level: int
    contestants: tuple[Contestant, ...]


FULL = (
    Case("8g-loaded", 31, EVERYBODY),
    Case("8g-loaded", 1, MOST),
    Case("8g-loaded", 17, MAIN),
    Case("8g-loaded", 0, MAIN),
    Case("8g-idle", 31, MAIN),
    Case("8g-idle", 1, MAIN),
    Case("2g-loaded", 31, MOST),
    Case("2g-loaded", 1, MAIN),
    Case("2g-loaded", 17, MAIN),
    Case("2g-loaded", 0, MAIN),
    Case("2g-idle", 31, MAIN),
    Case("2g-idle", 1, MAIN),
)
QUICK_CASES = (Case("2g-loaded", 31, QUICK), Case("2g-loaded", 1, QUICK))


@dataclass
class Figures:
    """What came of one contestant in one case."""

    runs: list[Run] = field(default_factory=list)
    memory: Memory | None = None
    failures: list[str] = field(default_factory=list)
    """What it said when it ended with an error; such runs count for nothing else."""

    def median(self, figure: str) -> float:
        """Of one of the figures of a run."""
        return median(float(getattr(run, figure)) for run in self.runs)


@dataclass
class Result:
    """What came of a case."""

    case: Case
    figures: dict[Contestant, Figures]


@dataclass
class Terabyte:
    """What came of the machine of a terabyte."""

    filter_seconds: list[float] = field(default_factory=list)
    filter_cpu_seconds: list[float] = field(default_factory=list)
    convert: Figures = field(default_factory=Figures)
    makedumpfile: Figures = field(default_factory=Figures)
    """--dry-run: it filters, and writes nothing."""


@dataclass(frozen=True)
class Verdict:
    """A goal and what was reached."""

    text: str
    goal: str
    got: str
    reached: bool | None
    """None: not measured in this run."""


@dataclass(frozen=True)
class _Ratio:
    """Ours against the best of theirs, as ratio of medians."""

    text: str
    level: int
    ours: str
    theirs: tuple[str, ...]
    figure: Literal["wall_seconds", "output_bytes"]
    at_most: float
    less: bool = False

    def verdict(self, results: Mapping[tuple[str, int], Result]) -> Verdict:
        goal = f"{'<' if self.less else '≤'} {self.at_most:.2f}"
        for guest in LOADED:
            result = results.get((guest, self.level))
            if result is None:
                continue
            values = {
                each.name: figures.median(self.figure)
                for each, figures in result.figures.items()
                if figures.runs
            }
            ours = [value for name, value in values.items() if name.startswith(self.ours)]
            theirs = [value for name, value in values.items() if name.startswith(self.theirs)]
            if ours and theirs:
                ratio = ours[0] / min(theirs)
                reached = ratio < self.at_most if self.less else ratio <= self.at_most
                return Verdict(f"{guest}, level {self.level}: {self.text}", goal, f"{ratio:.2f}", reached)
        return Verdict(f"level {self.level}: {self.text}", goal, "", None)


# The table of the issue; names are the beginnings of contestants' names.
_RATIOS = (
    _Ratio(
        "zstd, 2 threads, wall against -l", 31, "kdump zstd, 2", ("makedumpfile -l (",), "wall_seconds", 0.8
    ),
    _Ratio("zstd, size against -l", 31, "kdump zstd, 2", ("makedumpfile -l (",), "output_bytes", 0.65),
    _Ratio(
        "zstd, 1 thread, wall against -l", 31, "kdump zstd, 1", ("makedumpfile -l (",), "wall_seconds", 1.2
    ),
    _Ratio(
        "zstd, 2 threads, wall against -c", 31, "kdump zstd, 2", ("makedumpfile -c (",), "wall_seconds", 0.3
    ),
    _Ratio("zstd, size against -c", 31, "kdump zstd, 2", ("makedumpfile -c (",), "output_bytes", 1.0),
    _Ratio(
        "zstd, 2 threads, wall against the best of -l",
        1,
        "kdump zstd, 2",
        ("makedumpfile -l (", "makedumpfile -l --num-threads"),
        "wall_seconds",
        1.0,
    ),
    _Ratio(
        "elf with LZ4, wall against makedumpfile's best",
        31,
        "elf lz4, 2",
        ("makedumpfile",),
        "wall_seconds",
        1.0,
        True,
    ),
)


def verdicts(results: Sequence[Result], terabyte: Terabyte | None) -> list[Verdict]:
    """All goals, also those that were not measured."""
    by_case = {(result.case.guest, result.case.level): result for result in results}
    found = [ratio.verdict(by_case) for ratio in _RATIOS]
    for guest in ("2g-loaded", "8g-loaded"):
        peaks = [
            figures.memory.peak_kib
            for result in results
            if result.case.guest == guest
            for contestant, figures in result.figures.items()
            if contestant.ours and figures.memory
        ]
        found.append(_memory(f"{guest}, peak memory, worst of all modes and levels", peaks))
    memory = terabyte.convert.memory if terabyte else None
    found.append(_memory("1 TiB, peak memory", [memory.peak_kib] if memory else []))
    seconds = median(terabyte.filter_seconds) if terabyte and terabyte.filter_seconds else None
    found.append(
        Verdict(
            "1 TiB, filtering alone, 2 workers",
            f"≤ {MOST_FILTER_SEC:.0f} s",
            "" if seconds is None else f"{seconds:.1f} s",
            None if seconds is None else seconds <= MOST_FILTER_SEC,
        )
    )
    return found


def _memory(text: str, peaks_kib: list[int]) -> Verdict:
    goal = f"≤ {MOST_MEMORY_KIB >> 10} MiB"
    if not peaks_kib:
        return Verdict(text, goal, "", None)
    peak = max(peaks_kib)
    return Verdict(text, goal, f"{peak / 1024:.1f} MiB", peak <= MOST_MEMORY_KIB)
