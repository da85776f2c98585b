# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: answers CheckAuthorization as polkitd would, by a list of names that are granted.

Names on a second list are never answered, as where a person does not type the password.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from dbus_next import Message, MessageType

from kdump_service.bus.connection import connect_system_bus


async def _main() -> None:
    folder = Path(sys.argv[1])
    bus = await connect_system_bus()

    def names(file: str) -> list[str]:
        return (folder / file).read_text().split()

    def answer(message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "CheckAuthorization":
            return None
        (kind, details), action, _, flags, _ = message.body
        assert kind == "system-bus-name"
        name = details["name"].value
        with (folder / "asked").open("a") as file:
            file.write(f"{name} {action} {flags}\n")
        if name in names("unanswered"):
            return True
        granted = names("granted")
        return Message.new_method_return(
            message, "(bba{ss})", [[name in granted or "*" in granted, False, {}]]
        )

    bus.add_message_handler(answer)
    await bus.request_name("org.freedesktop.PolicyKit1")
    print("ready", flush=True)
    with contextlib.suppress(EOFError):  # the bus may be ended by a test
        await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(_main())
