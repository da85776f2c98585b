# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state of the machine as the daemon sees it. One frozen snapshot; no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ArmState", "Status"]


class ArmState(StrEnum):
    """Whether a crash now would start the capture kernel. The values are those on the bus."""

    STARTING = "starting"
    """The daemon has not looked yet."""
    ARMING = "arming"
    """The crash kernel is being loaded."""
    ARMED = "armed"
    """What is loaded is what the configuration asks for."""
    NOT_ARMED = "not-armed"
    """Nothing is loaded; the reason says why."""


@dataclass(frozen=True)
class Status:
    """What clients are told; every field is a property on the bus."""

    state: ArmState = ArmState.STARTING
    reason: str = ""
    """Stable word (KdumpError.reason), or empty where nothing is wrong."""
    explanation: str = ""
    """One or two sentences: what is wrong and what to do."""
    loaded: bool = False
    reserved_bytes: int = 0
    kernel: str = ""
    image: str = ""
    command_line: str = ""

    def summary(self) -> str:
        """One line for sd_notify and for people."""
        if self.state is ArmState.ARMED:
            text = f"Armed: {self.kernel}"
            return f"{text}. Attention: {self.explanation}" if self.explanation else text
        if self.state is ArmState.ARMING:
            return "Arming"
        return f"Not armed: {self.explanation}" if self.explanation else "Not armed"
