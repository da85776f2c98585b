# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon as seen by a client: calls in, plain Python values out."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.errors import AuthError, InvalidAddressError, SignatureBodyMismatchError

from kdump_service.bus.connection import Connection, connect_system_bus
from kdump_service.bus.names import BUS_NAME, DUMP_INTERFACE, INTERFACE, OBJECT_PATH, SETTINGS_INTERFACE
from kdump_service.errors import (
    DBUS_ERROR_PREFIX,
    ConfigError,
    KdumpError,
    NotAuthorized,
    ServiceUnreachable,
    error_class,
)

__all__ = ["BusDump", "Client", "Signal"]

_UNREACHABLE = {
    "org.freedesktop.DBus.Error.ServiceUnknown",
    "org.freedesktop.DBus.Error.NameHasNoOwner",
    "org.freedesktop.DBus.Error.NoReply",
    "org.freedesktop.DBus.Error.TimedOut",
    "org.freedesktop.DBus.Error.Timeout",
    "org.freedesktop.DBus.Error.Disconnected",
}
_START_FAILED = "org.freedesktop.DBus.Error.Spawn."
_REFUSED = {
    "org.freedesktop.DBus.Error.AccessDenied",
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
}
_START_HINT = "Start it: systemctl start kdump.service"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_BUS = "org.freedesktop.DBus"
"""The bus itself, and its interface; nobody else can have this name."""

_CHANGED = (_PROPERTIES, "PropertiesChanged", "sa{sv}as")
"""Interface, member and signature, as of the next ones."""
_ADDED = (_OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}")
_REMOVED = (_OBJECT_MANAGER, "InterfacesRemoved", "oas")
_OWNER_CHANGED = (_BUS, "NameOwnerChanged", "sss")

_ALIVE_INTERVAL_SEC = 5.0
_ALIVE_LIMIT_SEC = 25.0
"""The limit that libdbus and sd-bus have for a whole call. Here it is for the answer to a ping beside the
call, which itself takes as long as it needs: somebody types a password, an image is built."""


@dataclass(frozen=True)
class BusDump:
    """One dump: its object, and its properties by their names on the bus."""

    path: str
    properties: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the dump's folder."""
        return str(self.properties.get("Name", ""))


@dataclass(frozen=True)
class Signal:
    """Something that the service announced."""

    kind: str
    """``changed``, ``added``, ``removed``, or ``owner`` (the service came or went)."""
    path: str = ""
    interface: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    """Properties that changed, or those of the new object's interface. Of ``owner``: ``Running``."""


class Client:
    """One connection to the daemon. Make it with :meth:`connect`."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._gone = asyncio.ensure_future(bus.wait_for_disconnect())
        self._signals: asyncio.Queue[Signal] | None = None
        self._owner = ""
        """Unique name of the connection that has the service's name; empty if none has."""
        self._owner_asked = 0
        """Serial of the question for it."""

    @classmethod
    async def connect(cls) -> Client:
        """Connect to the system bus. Raises ServiceUnreachable."""
        try:
            return cls(await asyncio.wait_for(connect_system_bus(), _ALIVE_LIMIT_SEC))
        except TimeoutError as error:
            raise ServiceUnreachable("the system bus does not answer", "Is dbus.service running?") from error
        except (OSError, EOFError, AuthError, InvalidAddressError) as error:
            raise ServiceUnreachable(
                f"the system bus cannot be reached: {error}", "Is dbus.service running?"
            ) from error

    def close(self) -> None:
        """Leave the bus."""
        _abandon(self._gone)
        self._bus.disconnect()

    async def properties(self) -> dict[str, Any]:
        """All properties of the manager by name."""
        return await self._all_properties(OBJECT_PATH, INTERFACE)

    async def dump_properties(self, path: str) -> dict[str, Any]:
        """All properties of one dump."""
        return await self._all_properties(path, DUMP_INTERFACE)

    async def dumps(self) -> list[BusDump]:
        """All dumps, the newest last."""
        objects = _plain(await self._call(_OBJECT_MANAGER, "GetManagedObjects"))
        found = [
            BusDump(path, interfaces[DUMP_INTERFACE])
            for path, interfaces in objects.items()
            if DUMP_INTERFACE in interfaces
        ]
        return sorted(found, key=lambda dump: (dump.properties.get("CrashTime") or dump.name, dump.name))

    async def settings(self) -> list[dict[str, Any]]:
        """What GetSettings says, in the order of the manual."""
        return _plain(await self._call(SETTINGS_INTERFACE, "GetSettings"))  # type: ignore[no-any-return]

    async def set_setting(self, name: str, signature: str, value: Any) -> None:
        """Set one. Raises KdumpError, as the service says; ConfigError for a value that has not this type."""
        try:
            variant = Variant(signature, value)
        except SignatureBodyMismatchError as error:
            raise ConfigError(f"{name}=: {value!r} cannot be passed on: {error}") from error
        await self._call(_PROPERTIES, "Set", "ssv", [SETTINGS_INTERFACE, name, variant], start=True)

    async def reset_setting(self, name: str) -> None:
        """Undo what was set over the bus. Raises KdumpError."""
        await self._call(SETTINGS_INTERFACE, "ResetSetting", "s", [name], start=True)

    async def open_dump_file(self, dump: BusDump, what: str) -> int:
        """A descriptor of the ``image``, the ``log`` or the ``record``, which the caller closes."""
        message = _message(DUMP_INTERFACE, "Open", "s", [what], path=dump.path, start=True)
        reply = await self._answer(message, takes_descriptors=True)
        descriptor: int | None = None
        if reply.signature == "h" and reply.body[0] < len(reply.unix_fds):
            descriptor = reply.unix_fds.pop(reply.body[0])
        for other in reply.unix_fds:
            os.close(other)
        if descriptor is None:
            raise ServiceUnreachable(f"the service sent no descriptor of the {what}")
        os.set_inheritable(descriptor, False)  # as all others that Python makes
        return descriptor

    async def call(self, member: str, *, start: bool = False) -> Any:
        """Call a method of the manager's interface, without arguments; ``start`` the daemon if need be."""
        return _plain(await self._call(INTERFACE, member, start=start))

    async def reserve(self, size: str, options: Mapping[str, bool | str]) -> dict[str, Any]:
        """The method Reserve. Raises KdumpError."""
        values = {
            name: Variant("b" if isinstance(each, bool) else "s", each) for name, each in options.items()
        }
        plan = await self._call(INTERFACE, "Reserve", "sa{sv}", [size, values], start=True)
        return _plain(plan)  # type: ignore[no-any-return]

    async def call_dump(self, dump: BusDump, member: str, signature: str = "", *body: Any) -> None:
        """Call a method of a dump."""
        await self._answer(_message(DUMP_INTERFACE, member, signature, body, path=dump.path, start=True))

    async def subscribe(self) -> None:
        """From now on, keep what the service announces for :meth:`next_signal`."""
        if self._signals is not None:
            return
        self._signals = asyncio.Queue()
        self._bus.add_message_handler(self._on_message)
        owner_rule = f"interface='{_BUS}',member='NameOwnerChanged',arg0='{BUS_NAME}'"
        questions = (
            _question("AddMatch", f"type='signal',sender='{_BUS}',{owner_rule}"),
            _question("GetNameOwner", BUS_NAME),
            _question("AddMatch", f"type='signal',sender='{BUS_NAME}',path_namespace='{OBJECT_PATH}'"),
        )
        questions[1].serial = self._owner_asked = self._bus.next_serial()
        # In this order no change of owner is missed, and no signal comes before its sender is known.
        await asyncio.gather(*(self._unless_disconnected(self._bus.call(each)) for each in questions))

    async def next_signal(self) -> Signal:
        """The next announcement, after :meth:`subscribe`. Raises ServiceUnreachable if the bus goes away."""
        assert self._signals is not None
        return await self._unless_disconnected(self._signals.get())  # type: ignore[no-any-return]

    def _on_message(self, message: Message) -> bool:
        """Message handler: never consumes the message.

        Match rules hold for what is sent to all. To this connection alone anybody may send any signal; so the
        sender counts, which the bus fills in.
        """
        found = None
        kind = message.message_type
        if message.sender == _BUS:
            if kind is MessageType.METHOD_RETURN and message.reply_serial == self._owner_asked:
                self._owner = message.body[0]
            elif _what(message) == _OWNER_CHANGED and message.body[0] == BUS_NAME:
                self._owner = message.body[2]
                found = Signal("owner", values={"Running": bool(self._owner)})
        elif message.sender == self._owner and kind is MessageType.SIGNAL:
            found = _signal(message)
        if found is not None and self._signals is not None:
            self._signals.put_nowait(found)
        return False

    async def _all_properties(self, path: str, interface: str) -> dict[str, Any]:
        message = _message(_PROPERTIES, "GetAll", "s", [interface], path=path)
        reply = await self._answer(message)
        return _plain(reply.body[0])  # type: ignore[no-any-return]

    async def _call(
        self,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[Any] = (),
        *,
        start: bool = False,
    ) -> Any:
        reply = await self._answer(_message(interface, member, signature, body, start=start))
        return reply.body[0] if reply.body else None

    async def _answer(self, message: Message, *, takes_descriptors: bool = False) -> Message:
        """Send a call and wait for its reply, for as long as the service shows that it is alive.

        ``takes_descriptors``: see :meth:`Connection.call`.
        """
        sent = self._bus.call(message, takes_descriptors=takes_descriptors)
        call = asyncio.ensure_future(self._unless_disconnected(sent))
        try:
            while not (await asyncio.wait([call], timeout=_ALIVE_INTERVAL_SEC))[0]:
                ping = _message("org.freedesktop.DBus.Peer", "Ping")
                alive = asyncio.ensure_future(self._bus.call(ping))
                done, _ = await asyncio.wait(
                    [call, alive], timeout=_ALIVE_LIMIT_SEC, return_when=asyncio.FIRST_COMPLETED
                )
                _abandon(alive)
                if not done:
                    raise ServiceUnreachable(
                        f"the service does not answer: nothing within {_ALIVE_LIMIT_SEC:g} s",
                        "See what it does: systemctl status kdump.service",
                    )
            reply = await call
        finally:
            _abandon(call)
        if reply is None:
            raise ServiceUnreachable("no answer")
        if reply.message_type is MessageType.ERROR:
            raise _error(reply)
        return reply

    async def _unless_disconnected(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What ``work`` returns. Raises ServiceUnreachable if the bus goes away meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._gone], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ServiceUnreachable("the system bus went away")
            return task.result()
        except (OSError, EOFError) as error:
            raise ServiceUnreachable("the system bus went away") from error
        finally:
            _abandon(task)


def _abandon(task: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more; what it raises has been said, or is of no interest."""
    task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())


def _message(
    interface: str,
    member: str,
    signature: str = "",
    body: Sequence[Any] = (),
    *,
    path: str = OBJECT_PATH,
    start: bool = False,
) -> Message:
    # Whoever stopped the service and asks for its state does not want it started, and so armed.
    flags = MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
    if not start:
        flags |= MessageFlag.NO_AUTOSTART
    return Message(
        destination=BUS_NAME,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(body),
        flags=flags,
    )


def _question(member: str, argument: str) -> Message:
    """A call to the bus itself."""
    return Message(
        destination=_BUS,
        path="/org/freedesktop/DBus",
        interface=_BUS,
        member=member,
        signature="s",
        body=[argument],
    )


def _what(message: Message) -> tuple[str, str, str]:
    return message.interface, message.member, message.signature


def _signal(message: Message) -> Signal | None:
    """What a signal of the service says."""
    what, body = _what(message), _plain(message.body)
    if what == _CHANGED:
        return Signal("changed", message.path, body[0], body[1])
    if what == _ADDED and DUMP_INTERFACE in body[1]:
        return Signal("added", body[0], DUMP_INTERFACE, body[1][DUMP_INTERFACE])
    if what == _REMOVED and DUMP_INTERFACE in body[1]:
        return Signal("removed", body[0], DUMP_INTERFACE)
    return None


def _error(reply: Message) -> KdumpError:
    name = str(reply.error_name)
    text = str(reply.body[0]) if reply.body else name
    if name in _UNREACHABLE:
        return ServiceUnreachable(f"the service does not answer: {text}", _START_HINT)
    if name.startswith(_START_FAILED):
        return ServiceUnreachable(
            f"the service cannot be started: {text}", "See why: systemctl status kdump.service"
        )
    if name in _REFUSED:
        return NotAuthorized(f"the bus refuses: {text}", "Do it as root.")
    if name.startswith(DBUS_ERROR_PREFIX):
        return error_class(name)(text)
    return KdumpError(f"{name}: {text}")


def _plain(value: Any) -> Any:
    if isinstance(value, Variant):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
