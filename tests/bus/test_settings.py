# SPDX-License-Identifier: LGPL-2.1-or-later
"""Settings over the bus: in force when the call returns, or nothing has changed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from kdump_service.settings import SETTINGS
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.bus.conftest import MOST_OF_ALL_TIME, BusClient, PrivateBus, RunningDaemon

SETTINGS_INTERFACE = "org.kdump.Kdump1.Settings"
VENDORS = "usr/lib/kdump-service.conf.d/50-environment.conf"
DROP_IN = "etc/kdump-service.conf.d/90-kdumpctl.conf"
OTHER_VALUES: dict[str, Any] = {
    "Kernel": f"/boot/vmlinuz-{RELEASE}",
    "CommandLine": "quiet",
    "CommandLineAppend": "a b",
    "CommandLineRemove": "c",
    "Shrink": "yes",
    "Image": f"/boot/initrd.img-{RELEASE}",
    "Environment": "initramfs",
    "ExtraDrivers": "megaraid_sas nvme",
    "Contents": "user",
    "DumpLevel": 23,
    "Format": "elf",
    "Compression": "none",
    "CompressionLevel": 0,
    "Threads": 4,
    "PlainCopy": "yes",
    "Target": "/srv/crash",
    "StallTimeoutSec": 90,
    "KeepFree": 1 << 40,
    "MaxUse": 1,
    "MaxDumps": 3,
    "MaxAgeSec": 86400,
    "OnSuccess": "halt",
    "OnFailure": "poweroff",
    "CrashLoopLimit": 9,
}


def _text(machine: MachineRoot) -> str:
    path = machine.path / DROP_IN
    return path.read_text() if path.exists() else ""


def _entries(daemon: RunningDaemon) -> dict[str, dict[str, Any]]:
    entries = daemon.call("GetSettings", interface=SETTINGS_INTERFACE)
    return {
        entry["Name"]["data"]: {name: value["data"] for name, value in entry.items()} for entry in entries
    }


@pytest.mark.promise("settings-at-once")
def test_each_setting_can_be_set_is_in_force_and_reset(daemon: RunningDaemon, machine: MachineRoot) -> None:
    for setting in SETTINGS:
        value = OTHER_VALUES[setting.key]
        done = daemon.set(setting.key, setting.signature, str(value))
        assert done.returncode == 0, done.stderr
        assert daemon.read(setting.key, SETTINGS_INTERFACE) == value
    entries = _entries(daemon)
    assert list(entries) == [setting.key for setting in SETTINGS]
    for entry in entries.values():
        assert entry["Source"].startswith(f"/{DROP_IN}:")
        assert (entry["Value"], entry["Waits"]) == (OTHER_VALUES[entry["Name"]], "")
    assert daemon.read("CommandLine").endswith(" a b")
    capture = json.loads((machine.path / "var/lib/kdump-service/capture.json").read_text())
    assert capture["config"]["dump_level"] == 23
    for setting in reversed(SETTINGS):
        daemon.call("ResetSetting", "s", setting.key, interface=SETTINGS_INTERFACE)
    assert _text(machine) == ""
    left = {entry["Source"] for name, entry in _entries(daemon).items() if name != "Environment"}
    assert left == {""}
    # A file of the machine's vendor says so, as tests.builders.machine_root makes it.
    environment = _entries(daemon)["Environment"]
    assert (environment["Value"], environment["Source"]) == ("rootfs", f"/{VENDORS}:2")
    assert not daemon.read("CommandLine").endswith(" a b")


def test_what_a_settings_tool_needs_to_draw_itself(daemon: RunningDaemon) -> None:
    entries = _entries(daemon)
    assert entries["Contents"]["Allowed"] == ["log", "kernel", "user", "everything"]
    assert (entries["DumpLevel"]["Minimum"], entries["DumpLevel"]["Maximum"]) == (-1, 31)
    assert (entries["KeepFree"]["Unit"], entries["KeepFree"]["Type"]) == ("bytes", "t")
    assert (entries["Target"]["Default"], entries["Target"]["Section"]) == ("/var/crash", "Target")
    assert "Minimum" not in entries["Target"]
    assert all(entry["Help"].endswith(".") for entry in entries.values())


def test_a_change_is_announced(daemon: RunningDaemon, bus: PrivateBus) -> None:
    match = "type='signal',member='PropertiesChanged',arg0='org.kdump.Kdump1.Settings'"
    with bus.monitor(match) as monitor:
        assert daemon.set("Contents", "s", "log").returncode == 0
        assert monitor.until_changed("Contents") == "log"


def test_the_file_says_who_writes_it_and_replaces_what_others_add(
    daemon: RunningDaemon, machine: MachineRoot
) -> None:
    machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=theirs\n")
    assert daemon.set("CommandLineAppend", "s", "ours").returncode == 0
    assert daemon.read("CommandLine").endswith(" ours")
    text = _text(machine)
    assert text.startswith("# Written by kdump-service")
    assert "[Kernel]\nCommandLineAppend=\nCommandLineAppend=ours\n" in text
    assert (machine.path / DROP_IN).stat().st_mode & 0o777 == 0o644
    assert daemon.set("CommandLineAppend", "s", "").returncode == 0
    assert not daemon.read("CommandLine").endswith("s")


@pytest.mark.parametrize(
    ("name", "signature", "value", "why"),
    [
        ("Contents", "s", "all", "Contents=: 'all' is not one of log, kernel, user, everything"),
        ("Contents", "s", "", "Contents=: '' is not one of"),
        ("DumpLevel", "i", "32", "DumpLevel=: 32 is not between -1 and 31"),
        ("Target", "s", "crash", "Target=: 'crash' is not an absolute path"),
        ("Target", "s", "/srv\n[Kernel]\nKernel=/x", "contains a control character"),
        ("CommandLineAppend", "s", "x\\", "ends with a backslash"),
        ("Compression", "s", "lz4", "[Dump]: format kdump cannot be compressed with lz4"),
        ("KeepFree", "t", "18446744073709551615", "KeepFree=: 18446744073709551615 is not between"),
        ("Kernel", "s", "/boot/none", "kernel image /boot/none does not exist"),
        ("CommandLineAppend", "s", "x" * 4000, "the capture command line has"),
    ],
)
def test_what_cannot_be_put_to_use_changes_nothing(
    daemon: RunningDaemon, machine: MachineRoot, name: str, signature: str, value: str, why: str
) -> None:
    assert daemon.set("OnFailure", "s", "halt").returncode == 0
    before, text = daemon.read(name, SETTINGS_INTERFACE), _text(machine)
    done = daemon.set(name, signature, value)
    assert done.returncode != 0
    assert why in done.stderr
    assert (daemon.read(name, SETTINGS_INTERFACE), _text(machine)) == (before, text)
    assert (daemon.read("State"), daemon.read("Reason")) == ("armed", "")


@pytest.mark.usefixtures("polkit")
@pytest.mark.promise("settings-at-once", "kernel-refuses")
def test_a_load_that_fails_is_undone_in_file_and_kernel(bus: PrivateBus, machine: MachineRoot) -> None:
    daemon = RunningDaemon(bus, machine, "stopped", "0", "99")  # EADDRNOTAVAIL at the second load
    before = daemon.read("CommandLine")
    done = daemon.set("CommandLineAppend", "s", "too-much")
    assert "do not fit into the 256 MiB reserved" in done.stderr
    assert (daemon.read("CommandLine"), daemon.read("Loaded"), daemon.read("State")) == (
        before,
        True,
        "armed",
    )
    assert daemon.read("Problems") == []
    assert _text(machine) == ""
    daemon.stop()


def test_a_file_that_counts_more_is_named(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.write("etc/kdump-service.conf.d/95-site.conf", "# ours\n[Target]\nTarget=/site\n")
    done = daemon.set("Target", "s", "/srv/crash")
    assert "/etc/kdump-service.conf.d/95-site.conf:3: Target= is set there" in done.stderr
    assert _text(machine) == ""
    assert daemon.set("Target", "s", "/site").returncode == 0  # the same value is in force, whoever says so


@pytest.mark.usefixtures("polkit")
def test_where_the_machine_cannot_be_armed_settings_stay(bus: PrivateBus, tmp_path: Path) -> None:
    machine = MachineRoot(tmp_path / "unreserved", crash_size=0)
    daemon = RunningDaemon(bus, machine, "signal")
    assert daemon.read("Reason") == "no-reservation"
    assert daemon.set("Contents", "s", "user").returncode == 0
    assert daemon.set("CommandLineAppend", "s", "later").returncode == 0
    entries = _entries(daemon)
    assert entries["CommandLineAppend"]["Waits"].startswith("The crash kernel is not loaded: ")
    assert "Contents=user" in _text(machine)
    daemon.stop()


@pytest.mark.parametrize("kind", ["link", "null", "folder"])
def test_what_is_no_file_of_ours_is_not_touched(
    daemon: RunningDaemon, machine: MachineRoot, kind: str
) -> None:
    path = machine.path / DROP_IN
    path.parent.mkdir()
    elsewhere = machine.write("elsewhere", "theirs")
    if kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(elsewhere if kind == "link" else "/dev/null")
    done = daemon.set("Contents", "s", "user")
    assert f"/{DROP_IN}: " in done.stderr
    assert "Remove it" in done.stderr
    assert elsewhere.read_text() == "theirs"
    assert daemon.read("Contents", SETTINGS_INTERFACE) == "kernel"


def test_a_folder_that_cannot_be_written_is_named(daemon: RunningDaemon, machine: MachineRoot) -> None:
    machine.write("etc/kdump-service.conf.d", "a file in the way")
    done = daemon.set("Contents", "s", "user")
    assert f"/{DROP_IN}" in done.stderr
    assert daemon.read("Contents", SETTINGS_INTERFACE) == "kernel"


def test_unknown_names(daemon: RunningDaemon) -> None:
    assert "there is no property Nonsense" in daemon.set("Nonsense", "s", "x").stderr
    where = ("org.kdump.Kdump1", "/org/kdump/Kdump1", SETTINGS_INTERFACE)
    done = daemon.busctl("call", *where, "ResetSetting", "s", "../../etc/passwd")
    assert "there is no setting" in done.stderr


def test_an_edit_by_hand_is_taken_up_by_itself(
    daemon: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        machine.write("etc/kdump-service.conf", "[Dump]\nContents=user\n")
        assert monitor.until_changed("Contents") == "user"
        machine.write("etc/kdump-service.conf", "[Dump]\nContents=nonsense\n")
        codes: list[str] = []
        while "bad-configuration" not in codes:
            codes = [problem[0] for problem in monitor.until_changed("Problems")]
    assert daemon.read("Contents", SETTINGS_INTERFACE) == "user"


def test_a_new_image_is_loaded_by_itself(
    daemon: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    daemon.wait_for_journal("Armed: ")
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")
        assert "loaded anew" in daemon.wait_for_journal("Armed: ")
        monitor.until_changed("State")
    assert daemon.read("Problems") == []


def test_a_storm_loses_nothing(daemon: RunningDaemon, machine: MachineRoot, bus: PrivateBus) -> None:
    """Two hundred clients set, all at once, while one asks for the state."""
    share, settled = asyncio.run(_storm(bus))
    assert share < MOST_OF_ALL_TIME
    for name, value in settled.items():
        assert daemon.read(name, SETTINGS_INTERFACE) == value
        assert f"{name}={value}\n" in _text(machine)


async def _storm(bus: PrivateBus) -> tuple[float, dict[str, Any]]:
    finished: dict[str, Any] = {}

    async def set_one(number: int) -> None:
        name, signature, value = [
            ("MaxDumps", "u", number),
            ("MaxUse", "t", number << 30),
            ("CommandLineAppend", "s", f"word{number}"),
            ("Threads", "u", number),
        ][number % 4]
        async with BusClient(bus.address) as client:
            reply = await client.set(name, signature, value)
            assert reply.error_name is None, reply.body
            finished[name] = value  # acts are carried out one after the other, and answered in that order

    async with BusClient(bus.address) as observer:
        storm = [asyncio.ensure_future(set_one(number)) for number in range(1, 201)]
        share = await observer.longest_share(lambda: all(task.done() for task in storm))
        await asyncio.gather(*storm)
    return share, finished
