# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine of a terabyte: a sparse vmcore in which one section's page structures stand for all sections.

python -m tests.bench.terabyte VMCORE WORKERS     filters it, and nothing else; prints JSON
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.builders.machine_memory import Machine

__all__ = ["filter_command", "write_terabyte"]

START, LENGTH = 1 << 20, 1 << 40
FILLED_PAGES = 4096  # with contents; the others are zeros, and take no room in the file
LEVEL = 31


def write_terabyte(path: Path) -> None:
    """20 MB on the disk. The kernel keeps for itself one page in 600, or 1.8 GiB."""
    machine = Machine(memory=[(START, LENGTH)], generation="6.1", shared_memmap=True)
    section = machine.section_pages
    kept = _describe_section(machine)
    first = START // section // machine.page_bytes + 1
    for number in range(FILLED_PAGES // len(kept)):
        for frame in kept:
            machine.fill((first + number) * section + frame)
    machine.write_elf(path)


def _describe_section(machine: Machine) -> list[int]:
    """Say what the frames of every section are used for; those that the kernel needs."""
    pages = machine.pages
    kept: list[int] = []
    at = 0
    for _ in range(8):  # a quarter is free, in blocks of the highest order
        pages.buddy(at, order=10)
        at += 1024
    for _ in range(20):  # a third is user memory in huge pages
        pages.thp(at)
        at += 512
    part = machine.section_pages // 32
    while at < machine.section_pages:  # how the rest is used changes from one 32nd to the next
        number, within = divmod(at, part)
        order = 0
        if within < 4:
            order = 1 if within == 2 else 0
            pages.slab(at, order)
            kept += range(at, at + (1 << order))
        elif number % 4 == 0:
            pages.anon(at)
        elif number % 4 == 1:
            pages.cache(at, private=True)
        elif number % 4 == 2 and at % 4 == 0:
            order = 1
            pages.buddy(at, order)
        else:
            pages.cache(at)
        at += 1 << order
    return kept


def filter_command(vmcore: Path, workers: int) -> list[str]:
    """Command line of this module."""
    return [sys.executable, "-m", __name__, str(vmcore), str(workers)]


def _filter(vmcore: Path, workers: int) -> None:
    from kdump_service.dumpfile.open_image import open_image
    from kdump_service.engine.survey import survey_pages

    with open_image(vmcore) as opened:
        start = time.perf_counter()
        survey = survey_pages(opened.image, opened.pages, LEVEL, workers=workers)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "kept": len(survey.kept), "excluded": survey.excluded}))


if __name__ == "__main__":
    _filter(Path(sys.argv[1]), int(sys.argv[2]))
