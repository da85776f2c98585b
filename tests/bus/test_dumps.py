# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dumps as objects: they come, change and go, and hand out their files to who may read them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from dbus_next import Message
from dbus_next.aio import MessageBus

from kdump_service.bus.names import dump_path
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import name_of, put_dump
from tests.bus.conftest import MOST_OF_ALL_TIME, BusClient, Monitor, PrivateBus, RunningDaemon, close

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1")
DUMP = "org.kdump.Kdump1.Dump"
ALL_DUMPS = ("org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
ADDED_OR_REMOVED = "type='signal',interface='org.freedesktop.DBus.ObjectManager',path='/org/kdump/Kdump1'"


def _path(number: int) -> str:
    return dump_path(name_of(number))


@pytest.fixture
def machine(machine: MachineRoot) -> MachineRoot:
    """A machine that crashed three times, twice for the same reason; a folder that is no dump lies beside."""
    put_dump(machine, 0)
    put_dump(
        machine, 1, signature="fedcba9876543210", test=True, call_trace=["panic", "do_exit"], crash_pid=7
    )
    put_dump(machine, 2)
    machine.write("var/crash/lost+found/x", "")
    return machine


@pytest.fixture
def listed(daemon: RunningDaemon) -> RunningDaemon:
    """The daemon, when it has looked for dumps: a check does."""
    daemon.call("Check")
    return daemon


def _call(daemon: RunningDaemon, number: int, *arguments: str) -> str:
    done = daemon.busctl("call", NAME[0], _path(number), DUMP, *arguments)
    return done.stderr.strip()


def _wait(monitor: Monitor, member: str) -> tuple[str, object]:
    path, what = monitor.until(lambda message: message["member"] == member)["payload"]["data"]
    return path, what


def test_all_are_there_with_all_they_have(listed: RunningDaemon) -> None:
    dumps = listed.dumps()
    assert set(dumps) == {_path(number) for number in range(3)}
    first, second = dumps[_path(0)], dumps[_path(1)]
    assert first["SameBug"] == [name_of(2)]
    assert (second["SameBug"], second["Test"], second["CallTrace"]) == ([], True, ["panic", "do_exit"])
    assert (second["Pid"], second["Cpu"], first["Pid"]) == (7, -1, -1)
    assert (first["State"], first["Presence"], first["Kept"]) == ("complete", "present", False)
    assert first["Files"] == ["dmesg.txt", "vmcore"]
    assert first["StoredBytes"] == 4096 + 8192
    assert listed.read("LastCrash") == _path(2)


def test_a_dump_that_appears_is_told_of(listed: RunningDaemon, machine: MachineRoot) -> None:
    """As on a target that was away when the service started."""
    put_dump(machine, 5)
    assert name_of(5) in listed.wait_for_journal(f"saved in {machine.path}/var/crash/{name_of(5)}")


def test_a_dump_that_appears_is_announced(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    with (
        bus.monitor(ADDED_OR_REMOVED) as monitor,
        bus.monitor("type='signal',member='PropertiesChanged'") as changes,
    ):
        put_dump(machine, 3)
        path, interfaces = _wait(monitor, "InterfacesAdded")
        assert path == _path(3)
        assert isinstance(interfaces, dict)
        assert interfaces[DUMP]["SameBug"]["data"] == [name_of(0), name_of(2)]
        assert changes.until_changed("SameBug") == [name_of(2), name_of(3)]
    assert listed.read("LastCrash") == _path(3)


def test_deleting_old_dumps_tells_how_far_it_got(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    for number in range(3, 12):
        put_dump(machine, number)
    listed.call("Check")
    with bus.monitor("type='signal',member='PropertiesChanged'") as changes:
        assert listed.set("MaxDumps", "u", "2").returncode == 0
        told = [changes.until_changed("Progress")]
        while told[-1] >= 0:
            told.append(changes.until_changed("Progress"))
    assert told[-1] == -1
    assert told[:-1] == sorted(told[:-1])
    assert 0 < told[-2] <= 1
    assert (listed.read("Activity"), listed.read("Progress")) == ("", -1)


@pytest.mark.promise("dumps-kept-and-deleted")
def test_delete_leaves_the_record_then_forgets_it(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    with bus.monitor("type='signal'") as monitor:
        assert _call(listed, 0, "Delete") == ""
        assert monitor.until_changed("Presence") == "missing"
        assert not (machine.path / "var/crash" / name_of(0)).exists()
        assert listed.dumps()[_path(0)]["Presence"] == "missing"
        assert "DumpMissing" in _name_of_error(bus, _path(0), "Open", "log")
        assert _call(listed, 0, "Delete") == ""
        assert _wait(monitor, "InterfacesRemoved") == (_path(0), [DUMP])
    assert _path(0) not in listed.dumps()
    assert "no object" in _call(listed, 0, "Delete")


def _name_of_error(bus: PrivateBus, path: str, member: str, *arguments: str) -> str:
    async def call() -> str:
        async with BusClient(bus.address) as client:
            reply = await client.call(member, "s" * len(arguments), *arguments, interface=DUMP, path=path)
            return str(reply.error_name)

    return asyncio.run(call())


def test_what_others_delete_is_missing(listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus) -> None:
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        shutil.rmtree(machine.path / "var/crash" / name_of(1))
        assert monitor.until_changed("Presence") == "missing"


@pytest.mark.promise("dumps-kept-and-deleted")
def test_keep_is_announced_and_limits_pass_it_over(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        assert _call(listed, 0, "Keep", "b", "true") == ""
        assert monitor.until_changed("Kept") is True
        assert listed.set("MaxDumps", "u", "1").returncode == 0
        assert monitor.until_changed("Presence") == "missing"
    presence = {path: dump["Presence"] for path, dump in listed.dumps().items()}
    assert presence == {_path(0): "present", _path(1): "missing", _path(2): "present"}


@pytest.mark.parametrize(
    ("what", "file"), [("image", "vmcore"), ("log", "dmesg.txt"), ("record", "record.json")]
)
@pytest.mark.promise("only-the-right-person")
def test_open_gives_a_descriptor_that_can_only_be_read(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus, what: str, file: str
) -> None:
    content, mode = asyncio.run(_open(bus, what))
    assert content == (machine.path / "var/crash" / name_of(0) / file).read_bytes()
    assert mode == os.O_RDONLY
    assert _open_files(listed, machine) == []


async def _open(bus: PrivateBus, what: str) -> tuple[bytes, int]:
    import fcntl

    async with BusClient(bus.address) as client:
        reply = await client.call("Open", "s", what, interface=DUMP, path=_path(0))
        assert reply.signature == "h", reply.body
        with open(reply.unix_fds[reply.body[0]], "rb") as file:
            return file.read(), fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE


def _open_files(daemon: RunningDaemon, machine: MachineRoot) -> list[str]:
    """Files of dumps that the daemon holds open, and does not only read in passing."""
    always: set[str] | None = None
    for _ in range(20):
        daemon.read("State")
        targets = set(daemon.open_descriptors())
        always = targets if always is None else always & targets
    crash = str(machine.path / "var/crash")
    return [target for target in always or () if target.startswith(crash) and "." in target]


@pytest.mark.parametrize(
    "what", ["", "vmcore", "../record", "/etc/shadow", "dmesg.txt", "image\n", "x" * 20000, "\u202e"]
)
def test_open_takes_three_words_only(listed: RunningDaemon, bus: PrivateBus, what: str) -> None:
    assert _name_of_error(bus, _path(0), "Open", what) == "org.kdump.Kdump1.Error.InvalidArgument"


def test_a_link_in_the_place_of_the_image_is_not_followed(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    image = machine.path / "var/crash" / name_of(0) / "vmcore"
    image.unlink()
    image.symlink_to("/etc/shadow")
    assert _name_of_error(bus, _path(0), "Open", "image").startswith("org.kdump.Kdump1.Error.")


def test_clients_that_vanish_leave_no_descriptor_behind(
    listed: RunningDaemon, machine: MachineRoot, bus: PrivateBus
) -> None:
    asyncio.run(_vanish(bus))
    listed.call("Check")  # waits for what was asked for before
    assert listed.read("State") == "armed"
    assert _open_files(listed, machine) == []


async def _vanish(bus: PrivateBus) -> None:
    for _ in range(10):
        async with BusClient(bus.address) as client:
            for _ in range(20):
                client.begin("Open", "s", "image", interface=DUMP, path=_path(0))
            await client.call("Ping", interface="org.freedesktop.DBus.Peer")


def test_records_that_are_garbage_hide_no_others(listed: RunningDaemon, machine: MachineRoot) -> None:
    document = json.loads((machine.path / "var/crash" / name_of(2) / "record.json").read_text())
    damages: list[dict[str, object]] = [
        {"state": "odd"},
        {"panic_message": "\ud800\x00\x1b[31m"},
        {"crash_pid": 1 << 80},
        {"files": 7},
        {"name": ""},
    ]
    for number, changes in enumerate(damages):
        text = json.dumps({**document, **changes})
        machine.write(f"var/crash/{name_of(10 + number)}/record.json", text)
    machine.write(f"var/crash/{name_of(20)}/record.json", b"\xff\xfe")
    machine.write("var/crash/\u00fcml\u00e4ut/record.json", json.dumps(document))
    listed.call("Check")
    dumps = listed.dumps()
    assert {_path(number) for number in range(3)} <= set(dumps)
    assert "\x00" not in dumps[_path(11)]["PanicMessage"]


@pytest.mark.new_interpreter
def test_a_thousand_dumps(machine: MachineRoot, daemon: RunningDaemon, bus: PrivateBus) -> None:
    for number in range(3, 1000):
        put_dump(machine, number)
    daemon.call("Check")
    assert len(daemon.dumps()) == 1000
    assert asyncio.run(_longest_share_of_many(bus)) < MOST_OF_ALL_TIME
    assert _resident_bytes(daemon) < 64 << 20


def _resident_bytes(daemon: RunningDaemon) -> int:
    pages = int(Path(f"/proc/{daemon.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _longest_share_of_many(bus: PrivateBus) -> float:
    """Return the longest share of one who asks for the state, while 300 answers with all dumps are sent."""
    loop = asyncio.get_running_loop()
    received = 0

    def drain(reader: socket.socket) -> None:
        nonlocal received
        received += len(reader.recv(1 << 20))

    greedy = []
    for _ in range(5):
        client = await MessageBus(bus_address=bus.address).connect()
        greedy.append(client)
        loop.remove_reader(client._fd)  # the library would take a second to read each answer
        loop.add_reader(client._fd, drain, client._sock)
        for _ in range(60):
            client.send(
                Message(destination=NAME[0], path=NAME[1], interface=ALL_DUMPS[0], member=ALL_DUMPS[1])
            )
    async with BusClient(bus.address) as other:
        share = await other.longest_share(lambda: received >= 300 * 1_000_000)
    for client in greedy:
        close(client)
    return share
