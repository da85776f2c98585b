# SPDX-License-Identifier: LGPL-2.1-or-later
"""The objects of the service on one connection: who calls what, may they, and what is the answer.

Every call from the bus comes through :meth:`Objects.handle`. The library's own dispatcher is not used: it
does not hand on the sender, writes a traceback to the journal and to the caller for each refusal, announces
new objects from the wrong path, and names no results in its introspection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from dbus_next import Message, MessageFlag, MessageType, Variant
from dbus_next.constants import ErrorType

from kdump_service.bus.connection import Connection, is_cut
from kdump_service.bus.introspection import describe_object
from kdump_service.bus.members import Interface, Method, Property, clean
from kdump_service.bus.names import FREE, OBJECT_PATH
from kdump_service.bus.prepared import PreparedReply, marshalled
from kdump_service.errors import KdumpError, NotAuthorized

__all__ = ["Objects"]

logger = logging.getLogger(__name__)

PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_MANAGED = "a{oa{sa{sv}}}"

_MOST_CALLS_OF_CONNECTION = 64
_MOST_CALLS_OF_USER = 2048
"""Under way at a time. A call without reply is not counted by the bus, and connections come and go;
dbus-daemon lets a user have 256 (max_connections_per_user), here for eight calls each. There is no limit for
all users together, which one of them could reach."""
_LARGE_BYTES = 64 << 10
_LONGEST_ECHO = 60
"""Characters of a caller's own text in an answer to it."""


class _Refused(Exception):
    """A call that cannot be carried out, for a reason that D-Bus itself names."""

    def __init__(self, kind: ErrorType, text: str) -> None:
        super().__init__(text)
        self.name = str(kind.value)


class Authorizer(Protocol):
    """What decides over rights."""

    async def user_id(self, sender: str) -> int:
        """Raises NotAuthorized."""

    async def require(self, message: Message, user: int, action: str) -> None:
        """Raises NotAuthorized."""


class Objects:
    """A tree of objects. Those below OBJECT_PATH are managed: the ObjectManager there tells of them."""

    def __init__(self, bus: Connection, authorizer: Authorizer) -> None:
        self._bus = bus
        self._authorizer = authorizer
        self._objects: dict[str, dict[str, Interface]] = {}
        self._announced: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._managed: bytes | None = None
        """Body of the answer to GetManagedObjects: a thousand dumps take 0.1 s to marshal."""
        self._prepared: dict[str, tuple[object, bytes]] = {}
        """By what was asked for: the object that the last answer was made of, and the answer's body."""
        self._large = asyncio.Semaphore(1)
        """Large answers are sent one at a time, so that a small one waits for no more than one of them."""
        self._calls: set[asyncio.Task[None]] = set()
        self._callers: Counter[str] = Counter()
        self._users: dict[str, asyncio.Task[int]] = {}
        """Of connections that have calls under way: whose they are. Asked once for all of these calls."""
        self._calls_of: Counter[int] = Counter()
        """By user."""

    def add(
        self, path: str, interface: Interface, values: Mapping[str, Any], *, quietly: bool = False
    ) -> None:
        """Add an interface whose properties have these values now; ``quietly``: nobody listens yet."""
        self._objects.setdefault(path, {})[interface.name] = interface
        self._announced[path, interface.name] = values
        self._managed = None
        if not quietly:
            body = [path, {interface.name: interface.variants(values)}]
            self._signal(OBJECT_PATH, OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", body)

    def remove(self, path: str) -> None:
        """Remove an object."""
        names = list(self._objects.pop(path))
        for name in names:
            del self._announced[path, name]
        self._managed = None
        self._signal(OBJECT_PATH, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, names])

    def announce(self, path: str, name: str, values: Mapping[str, Any]) -> None:
        """Tell of those of ``values``, which are all, that are not what was told before."""
        before = self._announced[path, name]
        changed = {key: value for key, value in values.items() if before.get(key) != value}
        if changed:
            self._announced[path, name] = values
            self._managed = None
            body = [name, self._objects[path][name].variants(changed), []]
            self._signal(path, PROPERTIES, "PropertiesChanged", "sa{sv}as", body)

    def handle(self, message: Message) -> bool:
        """Message handler of the connection: takes all method calls."""
        if message.message_type is not MessageType.METHOD_CALL:
            return False
        sender = str(message.sender)
        if self._callers[sender] >= _MOST_CALLS_OF_CONNECTION:
            self._send_error(message, ErrorType.LIMITS_EXCEEDED.value, "too many calls are under way")
            return True
        loop = asyncio.get_running_loop()
        if not self._callers[sender]:
            self._users[sender] = loop.create_task(self._authorizer.user_id(sender))
        self._callers[sender] += 1
        task = loop.create_task(self._answer(message))
        self._calls.add(task)
        task.add_done_callback(self._answered)
        task.add_done_callback(lambda _: self._forget_caller(sender))
        return True

    def _answered(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a call from the bus was not answered", exc_info=task.exception())

    def _forget_caller(self, sender: str) -> None:
        self._callers[sender] -= 1
        if not self._callers[sender]:
            del self._callers[sender], self._users[sender]

    @contextlib.contextmanager
    def _counted(self, user: int) -> Iterator[None]:
        """A call of this user is under way."""
        if self._calls_of[user] >= _MOST_CALLS_OF_USER:
            raise _Refused(ErrorType.LIMITS_EXCEEDED, "too many calls of yours are under way")
        self._calls_of[user] += 1
        try:
            yield
        finally:
            self._calls_of[user] -= 1
            if not self._calls_of[user]:
                del self._calls_of[user]

    async def _answer(self, message: Message) -> None:
        """The edge to the bus: errors of ours keep their names; of others the caller learns nothing."""
        try:
            user = await self._users[str(message.sender)]
            with self._counted(user):
                await self._reply_to(message, user)
        except _Refused as error:
            self._send_error(message, error.name, str(error))
        except KdumpError as error:
            if not isinstance(error, NotAuthorized):
                logger.debug("%s: %s", message.member, error)
            self._send_error(message, error.dbus_name(), error.explanation())
        except Exception:
            logger.exception("a call of %.60s from the bus failed", message.member)
            self._send_error(message, KdumpError.dbus_name(), "internal error; the journal says more")

    async def _reply_to(self, message: Message, user: int) -> None:
        if is_cut(message):
            raise _Refused(ErrorType.LIMITS_EXCEEDED, "the message is too large")
        reply = await self._reply(message, user)
        if isinstance(reply, PreparedReply) and len(reply.prepared_body) > _LARGE_BYTES:
            async with self._large:
                await self._send(message, reply)
        else:
            self._send(message, reply)

    async def _reply(self, message: Message, user: int) -> Message:
        interfaces = self._objects.get(message.path)
        if interfaces is None and not any(path.startswith(_below(message.path)) for path in self._objects):
            raise _Refused(ErrorType.UNKNOWN_OBJECT, f"there is no object {_echo(message.path)}")
        interfaces = interfaces or {}
        match (message.interface, message.member, message.signature):
            case ("org.freedesktop.DBus.Introspectable", "Introspect", ""):
                return _return(message, "s", self._introspection(message.path))
            case ("org.freedesktop.DBus.Peer", "Ping", ""):
                return Message.new_method_return(message)
            case ("org.freedesktop.DBus.Peer", "GetMachineId", ""):
                return await self._machine_id(message)
            case ("org.freedesktop.DBus.Properties", "Get", "ss"):
                return await self._get(message, interfaces)
            case ("org.freedesktop.DBus.Properties", "GetAll", "s"):
                return await self._get_all(message, interfaces)
            case ("org.freedesktop.DBus.Properties", "Set", "ssv"):
                return await self._set(message, user, interfaces)
            case ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects", "") if (
                message.path == OBJECT_PATH
            ):
                return self._managed_objects(message)
        return await self._call_method(message, user, interfaces)

    async def _call_method(self, message: Message, user: int, interfaces: Mapping[str, Interface]) -> Message:
        method = _method(message, interfaces)
        if message.signature != method.signature:
            takes = ", ".join(f"{argument.name} ({argument.signature})" for argument in method.takes)
            raise _Refused(ErrorType.INVALID_ARGS, f"{method.name} takes {takes or 'no arguments'}")
        if method.action != FREE:
            await self._authorizer.require(message, user, method.action)
        result = await method.run(*message.body)
        if method.gives is None:
            return Message.new_method_return(message)
        if method.gives.signature == "h":
            return Message.new_method_return(message, "h", [0], [result])
        return self._prepare(message, str(message.interface), method.gives.signature, result, lambda: result)

    async def _get(self, message: Message, interfaces: Mapping[str, Interface]) -> Message:
        interface, prop = _property(interfaces, *message.body)
        if prop.at_hand and interface.at_hand is not None:
            values = interface.at_hand()
        else:
            values = await self._values(message.path, interface)
        return _return(message, "v", interface.variants({prop.name: values[prop.name]})[prop.name])

    async def _get_all(self, message: Message, interfaces: Mapping[str, Interface]) -> Message:
        name = message.body[0]
        if name and name not in interfaces:
            raise _Refused(ErrorType.UNKNOWN_INTERFACE, f"there is no interface {_echo(name)} here")
        if name and interfaces[name].read is not None:
            interface = interfaces[name]
            found = await self._values(message.path, interface)
            return self._prepare(message, name, "a{sv}", found, lambda: interface.variants(found))
        values: dict[str, Variant] = {}
        for interface in [interfaces[name]] if name else interfaces.values():
            values |= interface.variants(await self._values(message.path, interface))
        return _return(message, "a{sv}", values)

    def _prepare(
        self, message: Message, name: str, signature: str, source: object, value: Callable[[], Any]
    ) -> Message:
        """An answer made of ``source``; where the last one to that question was, too, it is that one."""
        key = f"{message.path} {name} {message.member}"
        last = self._prepared.get(key)
        if last is None or last[0] is not source:
            last = self._prepared[key] = (source, marshalled(signature, value()))
        return PreparedReply(message, signature, last[1])

    async def _values(self, path: str, interface: Interface) -> Mapping[str, Any]:
        if interface.read is None:
            return self._announced[path, interface.name]
        return await interface.read()

    async def _set(self, message: Message, user: int, interfaces: Mapping[str, Interface]) -> Message:
        _, prop = _property(interfaces, *message.body[:2])
        if prop.write is None:
            raise _Refused(ErrorType.PROPERTY_READ_ONLY, f"{prop.name} cannot be set")
        value = message.body[2]
        if value.signature != prop.signature:
            raise _Refused(
                ErrorType.INVALID_ARGS,
                f"{prop.name} is of type {prop.signature}, not {_echo(value.signature)}",
            )
        await self._authorizer.require(message, user, prop.action)
        await prop.write(value.value)
        return Message.new_method_return(message)

    def _managed_objects(self, message: Message) -> Message:
        if self._managed is None:
            objects: dict[str, Any] = {}
            for (path, name), values in self._announced.items():
                if path != OBJECT_PATH:
                    objects.setdefault(path, {})[name] = self._objects[path][name].variants(values)
            self._managed = marshalled(_MANAGED, objects)
        return PreparedReply(message, _MANAGED, self._managed)

    async def _machine_id(self, message: Message) -> Message:
        question = Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus.Peer",
            member="GetMachineId",
        )
        answer = await self._bus.call(question)
        if answer is None or answer.signature != "s" or answer.message_type is not MessageType.METHOD_RETURN:
            raise _Refused(ErrorType.FAILED, "the bus does not know it")
        return _return(message, "s", answer.body[0])

    def _introspection(self, path: str) -> str:
        below = _below(path)
        children = {each[len(below) :].split("/")[0] for each in self._objects if each.startswith(below)}
        interfaces = list(self._objects.get(path, {}).values())
        return describe_object(interfaces, sorted(children), managed=path == OBJECT_PATH)

    def _signal(self, path: str, interface: str, member: str, signature: str, body: list[Any]) -> None:
        self._bus.send(Message.new_signal(path, interface, member, signature, body))

    def _send_error(self, message: Message, name: str, text: str) -> None:
        self._send(message, Message.new_error(message, name, clean(text)))

    def _send(self, message: Message, reply: Message) -> asyncio.Future[None]:
        """Send a reply, if one is wanted; the descriptors in it are closed when they are on their way."""
        descriptors = list(reply.unix_fds or ())
        if message.flags & MessageFlag.NO_REPLY_EXPECTED:
            sent = asyncio.get_running_loop().create_future()
            sent.set_result(None)
        else:
            sent = self._bus.send(reply)
        if descriptors:
            sent.add_done_callback(lambda _: _close(descriptors))
        return sent


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _echo(text: str) -> str:
    return text if len(text) <= _LONGEST_ECHO else f"{text[:_LONGEST_ECHO]}..."


def _below(path: str) -> str:
    return path if path.endswith("/") else f"{path}/"


def _return(message: Message, signature: str, value: Any) -> Message:
    return Message.new_method_return(message, signature, [value])


def _method(message: Message, interfaces: Mapping[str, Interface]) -> Method:
    # A call need not name the interface (D-Bus specification, "Method Calls").
    for name, interface in interfaces.items():
        if message.interface in (None, name) and message.member in interface.methods:
            return interface.methods[message.member]
    called = f"{_echo(str(message.interface))}.{_echo(message.member)}"
    raise _Refused(ErrorType.UNKNOWN_METHOD, f"there is no method {called} with such arguments here")


def _property(interfaces: Mapping[str, Interface], name: str, key: str) -> tuple[Interface, Property]:
    if name and name not in interfaces:
        raise _Refused(ErrorType.UNKNOWN_INTERFACE, f"there is no interface {_echo(name)} here")
    for interface in [interfaces[name]] if name else interfaces.values():
        if key in interface.properties:
            return interface, interface.properties[key]
    raise _Refused(ErrorType.UNKNOWN_PROPERTY, f"there is no property {_echo(key)}")
