# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the reservation is shrunk: while the machine is armed with what it is to stay armed with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kdump_service.errors import KdumpError
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord
from kdump_service.service.acting import Acting
from kdump_service.service.lanes import Lane, Lanes
from kdump_service.service.manager import Manager
from kdump_service.service.shrink import shrink_by_unit, sufficient_bytes, tell_shrink

__all__ = ["Shrinking"]

logger = logging.getLogger(__name__)


class Shrinking:
    """Of one machine. All of it runs in the event loop."""

    def __init__(self, kernel_files: KernelFiles, acting: Acting, manager: Manager, lanes: Lanes) -> None:
        self._files = kernel_files
        self._acting = acting
        self._manager = manager
        self._lanes = lanes
        self.waits = False
        """It was asked for, and the machine was not yet armed with what it is to stay armed with."""
        self._tried = (0, 0)
        """Reserved and wanted bytes of the last try: what was refused is not asked for again and again."""

    def switched(self) -> None:
        """Shrink= was changed: whoever switches it on wants it to be tried."""
        self._tried = (0, 0)
        self.waits = True

    async def shrink(self, records: Sequence[DumpRecord]) -> bool:
        """Give back what captures do not need, if Shrink= asks for that; returns whether it was tried. What
        goes wrong is told to the journal."""
        if self._manager.config.shrink != "yes":
            self.waits = False
            return False
        # In the lane of acts, where none is half done: amid a load nothing is as it was or will be.
        if not await self._lanes.run(Lane.ACTS, lambda: self._wanted_bytes(records)):
            return False
        try:
            await self._acting.act("shrinking", lambda: self._shrink(records))
        except KdumpError as error:
            logger.warning("Shrinking the reservation failed: %s", error.explanation())
        return True

    def _wanted_bytes(self, records: Sequence[DumpRecord]) -> int:
        """In the lane of acts; 0: nothing is to be done, or not yet."""
        loaded = self._manager.loaded_request()
        self.waits = not self._manager.armed_as_configured or self._manager.wanted_image is not None
        if loaded is None or self.waits:
            return 0
        reserved = self._manager.status().reserved_bytes
        wanted = sufficient_bytes(self._files, self._manager.config, records, loaded, reserved)
        return 0 if (reserved, wanted) == self._tried else wanted

    def _shrink(self, records: Sequence[DumpRecord]) -> None:
        """In the lane of acts. Raises KdumpError."""
        wanted = self._wanted_bytes(records)  # other acts may have come before this one
        if not wanted:
            return
        before = self._manager.status().reserved_bytes
        self._tried = (before, wanted)

        left: list[int] = []
        try:
            self._manager.while_unloaded(lambda: left.append(shrink_by_unit(self._files, wanted, before)))
        finally:
            for after in left:  # also where the crash kernel cannot be loaded any more
                tell_shrink(before, after, wanted)
