# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: many clients that call the daemon all at once, five calls each.

Once: after a pause, whoever is served when all others were would be served half way.
"""

from __future__ import annotations

import asyncio
import sys

from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

MANAGER = "org.kdump.Kdump1"
CALLS: tuple[tuple[str, str, list[str]], ...] = (
    (MANAGER, "Check", []),
    (MANAGER, "Estimate", []),
    (MANAGER, "Reload", []),
    (f"{MANAGER}.Settings", "GetSettings", []),
    ("org.freedesktop.DBus.Properties", "GetAll", [MANAGER]),
)


async def _main(address: str, count: int) -> None:
    clients = [await MessageBus(bus_address=address).connect() for _ in range(count)]
    print("connected", flush=True)
    replies = await _all_at_once(clients)
    errors = [reply for reply in replies if reply.message_type is not MessageType.METHOD_RETURN]
    print(f"{len(replies)} answers, {len(errors)} errors")


async def _all_at_once(clients: list[MessageBus]) -> list[Message]:
    return await asyncio.gather(
        *(
            client.call(
                Message(
                    destination=MANAGER,
                    path="/org/kdump/Kdump1",
                    interface=interface,
                    member=member,
                    signature="s" * len(body),
                    body=body,
                )
            )
            for client in clients
            for interface, member, body in CALLS
        )
    )


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2])))
