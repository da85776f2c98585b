# SPDX-License-Identifier: LGPL-2.1-or-later
"""May the sender of this message do that?

Asked at one place, :meth:`kdump_service.bus.objects.Objects`, for every method and every property that is
set, before what they do begins. The sender's name is that which the bus wrote into the very message, so it
does not matter how many call at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from dbus_next import Message, MessageFlag, MessageType, Variant

from kdump_service.bus.connection import Connection
from kdump_service.errors import NotAuthorized

__all__ = ["Authority"]

_ALLOW_USER_INTERACTION = 1  # polkit: CheckAuthorizationFlags


class Authority:
    """Asks the bus and polkit, on one connection."""

    def __init__(self, bus: Connection) -> None:
        self._bus = bus
        # dbus-daemon lets one connection wait for 128 replies at a time (max_replies_per_connection) and
        # refuses more: a storm of callers queues here instead. Questions to polkit may wait for a person to
        # type a password; those to the bus have places of their own, so that root never waits behind them.
        self._lookups = asyncio.Semaphore(48)
        self._questions = asyncio.Semaphore(64)

    async def require(self, message: Message, action: str) -> None:
        """Raise NotAuthorized unless polkit grants ``action`` to the sender of ``message``.

        Root is not asked about: a machine without polkit can still be administered. A password is asked for
        only if the message says that somebody is there to type it.
        """
        sender = message.sender or ""
        async with self._lookups:
            if await self._user_id(sender) == 0:
                return
        interactive = bool(message.flags & MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        async with self._questions:
            granted = await self._ask_polkit(sender, action, interactive=interactive)
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
