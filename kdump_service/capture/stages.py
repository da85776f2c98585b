# SPDX-License-Identifier: LGPL-2.1-or-later
"""The stages of a capture: each is timed, and its failure becomes a problem of the record, never an end."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from kdump_service.capture.progress import MemoryGauge, Progress
from kdump_service.errors import KdumpError, describe
from kdump_service.record import DumpRecord, Problem

__all__ = ["INTERRUPTED", "Interrupted", "Stages"]

logger = logging.getLogger(__name__)

INTERRUPTED = "interrupted"
"""The reason of a problem: the process was asked to end."""


class Interrupted(Exception):
    """The process was asked to end; raised by a child's signal handler inside the running stage."""


class Stages:
    """Runs stages, and writes down in the record what became of them."""

    def __init__(
        self,
        record: DumpRecord,
        gauge: MemoryGauge,
        notify: Callable[[str], object],
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        """``notify`` takes sd_notify(3) assignments; ``changed`` is called when the record has changed."""
        self._record = record
        self._gauge = gauge
        self._notify = notify
        self.changed = changed

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Run one stage."""
        self._notify(f"WATCHDOG=1\nSTATUS=Stage: {name}")
        started = time.monotonic()
        try:
            yield
        except KdumpError as error:
            self.add_problem(name, error.reason, f"{describe(error)}. {error.hint}".strip())
        except Interrupted:
            self.add_problem(name, INTERRUPTED, "the capture was asked to end before it was done")
        except MemoryError:
            self.add_problem(name, "no-memory", "the capture boot has no memory left; reserve more")
        except Exception as error:  # an edge: a fault of ours in one stage must not cost the stages behind it
            logger.debug("stage %s", name, exc_info=True)
            self.add_problem(name, KdumpError.reason, describe(error))
        finally:
            self._record.stage_seconds[name] = round(time.monotonic() - started, 3)
            self._gauge.sample()
            self._record.memory_available_low_water_kib = self._gauge.low_water_kib
            self._record.peak_resident_kib = max(self._record.peak_resident_kib, self._gauge.resident_kib())
            self.changed()

    def become_child(self, notify: Callable[[str], object], changed: Callable[[], object]) -> None:
        """Tell another from now on; see the arguments of the class."""
        self._notify, self.changed = notify, changed

    def alive(self) -> None:
        """Tell that what has no progress to show goes on."""
        self._notify("WATCHDOG=1")

    def add_problem(self, stage: str, reason: str, message: str) -> None:
        """Put it into the record and the journal."""
        self._record.problems.append(Problem(stage, reason, message))
        logger.error("%s: %s", stage, message)

    def progress(self, what: str, total_bytes: int) -> Progress:
        """Of something that counts bytes."""
        return Progress(what, total_bytes, self._gauge, self._notify, logger.info)

    def progress_of_bytes(self, what: str) -> Callable[[int, int], None]:
        """Of something that tells how many bytes are done, and of how many."""
        return self.progress_in_pages(what, 1)

    def progress_in_pages(self, what: str, page_bytes: int) -> Callable[[int, int], None]:
        """Of something that tells how many pages are done, and of how many."""
        progress: Progress | None = None

        def advance(done: int, total: int) -> None:
            nonlocal progress
            if progress is None:
                progress = self.progress(what, total * page_bytes)
            progress.advance(done * page_bytes)

        return advance
