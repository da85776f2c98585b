# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kdump.Kdump1: convert, authorise, call the daemon. No logic of its own.

Members carry their D-Bus signatures as annotations, which is how dbus-next wants them; their meaning is
documented in ``dbus/org.kdump.Kdump1.xml``, which a test compares with live introspection.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from dbus_next import DBusError, PropertyAccess, Variant
from dbus_next.aio import MessageBus
from dbus_next.service import ServiceInterface, dbus_property, method

from kdump_service import __version__
from kdump_service.bus.authorization import require
from kdump_service.bus.names import ACTION_ARM, INTERFACE
from kdump_service.errors import KdumpError
from kdump_service.service.state import Status
from kdump_service.store.dumps import StoredDump

__all__ = ["Acts", "KdumpInterface", "status_properties"]

logger = logging.getLogger(__name__)


class Acts(Protocol):
    """What the interface needs of the daemon."""

    def status(self) -> Status:
        """The state now."""

    async def arm(self) -> None:
        """Raises KdumpError."""

    async def disarm(self) -> None:
        """Raises KdumpError."""

    async def reload(self) -> None:
        """Raises KdumpError."""

    async def list_dumps(self) -> list[StoredDump]:
        """Oldest first."""


def status_properties(status: Status) -> dict[str, Any]:
    """The properties that follow the state, by their names on the bus."""
    return {
        "State": str(status.state),
        "Reason": status.reason,
        "Explanation": status.explanation,
        "Loaded": status.loaded,
        "ReservedBytes": status.reserved_bytes,
        "Kernel": status.kernel,
        "Image": status.image,
        "CommandLine": status.command_line,
    }


def _dump_entry(dump: StoredDump) -> dict[str, Variant]:
    record = dump.record
    return {
        "Name": Variant("s", dump.folder.name),
        "State": Variant("s", str(record.state)),
        "Folder": Variant("s", str(dump.folder)),
        "CrashTime": Variant("s", record.crash_time),
        "KernelRelease": Variant("s", record.kernel_release),
        "PanicMessage": Variant("s", record.panic_message),
        "BootID": Variant("s", record.boot_id),
        "StoredBytes": Variant("t", record.stored_bytes),
        "SecondsToSaved": Variant("d", record.seconds_to_saved),
        "Files": Variant("as", [file.name for file in record.files]),
        "Problems": Variant("as", [problem.message for problem in record.problems]),
    }


def _errors_to_bus(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """The edge to the bus: errors of ours keep their names, others become InternalError and are logged."""

    @functools.wraps(function)
    async def call(*arguments: Any) -> Any:
        try:
            return await function(*arguments)
        except KdumpError as error:
            raise DBusError(error.dbus_name(), error.explanation()) from error
        except Exception as error:
            logger.exception("call from the bus failed")
            raise DBusError(KdumpError.dbus_name(), f"internal error: {error}") from error

    return call


class KdumpInterface(ServiceInterface):
    """The object at /org/kdump/Kdump1."""

    def __init__(self, bus: MessageBus, acts: Acts) -> None:
        super().__init__(INTERFACE)
        self._bus = bus
        self._acts = acts

    @dbus_property(access=PropertyAccess.READ)
    def Version(self) -> "s":
        return __version__

    @dbus_property(access=PropertyAccess.READ)
    def State(self) -> "s":
        return str(self._acts.status().state)

    @dbus_property(access=PropertyAccess.READ)
    def Reason(self) -> "s":
        return self._acts.status().reason

    @dbus_property(access=PropertyAccess.READ)
    def Explanation(self) -> "s":
        return self._acts.status().explanation

    @dbus_property(access=PropertyAccess.READ)
    def Loaded(self) -> "b":
        return self._acts.status().loaded

    @dbus_property(access=PropertyAccess.READ)
    def ReservedBytes(self) -> "t":
        return self._acts.status().reserved_bytes

    @dbus_property(access=PropertyAccess.READ)
    def Kernel(self) -> "s":
        return self._acts.status().kernel

    @dbus_property(access=PropertyAccess.READ)
    def Image(self) -> "s":
        return self._acts.status().image

    @dbus_property(access=PropertyAccess.READ)
    def CommandLine(self) -> "s":
        return self._acts.status().command_line

    @method()
    @_errors_to_bus
    async def Arm(self):
        await require(self._bus, ACTION_ARM)
        await self._acts.arm()

    @method()
    @_errors_to_bus
    async def Disarm(self):
        await require(self._bus, ACTION_ARM)
        await self._acts.disarm()

    @method()
    @_errors_to_bus
    async def Reload(self):
        await require(self._bus, ACTION_ARM)
        await self._acts.reload()

    @method()
    @_errors_to_bus
    async def ListDumps(self) -> "aa{sv}":
        return [_dump_entry(dump) for dump in await self._acts.list_dumps()]
