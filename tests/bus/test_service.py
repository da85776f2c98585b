# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service as its clients see it, on a private bus."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kdump_service.record import DumpRecord, DumpState
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.bus.conftest import PrivateBus, RunningDaemon

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1")
REPOSITORY = Path(__file__).parents[2]


def _members(xml: ElementTree.Element) -> Iterator[tuple[str, ...]]:
    interface = xml.find("interface[@name='org.kdump.Kdump1']")
    assert interface is not None
    for member in interface:
        if member.tag == "property":
            yield (member.tag, member.attrib["name"], member.attrib["type"], member.attrib["access"])
        else:
            arguments = [
                f"{arg.attrib.get('direction')} {arg.attrib['type']}" for arg in member.findall("arg")
            ]
            yield (member.tag, member.attrib["name"], *arguments)


def test_introspection_equals_the_contract(daemon: RunningDaemon) -> None:
    done = daemon.busctl("call", *NAME, "org.freedesktop.DBus.Introspectable", "Introspect", "--json=short")
    live = ElementTree.fromstring(json.loads(done.stdout)["data"][0])
    contract = ElementTree.parse(REPOSITORY / "dbus/org.kdump.Kdump1.xml").getroot()
    assert sorted(_members(live)) == sorted(_members(contract))


def test_every_member_is_documented() -> None:
    text = (REPOSITORY / "dbus/org.kdump.Kdump1.xml").read_text()
    undocumented = re.findall(r"(?<!-->)\n\s*<(?:property|method|signal) name=\"(\w+)\"", text)
    assert undocumented == []


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


def test_disarm_arm_and_their_signals(daemon: RunningDaemon) -> None:
    monitor = subprocess.Popen(
        ["busctl", f"--address={daemon.environment['DBUS_SYSTEM_BUS_ADDRESS']}", "monitor", "--json=short",
         "--match=type='signal',interface='org.freedesktop.DBus.Properties'"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert monitor.stdout is not None
    assert monitor.stderr is not None
    assert "Monitoring" in monitor.stderr.readline()
    done = daemon.kdumpctl("disarm")
    assert done.returncode == 0
    assert "disarmed" in done.stdout
    signal = json.loads(monitor.stdout.readline())
    monitor.terminate()
    monitor.wait(timeout=10)
    interface, changed, _ = signal["payload"]["data"]
    assert interface == "org.kdump.Kdump1"
    assert changed["State"]["data"] == "not-armed"
    assert changed["Loaded"]["data"] is False
    assert "ReservedBytes" not in changed
    assert daemon.kdumpctl("arm").returncode == 0


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


def test_list_shows_dumps(daemon: RunningDaemon, machine: MachineRoot) -> None:
    assert daemon.kdumpctl("list").stdout == "No dumps.\n"
    record = DumpRecord(name="20261123T040000Z-testhost", state=DumpState.FAILED, kernel_release=RELEASE)
    machine.write("var/crash/20261123T040000Z-testhost/record.json", record.to_json())
    machine.write("var/crash/broken/record.json", "{")
    text = daemon.kdumpctl("list").stdout
    assert RELEASE in text
    assert len(text.splitlines()) == 2
    dumps = json.loads(daemon.kdumpctl("list", "--json").stdout)
    assert [(dump["Name"], dump["State"]) for dump in dumps] == [("20261123T040000Z-testhost", "failed")]


def test_new_record_is_reported_once(bus: PrivateBus, machine: MachineRoot) -> None:
    record = DumpRecord(name="20261123T040000Z-testhost", state=DumpState.CAPTURING, kernel_release=RELEASE)
    machine.write("var/crash/20261123T040000Z-testhost/record.json", record.to_json())
    machine.write("var/crash/20261123T040000Z-testhost/vmcore.incomplete", "x")
    first = RunningDaemon(bus, machine).stop()
    assert "the dump is incomplete" in first
    assert "the capture ended before it was done" in first
    assert "incomplete" not in RunningDaemon(bus, machine).stop()


def test_stop_disarms(bus: PrivateBus, machine: MachineRoot) -> None:
    daemon = RunningDaemon(bus, machine, "stopped")
    daemon.stop()
    assert (machine.path / "sys/kernel/kexec_crash_loaded").read_text() == "0\n"


@pytest.mark.parametrize("cause", ["restarted", "shutdown", "signal"])
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
