# SPDX-License-Identifier: LGPL-2.1-or-later
"""Connect to the system bus, with a cure for one fault of the library.

dbus-next 0.2.3, the last release and the one that distributions carry, takes a full socket buffer (EAGAIN)
for a broken connection: a daemon that answers many clients at once would lose its bus name. Its writer
already copes with a short send by waiting until the socket can be written, so a send that would block is
made to look like one of zero bytes.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable

from dbus_next import BusType
from dbus_next.aio import MessageBus

__all__ = ["connect", "connect_system_bus"]


class _PatientSocket:
    """The two calls that the library's writer makes on its socket."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain

    def send(self, data: memoryview) -> int:
        try:
            return self._plain.send(data)
        except BlockingIOError:
            return 0

    def sendmsg(self, buffers: Iterable[memoryview], ancillary: Iterable[tuple[int, int, bytes]]) -> int:
        # Only ever with file descriptors to pass, and the writer passes them once: this one may not be cut.
        return self._plain.sendmsg(buffers, ancillary)


async def connect(bus: MessageBus) -> MessageBus:
    """Connect a bus object that is not connected yet. Raises OSError."""
    await bus.connect()
    bus._writer.sock = _PatientSocket(bus._sock)
    return bus


async def connect_system_bus() -> MessageBus:
    """A new connection to the system bus. Raises OSError."""
    return await connect(MessageBus(bus_type=BusType.SYSTEM))
