# SPDX-License-Identifier: LGPL-2.1-or-later
"""Serve the objects on the system bus, and come back when the bus does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dbus_next import NameFlag, RequestNameReply
from dbus_next.errors import AuthError, DBusError

from kdump_service.bus.authorization import Authority
from kdump_service.bus.connection import Connection, connect_system_bus
from kdump_service.bus.dump_interface import DumpActs, dump_interface, dump_values, is_same_crash
from kdump_service.bus.interface import ManagerActs, manager_interface, manager_values
from kdump_service.bus.names import (
    BUS_NAME,
    DUMP_INTERFACE,
    INTERFACE,
    OBJECT_PATH,
    SETTINGS_INTERFACE,
    dump_path,
)
from kdump_service.bus.objects import Objects
from kdump_service.bus.settings_interface import SettingsActs, settings_interface, settings_values
from kdump_service.config import Config
from kdump_service.errors import AlreadyRunning
from kdump_service.service.state import View
from kdump_service.store.dumps import StoredDump

__all__ = ["Acts", "BusServer"]

logger = logging.getLogger(__name__)

_FIRST_RETRY_SEC = 0.05
_BOOT_RETRY_SEC = 0.5
_LAST_RETRY_SEC = 5.0
_BOOT_SEC = 120.0
"""The service starts before the bus does; for so long it is looked for often."""


class Acts(ManagerActs, SettingsActs, DumpActs, Protocol):
    """What the bus needs of the daemon."""


class BusServer:
    """Keeps one connection, and on it the manager, its settings, and the dumps."""

    def __init__(self, acts: Acts) -> None:
        self._acts = acts
        self._manager = manager_interface(acts)
        self._settings = settings_interface(acts)
        self._dumps: dict[str, dict[str, Any]] = {}
        """Object path -> properties."""
        self._objects: Objects | None = None

    async def serve(self) -> None:
        """Serve until cancelled. Without a bus the machine is armed all the same: keep trying.

        Raises AlreadyRunning if another daemon owns the name.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        retry_sec = _FIRST_RETRY_SEC
        while True:
            try:
                bus = await self._connect()
            except (OSError, EOFError, AuthError) as error:
                if retry_sec == _FIRST_RETRY_SEC:
                    logger.info("no system bus yet, trying again until there is one: %s", error)
                await asyncio.sleep(retry_sec)
                booting = loop.time() - started < _BOOT_SEC
                retry_sec = min(retry_sec * 2, _BOOT_RETRY_SEC if booting else _LAST_RETRY_SEC)
                continue
            retry_sec = _FIRST_RETRY_SEC
            try:
                await bus.wait_for_disconnect()
            except Exception as error:  # an edge: the library hands on whatever ended its reader
                logger.warning("the system bus went away, connecting anew, ignoring: %r", error)
            finally:
                self._objects = None
                bus.disconnect()

    def announce_view(self, view: View) -> None:
        """Tell of the properties of the manager that changed."""
        if self._objects is not None:
            self._objects.announce(OBJECT_PATH, INTERFACE, manager_values(view))

    def announce_config(self, config: Config) -> None:
        """Tell of the settings that changed."""
        if self._objects is not None:
            self._objects.announce(OBJECT_PATH, SETTINGS_INTERFACE, settings_values(config))

    def announce_dumps(self, dumps: Sequence[StoredDump], same_bugs: Mapping[str, Sequence[str]]) -> None:
        """Tell of dumps that came, went or changed."""
        before = self._dumps
        self._dumps = {dump_path(dump.name): dump_values(dump, same_bugs[dump.name]) for dump in dumps}
        if self._objects is None:
            return
        for path in before.keys() - self._dumps.keys():
            self._objects.remove(path)
        for path, values in self._dumps.items():
            if path in before and is_same_crash(before[path], values):
                self._objects.announce(path, DUMP_INTERFACE, values)
                continue
            if path in before:  # another crash under the name of one that was
                self._objects.remove(path)
            self._objects.add(path, dump_interface(self._acts, values["Name"]), values)

    async def _connect(self) -> Connection:
        bus = await connect_system_bus(limited=True)
        objects = Objects(bus, Authority(bus))
        objects.add(OBJECT_PATH, self._manager, manager_values(self._acts.view()), quietly=True)
        objects.add(OBJECT_PATH, self._settings, settings_values(self._acts.config()), quietly=True)
        for path, values in self._dumps.items():
            objects.add(path, dump_interface(self._acts, values["Name"]), values, quietly=True)
        bus.add_message_handler(objects.handle)
        self._objects = objects
        try:
            reply = await bus.request_name(BUS_NAME, NameFlag.DO_NOT_QUEUE)
            if reply is RequestNameReply.PRIMARY_OWNER:
                return bus
        except DBusError as error:
            bus.disconnect()
            raise PermissionError(f"{BUS_NAME} cannot be had: {error}") from error
        self._objects = None
        bus.disconnect()
        raise AlreadyRunning(f"{BUS_NAME} is owned by another process", "Is the service running already?")
