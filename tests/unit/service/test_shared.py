# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from kdump_service.service.shared import Fresh


class _Work:
    """Counts its runs; each waits until it is let go."""

    def __init__(self) -> None:
        self.runs = 0
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        number = self.runs
        await self.gate.wait()
        return number


def _run(act: Callable[[_Work], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        return await act(_Work())

    return asyncio.run(main())


def test_who_asks_at_the_same_time_shares_a_run() -> None:
    async def act(work: _Work) -> list[int]:
        fresh = Fresh(work)
        callers = [asyncio.ensure_future(fresh.get()) for _ in range(50)]
        await asyncio.sleep(0)
        work.gate.set()
        return [*await asyncio.gather(*callers), await fresh.get()]

    assert _run(act) == [1] * 50 + [2]


def test_nobody_gets_what_began_before_they_asked() -> None:
    async def act(work: _Work) -> list[int]:
        fresh = Fresh(work)
        first = asyncio.ensure_future(fresh.get())
        await asyncio.sleep(0.01)
        assert work.runs == 1
        later = [asyncio.ensure_future(fresh.get()) for _ in range(50)]
        await asyncio.sleep(0.01)
        work.gate.set()
        return [await first, *await asyncio.gather(*later), await fresh.get()]

    assert _run(act) == [1] + [2] * 50 + [3]


def test_who_gives_up_takes_nothing_from_others() -> None:
    async def act(work: _Work) -> int:
        shared = Fresh(work)
        impatient = asyncio.ensure_future(shared.get())
        patient = asyncio.ensure_future(shared.get())
        await asyncio.sleep(0.01)
        impatient.cancel()
        work.gate.set()
        return await patient

    assert _run(act) == 1


def test_a_failure_is_everybodys_and_not_for_ever() -> None:
    async def main() -> None:
        failures = [OSError("made to fail")]

        async def work() -> int:
            if failures:
                raise failures.pop()
            return 7

        shared = Fresh(work)
        results = await asyncio.gather(shared.get(), shared.get(), return_exceptions=True)
        assert all(isinstance(result, OSError) for result in results)
        assert await shared.get() == 7

    asyncio.run(main())
