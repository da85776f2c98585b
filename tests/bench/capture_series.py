# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crashes of a benchmark of capture boots: medians, ratios, smallest reservations; as tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .builds import Build
from .crashes import KDUMP_TOOLS, OURS, Crash, CrashCase
from .report import aligned

__all__ = ["Series", "as_document", "tables"]

MIB = 1 << 20
MOMENTS = ("capture-kernel", "first-page", "reboot", "production")
GOALS = {"first_page_ratio": 0.45, "production_ratio": 0.5, "smallest_crashkernel_mib": 128}
"""Each at most."""


@dataclass
class Series:
    """Crashes in the order in which they came."""

    crashes: list[Crash] = field(default_factory=list)
    lost: int = 0
    """Machines that ended or did not answer before they were crashed; they count for nothing."""

    def cases(self) -> list[CrashCase]:
        """In the order in which they came."""
        return list(dict.fromkeys(each.case for each in self.crashes))

    def of(self, name: str, case: CrashCase) -> list[Crash]:
        """All crashes of this contestant."""
        return [each for each in self.crashes if each.contestant == name and each.case == case]

    def complete(self, name: str, case: CrashCase) -> list[Crash]:
        """Those that gave a dump."""
        return [each for each in self.of(name, case) if not each.failure]

    def seconds(self, name: str, case: CrashCase, moment: str) -> float | None:
        """The median from the panic to this moment."""
        times = [each.seconds[moment] for each in self.complete(name, case) if moment in each.seconds]
        return round(median(times), 3) if times else None

    def cpu_seconds(self, name: str, case: CrashCase, moment: str) -> float | None:
        """The same in processor time."""
        times = [each.cpu_seconds[moment] for each in self.complete(name, case) if moment in each.cpu_seconds]
        return round(median(times), 3) if times else None

    def ratio(self, case: CrashCase, moment: str, *, cpu: bool = False) -> float | None:
        """Ours to theirs."""
        seconds = self.cpu_seconds if cpu else self.seconds
        ours, theirs = (seconds(name, case, moment) for name in (OURS, KDUMP_TOOLS))
        return round(ours / theirs, 3) if ours and theirs else None

    def smallest(self, name: str, memory_mib: int) -> int | None:
        """The smallest reservation in MiB down to which every try gave a dump; None if none did."""
        smallest = None
        for case in self.cases():  # from the largest down
            if case.memory_mib == memory_mib and (crashes := self.of(name, case)):
                if any(each.failure for each in crashes):
                    break
                smallest = case.crashkernel_mib
        return smallest


def headline(series: Series) -> dict[str, Any]:
    """What the goals are for: times of the first case, and the reservation that does for all of them."""
    cases = series.cases()
    sizes = [series.smallest(OURS, memory) for memory in {case.memory_mib: None for case in cases}]
    return {
        "first_page_ratio": series.ratio(cases[0], "first-page") if cases else None,
        "production_ratio": series.ratio(cases[0], "production") if cases else None,
        "smallest_crashkernel_mib": max((size for size in sizes if size), default=None)
        if None not in sizes
        else None,
    }


def as_document(
    around: Mapping[str, Any], series: Series, builds: Sequence[Build], tries: int
) -> dict[str, Any]:
    """All of it, with every single crash."""
    memories = {case.memory_mib: None for case in series.cases()}
    return {
        **headline(series),
        "goals": GOALS,
        "tries": tries,
        "machines_lost": series.lost,
        "surroundings": dict(around),
        "smallest_crashkernel_mib_by_memory": {
            name: {str(memory): series.smallest(name, memory) for memory in memories}
            for name in (OURS, KDUMP_TOOLS)
        },
        "cases": [_case(series, case) for case in series.cases()],
        "builds": [asdict(each) for each in builds],
        "crashes": [asdict(each) for each in series.crashes],
    }


def _case(series: Series, case: CrashCase) -> dict[str, Any]:
    return {
        **asdict(case),
        "ratios": {moment: series.ratio(case, moment) for moment in MOMENTS},
        "cpu_ratios": {moment: series.ratio(case, moment, cpu=True) for moment in MOMENTS},
        **{
            name: {
                "tried": len(series.of(name, case)),
                "complete": len(series.complete(name, case)),
                "median_seconds": {moment: series.seconds(name, case, moment) for moment in MOMENTS},
                "median_cpu_seconds": {moment: series.cpu_seconds(name, case, moment) for moment in MOMENTS},
            }
            for name in (OURS, KDUMP_TOOLS)
        },
    }


def tables(series: Series, builds: Sequence[Build]) -> str:
    """Times, images, goals."""
    return "\n\n".join([_times(series), _images(series, builds), _goals(series)])


def _times(series: Series) -> str:
    rows: list[tuple[str, ...]] = [
        ("seconds from the panic to", *MOMENTS, "tried", "complete", "low water MiB", "dump MiB")
    ]
    for case in series.cases():
        for name in (OURS, KDUMP_TOOLS):
            if not (crashes := series.of(name, case)):
                continue
            complete = series.complete(name, case)
            low = [each.details.get("memory_available_low_water_kib") for each in complete]
            rows.append(
                (
                    f"{case}, {name}",
                    *(_number(series.seconds(name, case, moment)) for moment in MOMENTS),
                    str(len(crashes)),
                    str(len(complete)),
                    _number(min(kib for kib in low if kib) / 1024) if any(low) else "",
                    _number(median(each.dump_bytes for each in complete) / MIB) if complete else "",
                )
            )
        ratios = [series.ratio(case, moment) for moment in MOMENTS]
        if any(ratios):
            rows.append(("  ratio", *(_number(ratio, 2) for ratio in ratios), "", "", "", ""))
            ratios = [series.ratio(case, moment, cpu=True) for moment in MOMENTS]
            rows.append(("  ratio of CPU seconds", *(_number(ratio, 2) for ratio in ratios), "", "", "", ""))
    failed = [f"{each.contestant}, {each.case}: {each.failure}" for each in series.crashes if each.failure]
    return "\n".join([aligned(rows), *failed])


def _images(series: Series, builds: Sequence[Build]) -> str:
    rows: list[tuple[str, ...]] = [("", "image MiB", "build s", "arming s", "arming CPU s", "armed at s")]
    for name in (OURS, KDUMP_TOOLS):
        crashes = [each for each in series.crashes if each.contestant == name and each.image_bytes]
        built = [each.seconds for each in builds if each.contestant == name]
        if crashes:
            rows.append(
                (
                    name,
                    _number(crashes[-1].image_bytes / MIB),
                    _number(built[0] if built else None),
                    _number(median(each.arming_seconds for each in crashes), 2),
                    _number(median(each.arming_cpu_seconds for each in crashes), 2),
                    _number(median(each.armed_seconds for each in crashes)),
                )
            )
    return aligned(rows)


def _goals(series: Series) -> str:
    rows = [("goal", "at most", "got", "")]
    for name, got in headline(series).items():
        reached = "not measured" if got is None else "reached" if got <= GOALS[name] else "MISSED"
        rows.append((name, str(GOALS[name]), "" if got is None else str(got), reached))
    return aligned(rows)


def _number(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"
