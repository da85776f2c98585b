# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: a service that says what a file has it say, on the bus that kdumpctl talks to.

It answers by the contract of ``dbus/*.xml``, reads its state anew at each call, notes each call in a file,
and announces what a test writes to its standard input. So the client is held against values that a real
daemon comes by only after a crash, and against a daemon that fails or hangs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from dbus_next import BusType, Message, MessageType, Variant
from dbus_next.aio import MessageBus

NAME, PATH = "org.kdump.Kdump1", "/org/kdump/Kdump1"
SETTINGS, DUMP = f"{NAME}.Settings", f"{NAME}.Dump"

TYPES = {
    "Ready": "b", "Problems": "a(ssss)", "Loaded": "b", "ReservedBytes": "t", "LastCrash": "o",
    "Progress": "d",
}  # fmt: skip
DUMP_TYPES = {
    "Pid": "x", "Cpu": "i", "CallTrace": "as", "SameBug": "as", "Test": "b", "DumpLevel": "i",
    "StoredBytes": "t",
    "SecondsToSaved": "d", "Files": "as", "Problems": "as", "Kept": "b",
}  # fmt: skip
ESTIMATE_TYPES = {"Basis": "s", "Contents": "s"}
SETTING_TYPES = {"Allowed": "as", "Minimum": "x", "Maximum": "x"}


def _variants(values: dict[str, Any], types: dict[str, str], default: str = "s") -> dict[str, Variant]:
    return {key: Variant(types.get(key, default), value) for key, value in values.items()}


def _setting(values: dict[str, Any]) -> dict[str, Variant]:
    types = {**SETTING_TYPES, "Value": values["Type"], "Default": values["Type"]}
    return _variants(values, types)


class FakeService:
    """Answers calls from ``state.json`` of a folder."""

    def __init__(self, bus: MessageBus, folder: Path) -> None:
        self._bus = bus
        self._folder = folder
        bus.add_message_handler(self.on_message)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads((self._folder / "state.json").read_text())
        return state

    def on_message(self, message: Message) -> Message | bool | None:
        """Message handler."""
        if message.message_type is not MessageType.METHOD_CALL:
            return None
        state = self._state()
        body = [getattr(each, "value", each) for each in message.body]
        with (self._folder / "calls").open("a") as file:
            file.write(json.dumps([message.path, message.member, body, int(message.flags)]) + "\n")
        if message.member in state.get("hang", []):
            return True
        error = state.get("errors", {}).get(message.member)
        if error:
            return Message.new_error(message, *error)
        answer = self._answer(message, state)
        if answer is None:
            return Message.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "no such thing")
        signature, values, descriptors = answer
        return Message.new_method_return(message, signature, values, descriptors)

    def _answer(self, message: Message, state: dict[str, Any]) -> tuple[str, list[Any], list[int]] | None:
        dumps = {f"{PATH}/dump/{path}": dump for path, dump in state["dumps"].items()}
        match (message.member, message.path):
            case ("GetAll", path):
                if message.body[0] == NAME and path == PATH:
                    return "a{sv}", [_variants(state["manager"], TYPES)], []
                return ("a{sv}", [_variants(dumps[path], DUMP_TYPES)], []) if path in dumps else None
            case ("GetManagedObjects", _):
                objects = {path: {DUMP: _variants(dump, DUMP_TYPES)} for path, dump in dumps.items()}
                return "a{oa{sa{sv}}}", [objects], []
            case ("GetSettings", _):
                return "aa{sv}", [[_setting(each) for each in state["settings"]]], []
            case ("Check", _):
                return "a(ssss)", [state["manager"]["Problems"]], []
            case ("Estimate", _):
                return "a{sv}", [_variants(state["estimate"], ESTIMATE_TYPES, "t")], []
            case ("Open", path):
                descriptor = os.open(
                    self._folder / "files" / dumps[path]["Name"] / message.body[0], os.O_RDONLY
                )
                return "h", [0], [descriptor]
            case ("Arm" | "Disarm" | "Reload" | "Rebuild" | "TestCrash" | "ResetSetting" | "Set", _):
                return "", [], []
            case ("Delete" | "Keep", _):
                return "", [], []
            case ("Ping", _):
                return "", [], []
        return None

    def announce(self, line: str) -> None:
        """Emit what a line of the test's asks for."""
        what = json.loads(line)
        match what["kind"]:
            case "changed" | "misnamed":
                types = {NAME: TYPES, DUMP: DUMP_TYPES}.get(what["interface"], {})
                interface = "org.freedesktop.DBus.Properties" if what["kind"] == "changed" else NAME
                self._bus.send(
                    Message.new_signal(
                        what["path"], interface, "PropertiesChanged", "sa{sv}as",
                        [what["interface"], _variants(what["values"], types), []],
                    )
                )  # fmt: skip
            case "added":
                self._bus.send(
                    Message.new_signal(
                        PATH, "org.freedesktop.DBus.ObjectManager", "InterfacesAdded", "oa{sa{sv}}",
                        [what["path"], {DUMP: _variants(what["values"], DUMP_TYPES)}],
                    )
                )  # fmt: skip
            case "removed":
                self._bus.send(
                    Message.new_signal(
                        PATH, "org.freedesktop.DBus.ObjectManager", "InterfacesRemoved", "oas",
                        [what["path"], [DUMP]],
                    )
                )  # fmt: skip


async def _main() -> None:
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    service = FakeService(bus, Path(sys.argv[1]))
    await bus.request_name(NAME)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    os.set_blocking(sys.stdin.fileno(), False)

    def read() -> None:
        # A test writes whole lines at a time.
        for line in os.read(sys.stdin.fileno(), 1 << 16).decode().splitlines():
            service.announce(line)

    loop.add_reader(sys.stdin, read)
    await bus.wait_for_disconnect()


if __name__ == "__main__":
    asyncio.run(_main())
