# SPDX-License-Identifier: LGPL-2.1-or-later
"""rehearse over the bus, with the real daemon and a unit that is a file: method, right, proof, kdumpctl."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdump_service.rehearse.verdict import Rehearsal
from tests.builders.machine_disks import small_image_machine
from tests.builders.machine_root import MachineRoot
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1", "org.kdump.Kdump1")
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")


class _RehearsingDaemon(RunningDaemon):
    """The daemon, whose unit waits for :meth:`let_it_end`."""

    def __init__(self, bus: PrivateBus, machine: MachineRoot) -> None:
        os.mkfifo(machine.path / "rehearse")
        super().__init__(bus, machine, module="tests.bus.fake_rehearsing_daemon")

    def identity(self) -> str:
        """Of what is armed, as the daemon told the capture boot."""
        settings = json.loads((self.machine.path / "var/lib/kdump-service/capture.json").read_text())
        return str(settings["armed_identity"])

    def leaves(self, **values: Any) -> None:
        """What the unit will leave."""
        described: dict[str, Any] = {
            "passed": True,
            "time": "2026-11-23T17:18:06Z",
            "identity": self.identity(),
            "release": "6.1.0-56-cloud-amd64",
            "accelerator": "kvm",
            "reserved_bytes": 256 << 20,
            "seconds_to_capture": 3.5,
            "seconds_to_saved": 5.25,
            "seconds_to_reboot": 6.0,
            "stored_bytes": 20 << 20,
            "memory_total_kib": 220_684,
            "memory_low_water_kib": 130_568,
            **values,
        }
        result = Rehearsal(**described).to_json()
        (self.machine.path / "result.json").write_text(json.dumps({"result": result}))

    def let_it_end(self, outcome: str = "succeeds") -> threading.Thread:
        """The unit ends as soon as it has been started."""
        thread = threading.Thread(
            target=lambda: (self.machine.path / "rehearse").write_text(outcome), daemon=True
        )
        thread.start()
        return thread


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[_RehearsingDaemon]:
    running = _RehearsingDaemon(bus, machine)
    yield running
    running.stop()


FAILED = {
    "passed": False, "reason": "out-of-memory", "explanation": "The capture boot ran out of memory",
    "hint": "Reserve more: kdumpctl reserve 320M", "console": ["Kernel panic \x1b[31m", "last line"],
    "seconds_to_capture": 0.0, "seconds_to_saved": 0.0, "stored_bytes": 0, "memory_total_kib": 0,
    "memory_low_water_kib": 0,
}  # fmt: skip


@pytest.mark.promise("rehearse")
def test_a_rehearsal_that_passed_is_a_proof(daemon: _RehearsingDaemon) -> None:
    assert daemon.read("ProvenLevel") == "unproven"
    daemon.leaves()
    daemon.let_it_end()
    result = daemon.call("Rehearse")
    assert {key: value["type"] for key, value in result.items()} == {
        "Passed": "b", "Reason": "s", "Explanation": "s", "Remedy": "s", "Time": "s", "Accelerator": "s",
        "ReservedBytes": "t", "MemoryBytes": "t", "SpareBytes": "t", "StoredBytes": "t",
        "SecondsToCapture": "d", "SecondsToSaved": "d", "SecondsToReboot": "d",
    }  # fmt: skip
    assert (result["Passed"]["data"], result["SpareBytes"]["data"]) == (True, 130_568 << 10)
    assert (daemon.read("ProvenLevel"), daemon.read("ProvenTime")) == ("rehearsed", "2026-11-23T17:18:06Z")
    daemon.wait_for_journal("The rehearsal saved a whole dump 5.2 s after the panic")
    # One that fails afterwards takes it back.
    daemon.leaves(**FAILED)
    daemon.let_it_end()
    result = daemon.call("Rehearse")
    assert (result["Passed"]["data"], result["Reason"]["data"]) == (False, "out-of-memory")
    assert "SpareBytes" not in result
    assert daemon.read("ProvenLevel") == "unproven"
    daemon.wait_for_journal("The rehearsal failed (out-of-memory)")


class TestWithTheSmallImage:
    """Which alone can be rehearsed: what is measured counts for no other environment."""

    @pytest.fixture
    def machine(self, tmp_path: Path) -> MachineRoot:
        return small_image_machine(tmp_path / "machine")

    def test_what_is_measured_counts_for_the_estimate(self, daemon: _RehearsingDaemon) -> None:
        assert daemon.call("Estimate").get("Basis", {}).get("data") != "measured"
        daemon.leaves(release=str(daemon.read("KernelRelease")))
        daemon.let_it_end()
        daemon.call("Rehearse")
        figures = daemon.call("Estimate")
        assert figures["Basis"]["data"] == "measured"
        assert figures["CaptureUsedBytes"]["data"] == (220_684 - 130_568) << 10


def test_the_activity_is_told(daemon: _RehearsingDaemon, bus: PrivateBus) -> None:
    daemon.leaves()
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        daemon.let_it_end()
        daemon.call("Rehearse")
        while monitor.until_changed("Activity") != "rehearsing":
            pass


@pytest.mark.parametrize(
    ("left", "outcome", "said"),
    [
        (None, "fails", "left no result: systemctl start kdump-rehearse.service: exit status 1"),
        ("{", "succeeds", "left no result"),
        ('{"result": {"passed": "yes"}}', "succeeds", "passed is not of type bool"),
        (
            '{"error": {"name": "org.kdump.Kdump1.Error.CannotRehearse", "text": "QEMU is not installed", '
            '"hint": "Install it"}}',
            "fails",
            "QEMU is not installed",
        ),
    ],
)
def test_no_rehearsal_is_an_error(
    daemon: _RehearsingDaemon, left: str | None, outcome: str, said: str
) -> None:
    if left is not None:
        (daemon.machine.path / "result.json").write_text(left)
    daemon.let_it_end(outcome)
    done = _kdumpctl(daemon)
    assert (done.returncode, said in done.stderr) == (34, True), done.stderr
    assert daemon.read("ProvenLevel") == "unproven"


@needs_root
def test_it_takes_the_right_to_arm(daemon: _RehearsingDaemon, polkit: FakePolkit) -> None:
    polkit.grant()
    done = daemon.busctl("call", *NAME, "Rehearse", user=NOBODY)
    assert "do not have the right org.kdump.Kdump1.arm" in done.stderr


# kdumpctl


def _kdumpctl(daemon: _RehearsingDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemon.kdumpctl("rehearse", *arguments)


def test_kdumpctl_prints_the_verdict(daemon: _RehearsingDaemon) -> None:
    daemon.leaves()
    daemon.let_it_end()
    done = _kdumpctl(daemon)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "Passed: what is armed has captured a crash in a virtual machine",
        "",
        "Capture began: 3.5 s after the panic",
        "Dump saved: 5.2 s after the panic",
        "Back in production: 6.0 s after the panic",
        "Dump: 20.0 MiB",
        "Reserved: 256 MiB",
        "To spare: 128 MiB",
        "Machine: QEMU with KVM",
    ]
    status = daemon.kdumpctl("status")
    assert "a crash in a virtual machine was captured with this kernel" in status.stdout


def test_kdumpctl_prints_why_it_failed(daemon: _RehearsingDaemon) -> None:
    daemon.leaves(**FAILED)
    daemon.let_it_end()
    done = _kdumpctl(daemon)
    assert done.returncode == 6
    assert done.stdout.startswith(
        "Failed: The capture boot ran out of memory\n\nReserve more: kdumpctl reserve 320M\n"
    )
    assert "Its last lines:\n    Kernel panic" in done.stdout
    assert "\x1b" not in done.stdout
    daemon.let_it_end()
    done = _kdumpctl(daemon, "--json=short")
    assert done.returncode == 6
    assert json.loads(done.stdout)["Console"][1] == "last line"
