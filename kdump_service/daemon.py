# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon of the production boot: joins the brain, the bus and systemd.

Arming comes first and needs nobody; the bus is served beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from systemd.daemon import notify

from kdump_service import log
from kdump_service.arm.loader import Loader
from kdump_service.bus.server import BusServer
from kdump_service.errors import KdumpError
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.capture_images import BuildImage
from kdump_service.service.control import Control
from kdump_service.service.deliberate_crash import start_test_crash
from kdump_service.service.image_builder import build_by_unit
from kdump_service.service.state import Status
from kdump_service.service.systemd import StopCause, stop_cause

__all__ = ["Daemon", "run_daemon"]

logger = logging.getLogger(__name__)


class Daemon:
    """One run of the daemon."""

    def __init__(
        self,
        root: Path = Path("/"),
        loader: Loader | None = None,
        why_stopped: Callable[[], StopCause] = stop_cause,
        crash: Callable[[KernelFiles, str], None] = start_test_crash,
        build: BuildImage = build_by_unit,
    ) -> None:
        files = KernelFiles(root)
        self._control = Control(files, loader or Loader(files), crash, _tell_systemd, build)
        self._server = BusServer(self._control)
        self._why_stopped = why_stopped

    async def run(self) -> None:
        """Arm, serve, and wait for SIGTERM. Raises AlreadyRunning."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def begin_to_stop() -> None:
            self._control.begin_to_stop()
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, begin_to_stop)
        loop.add_signal_handler(signal.SIGHUP, self._control.begin_to_reload)
        serving = asyncio.create_task(self._server.serve())
        try:
            await self._control.start(self._server)
            notify(f"READY=1\nSTATUS={self._control.view().status.summary()}")
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                stopping.cancel()
                serving.result()
            notify("STOPPING=1")
            cause = await loop.run_in_executor(None, self._why_stopped)
            if cause is not StopCause.STOPPED:
                logger.info("Ending, the crash kernel stays loaded (%s)", cause.value)
            await self._control.stop(disarm=cause is StopCause.STOPPED)
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError, KdumpError):
                await serving
            self._control.close()


def _tell_systemd(status: Status) -> None:
    notify(f"STATUS={status.summary()}")


def run_daemon() -> int:
    """Entry of the verb ``daemon``; returns the exit code."""
    log.to_journal()
    try:
        asyncio.run(Daemon().run())
    except KdumpError as error:
        logger.error("%s", error.explanation())
        return error.exit_code
    return 0
