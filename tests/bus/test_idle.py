# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon costs while nothing happens, and at a boot at which nothing has changed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.builders.machine_disks import put_image, small_image_machine
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import PrivateBus, RunningDaemon
from tests.hang import wait_until

pytestmark = pytest.mark.new_interpreter

MOST_RESIDENT_KIB = 32 << 10
IDLE_SEC = 10
MOST_START_CPU_SEC = 1.0
"""Of processor time, so whatever else the machine does; five times what was measured."""
IMAGE_BYTES = 20 << 20
IMAGE_SOURCES = 700
SOURCE_BYTES = 90_000
"""As the image of a Debian 12."""


def _wake_ups(daemon: RunningDaemon) -> dict[str, str]:
    """How often each thread was put to sleep, by its own wish or not (proc(5))."""
    counts = {}
    for thread in Path(f"/proc/{daemon.process.pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        counts[thread.name] = " ".join(line.split()[1] for line in lines if "ctxt_switches" in line)
    return counts


def _sleeps_through(daemon: RunningDaemon, seconds: float) -> bool:
    before = _wake_ups(daemon)
    time.sleep(seconds)
    return _wake_ups(daemon) == before


def test_memory_and_wake_ups(daemon: RunningDaemon, machine: MachineRoot) -> None:
    put_dump(machine, 0)
    assert daemon.call("Check") == []
    assert daemon.set("Contents", "s", "user").returncode == 0
    daemon.call("Arm")
    # What has changed is looked at when it has rested for a second, and then nothing more.
    wait_until(lambda: _sleeps_through(daemon, 3))
    assert _sleeps_through(daemon, IDLE_SEC)
    rollup = Path(f"/proc/{daemon.process.pid}/smaps_rollup").read_text()
    resident_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident_kib <= MOST_RESIDENT_KIB


def test_start_without_change(bus: PrivateBus, tmp_path: Path) -> None:
    """The image is found to be current and is loaded; what went into it is not read again."""
    machine = small_image_machine(tmp_path / "machine", built=False)
    sources = [f"usr/lib/image/{number}" for number in range(IMAGE_SOURCES)]
    for path in sources:
        machine.write(path, os.urandom(SOURCE_BYTES))
    image = put_image(machine, os.urandom(IMAGE_BYTES), sources=sources)
    daemon = RunningDaemon(bus, machine)
    try:
        seconds = daemon.processor_seconds()
        assert daemon.read("Image") == str(image)
        assert not (machine.path / "builds").exists()
        assert seconds < MOST_START_CPU_SEC
    finally:
        daemon.stop()
