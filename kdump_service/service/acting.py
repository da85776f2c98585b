# SPDX-License-Identifier: LGPL-2.1-or-later
"""What parts of the daemon's brain ask of the whole: one act after the other, and to tell what is done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["Acting"]


class Acting(Protocol):
    """As :class:`kdump_service.service.control.Control` does it, in the event loop."""

    async def act(self, activity: str, act: Callable[[], object]) -> None:
        """Change what is armed or configured, in the lane of acts. Raises what ``act`` raises."""

    def doing(self, activity: str) -> AbstractContextManager[None]:
        """Clients are told of this activity while it lasts; an empty one has no name."""

    def announce(self) -> object:
        """Tell of what is known now."""

    async def look(self) -> object:
        """Look at the state anew, and tell of it."""
