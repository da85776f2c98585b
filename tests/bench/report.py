# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tables for people, and the same as JSON."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from .capture import Capture
from .plan import Figures, Result, Terabyte, Verdict

__all__ = [
    "aligned",
    "as_document",
    "captures_table",
    "case_table",
    "disturbance",
    "goals_table",
    "surroundings",
    "terabyte_lines",
]

REPO = Path(__file__).parents[2]
REFERENCE = "makedumpfile -l ("
MEDIANS = (
    "wall_seconds",
    "synced_seconds",
    "cpu_seconds",
    "output_bytes",
    "stored_bytes",
    "others_cpu_seconds",
)
DISTURBED = 0.1
"""Share of a run's processor time that may go elsewhere before its figures are called indicative."""


def case_table(result: Result) -> str:
    """One row for each contestant: medians, and ratios to `makedumpfile -l`."""
    heading = f"{result.case.guest}, level {result.case.level}"
    reference = next(
        (
            figures
            for each, figures in result.figures.items()
            if each.name.startswith(REFERENCE) and figures.runs
        ),
        None,
    )
    rows = [
        (heading, "wall s", "min", "max", "synced s", "CPU s", "peak MiB", "size MiB", "wall/-l", "size/-l")
    ]
    failed: list[str] = []
    for contestant, figures in result.figures.items():
        if figures.failures:
            last = figures.failures[-1].splitlines()[-1]
            failed.append(f"{contestant.name}: {len(figures.failures)} runs failed: {last}")
        if not figures.runs:
            continue
        walls = [run.wall_seconds for run in figures.runs]
        rows.append(
            (
                contestant.name,
                f"{median(walls):.2f}",
                f"{min(walls):.2f}",
                f"{max(walls):.2f}",
                f"{figures.median('synced_seconds'):.2f}",
                f"{figures.median('cpu_seconds'):.2f}",
                f"{figures.memory.peak_kib / 1024:.0f}" if figures.memory else "",
                f"{figures.median('output_bytes') / (1 << 20):.1f}",
                _ratio(figures, reference, "wall_seconds"),
                _ratio(figures, reference, "output_bytes"),
            )
        )
    return "\n".join([aligned(rows), *failed])


def goals_table(verdicts: Sequence[Verdict]) -> str:
    """What is to be reached, and what was."""
    words = {True: "reached", False: "MISSED", None: "not measured"}
    rows = [("goal", "", "got", "")]
    rows += [(each.text, each.goal, each.got, words[each.reached]) for each in verdicts]
    return aligned(rows)


def terabyte_lines(found: Terabyte) -> str:
    """The machine of a terabyte."""
    rows = [("1 TiB, level 31", "wall s", "CPU s", "peak MiB")]
    if found.filter_seconds:
        rows.append(
            (
                "filtering alone, 2 workers",
                f"{median(found.filter_seconds):.1f}",
                f"{median(found.filter_cpu_seconds):.1f}",
                "",
            )
        )
    named = {"kdump zstd, 2 thr.": found.convert, "makedumpfile --dry-run -l": found.makedumpfile}
    for name, figures in named.items():
        if figures.runs:
            peak = f"{figures.memory.peak_kib / 1024:.0f}" if figures.memory else ""
            wall, cpu = figures.median("wall_seconds"), figures.median("cpu_seconds")
            rows.append((name, f"{wall:.1f}", f"{cpu:.1f}", peak))
    return aligned(rows)


def captures_table(captures: Sequence[Capture]) -> str:
    """Whole captures."""
    rows = [("capture boot, 2 GiB loaded", "panic to saved s", "dump s", "size MiB")]
    rows += [
        (
            each.name,
            f"{each.panic_to_saved:.1f}",
            f"{each.dump_seconds:.1f}",
            f"{each.output_bytes / (1 << 20):.1f}",
        )
        for each in captures
    ]
    return aligned(rows)


def disturbance(results: Sequence[Result]) -> str:
    """A line on how much of the machine others took; empty if they took next to nothing."""
    runs = [run for result in results for figures in result.figures.values() for run in figures.runs]
    wall = sum(run.wall_seconds for run in runs)
    others = sum(run.others_cpu_seconds for run in runs)
    share = others / max(wall * (os.cpu_count() or 1), 1e-9)
    if share < DISTURBED:
        return ""
    return f"Others took {share:.0%} of the processors meanwhile: these figures are only indicative."


def surroundings(makedumpfile_version: str) -> dict[str, Any]:
    """What the figures depend on, without the machine's name."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    described = subprocess.run(
        ["git", "-C", REPO, "describe", "--always", "--dirty"], check=False, capture_output=True, text=True
    )
    return {
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": model[1] if model else platform.machine(),
        "processors": len(os.sched_getaffinity(0)),
        "memory_kib": int(memory[1]) if memory else 0,
        "load_average": os.getloadavg()[0],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "kdump_service": described.stdout.strip(),
        "makedumpfile": makedumpfile_version,
        "libraries": {name: _version(name) for name in ("numpy", "zstandard", "lz4", "isal")},
    }


def as_document(
    around: Mapping[str, Any],
    results: Sequence[Result],
    terabyte: Terabyte | None,
    captures: Sequence[Capture],
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """All of it, with every single run."""
    return {
        "surroundings": dict(around),
        "cases": [
            {
                "guest": result.case.guest,
                "level": result.case.level,
                "contestants": [
                    {"name": each.name, "arguments": each.arguments, **_figures(figures)}
                    for each, figures in result.figures.items()
                ],
            }
            for result in results
        ],
        "terabyte": {
            "filter_seconds": terabyte.filter_seconds,
            "filter_cpu_seconds": terabyte.filter_cpu_seconds,
            "convert": _figures(terabyte.convert),
            "makedumpfile_dry_run": _figures(terabyte.makedumpfile),
        }
        if terabyte
        else None,
        "captures": [asdict(each) for each in captures],
        "goals": [asdict(each) for each in verdicts],
    }


def _figures(figures: Figures) -> dict[str, Any]:
    return {
        "median": {name: figures.median(name) for name in MEDIANS} if figures.runs else {},
        "memory": asdict(figures.memory) if figures.memory else None,
        "runs": [asdict(run) for run in figures.runs],
        "failures": figures.failures,
    }


def _ratio(figures: Figures, reference: Figures | None, figure: str) -> str:
    return f"{figures.median(figure) / reference.median(figure):.2f}" if reference else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def aligned(rows: Sequence[tuple[str, ...]]) -> str:
    """The first column to the left, the others to the right; a rule under the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)
