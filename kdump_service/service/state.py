# SPDX-License-Identifier: LGPL-2.1-or-later
"""The state of the machine as the daemon sees it: frozen snapshots, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from kdump_service.service.problems import Problem, Severity
from kdump_service.settings import Setting

__all__ = ["ArmState", "SettingState", "Status", "View"]


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
    """What the manager of arming knows."""

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
    environment: str = ""
    """What the capture boot runs in: ``initramfs`` or ``rootfs``; empty while nothing is loaded."""

    def summary(self) -> str:
        """One line for sd_notify and for people."""
        if self.state is ArmState.ARMED:
            text = f"Armed: {self.kernel}"
            return f"{text}. Attention: {self.explanation}" if self.explanation else text
        if self.state is ArmState.ARMING:
            return "Arming"
        return f"Not armed: {self.explanation}" if self.explanation else "Not armed"


@dataclass(frozen=True)
class View:
    """All that clients are told of the machine; every field is a property on the bus, or several."""

    status: Status = Status()
    problems: tuple[Problem, ...] = ()
    """The worst first."""
    requested_reservation: str = ""
    """Words of the running kernel's command line."""
    kernel_release: str = ""
    proven_level: str = "unproven"
    proven_time: str = ""
    last_crash: str = ""
    """Name of the newest dump."""
    activity: str = ""
    """What the service is doing; empty while idle."""
    progress: float = -1.0
    """How far it got, from 0 to 1; -1 where nobody knows."""

    @property
    def ready(self) -> bool:
        """Whether a crash now would be captured, as far as is known."""
        fatal = any(problem.severity is Severity.FATAL for problem in self.problems)
        # While the next is prepared, what was loaded before stays.
        armed = self.status.state in (ArmState.ARMED, ArmState.ARMING) and self.status.loaded
        return armed and not fatal


@dataclass(frozen=True)
class SettingState:
    """A setting, its value, and where that comes from."""

    setting: Setting
    value: Any
    """In force now."""
    source: str
    """``FILE:LINE`` that set it; empty for the default."""
    waits: str
    """What has to happen until the value is put to use; empty if it is in use."""
