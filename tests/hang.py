# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a case gives up waiting.

No case asserts how quick something is: one machine is three times slower than another, and neighbours are
busy. What a case asserts of time is an order, a share of other time, or that a thing comes at all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

HANG_SEC = 30.0
"""What has not come by then never will. What is not to be waited for lasts longer, such as ``sleep 60``."""

_LOOK_SEC = 0.01


def wait_until(condition: Callable[[], object]) -> None:
    """Wait for what can only be looked at, not listened to.

    :raise AssertionError: when it has not come after :data:`HANG_SEC`.
    """
    deadline = time.monotonic() + HANG_SEC
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(_LOOK_SEC)


async def until(condition: Callable[[], object]) -> None:
    """The same, in a running loop."""
    deadline = time.monotonic() + HANG_SEC
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(_LOOK_SEC)
