# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon tells systemd, and the one thing that it asks: why am I being stopped?"""

from __future__ import annotations

import logging
from enum import Enum

from kdump_service.errors import ProgramFailed
from kdump_service.process import run

__all__ = ["StopCause", "parse_jobs", "stop_cause"]

logger = logging.getLogger(__name__)

UNIT = "kdump.service"


class StopCause(Enum):
    """Why the daemon received SIGTERM."""

    STOPPED = "stopped"
    """An administrator stopped the unit: disarm."""
    RESTARTED = "restarted"
    """The unit starts again at once: stay armed, without a gap."""
    SHUTDOWN = "shutdown"
    """The machine goes down: a panic during shutdown still counts, stay armed."""
    SIGNAL = "signal"
    """Somebody sent a signal, systemd knows nothing of it: stay armed."""


def parse_jobs(listing: str) -> StopCause:
    """Judge by ``systemctl list-jobs --plain --no-legend``: lines of id, unit, type, state.

    While the machine goes down, shutdown.target has a start job that waits for every unit to stop
    (systemd.special(7)); a unit that restarts has one job of type restart, also in its stopping half.
    """
    jobs = {}
    for line in listing.splitlines():
        words = line.split()
        if len(words) >= 3:
            jobs[words[1]] = words[2]
    if jobs.get("shutdown.target") == "start":
        return StopCause.SHUTDOWN
    match jobs.get(UNIT):
        case "stop":
            return StopCause.STOPPED
        case "restart" | "try-restart" | "start":
            return StopCause.RESTARTED
        case _:
            return StopCause.SIGNAL


def stop_cause() -> StopCause:
    """Ask PID 1. If it does not answer, stay on the safe side: a signal, which leaves the machine armed."""
    try:
        return parse_jobs(run(["systemctl", "list-jobs", "--plain", "--no-legend", "--full"], timeout_sec=10))
    except ProgramFailed as error:
        logger.warning("cannot find out why the service stops, staying armed: %s", error)
        return StopCause.SIGNAL
