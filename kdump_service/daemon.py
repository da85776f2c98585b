# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon of the production boot: joins the manager, the bus and systemd.

Arming comes first and needs nobody; the bus is served beside it. Acts run one after the other in one worker
thread, so that questions are answered while the kernel copies an image.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from systemd.daemon import notify

from kdump_service import log
from kdump_service.arm.loader import Loader
from kdump_service.bus.server import BusServer
from kdump_service.errors import KdumpError, KernelBusy
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.crash_reports import report_crashes
from kdump_service.service.manager import Manager
from kdump_service.service.state import Status
from kdump_service.service.systemd import StopCause, stop_cause
from kdump_service.store.dumps import StoredDump, scan

__all__ = ["Daemon", "run_daemon"]

logger = logging.getLogger(__name__)

_BUSY_TRIES = 30
_BUSY_PAUSE_SEC = 2.0
"""A load takes a second or two; a minute of tries covers any boot."""


class Daemon:
    """One run of the daemon; also what the bus calls (bus.interface.Acts)."""

    def __init__(
        self,
        root: Path = Path("/"),
        loader: Loader | None = None,
        why_stopped: Callable[[], StopCause] = stop_cause,
    ) -> None:
        self._kernel_files = KernelFiles(root)
        self._manager = Manager(
            self._kernel_files, loader or Loader(self._kernel_files), self._status_changed
        )
        self._why_stopped = why_stopped
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="acts")
        self._server = BusServer(self)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reload_task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Arm, serve, and wait for SIGTERM. Raises AlreadyRunning."""
        self._loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload_on_signal)
        serving = asyncio.create_task(self._server.serve())
        try:
            await self._act(self._manager.start)
            notify(f"READY=1\nSTATUS={self._manager.status().summary()}")
            await self._arm_when_kernel_is_free()
            await self._act(lambda: report_crashes(self._kernel_files, self._manager.config.target))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                stopping.cancel()
                serving.result()
            notify("STOPPING=1")
            await self._act(self._stop)
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, KdumpError):
                await serving
            self._worker.shutdown()

    # What the bus calls

    def status(self) -> Status:
        """The state now."""
        return self._manager.status()

    async def arm(self) -> None:
        """Load the crash kernel. Raises CannotArm."""
        await self._act(self._manager.arm)

    async def disarm(self) -> None:
        """Unload the crash kernel. Raises CannotArm."""
        await self._act(self._manager.disarm)

    async def reload(self) -> None:
        """Read the configuration anew. Raises ConfigError or CannotArm."""
        await self._act(self._manager.reload)

    async def list_dumps(self) -> list[StoredDump]:
        """All dumps, oldest first."""
        dumps: list[StoredDump] = []
        await self._act(lambda: dumps.extend(scan(self._kernel_files.root, self._manager.config.target)))
        return dumps

    async def _arm_when_kernel_is_free(self) -> None:
        """Another program may be loading a kernel just now; the kernel has no event for its end."""
        for _ in range(_BUSY_TRIES):
            if self.status().reason != KernelBusy.reason:
                return
            await asyncio.sleep(_BUSY_PAUSE_SEC)
            with contextlib.suppress(KdumpError):  # told to the journal by the manager
                await self.arm()

    async def _act(self, act: Callable[[], object]) -> None:
        assert self._loop is not None
        await self._loop.run_in_executor(self._worker, act)

    def _status_changed(self, status: Status) -> None:
        """Called in the worker thread or the main one."""
        assert self._loop is not None
        notify(f"STATUS={status.summary()}")
        self._loop.call_soon_threadsafe(self._server.announce, status)

    def _reload_on_signal(self) -> None:
        assert self._loop is not None
        # Kept, since the loop itself holds its tasks weakly.
        self._reload_task = self._loop.create_task(self.reload())
        self._reload_task.add_done_callback(_log_failed_reload)

    def _stop(self) -> None:
        cause = self._why_stopped()
        if cause is not StopCause.STOPPED:
            logger.info("Ending, the crash kernel stays loaded (%s)", cause.value)
            return
        try:
            self._manager.disarm()
        except KdumpError as error:
            logger.error("the crash kernel stays loaded: %s", error.explanation())


def _log_failed_reload(task: asyncio.Task[None]) -> None:
    error = task.exception()
    if error is not None and not isinstance(error, KdumpError):  # those the manager has told to the journal
        logger.error("reload failed", exc_info=error)


def run_daemon() -> int:
    """Entry of the verb ``daemon``; returns the exit code."""
    log.to_journal()
    try:
        asyncio.run(Daemon().run())
    except KdumpError as error:
        logger.error("%s", error.explanation())
        return error.exit_code
    return 0
