# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is served, the contract in dbus/*.xml, the rights in dbus/*.policy and the manual are one."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from kdump_service.bus import names
from kdump_service.bus.dump_interface import dump_interface
from kdump_service.bus.interface import manager_interface
from kdump_service.bus.members import Interface
from kdump_service.bus.settings_interface import settings_interface
from kdump_service.settings import SETTINGS
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

DBUS = Path(__file__).parents[2] / "dbus"
XML_FILES = ("org.kdump.Kdump1.xml", "org.kdump.Kdump1.Dump.xml")
EMITS_CHANGED = "org.freedesktop.DBus.Property.EmitsChangedSignal"
# Everybody may call these, and everything else takes a right.
FREE_METHODS = {"Check", "Estimate", "GetSettings"}


class _NoActs:
    """Interfaces can be looked at without a daemon."""

    def __getattr__(self, name: str) -> Any:
        return None


def _interfaces() -> list[Interface]:
    acts: Any = _NoActs()
    return [manager_interface(acts), settings_interface(acts), dump_interface(acts, "name")]


def _contract(name: str) -> ElementTree.Element:
    for file in XML_FILES:
        found = ElementTree.parse(DBUS / file).getroot().find(f"interface[@name='{name}']")
        if found is not None:
            return found
    raise AssertionError(f"no file of {DBUS} has {name}")


def _members(interface: ElementTree.Element) -> Iterator[tuple[str, ...]]:
    """Kind, name and what else a member says of itself; annotations last."""
    for member in interface:
        name = member.attrib["name"]
        annotations = {each.attrib["name"]: each.attrib["value"] for each in member.findall("annotation")}
        if member.tag == "property":
            annotations.setdefault(EMITS_CHANGED, "true")  # D-Bus specification, "Introspection Data Format"
            said = [f"{key}={value}" for key, value in sorted(annotations.items())]
            yield (member.tag, name, member.attrib["type"], member.attrib["access"], *said)
        else:
            assert not annotations
            arguments = [
                f"{arg.attrib['direction']} {arg.attrib['type']} {arg.attrib['name']}"
                for arg in member.findall("arg")
            ]
            yield (member.tag, name, *arguments)


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[RunningDaemon]:
    """The daemon, armed, with one dump."""
    put_dump(machine, 0)
    running = RunningDaemon(bus, machine)
    yield running
    running.stop()


@pytest.mark.parametrize("interface", [names.INTERFACE, names.SETTINGS_INTERFACE, names.DUMP_INTERFACE])
@pytest.mark.promise("contract")
def test_introspection_equals_the_contract(daemon: RunningDaemon, bus: PrivateBus, interface: str) -> None:
    path = names.OBJECT_PATH
    if interface == names.DUMP_INTERFACE:
        with bus.monitor("type='signal',member='InterfacesAdded'") as monitor:
            known = daemon.dumps() or {monitor.until(lambda _: True)["payload"]["data"][0]: {}}
        [path] = known
    done = daemon.busctl(
        "call", "-j", names.BUS_NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect"
    )
    live = ElementTree.fromstring(_first(done.stdout)).find(f"interface[@name='{interface}']")
    assert live is not None
    assert sorted(_members(live)) == sorted(_members(_contract(interface)))


def _first(reply: str) -> str:
    import json

    text: str = json.loads(reply)["data"][0]
    return text


@pytest.mark.parametrize("file", XML_FILES)
def test_every_member_is_documented(file: str) -> None:
    text = (DBUS / file).read_text()
    undocumented = re.findall(r"(?<!-->)\n\s*<(?:property|method|signal) name=\"(\w+)\"", text)
    assert undocumented == []


def test_every_argument_is_documented() -> None:
    text = "".join((DBUS / file).read_text() for file in XML_FILES)
    for comment, method in re.findall(
        r"<!--((?:(?!-->).)*)-->\s*<method name=\"\w+\">(.*?)</method>", text, re.S
    ):
        for argument in re.findall(r'<arg name="(\w+)"', method):
            assert re.search(rf"^\s+{argument}: ", comment, re.M), argument


def test_settings_in_the_contract_are_the_table() -> None:
    properties = [
        member for member in _members(_contract(names.SETTINGS_INTERFACE)) if member[0] == "property"
    ]
    changes = f"{EMITS_CHANGED}=true"
    assert properties == [("property", each.key, each.signature, "readwrite", changes) for each in SETTINGS]


@pytest.mark.promise("rights")
def test_every_method_and_setter_takes_a_right_or_is_on_the_list() -> None:
    actions = {action.attrib["id"] for action in _policy().findall("action")}
    taken: dict[str, str] = {}
    for interface in _interfaces():
        taken |= {method.name: method.action for method in interface.methods.values()}
        taken |= {f"{each.name}=": each.action for each in interface.properties.values() if each.write}
    assert {name for name, action in taken.items() if action == names.FREE} == FREE_METHODS
    assert set(taken.values()) == {names.FREE, *actions}


def test_the_contract_names_the_right_of_each_method() -> None:
    found = {}
    for file in XML_FILES:
        text = (DBUS / file).read_text()
        for comment, method in re.findall(r'<!--((?:(?!-->).)*)-->\s*<method name="(\w+)"', text, re.DOTALL):
            stated = re.findall(r"polkit action: ([\w.-]+\w)", comment)
            found[method] = stated or [names.FREE] * comment.count("Free for everybody")
    methods = [method for interface in _interfaces() for method in interface.methods.values()]
    assert found == {method.name: [method.action] for method in methods}


def _policy() -> ElementTree.Element:
    return ElementTree.parse(DBUS / "org.kdump.Kdump1.policy").getroot()


def test_policy_is_sensible_and_can_be_translated() -> None:
    actions = {action.attrib["id"]: action for action in _policy().findall("action")}
    assert set(actions) == {value for name, value in vars(names).items() if name.startswith("ACTION_")}
    for name, action in actions.items():
        for kind in ("allow_any", "allow_inactive", "allow_active"):
            answer = action.findtext(f"defaults/{kind}")
            assert answer == (
                "auth_admin_keep" if kind == "allow_active" and name != names.ACTION_CRASH else "auth_admin"
            )
        for kind in ("description", "message"):
            text = action.find(kind)
            assert text is not None
            assert text.attrib == {"gettext-domain": "kdump-service"}


def _generator() -> ModuleType:
    path = DBUS.parent / "packaging/man_from_xml.py"
    spec = importlib.util.spec_from_file_location("man_from_xml", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.promise("contract")
def test_manual_is_made_from_the_contract() -> None:
    page = DBUS.parent / "packaging/man/org.kdump.Kdump1.5"
    assert page.read_text() == _generator().made(), (
        "run: .venv/bin/python packaging/man_from_xml.py > " + str(page)
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("20261123T044911Z-host", "20261123T044911Z_2dhost"),
        ("a_b.c", "a_5fb_2ec"),
        ("ü", "_c3_bc"),
    ],
)
def test_paths_of_dumps_are_escaped_as_documented(name: str, path: str) -> None:
    assert names.dump_path(name) == f"/org/kdump/Kdump1/dump/{path}"
