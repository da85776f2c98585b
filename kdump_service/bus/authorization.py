# SPDX-License-Identifier: LGPL-2.1-or-later
"""May the sender of this message do that?

Asked at one place, :meth:`kdump_service.bus.objects.Objects`, for every method and every property that is
set, before what they do begins. The sender's name is that which the bus wrote into the very message, so it
does not matter how many call at once.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from dbus_next import Message, MessageFlag, MessageType, Variant

from kdump_service.bus.connection import Connection
from kdump_service.errors import NotAuthorized

__all__ = ["Authority"]

_ALLOW_USER_INTERACTION = 1  # polkit: CheckAuthorizationFlags

# dbus-daemon lets one connection wait for 128 replies at a time (max_replies_per_connection), and refuses
# more: so a storm of callers queues here. Questions to polkit may wait for a person to type a password; those
# to the bus have places of their own, so that nobody's call waits behind them but the user's own.
_MOST_LOOKUPS = 48
_MOST_QUESTIONS = 64
_MOST_QUESTIONS_OF_USER = 8


class Authority:
    """Asks the bus and polkit, on one connection."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        self._lookups = asyncio.Semaphore(_MOST_LOOKUPS)
        self._questions = asyncio.Semaphore(_MOST_QUESTIONS)
        self._questions_of: WeakValueDictionary[int, asyncio.Semaphore] = WeakValueDictionary()
        """By user, as long as somebody waits for one. Who never answers leaves the others' places alone."""

    async def user_id(self, sender: str) -> int:
        """Whose connection that is. Raises NotAuthorized if the bus does not say, as of one that ended."""
        async with self._lookups:
            return await self._user_id(sender)

    async def require(self, message: Message, user: int, action: str) -> None:
        """Raise NotAuthorized unless polkit grants ``action`` to the sender of ``message``, who is ``user``.

        Root is not asked about: a machine without polkit can still be administered. A password is asked for
        only if the message says that somebody is there to type it.
        """
        if user == 0:
            return
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        own = self._questions_of.setdefault(user, asyncio.Semaphore(_MOST_QUESTIONS_OF_USER))
        async with own, self._questions:
            granted = await self._ask_polkit(message.sender or "", action, interactive=interactive)
        if not granted:
            raise NotAuthorized(
                f"you do not have the right {action}", "Do it as root, or ask an administrator."
            )

    async def _ask_polkit(self, sender: str, action: str, *, interactive: bool) -> bool:
        subject = ["system-bus-name", {"name": Variant("s", sender)}]
        flags = _ALLOW_USER_INTERACTION if interactive else 0
        reply = await self._call(
            Message(
                destination="org.freedesktop.PolicyKit1",
                path="/org/freedesktop/PolicyKit1/Authority",
                interface="org.freedesktop.PolicyKit1.Authority",
                member="CheckAuthorization",
                signature="(sa{sv})sa{ss}us",
                body=[subject, action, {}, flags, ""],
            ),
            "(bba{ss})",
            "polkit cannot be asked whether you may do this",
        )
        return bool(reply[0])

    async def _user_id(self, sender: str) -> int:
        reply = await self._call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="GetConnectionUnixUser",
                signature="s",
                body=[sender],
            ),
            "u",
            "the bus does not say who you are",
        )
        return int(reply)

    async def _call(self, message: Message, signature: str, failed: str) -> Any:
        try:
            reply = await self._bus.call(message)
        except (OSError, EOFError) as error:
            raise NotAuthorized(f"{failed}: the bus went away") from error
        if reply is None or reply.message_type is not MessageType.METHOD_RETURN:
            detail = reply.body[0] if reply is not None and reply.body else "no answer"
            raise NotAuthorized(f"{failed}: {detail}", "Do it as root.")
        if reply.signature != signature:
            raise NotAuthorized(f"{failed}: the answer is not understood")
        return reply.body[0]
