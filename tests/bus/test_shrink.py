# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrink= over the bus, with the real daemon and the unit's own code: when it is done, and what is told."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdump_service.rehearse.verdict import Rehearsal
from tests.builders.machine_disks import small_image_machine
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

MIB = 1 << 20
MEASURED = 176 * MIB
CHANGES = "type='signal',interface='org.freedesktop.DBus.Properties'"
Start = Callable[..., RunningDaemon]


def _measured(machine: MachineRoot, number: int = 0, **changes: object) -> None:
    """A crash on record whose capture used 97.7 MiB."""
    described: dict[str, Any] = {
        "memory_total_kib": 220680, "memory_available_low_water_kib": 120680, "pages": 1000, **changes,
    }  # fmt: skip
    put_dump(machine, number, **described)


def _set(machine: MachineRoot) -> None:
    machine.write("etc/kdump-service.conf", "[Kernel]\nShrink=yes\n")


def _reserved(machine: MachineRoot) -> int:
    return int((machine.path / "sys/kernel/kexec_crash_size").read_text())


def _times_begun(machine: MachineRoot) -> int:
    path = machine.path / "shrinks"
    return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture
def start(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[Start]:
    """Starts the daemon; arguments are errnos of its loads, 0 for one that succeeds."""
    started: list[RunningDaemon] = []

    def begin(*failures: int) -> RunningDaemon:
        codes = map(str, failures)
        running = RunningDaemon(bus, machine, "signal", *codes, module="tests.bus.fake_shrinking_daemon")
        started.append(running)
        return running

    yield begin
    for each in started:
        if each.process.poll() is None:
            each.stop()


def test_given_back_after_the_start(start: Start, machine: MachineRoot) -> None:
    _measured(machine)
    _set(machine)
    daemon = start()
    daemon.wait_for_journal("80.0 MiB of memory given back to production until the next boot; 176 MiB stay")
    assert daemon.call("Check") == []
    assert (daemon.read("State"), daemon.read("Ready")) == ("armed", True)
    assert (daemon.read("ReservedBytes"), _reserved(machine)) == (MEASURED, MEASURED)
    assert "176 MiB (crashkernel=256M)" in daemon.kdumpctl("status").stdout
    # The next start finds nothing that is left to do, and loads nothing anew.
    daemon.stop()
    again = start()
    assert again.call("Check") == []
    again.stop()
    assert _times_begun(machine) == 1


@pytest.mark.parametrize("setting", ["", "[Kernel]\nShrink=no\n"])
def test_not_without_being_asked(start: Start, machine: MachineRoot, setting: str) -> None:
    _measured(machine)
    machine.write("etc/kdump-service.conf", setting)
    daemon = start()
    daemon.call("Check")
    daemon.stop()
    assert (_times_begun(machine), _reserved(machine)) == (0, 256 * MIB)


def test_when_it_is_switched_on_and_not_back_when_off(
    start: Start, machine: MachineRoot, bus: PrivateBus
) -> None:
    _measured(machine)
    daemon = start()
    with bus.monitor(CHANGES) as monitor:
        assert daemon.set("Shrink", "s", "yes").returncode == 0
        while monitor.until_changed("Activity") != "shrinking":
            pass
        while monitor.until_changed("ReservedBytes") != MEASURED:
            pass
    assert daemon.set("Shrink", "s", "no").returncode == 0
    assert daemon.call("Check") == []
    assert (daemon.read("ReservedBytes"), _times_begun(machine)) == (MEASURED, 1)
    done = daemon.set("Shrink", "s", "maybe")
    assert "Shrink=: 'maybe' is not one of no, yes" in done.stderr


def test_nothing_measured(start: Start, machine: MachineRoot) -> None:
    daemon = start()
    assert daemon.kdumpctl("config", "set", "Shrink", "yes").returncode == 0
    assert daemon.call("Check") == []
    daemon.stop()
    assert (_times_begun(machine), _reserved(machine)) == (0, 256 * MIB)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EBUSY, "another program is loading a kernel now"),
        (errno.EINVAL, "crash_size: made to fail"),
    ],
)
def test_a_refusal_is_a_warning(start: Start, machine: MachineRoot, code: int, said: str) -> None:
    _measured(machine)
    _set(machine)
    machine.write("shrink-fails", str(code))
    daemon = start()
    assert said in daemon.wait_for_journal("Shrinking the reservation failed: ")
    assert daemon.call("Check") == []
    assert (daemon.read("State"), daemon.read("Ready")) == ("armed", True)
    assert daemon.read("ReservedBytes") == _reserved(machine) == 256 * MIB
    assert _times_begun(machine) == 1
    # Not again and again.
    daemon.call("Arm")
    daemon.call("Rebuild")
    assert daemon.call("Check") == []
    assert _times_begun(machine) == 1
    # But when it is switched on once more.
    assert daemon.set("Shrink", "s", "no").returncode == 0
    (machine.path / "shrink-fails").unlink()
    assert daemon.set("Shrink", "s", "yes").returncode == 0
    daemon.wait_for_journal("80.0 MiB of memory given back")


def test_no_file_of_the_kernel(start: Start, machine: MachineRoot) -> None:
    _measured(machine)
    _set(machine)
    (machine.path / "sys/kernel/kexec_crash_size").unlink()
    daemon = start()
    assert daemon.read("Reason") == "no-reservation"
    daemon.stop()
    assert _times_begun(machine) == 0


def test_what_does_not_fit_any_more(start: Start, machine: MachineRoot) -> None:
    _measured(machine)
    _set(machine)
    daemon = start(0, errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL)
    daemon.wait_for_journal("Not armed: ")
    codes = {row[0]: row[1] for row in daemon.call("Check")}
    assert codes == {"reservation-too-small": "fatal", "reservation-shrunk": "warning"}
    assert (daemon.read("State"), daemon.read("ReservedBytes")) == ("not-armed", MEASURED)
    done = daemon.kdumpctl("check")
    assert done.returncode == 4
    assert "Reboot: it is all there again" in " ".join(done.stdout.split())


def test_another_program_loads_just_then(start: Start, machine: MachineRoot) -> None:
    _measured(machine)
    _set(machine)
    daemon = start(0, errno.EBUSY, errno.EBUSY)
    daemon.wait_for_journal("Not armed: another program is loading a kernel now")
    daemon.wait_for_journal("Armed: ")
    assert daemon.call("Check") == []
    assert daemon.read("ReservedBytes") == MEASURED


def test_the_area_below_4_gib_stays(start: Start, machine: MachineRoot) -> None:
    _measured(machine)
    _set(machine)
    machine.write("proc/cmdline", "root=/dev/vda crashkernel=1G,high crashkernel=128M,low\n")
    machine.write("proc/iomem", "00-00 : Crash kernel\n00-00 : System RAM\n  00-00 : Crash kernel\n")
    machine.write("sys/kernel/kexec_crash_size", f"{1152 * MIB}\n")
    daemon = start()
    daemon.wait_for_journal("848 MiB of memory given back")
    assert daemon.read("ReservedBytes") == 304 * MIB


class TestAfterARehearsal:
    @pytest.fixture
    def machine(self, tmp_path: Path) -> MachineRoot:
        made = small_image_machine(tmp_path / "machine")
        _set(made)
        return made

    def _rehearse(self, daemon: RunningDaemon, machine: MachineRoot) -> None:
        settings = json.loads((machine.path / "var/lib/kdump-service/capture.json").read_text())
        result = Rehearsal(
            passed=True, time="2026-11-23T17:18:06Z", identity=settings["armed_identity"], release=RELEASE,
            accelerator="kvm", reserved_bytes=256 * MIB, memory_total_kib=220680, memory_low_water_kib=110680,
        )  # fmt: skip
        machine.write("result.json", json.dumps({"result": result.to_json()}))
        assert daemon.call("Rehearse")["Passed"]["data"] is True

    def test_nothing_is_given_back_but_what_the_next_crash_allows(
        self, start: Start, machine: MachineRoot
    ) -> None:
        daemon = start()
        self._rehearse(daemon, machine)
        assert daemon.call("Check") == []
        assert daemon.read("ProvenLevel") == "rehearsed"
        daemon.stop()
        assert (_times_begun(machine), _reserved(machine)) == (0, 256 * MIB)
        # The rehearsal used 107.4 MiB, the crash 10 less.
        _measured(machine)
        start().wait_for_journal("64.0 MiB of memory given back")


class TestWithAnImageToBuild:
    """What captures need is known of the small image; what is loaded until it is built may need more."""

    @pytest.fixture
    def machine(self, tmp_path: Path) -> MachineRoot:
        made = small_image_machine(tmp_path / "machine", built=False)
        os.mkfifo(made.path / "build-1")
        _measured(made)
        _set(made)
        return made

    def test_it_waits_for_the_image(self, start: Start, machine: MachineRoot) -> None:
        daemon = start()
        assert [row[0] for row in daemon.call("Check")] == ["image-building"]
        assert _times_begun(machine) == 0
        (machine.path / "build-1").write_text("\n")
        daemon.wait_for_journal("of memory given back")
        assert "/var/lib/kdump-service/images/" in daemon.read("Image")
        assert daemon.call("Check") == []
