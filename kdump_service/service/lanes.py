# SPDX-License-Identifier: LGPL-2.1-or-later
"""The threads of the daemon: one for each kind of work that may wait for something.

Within a lane, one thing is done after the other. A target that does not answer holds up the checks of it, and
the dumps on it, but neither who arms nor who asks for the state.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Any, TypeVar

from kdump_service.errors import KdumpError

__all__ = ["Lane", "Lanes"]

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Lane(StrEnum):
    """Each has a thread, which is made when it is needed first."""

    ACTS = "acts"
    """What changes what is armed or configured."""
    QUESTIONS = "questions"
    """What looks at files of the kernel and the machine: some milliseconds."""
    CHECKS = "checks"
    """What asks the target: seconds."""
    STORE = "store"
    """What lists, opens and deletes dumps: seconds."""
    BUILD = "build"
    """What builds the capture image: half a minute."""


class Lanes:
    """All lanes of one event loop."""

    def __init__(self) -> None:
        self._workers = {lane: ThreadPoolExecutor(1, thread_name_prefix=lane.value) for lane in Lane}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended = False

    async def run(self, lane: Lane, act: Callable[[], Result]) -> Result:
        """The result of ``act``, done in a lane. Raises what it raises."""
        if self._ended:
            raise asyncio.CancelledError
        return await asyncio.get_running_loop().run_in_executor(self._workers[lane], act)

    def in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Do work that nobody waits for. Errors of ours have been told to the journal by whoever met them."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)  # the loop itself holds its tasks weakly
        task.add_done_callback(self._done)

    def close(self) -> None:
        """Wait for what is being done; nothing more is begun."""
        self._ended = True
        for worker in self._workers.values():
            worker.shutdown(cancel_futures=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, KdumpError):
            logger.error("work in the background failed", exc_info=error)
