# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines of tests.builders.machine_memory as the package's PageSource, with memory that can be broken, and
dumps of them without a command line."""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NoReturn

import numpy as np

from kdump_service.dump_options import DumpOptions
from kdump_service.engine.dump import Dump, WrittenDump
from kdump_service.engine.survey import Survey, survey_pages
from kdump_service.pfn import CHUNK_PAGES, BoolArray, fill_range
from kdump_service.targets.local import LocalPlace
from tests.builders.machine_memory import Machine
from tests.unit.machine_image import ImageOfMachine

__all__ = ["PagesOfMachine", "dump_machine", "io_error", "kills"]


def io_error() -> NoReturn:
    """What a page does that cannot be read."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def kills() -> None:
    """What a page does that must not be touched (SIGBUS on arm64, for one)."""
    faulthandler.disable()  # pytest's: it would tell of it
    os.kill(os.getpid(), signal.SIGBUS)


class PagesOfMachine:
    """The pages of an image without a file."""

    def __init__(
        self,
        image: ImageOfMachine,
        *,
        faults: Mapping[int, Callable[[], None]] | None = None,
        missing: Collection[int] = (),
    ) -> None:
        """``faults``: what happens when a frame is read; ``missing``: frames that the image does not have."""
        self.page_bytes = image.page_bytes
        self.faults = dict(faults or {})
        self._memory = image.made.memory
        self._missing = missing
        self._frames = [
            (start // self.page_bytes, -(-(start + length) // self.page_bytes))
            for start, length in image.made.ranges
        ]
        self.end_pfn = self._frames[-1][1]

    def existing(self, chunk: int) -> BoolArray:
        """See PageSource."""
        bits = np.zeros(CHUNK_PAGES, np.bool_)
        for first, end in self._frames:
            fill_range(bits, chunk, first, end)
        return bits

    def present(self, chunk: int) -> BoolArray:
        """See PageSource."""
        bits = self.existing(chunk)
        for pfn in self._missing:
            fill_range(bits, chunk, pfn, pfn + 1, False)
        return bits

    def read_pages(self, first_pfn: int, count: int, target: memoryview) -> None:
        """See PageSource."""
        for pfn in self.faults.keys() & range(first_pfn, first_pfn + count):
            self.faults[pfn]()
        target[:] = self._memory.read(first_pfn * self.page_bytes, count * self.page_bytes)


def dump_machine(
    machine: Machine,
    target: Path,
    options: DumpOptions,
    faults: Mapping[int, Callable[[], None]] | None = None,
) -> tuple[Survey, WrittenDump]:
    """Survey, write and finish."""
    image = ImageOfMachine(machine)
    source = PagesOfMachine(image, faults=faults)
    survey = survey_pages(image, source, options.level, workers=options.threads)
    dump = Dump(image, source, survey, options)
    sink = LocalPlace(target.parent, replace=True).create(target.name)
    writer = dump.write(sink)
    writer.finish(complete=not dump.written.lost_pages)
    sink.publish(target.name)
    return survey, dump.written
