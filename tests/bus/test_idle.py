# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon costs while nothing happens."""

from __future__ import annotations

import time
from pathlib import Path

from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import RunningDaemon

MOST_RESIDENT_KIB = 32 << 10
IDLE_SEC = 10


def _wake_ups(daemon: RunningDaemon) -> dict[str, str]:
    """How often each thread was put to sleep, by its own wish or not (proc(5))."""
    counts = {}
    for thread in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        counts[thread.name] = " ".join(line.split()[1] for line in lines if "ctxt_switches" in line)
    return counts


def test_memory_and_wake_ups(daemon: RunningDaemon, machine: MachineRoot) -> None:
    put_dump(machine, 0)
    assert daemon.call("Check") == []
    assert daemon.set("Contents", "s", "user").returncode == 0
    daemon.call("Arm")
    time.sleep(3)  # what has changed is looked at when it has rested for a second
    before = _wake_ups(daemon)
    time.sleep(IDLE_SEC)
    assert _wake_ups(daemon) == before
    rollup = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    resident_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident_kib <= MOST_RESIDENT_KIB
