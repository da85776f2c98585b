# SPDX-License-Identifier: LGPL-2.1-or-later
"""Work that many ask for at the same time, and that is done once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["Fresh"]

Result = TypeVar("Result")


class Fresh(Generic[Result]):
    """One run at a time. Whoever asks gets the result of a run that began after they asked."""

    def __init__(self, work: Callable[[], Awaitable[Result]]) -> None:
        self._work = work
        self._running: asyncio.Task[Result] | None = None
        self._next: asyncio.Task[Result] | None = None

    async def get(self) -> Result:
        """Waits for two runs at most: the one under way, and the next. Raises what the work raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._run(self._running))
        # Shielded: a caller that is cancelled does not take the result from the others.
        return await asyncio.shield(self._next)

    async def _run(self, before: asyncio.Task[Result] | None) -> Result:
        if before is not None and not before.done():
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await self._work()
