# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that nobody here wrote: busctl (sd-bus), gdbus (GLib), dbus-python (libdbus)."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kdump_service.bus.names import dump_path
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import name_of, put_dump
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

NAME, PATH = "org.kdump.Kdump1", "/org/kdump/Kdump1"
SETTINGS = f"{NAME}.Settings"
DBUS = Path(__file__).parents[2] / "dbus"


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[RunningDaemon]:
    """The daemon, armed, with one dump."""
    put_dump(machine, 0)
    running = RunningDaemon(bus, machine)
    running.call("Check")
    yield running
    running.stop()


def _members(interface: str) -> set[str]:
    element = ElementTree.parse(DBUS / f"{NAME}.xml").getroot().find(f"interface[@name='{interface}']")
    assert element is not None
    return {member.attrib["name"] for member in element}


@pytest.mark.promise("contract")
def test_busctl(daemon: RunningDaemon) -> None:
    for interface in (NAME, SETTINGS):
        text = daemon.busctl("introspect", NAME, PATH, interface).stdout
        assert set(re.findall(r"^\.(\w+)", text, re.MULTILINE)) == _members(interface)
    every = json.loads(
        daemon.busctl("call", "-j", NAME, PATH, "org.freedesktop.DBus.Properties", "GetAll", "s", NAME).stdout
    )["data"][0]
    assert every["State"] == {"type": "s", "data": "armed"}
    assert daemon.set("MaxDumps", "u", "7").returncode == 0
    assert daemon.busctl("get-property", NAME, PATH, SETTINGS, "MaxDumps").stdout == "u 7\n"
    assert set(daemon.dumps()) == {dump_path(name_of(0))}
    tree = daemon.busctl("tree", "--list", NAME).stdout
    assert dump_path(name_of(0)) in tree
    done = daemon.busctl("call", NAME, dump_path(name_of(0)), f"{NAME}.Dump", "Open", "s", "log")
    assert re.fullmatch(r"h \d+\n", done.stdout), done.stderr


class _Gdbus:
    def __init__(self, daemon: RunningDaemon) -> None:
        self._environment = daemon.environment

    def __call__(self, path: str, method: str, *arguments: str) -> str:
        done = subprocess.run(
            ["gdbus", "call", "--system", "-d", NAME, "-o", path, "-m", method, *arguments],
            env=self._environment, capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def introspect(self) -> str:
        return subprocess.run(
            ["gdbus", "introspect", "--system", "--dest", NAME, "--object-path", PATH],
            env=self._environment, capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip


@pytest.mark.skipif(shutil.which("gdbus") is None, reason="gdbus is not installed")
@pytest.mark.promise("contract")
def test_gdbus(daemon: RunningDaemon) -> None:
    gdbus = _Gdbus(daemon)
    text = gdbus.introspect()
    for interface in (NAME, SETTINGS):
        assert f"interface {interface} {{" in text
        for member in _members(interface):
            assert re.search(rf"\b{member}\b", text)
    get_all = "org.freedesktop.DBus.Properties.GetAll"
    assert "'State': <'armed'>" in gdbus(PATH, get_all, NAME)
    gdbus(PATH, "org.freedesktop.DBus.Properties.Set", SETTINGS, "Contents", "<'user'>")
    assert gdbus(PATH, "org.freedesktop.DBus.Properties.Get", SETTINGS, "Contents") == "(<'user'>,)\n"
    assert f"'{NAME}.Dump'" in gdbus(PATH, "org.freedesktop.DBus.ObjectManager.GetManagedObjects")
    assert "handle" in gdbus(dump_path(name_of(0)), f"{NAME}.Dump.Open", "log")


DBUS_PYTHON = """
import os, sys, dbus
bus = dbus.SystemBus()
manager = bus.get_object("org.kdump.Kdump1", "/org/kdump/Kdump1")
assert "org.kdump.Kdump1.Settings" in manager.Introspect(dbus_interface="org.freedesktop.DBus.Introspectable")
properties = dbus.Interface(manager, "org.freedesktop.DBus.Properties")
assert properties.GetAll("org.kdump.Kdump1")["State"] == "armed"
settings = properties.GetAll("org.kdump.Kdump1.Settings")
assert settings["DumpLevel"] == -1, settings
properties.Set("org.kdump.Kdump1.Settings", "DumpLevel", dbus.Int32(17))
assert properties.Get("org.kdump.Kdump1.Settings", "DumpLevel") == 17
try:
    properties.Set("org.kdump.Kdump1.Settings", "DumpLevel", dbus.Int32(99))
except dbus.DBusException as error:
    assert error.get_dbus_name() == "org.kdump.Kdump1.Error.ConfigError", error
else:
    sys.exit("99 was taken")
dumps = dbus.Interface(manager, "org.freedesktop.DBus.ObjectManager").GetManagedObjects()
[path] = dumps
dump = dbus.Interface(bus.get_object("org.kdump.Kdump1", path), "org.kdump.Kdump1.Dump")
with open(dump.Open("log").take(), "rb") as file:
    sys.stdout.buffer.write(file.read())
"""


def _has_dbus_python() -> bool:
    python = "/usr/bin/python3"
    return (
        os.access(python, os.X_OK)
        and not subprocess.run([python, "-c", "import dbus"], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _has_dbus_python(), reason="dbus-python is not installed")
@pytest.mark.promise("contract")
def test_dbus_python(daemon: RunningDaemon) -> None:
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", DBUS_PYTHON], env=daemon.environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the log\n"
