# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service as its clients see it, on a private bus."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_service.record import DumpRecord, DumpState
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import PrivateBus, RunningDaemon

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1")
REPOSITORY = Path(__file__).parents[2]


def test_busctl_reads_every_property(daemon: RunningDaemon) -> None:
    def read(name: str) -> str:
        return daemon.busctl("get-property", *NAME, "org.kdump.Kdump1", name).stdout.strip()

    assert read("State") == 's "armed"'
    assert read("Reason") == 's ""'
    assert read("Loaded") == "b true"
    assert read("ReservedBytes") == f"t {256 << 20}"
    assert read("Kernel").endswith(f'boot/vmlinuz-{RELEASE}"')
    assert read("Image").endswith(f'boot/initrd.img-{RELEASE}"')
    assert "systemd.unit=kdump-capture.target" in read("CommandLine")


def test_what_others_unload_shows_at_once(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.set_loaded(False)
    status = daemon.kdumpctl("status", "--json")
    assert status.returncode == 3
    properties = json.loads(status.stdout)
    assert (properties["State"], properties["Reason"]) == ("not-armed", "unloaded-by-others")
    assert daemon.kdumpctl("arm").returncode == 0
    assert daemon.kdumpctl("status").returncode == 0


def test_disarm_arm_and_their_signals(daemon: RunningDaemon, bus: PrivateBus) -> None:
    with bus.monitor("type='signal',interface='org.freedesktop.DBus.Properties'") as monitor:
        done = daemon.kdumpctl("disarm")
        assert done.returncode == 0
        assert "disarmed" in done.stdout
        signal = monitor.until(lambda message: "State" in message["payload"]["data"][1])
        interface, changed, _ = signal["payload"]["data"]
        assert interface == "org.kdump.Kdump1"
        assert changed["State"]["data"] == "not-armed"
        assert changed["Loaded"]["data"] is False
        assert changed["Ready"]["data"] is False
        assert "ReservedBytes" not in changed
        assert [row[0] for row in monitor.until_changed("Problems")] == ["disarmed"]
        assert daemon.kdumpctl("arm").returncode == 0
        for activity in ("arming", ""):  # and what else is done meanwhile
            while monitor.until_changed("Activity") != activity:
                pass
        assert monitor.until_changed("Ready") is True
    assert daemon.read("Problems") == []


@pytest.mark.promise("bad-settings")
def test_reload_with_garbage_keeps_the_old_configuration(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=first\n")
    assert daemon.kdumpctl("reload").returncode == 0
    machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=second\n[Dump]\nCompression=zip\n")
    done = daemon.kdumpctl("reload")
    assert done.returncode == 10
    assert "/etc/kdump-service.conf:4: Compression=: 'zip' is not one of auto, lz4, none" in done.stderr
    properties = json.loads(daemon.kdumpctl("status", "--json").stdout)
    assert properties["State"] == "armed"
    assert properties["Reason"] == "bad-configuration"
    assert properties["CommandLine"].endswith(" first")


def test_list_shows_dumps(daemon: RunningDaemon, machine: MachineRoot, bus: PrivateBus) -> None:
    assert daemon.kdumpctl("list").stdout == "No dumps.\n"
    with bus.monitor("type='signal',member='InterfacesAdded'") as monitor:
        record = DumpRecord(name="20261123T040000Z-testhost", state=DumpState.FAILED, kernel_release=RELEASE)
        machine.write("var/crash/20261123T040000Z-testhost/record.json", record.to_json())
        machine.write("var/crash/broken/record.json", "{")
        monitor.until(lambda message: True)
    text = daemon.kdumpctl("list").stdout
    assert RELEASE in text
    dumps = json.loads(daemon.kdumpctl("list", "--json").stdout)
    assert [(dump["Name"], dump["State"]) for dump in dumps] == [("20261123T040000Z-testhost", "failed")]


@pytest.mark.promise("journal-tells")
def test_new_record_is_reported_once(bus: PrivateBus, machine: MachineRoot) -> None:
    record = DumpRecord(name="20261123T040000Z-testhost", state=DumpState.CAPTURING, kernel_release=RELEASE)
    machine.write("var/crash/20261123T040000Z-testhost/record.json", record.to_json())
    machine.write("var/crash/20261123T040000Z-testhost/vmcore.incomplete", "x")
    first = RunningDaemon(bus, machine).stop()
    assert "the dump is incomplete" in first
    assert "the capture ended before it was done" in first
    assert "incomplete" not in RunningDaemon(bus, machine).stop()


@pytest.mark.promise("stop-disarms")
def test_stop_disarms(bus: PrivateBus, machine: MachineRoot) -> None:
    daemon = RunningDaemon(bus, machine, "stopped")
    daemon.stop()
    assert (machine.path / "sys/kernel/kexec_crash_loaded").read_text() == "0\n"


@pytest.mark.parametrize("cause", ["restarted", "shutdown", "signal"])
@pytest.mark.promise("restart-stays-armed")
def test_restart_and_shutdown_stay_armed(bus: PrivateBus, machine: MachineRoot, cause: str) -> None:
    daemon = RunningDaemon(bus, machine, cause)
    daemon.stop()
    assert (machine.path / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"
    again = RunningDaemon(bus, machine, cause)
    assert "was already loaded" in again.stop()


def test_second_daemon_says_that_the_first_is_there(daemon: RunningDaemon, machine: MachineRoot) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.bus.daemon_on_fake_kernel", str(machine.path), "signal"],
        env=daemon.environment, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 31
    assert "owned by another process" in done.stderr


def test_kdumpctl_without_a_service(bus: PrivateBus, machine: MachineRoot) -> None:
    daemon = RunningDaemon(bus, machine)
    daemon.stop()
    done = daemon.kdumpctl("status")
    assert done.returncode == 60
    assert "systemctl start kdump.service" in done.stderr


def test_kdumpctl_without_a_bus(daemon: RunningDaemon) -> None:
    daemon.environment = {**daemon.environment, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    assert daemon.kdumpctl("status").returncode == 60


def test_busy_kernel_at_start_is_tried_again(bus: PrivateBus, machine: MachineRoot) -> None:
    daemon = RunningDaemon(bus, machine, "signal", "16")  # EBUSY
    assert "another program is loading a kernel now" in daemon.wait_for_journal("Armed: ")
    daemon.stop()


def test_hangup_reloads(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=hung.up\n")
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_for_journal("Armed: ")  # of the start
    daemon.wait_for_journal("Armed: ")
    assert json.loads(daemon.kdumpctl("status", "--json").stdout)["CommandLine"].endswith(" hung.up")


def test_rebuild_loads_anew(daemon: RunningDaemon) -> None:
    daemon.wait_for_journal("Armed: ")
    daemon.call("Rebuild")
    assert "loaded anew" in daemon.wait_for_journal("Armed: ")


@pytest.mark.promise("check-tells")
def test_check_finds_what_is_wrong_and_the_state_follows(daemon: RunningDaemon, machine: MachineRoot) -> None:
    assert daemon.call("Check") == []
    assert daemon.read("Ready") is True
    (machine.path / "usr/lib/systemd/system/kdump-capture.target").unlink()
    problems = daemon.call("Check")
    assert [problem[:2] for problem in problems] == [["capture-unit-missing", "fatal"]]
    assert daemon.read("Problems") == problems
    assert (daemon.read("State"), daemon.read("Ready")) == ("armed", False)


def test_estimate(daemon: RunningDaemon) -> None:
    figures = {name: value["data"] for name, value in daemon.call("Estimate").items()}
    assert figures["ReservedBytes"] == 256 << 20
    assert figures["Contents"] == "kernel"
    assert figures["TargetFreeBytes"] > 0


@pytest.mark.promise("on-request")
def test_test_crash(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.write("crash-fails", "")
    done = daemon.busctl("call", *NAME, "org.kdump.Kdump1", "TestCrash")
    assert "made to fail" in done.stderr
    assert len((machine.path / "crashed").read_text()) == 64  # the identity of what is armed


def test_no_test_crash_while_it_would_not_be_captured(daemon: RunningDaemon, machine: MachineRoot) -> None:
    (machine.path / "usr/lib/systemd/system/kdump-capture.target").unlink()
    done = daemon.busctl("call", *NAME, "org.kdump.Kdump1", "TestCrash")
    assert "There is no kdump-capture.target" in done.stderr
    daemon.call("Disarm")
    done = daemon.busctl("call", *NAME, "org.kdump.Kdump1", "TestCrash")
    assert "Disarmed on request" in done.stderr
    assert not (machine.path / "crashed").exists()


@pytest.mark.promise("test-proves")
def test_what_was_captured_with_this_very_kernel_proves_it(
    daemon: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    assert (daemon.read("ProvenLevel"), daemon.read("ProvenTime")) == ("unproven", "")
    capture = json.loads((machine.path / "var/lib/kdump-service/capture.json").read_text())
    put_dump(machine, 0, armed_identity=capture["armed_identity"])
    put_dump(machine, 1, armed_identity=capture["armed_identity"], test=True)
    daemon.call("Check")
    assert (daemon.read("ProvenLevel"), daemon.read("ProvenTime")) == ("tested", "2026-11-23T05:00:00Z")
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        assert daemon.set("Target", "s", "/srv/crash").returncode == 0
        assert monitor.until_changed("ProvenLevel") == "unproven"


def test_bytes_that_are_no_text_do_not_hide_the_rest(bus: PrivateBus, machine: MachineRoot) -> None:
    machine.write("proc/cmdline", b"root=/dev/vda place=\xff quiet crashkernel=256M\n")
    daemon = RunningDaemon(bus, machine, "signal")
    assert "place=?" in daemon.read("CommandLine")
    assert daemon.read("State") == "armed"
    assert "Traceback" not in daemon.stop()
