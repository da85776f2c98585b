# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who is calling, and may they?

dbus-next does not hand the sender of a message to the method that it calls. A message handler that runs
just before stores it in a context variable; the method's task is made in that very context and copies it, so
each call sees its own caller, however many run at once.
"""

from __future__ import annotations

import asyncio
from contextvars import ContextVar

from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from kdump_service.errors import NotAuthorized

__all__ = ["caller", "remember_caller", "require"]

caller: ContextVar[str] = ContextVar("caller")
"""Unique bus name of the client whose method call is being carried out."""

_ALLOW_USER_INTERACTION = 1  # polkit: CheckAuthorizationFlags

# dbus-daemon lets one connection wait for 128 replies at a time (max_replies_per_connection) and refuses
# more: a storm of callers queues here instead. Questions to polkit may wait for a person to type a
# password; those to the bus have places of their own, so that root never waits behind them.
_lookups = asyncio.Semaphore(48)
_questions = asyncio.Semaphore(64)


def remember_caller(message: Message) -> bool:
    """Message handler: never consumes the message."""
    if message.message_type is MessageType.METHOD_CALL:
        caller.set(message.sender or "")
    return False


async def require(bus: MessageBus, action: str) -> None:
    """Raise NotAuthorized unless polkit grants ``action`` to the caller.

    Root is not asked about: a machine without polkit can still be administered.
    """
    sender = caller.get()
    async with _lookups:
        if await _user_id(bus, sender) == 0:
            return
    async with _questions:
        granted = await _ask_polkit(bus, sender, action)
    if not granted:
        raise NotAuthorized(f"you do not have the right {action}", "Do it as root, or ask an administrator.")


async def _ask_polkit(bus: MessageBus, sender: str, action: str) -> bool:
    reply = await bus.call(
        Message(
            destination="org.freedesktop.PolicyKit1",
            path="/org/freedesktop/PolicyKit1/Authority",
            interface="org.freedesktop.PolicyKit1.Authority",
            member="CheckAuthorization",
            signature="(sa{sv})sa{ss}us",
            body=[
                ["system-bus-name", {"name": Variant("s", sender)}],
                action,
                {},
                _ALLOW_USER_INTERACTION,
                "",
            ],
        )
    )
    if reply is None or reply.message_type is MessageType.ERROR:
        detail = reply.body[0] if reply is not None and reply.body else "no answer"
        raise NotAuthorized(f"polkit cannot be asked whether you may do this: {detail}", "Do it as root.")
    return bool(reply.body[0][0])


async def _user_id(bus: MessageBus, sender: str) -> int:
    reply = await bus.call(
        Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="GetConnectionUnixUser",
            signature="s",
            body=[sender],
        )
    )
    if reply is None or reply.message_type is MessageType.ERROR:
        raise NotAuthorized("the bus does not say who you are")
    return int(reply.body[0])
