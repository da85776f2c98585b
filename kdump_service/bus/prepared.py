# SPDX-License-Identifier: LGPL-2.1-or-later
"""A large answer that many ask for: marshalled once, sent often."""

from __future__ import annotations

from typing import Any

from dbus_next import Message, MessageType, Variant
from dbus_next._private.marshaller import Marshaller

__all__ = ["PreparedReply", "marshalled"]

# D-Bus specification, "Message Format": little endian, protocol version, and codes of header fields.
_LITTLE_ENDIAN, _PROTOCOL_VERSION = ord("l"), 1
_REPLY_SERIAL, _DESTINATION, _SIGNATURE = 5, 6, 8


def marshalled(signature: str, value: Any) -> bytes:
    """The body of a message with one value. It begins at a multiple of 8, so it goes with any header."""
    block = Marshaller(signature, [value])
    block.marshall()
    return bytes(block.buffer)


class PreparedReply(Message):  # type: ignore[misc]
    """A method return with a body from :func:`marshalled`."""

    def __init__(self, call: Message, signature: str, body: bytes) -> None:
        super().__init__(
            message_type=MessageType.METHOD_RETURN,
            reply_serial=call.serial,
            destination=call.sender,
            signature=signature,
        )
        self._prepared = body

    @property
    def prepared_body(self) -> bytes:
        """To be sent behind what :meth:`_marshall` makes: not copied, as many may wait to be sent."""
        return self._prepared

    def _marshall(self, negotiate_unix_fd: bool = False) -> bytes:
        fields = [
            [_REPLY_SERIAL, Variant("u", self.reply_serial)],
            [_DESTINATION, Variant("s", self.destination)],
            [_SIGNATURE, Variant("g", self.signature)],
        ]
        kind, flags = self.message_type.value, self.flags.value
        start = [_LITTLE_ENDIAN, kind, flags, _PROTOCOL_VERSION, len(self._prepared), self.serial, fields]
        header = Marshaller("yyyyuua(yv)", start)
        header.marshall()
        header.align(8)
        return bytes(header.buffer)
