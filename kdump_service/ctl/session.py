# SPDX-License-Identifier: LGPL-2.1-or-later
"""Do something on the bus: connect, tell how far the service is meanwhile, and leave.

What takes long on this side, as a copy, is done after the session: inside of one ^C ends only what waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from kdump_service.bus.client import Client
from kdump_service.bus.names import INTERFACE
from kdump_service.ctl.agent import PasswordAgent
from kdump_service.ctl.progress import ProgressLine
from kdump_service.ctl.text import printable

__all__ = ["during", "on_bus"]

Result = TypeVar("Result")


def on_bus(work: Callable[[Client], Coroutine[Any, Any, Result]], *, asks: bool = False) -> Result:
    """Run ``work`` with a connection. ``asks``: polkit may want a password. Raises KdumpError."""

    async def session() -> Result:
        client = await Client.connect()
        try:
            with PasswordAgent(wanted=asks):
                return await work(client)
        finally:
            client.close()

    return asyncio.run(session())


async def during(client: Client, work: Awaitable[Result]) -> Result:
    """The result of ``work``; until it is there, show the service's activity and its progress."""
    line = ProgressLine()
    activity, fraction = "", -1.0
    task = asyncio.ensure_future(work)
    try:
        await client.subscribe()
        while not task.done():
            signal = asyncio.ensure_future(client.next_signal())
            await asyncio.wait([task, signal], return_when=asyncio.FIRST_COMPLETED)
            if not signal.done():
                signal.cancel()
                continue
            told = signal.result()
            if told.interface == INTERFACE:
                activity = printable(str(told.values.get("Activity", activity)))
                fraction = float(told.values.get("Progress", fraction))
                line.tell(activity, fraction)
        return await task
    finally:
        line.clear()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
