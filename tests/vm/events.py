# SPDX-License-Identifier: LGPL-2.1-or-later
"""What comes out of a machine: boots, answers, dumps, QMP events, and the ways in which it fails a case."""

from dataclasses import dataclass
from typing import Any, Literal, Self

from .channel import Message

__all__ = [
    "Boot",
    "CommandFailed",
    "Completed",
    "GuestDump",
    "MachineLost",
    "Mode",
    "QmpEvent",
    "UnexpectedBoot",
]

Mode = Literal["production", "capture"]


class MachineLost(Exception):
    """The machine is gone or does not answer; the message ends with the last lines of its console."""


class UnexpectedBoot(AssertionError):
    """The machine came up, but in the other mode."""


class CommandFailed(AssertionError):
    """A command in the guest ended with another status than 0, or not in time."""


@dataclass(frozen=True)
class Completed:
    """How a command in the guest ended; `status` is None when it was killed at its time limit."""

    command: str
    status: int | None
    stdout: str
    stderr: str

    def check(self) -> Self:
        if self.status != 0:
            ended = "did not end in time" if self.status is None else f"ended with status {self.status}"
            raise CommandFailed(f"{self.command}: {ended}\nstdout: {self.stdout}\nstderr: {self.stderr}")
        return self


@dataclass(frozen=True)
class Boot:
    """The guest said hello, at which host time (seconds, monotonic), and its own age by then."""

    at: float
    boot_id: str
    mode: Mode
    release: str
    uptime_sec: float


@dataclass(frozen=True)
class GuestDump:
    """One dump folder in the guest: its path there, its record, and the sizes in bytes of its files."""

    path: str
    record: dict[str, Any]
    files: dict[str, int]


@dataclass(frozen=True)
class QmpEvent:
    """What QEMU told of the machine: SHUTDOWN, MIGRATION, ..., at which host time (seconds, monotonic)."""

    at: float
    name: str
    data: Message
