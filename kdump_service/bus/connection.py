# SPDX-License-Identifier: LGPL-2.1-or-later
"""A connection to a message bus, with cures for what the library does not survive.

dbus-next 0.2.3 is its last release, and the one that distributions carry. Of it we use the wire format and
the client's side. What is cured here, each a way for one client to stop the service for all:

* a full socket buffer (EAGAIN) was taken for a broken connection; now what is left waits, descriptors too;
* messages were read as long as there were any, so that answers starved; now a few at a time, and none while
  more answers wait than the bus takes;
* a message of 30 MiB was turned into Python objects, which takes seconds and a gigabyte, before anybody
  looked at it; now, with ``limited``, its body is dropped unread;
* descriptors that came with a message stayed open for ever; now they are closed, unless the message is the
  reply to a call that takes them: anybody may send a signal to a connection, with descriptors or without;
* a message after the end of the connection could be written to whoever got its descriptor's number next, and
  who called then waited for ever.
"""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections import deque
from itertools import islice, takewhile
from struct import unpack_from
from typing import Any

from dbus_next import BusType, Message, MessageFlag, MessageType
from dbus_next._private.unmarshaller import MarshallerStreamEndError, Unmarshaller
from dbus_next.aio import MessageBus
from dbus_next.constants import ErrorType
from dbus_next.signature import SignatureTree

from kdump_service.bus.prepared import PreparedReply

__all__ = ["LARGEST_BODY_BYTES", "Connection", "connect_system_bus", "is_cut"]

logger = logging.getLogger(__name__)

_MOST_AT_ONCE = 16
"""Messages that are read before others get their turn, or written together."""
_MOST_WAITING = 64
"""Messages that wait to be written; beyond it none is read."""
LARGEST_BODY_BYTES = 32 << 10
"""Of messages to the service: eight times the longest command line that a kernel takes (4 KiB)."""
_FIXED_HEADER_BYTES = 16


class Connection(MessageBus):  # type: ignore[misc]
    """One connection. ``limited``: for a service, to which anybody may send anything."""

    def __init__(
        self, address: str | None = None, bus_type: BusType = BusType.SYSTEM, *, limited: bool = False
    ) -> None:
        self._limited = limited
        self._unmarshaller: Any = None
        self._takes_descriptors: set[int] = set()
        """Serials of the calls under way whose replies may bring descriptors."""
        super().__init__(address, bus_type, negotiate_unix_fd=True)
        self._writer = _Writer(self)
        self._reading = False

    async def connect(self) -> Connection:
        """Connect. Raises OSError, EOFError or dbus_next.errors.AuthError."""
        try:
            await super().connect()
        except BaseException:
            self.disconnect()
            raise
        self._reading = True
        return self

    def _setup_socket(self) -> None:
        try:
            super()._setup_socket()
        except OSError:
            self._stream.close()
            self._sock.close()
            raise

    def send(self, message: Message) -> asyncio.Future[None]:
        """Send a message; the future is done when it is written, or never will be."""
        if self._disconnected or self._user_disconnect:
            lost: asyncio.Future[None] = self._loop.create_future()
            lost.set_result(None)
            return lost
        future: asyncio.Future[None] = super().send(message)
        if self._reading and self._writer.waiting > _MOST_WAITING:
            self._reading = False
            self._loop.remove_reader(self._fd)
        return future

    async def call(self, message: Message, *, takes_descriptors: bool = False) -> Message | None:
        """Call, and wait for the reply. Raises EOFError after the end of the connection, or what ended it.

        ``takes_descriptors``: those of the reply stay open, and are the caller's to close.
        """
        if self._disconnected:
            raise EOFError("the connection has ended")
        if takes_descriptors:
            message.serial = message.serial or self.next_serial()
            self._takes_descriptors.add(message.serial)
        try:
            reply: Message | None = await super().call(message)
        finally:
            # Of a reply that comes when nobody waits for it any more, they are closed.
            self._takes_descriptors.discard(message.serial)
        return reply

    def disconnect(self) -> None:
        """Leave the bus at once; what is not written is lost."""
        self._user_disconnect = True
        self._finalize(None)

    def written(self) -> None:
        """Called by the writer when it caught up."""
        if not self._reading and self.unique_name and not self._disconnected:
            self._reading = True
            self._loop.add_reader(self._fd, self._message_reader)

    def _message_reader(self) -> None:
        try:
            for _ in range(_MOST_AT_ONCE):
                if self._disconnected or (self.unique_name and not self._reading):
                    return  # what was read already leads to more answers than the bus takes
                message = self._unmarshaller.unmarshall()
                dropped = message is None and getattr(self._unmarshaller, "dropped", False)
                if message is None and not dropped:
                    return
                descriptors = self._unmarshaller.unix_fds
                self._unmarshaller = self._create_unmarshaller()
                if message is None or not self._may_bring_descriptors(message):
                    _close_all(descriptors)
                if message is not None:
                    self._on_message(message)
        except Exception as error:  # an edge: whatever it is, the stream cannot be followed any more
            self._finalize(error)

    def _may_bring_descriptors(self, message: Message) -> bool:
        # Whose reply it is need not be asked: the bus lets through replies to what was asked of the sender.
        is_reply = message.message_type is MessageType.METHOD_RETURN
        return is_reply and message.reply_serial in self._takes_descriptors

    def _create_unmarshaller(self) -> Unmarshaller:
        return (_LimitedUnmarshaller if self._limited else Unmarshaller)(self._stream, self._sock)

    def _finalize(self, error: Exception | None = None) -> None:
        if self._disconnected:
            return  # its descriptor's number may be another's by now
        super()._finalize(error)
        self._writer.forget()
        _close_all(self._unmarshaller.unix_fds)  # of a message of which only a part came
        self._stream.close()
        self._sock.close()


class _Writer:
    """Writes messages in their order, as the socket takes them. The library calls schedule_write()."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._socket: socket.socket = bus._sock
        self._loop: asyncio.AbstractEventLoop = bus._loop
        self._messages: deque[tuple[memoryview, list[int], asyncio.Future[None] | None]] = deque()

    @property
    def waiting(self) -> int:
        """How many messages are not written yet."""
        return len(self._messages)

    def schedule_write(
        self, message: Message | None = None, future: asyncio.Future[None] | None = None
    ) -> None:
        """Queue a message, and write when the bus is ready for it."""
        if message is not None:
            data = memoryview(message._marshall(negotiate_unix_fd=True))
            if isinstance(message, PreparedReply):
                self._messages.append((data, [], None))
                data = memoryview(message.prepared_body)
            self._messages.append((data, list(message.unix_fds or ()), future))
        if self._bus.unique_name and self._messages:
            self._loop.add_writer(self._socket, self._write)

    def forget(self) -> None:
        """The connection ended: nobody is to wait for what will not be written."""
        while self._messages:
            _done(self._messages.popleft()[2])

    def _write(self) -> None:
        try:
            while self._messages:
                if not self._advance(self._socket.sendmsg(*self._next())):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._bus._finalize(error)
            return
        self._loop.remove_writer(self._socket)
        self._bus.written()

    def _next(self) -> tuple[list[memoryview], list[tuple[int, int, array.array[int]]]]:
        """What to hand to sendmsg(2): messages without descriptors together, one with them alone."""
        first, descriptors, _ = self._messages[0]
        if descriptors:
            return [first], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        plain = takewhile(lambda entry: not entry[1], self._messages)
        return [data for data, _, _ in islice(plain, _MOST_AT_ONCE)], []

    def _advance(self, size: int) -> bool:
        """So many bytes are written; returns whether the socket took whole messages."""
        while size:
            data, _, future = self._messages[0]
            if size < len(data):
                self._messages[0] = (data[size:], [], future)  # descriptors went with the first byte
                return False
            size -= len(data)
            self._messages.popleft()
            _done(future)
        return True


def _close_all(descriptors: list[int]) -> None:
    """Close them, and empty the list, which the message has, too."""
    while descriptors:
        os.close(descriptors.pop())


def _done(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class _LimitedUnmarshaller(Unmarshaller):  # type: ignore[misc]
    """Reads a message, but not the body of one that is too large, and survives one that it cannot read."""

    def __init__(self, stream: object, sock: socket.socket) -> None:
        super().__init__(stream, sock)
        self.message: Message | None = None
        self.dropped = False
        """Whether there was a message that cannot even be answered."""
        self._cut: Message | None = None
        self._to_skip = 0

    def _unmarshall(self) -> None:
        if not self._to_skip:
            self.offset = 0
            self.read(_FIXED_HEADER_BYTES, prefetch=True)
            order = "<" if self.buf[0] == ord("l") else ">"
            body_bytes, _, fields_bytes = unpack_from(f"{order}III", self.buf, 4)
            fields_bytes += self._padding(fields_bytes, 8)
            if fields_bytes > LARGEST_BODY_BYTES:  # a path of megabytes: nobody is told
                self._to_skip = fields_bytes + body_bytes
            else:
                whole = body_bytes <= LARGEST_BODY_BYTES
                self.read(_FIXED_HEADER_BYTES + fields_bytes + (body_bytes if whole else 0), prefetch=True)
                self._parse(order, whole=whole)
                self._to_skip = 0 if whole else body_bytes
        while self._to_skip:
            try:
                size = len(self.sock.recv(min(self._to_skip, 1 << 16)))
            except BlockingIOError:
                raise MarshallerStreamEndError from None
            if not size:
                raise EOFError
            self._to_skip -= size
        self.message = self.message or self._cut
        self.dropped = self.message is None

    def _parse(self, order: str, *, whole: bool) -> None:
        try:
            if whole:
                super()._unmarshall()
            else:
                self._cut = self._header_alone(order)
        except Exception as error:  # an edge: the bus let it pass, the library knows better
            logger.debug("a message cannot be read, dropped: %s", error)

    def _header_alone(self, order: str) -> Message:
        self.endian, self.offset = self.buf[0], _FIXED_HEADER_BYTES - 4
        fields = {code: value.value for code, value in self.read_argument(_FIELDS.types[0])}
        kind = MessageType(self.buf[1])
        if kind in (MessageType.METHOD_RETURN, MessageType.ERROR):
            kind, fields[4] = MessageType.ERROR, ErrorType.LIMITS_EXCEEDED.value
        message = Message(
            message_type=kind,
            flags=MessageFlag(self.buf[2]),
            serial=unpack_from(f"{order}I", self.buf, 8)[0],
            path=fields.get(1),
            interface=fields.get(2),
            member=fields.get(3),
            error_name=fields.get(4),
            reply_serial=fields.get(5),
            destination=fields.get(6),
            sender=fields.get(7),
        )
        message.kdump_cut = True
        return message


_FIELDS = SignatureTree._get("a(yv)")
"""Of a message's header: D-Bus specification, "Header Fields"."""


def is_cut(message: Message) -> bool:
    """Whether the message had a body that was too large to be read."""
    return getattr(message, "kdump_cut", False)


async def connect_system_bus(*, limited: bool = False) -> Connection:
    """A new connection to the system bus. Raises OSError, EOFError or dbus_next.errors.AuthError."""
    return await Connection(limited=limited).connect()
