# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon as seen by a client: calls in, plain Python values out."""

from __future__ import annotations

from typing import Any

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.aio import MessageBus

from kdump_service.bus.connection import connect_system_bus
from kdump_service.bus.names import BUS_NAME, INTERFACE, OBJECT_PATH
from kdump_service.errors import DBUS_ERROR_PREFIX, KdumpError, ServiceUnreachable, error_class

__all__ = ["Client"]

_UNREACHABLE = {
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.Disconnected",
}


class Client:
    """One connection to the daemon. Make it with :meth:`connect`."""

    def __init__(self, bus: MessageBus) -> None:
        self._bus = bus

    @classmethod
    async def connect(cls) -> Client:
        """Connect to the system bus. Raises ServiceUnreachable."""
        try:
            return cls(await connect_system_bus())
        except OSError as error:
            raise ServiceUnreachable(
                f"the system bus cannot be reached: {error}", "Is dbus.service running?"
            ) from error

    def close(self) -> None:
        """Leave the bus."""
        self._bus.disconnect()

    async def properties(self) -> dict[str, Any]:
        """All properties by name."""
        values = await self._call("org.freedesktop.DBus.Properties", "GetAll", "s", [INTERFACE])
        return _plain(values)  # type: ignore[no-any-return]

    async def call(self, member: str, *, start: bool = False) -> Any:
        """Call a method of the daemon's interface, without arguments; ``start`` the daemon if need be."""
        return _plain(await self._call(INTERFACE, member, "", [], start=start))

    async def _call(
        self, interface: str, member: str, signature: str, body: list[Any], *, start: bool = False
    ) -> Any:
        message = Message(
            destination=BUS_NAME,
            path=OBJECT_PATH,
            interface=interface,
            member=member,
            signature=signature,
            body=body,
            # Whoever stopped the service and asks for its state does not want it started, and so armed.
            flags=MessageFlag.NONE if start else MessageFlag.NO_AUTOSTART,
        )
        try:
            reply = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise ServiceUnreachable(f"the system bus went away: {error}") from error
        if reply is None:
            raise ServiceUnreachable("no answer")
        if reply.message_type is MessageType.ERROR:
            raise _error(reply)
        return reply.body[0] if reply.body else None


def _error(reply: Message) -> KdumpError:
    text = str(reply.body[0]) if reply.body else str(reply.error_name)
    if reply.error_name in _UNREACHABLE:
        return ServiceUnreachable(
            f"the service does not answer: {text}", "Start it: systemctl start kdump.service"
        )
    if str(reply.error_name).startswith(DBUS_ERROR_PREFIX):
        return error_class(str(reply.error_name))(text)
    return KdumpError(f"{reply.error_name}: {text}")


def _plain(value: Any) -> Any:
    if isinstance(value, Variant):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
