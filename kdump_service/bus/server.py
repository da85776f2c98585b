# SPDX-License-Identifier: LGPL-2.1-or-later
"""Serve the interface on the system bus, and come back when the bus does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from dbus_next import NameFlag, RequestNameReply
from dbus_next.aio import MessageBus
from dbus_next.errors import AuthError

from kdump_service.bus.authorization import remember_caller
from kdump_service.bus.connection import connect_system_bus
from kdump_service.bus.interface import Acts, KdumpInterface, status_properties
from kdump_service.bus.names import BUS_NAME, OBJECT_PATH
from kdump_service.errors import AlreadyRunning
from kdump_service.service.state import Status

__all__ = ["BusServer"]

logger = logging.getLogger(__name__)

_FIRST_RETRY_SEC = 1.0
_LAST_RETRY_SEC = 60.0


class BusServer:
    """Keeps one connection with the interface exported on it."""

    def __init__(self, acts: Acts) -> None:
        self._acts = acts
        self._bus: MessageBus | None = None
        self._interface: KdumpInterface | None = None
        self._announced = Status()

    async def serve(self, on_served: Callable[[], None] = lambda: None) -> None:
        """Serve until cancelled. Without a bus the machine is armed all the same: keep trying.

        Raises AlreadyRunning if another daemon owns the name.
        """
        retry_sec = _FIRST_RETRY_SEC
        while True:
            try:
                bus = await self._connect()
            except (OSError, EOFError, AuthError) as error:
                logger.warning("no system bus, trying again in %g s, ignoring: %s", retry_sec, error)
                await asyncio.sleep(retry_sec)
                retry_sec = min(retry_sec * 2, _LAST_RETRY_SEC)
                continue
            retry_sec = _FIRST_RETRY_SEC
            on_served()
            try:
                await bus.wait_for_disconnect()
            except Exception as error:  # an edge: the library hands on whatever ended its reader
                logger.warning("the system bus went away, connecting anew, ignoring: %s", error)
            finally:
                self._bus = self._interface = None
                bus.disconnect()

    def announce(self, status: Status) -> None:
        """Emit PropertiesChanged for what differs from what was announced last."""
        before, after = status_properties(self._announced), status_properties(status)
        self._announced = status
        changed = {name: value for name, value in after.items() if value != before[name]}
        if changed and self._interface is not None:
            self._interface.emit_properties_changed(changed)

    async def _connect(self) -> MessageBus:
        bus = await connect_system_bus()
        bus.add_message_handler(remember_caller)
        self._interface = KdumpInterface(bus, self._acts)
        bus.export(OBJECT_PATH, self._interface)
        self._announced = self._acts.status()
        reply = await bus.request_name(BUS_NAME, NameFlag.DO_NOT_QUEUE)
        if reply is not RequestNameReply.PRIMARY_OWNER:
            bus.disconnect()
            raise AlreadyRunning(f"{BUS_NAME} is owned by another process", "Is the service running already?")
        self._bus = bus
        return bus
