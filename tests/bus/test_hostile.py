# SPDX-License-Identifier: LGPL-2.1-or-later
"""Clients that mean no good, or know no better.

The daemon stays up, answers others meanwhile, loses no setting, and tells nothing that they should not know.
"""

from __future__ import annotations

import array
import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageFlag, MessageType, Variant

from kdump_service.bus.connection import LARGEST_BODY_BYTES, Connection
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import BusClient, FakePolkit, PrivateBus, RunningDaemon
from tests.bus.daemon_with_users import write_users
from tests.hang import HANG_SEC

MOST_BESIDE_A_CROWD = 0.75
PROPERTIES = "org.freedesktop.DBus.Properties"
SETTINGS = "org.kdump.Kdump1.Settings"
ERROR = "org.freedesktop.DBus.Error."


def _run(bus: PrivateBus, act: Callable[[BusClient], Awaitable[Any]]) -> Any:
    async def with_client() -> Any:
        async with BusClient(bus.address) as client:
            return await act(client)

    return asyncio.run(with_client())


def _set(interface: str, name: str, value: Variant) -> tuple[str, str, list[Any], str]:
    return ("Set", "ssv", [interface, name, value], PROPERTIES)


MANAGER = "org.kdump.Kdump1"
NONSENSE = [
    ("Arm", "s", ["x"], MANAGER, "InvalidArgs"),
    ("Arm", "a{sv}", [{"x": Variant("av", [Variant("h", 0)])}], MANAGER, "InvalidArgs"),
    ("Nonsense", "", [], MANAGER, "UnknownMethod"),
    ("arm", "", [], MANAGER, "UnknownMethod"),
    ("Arm", "", [], "org.example.Other", "UnknownMethod"),
    ("ResetSetting", "i", [7], SETTINGS, "InvalidArgs"),
    (*_set(SETTINGS, "DumpLevel", Variant("s", "7")), "InvalidArgs"),
    (*_set(SETTINGS, "DumpLevel", Variant("u", 7)), "InvalidArgs"),
    (*_set(SETTINGS, "Target", Variant("o", "/x")), "InvalidArgs"),
    (*_set(SETTINGS, "Target", Variant("v", Variant("s", "/x"))), "InvalidArgs"),
    (*_set(SETTINGS, "x" * 9999, Variant("s", "/x")), "UnknownProperty"),
    (*_set(MANAGER, "State", Variant("s", "armed")), "PropertyReadOnly"),
    ("Set", "sss", [SETTINGS, "Target", "/x"], PROPERTIES, "UnknownMethod"),
    ("Get", "ss", ["org.example.Other", "State"], PROPERTIES, "UnknownInterface"),
    ("Get", "ss", [MANAGER, "__class__"], PROPERTIES, "UnknownProperty"),
    ("GetAll", "s", ["org.example.Other"], PROPERTIES, "UnknownInterface"),
    ("Check", "ay", [bytes(LARGEST_BODY_BYTES)], MANAGER, "LimitsExceeded"),
    ("Check", "as", [["x" * 100] * 1000], MANAGER, "LimitsExceeded"),
]


@pytest.mark.parametrize(("member", "signature", "body", "interface", "error"), NONSENSE)
def test_messages_that_make_no_sense(
    daemon: RunningDaemon,
    bus: PrivateBus,
    member: str,
    signature: str,
    body: list[Any],
    interface: str,
    error: str,
) -> None:
    async def act(client: BusClient) -> Any:
        return await client.call(member, signature, *body, interface=interface)

    _assert_harmless(_run(bus, act), error)
    assert "Traceback" not in daemon.stop()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/", "UnknownMethod"),
        ("/org/kdump", "UnknownMethod"),
        ("/org/kd", "UnknownObject"),
        ("/org/kdump/Kdump1/dump", "UnknownObject"),
        ("/org/kdump/Kdump1/dump/" + "x" * 20000, "UnknownObject"),
    ],
)
def test_paths_where_nothing_is(daemon: RunningDaemon, bus: PrivateBus, path: str, error: str) -> None:
    async def act(client: BusClient) -> list[Any]:
        manager = "org.freedesktop.DBus.ObjectManager"
        calls = (("Arm", MANAGER), ("GetManagedObjects", manager))
        return [await client.call(member, interface=interface, path=path) for member, interface in calls]

    for reply in _run(bus, act):
        _assert_harmless(reply, error)


def _assert_harmless(reply: Message, error: str) -> None:
    assert reply.error_name == ERROR + error
    text = reply.body[0]
    assert len(text) < 300
    assert "Traceback" not in text
    assert str(Path(__file__).parents[2]) not in text


def test_a_call_need_not_name_the_interface(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def act(client: BusClient) -> Any:
        return await client.call("Check", interface=None)

    assert _run(bus, act).message_type is MessageType.METHOD_RETURN


def test_all_properties_at_once(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def act(client: BusClient) -> Any:
        replies = [await client.call("GetAll", "s", name, interface=PROPERTIES) for name in ("", SETTINGS)]
        return [set(reply.body[0]) for reply in replies]

    every, settings = _run(bus, act)
    assert {"State", "Problems", "Contents"} < every
    assert settings < every


@pytest.mark.new_interpreter
@pytest.mark.parametrize("size_mib", [1, 30])
def test_large_messages_are_not_even_read(daemon: RunningDaemon, bus: PrivateBus, size_mib: int) -> None:
    """Half a million numbers would take a second of the processor, and sixteen times the message's memory."""

    async def act(client: BusClient) -> None:
        large = asyncio.ensure_future(client.call("Check", "ay", bytes(size_mib << 20)))
        await asyncio.sleep(0)
        async with BusClient(bus.address) as other:
            assert await other.get("State") == "armed"
        assert (await large).error_name == f"{ERROR}LimitsExceeded"

    peak, worked = _peak_kib(daemon), daemon.processor_seconds()
    _run(bus, act)
    assert daemon.processor_seconds() - worked < 1
    assert _peak_kib(daemon) - peak < 1024


def _peak_kib(daemon: RunningDaemon) -> int:
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM:"))


def test_a_path_of_megabytes_is_dropped(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def act(client: BusClient) -> str:
        client.begin("Check", path="/" + "x" * (1 << 20), flags=MessageFlag.NO_REPLY_EXPECTED)
        return str(await client.get("State"))

    assert _run(bus, act) == "armed"


def test_descriptors_that_come_along_are_closed(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def act(client: BusClient) -> None:
        with open(os.devnull) as file:
            for member, path in (
                ("Arm", "/org/kdump/Kdump1"),
                ("Other", "/nowhere"),
                ("Check", "/org/kdump/Kdump1"),
            ):
                for count in (1, 16):
                    reply = await client.call(
                        member, "h" * count, *range(count), path=path, unix_fds=[file.fileno()] * count
                    )
                    assert reply.message_type is MessageType.ERROR

    def count() -> int:
        """Less what is open for a moment only, while a program is started."""
        counts = []
        for _ in range(10):
            daemon.read("State")
            counts.append(daemon.open_descriptors().count(os.devnull))
        return min(counts)

    before = count()
    _run(bus, act)
    assert count() == before


def test_a_reply_that_nobody_asked_for_is_no_right(daemon: RunningDaemon, bus: PrivateBus) -> None:
    """Replies are known by numbers, which can be guessed; the bus lets through what was asked for only."""

    async def act(client: BusClient) -> str:
        owner = await client.bus.call(
            Message(
                destination="org.freedesktop.DBus",
                path="/org/freedesktop/DBus",
                interface="org.freedesktop.DBus",
                member="GetNameOwner",
                signature="s",
                body=[MANAGER],
            )
        )
        for serial in range(1, 200):
            await client.bus.send(
                Message(
                    destination=owner.body[0], message_type=MessageType.METHOD_RETURN, reply_serial=serial,
                    signature="(bba{ss})", body=[[True, False, {}]],
                )
            )  # fmt: skip
        return str(await client.get("State"))

    assert _run(bus, act) == "armed"


def test_bytes_that_are_no_message_concern_the_bus_alone(daemon: RunningDaemon, bus: PrivateBus) -> None:
    name = "\0" + bus.address.removeprefix("unix:abstract=").split(",")[0]
    for garbage in (b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n" + b"l\1\0\1" + b"\xff" * 400, b"\xff" * 4000, b""):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(name)
            raw.send(garbage)
    assert daemon.read("State") == "armed"


def test_unknown_header_fields_and_flags(daemon: RunningDaemon, bus: PrivateBus) -> None:
    """Later versions of D-Bus may have more of them."""

    async def act(client: BusClient) -> Any:
        message = Message(
            destination=MANAGER,
            path="/org/kdump/Kdump1",
            interface=MANAGER,
            member="Check",
            serial=client.bus.next_serial(),
        )
        data = bytearray(message._marshall())
        data[2] = 0x70 | data[2]
        # One more field, of code 200: STRUCT (BYTE, VARIANT string).
        fields_length = int.from_bytes(data[12:16], "little")
        field = bytes([200, 1, ord("s"), 0]) + (1).to_bytes(4, "little") + b"x\0"
        padded = data[: 16 + fields_length] + b"\0" * (-(16 + fields_length) % 8) + field
        padded[12:16] = (len(padded) - 16).to_bytes(4, "little")
        padded += b"\0" * (-len(padded) % 8)
        answer = asyncio.get_running_loop().create_future()
        client.bus._method_return_handlers[message.serial] = lambda reply, error: answer.set_result(reply)
        client.bus._sock.send(bytes(padded))
        await asyncio.wait_for(answer, HANG_SEC)
        return answer.result()

    reply = _run(bus, act)
    assert reply.message_type is MessageType.METHOD_RETURN, reply.body
    assert daemon.read("State") == "armed"


@pytest.mark.parametrize(("name", "most"), [("State", 10), ("Problems", 60)])
def test_an_answer_takes_a_few_pings(daemon: RunningDaemon, bus: PrivateBus, name: str, most: int) -> None:
    """Nobody else asks. What is at hand is answered like a ping, of which the daemon thinks nothing; a look
    at the machine takes some milliseconds more. The quickest of each counts, so that neighbours do not."""

    async def act(client: BusClient) -> tuple[float, float]:
        clock = asyncio.get_running_loop().time
        pings, reads = [], []
        for _ in range(20):
            began = clock()
            await client.call("Ping", interface="org.freedesktop.DBus.Peer")
            pings.append(clock() - began)
            began = clock()
            await client.get(name)
            reads.append(clock() - began)
        return min(reads), min(pings)

    read, ping = _run(bus, act)
    print(f"{read / ping:.1f} pings")
    assert read < most * ping


def test_hundreds_of_clients_at_once(daemon: RunningDaemon, bus: PrivateBus, machine: MachineRoot) -> None:
    put_dump(machine, 0)
    crowd = subprocess.Popen(
        [sys.executable, "-m", "tests.bus.crowd", bus.address, "220"], stdout=subprocess.PIPE, text=True
    )
    assert crowd.stdout is not None
    assert crowd.stdout.readline() == "connected\n"

    async def act(client: BusClient) -> float:
        return await client.longest_share(lambda: crowd.poll() is not None)

    # They all come at one moment: that alone is a third of the time. Who is served last waits for all of it.
    assert _run(bus, act) < MOST_BESIDE_A_CROWD
    assert crowd.stdout.read() == "1100 answers, 0 errors\n"


def test_one_client_cannot_take_all(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def act(client: BusClient) -> list[Any]:
        calls = [client.call("Check") for _ in range(120)]
        replies = asyncio.gather(*calls)
        async with BusClient(bus.address) as other:
            assert await other.get("State") == "armed"
        return [reply.error_name for reply in await replies]

    names = _run(bus, act)
    assert set(names) == {None, f"{ERROR}LimitsExceeded"}
    assert names.count(None) >= 64


def test_calls_without_reply_pile_up_nowhere(
    daemon: RunningDaemon, bus: PrivateBus, polkit: FakePolkit
) -> None:
    async def act(client: BusClient) -> str:
        for _ in range(3000):
            client.begin("Check", flags=MessageFlag.NO_REPLY_EXPECTED)
        await asyncio.sleep(0)
        async with BusClient(bus.address) as other:
            return str(await other.get("State"))

    assert _run(bus, act) == "armed"


@pytest.mark.parametrize(
    ("connections", "calls_each"),
    [(4, 50), (70, 63)],  # more than are asked of polkit at a time; than one user may have under way
)
def test_a_password_that_is_never_typed_holds_up_its_own_user_alone(
    bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit, connections: int, calls_each: int
) -> None:
    daemon = RunningDaemon(bus, machine, module="tests.bus.daemon_with_users")
    try:
        asyncio.run(_others_beside_who_never_answers(bus, machine, polkit, connections, calls_each))
    finally:
        assert "Traceback" not in daemon.stop()


async def _others_beside_who_never_answers(
    bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit, connections: int, calls_each: int
) -> None:
    async with AsyncExitStack() as stack:
        stranger, administrator, root, *silent = [
            await stack.enter_async_context(BusClient(bus.address)) for _ in range(3 + connections)
        ]
        never_answers = [str(client.bus.unique_name) for client in silent]
        users = dict.fromkeys(never_answers, 1000)
        users |= {str(administrator.bus.unique_name): 1001, str(stranger.bus.unique_name): 1002}
        write_users(machine.path, users)
        polkit.never_answer(*never_answers)
        polkit.grant(str(administrator.bus.unique_name))
        for client in silent:
            for _ in range(calls_each):
                client.begin("Arm", flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION)
        for client in silent:  # once there is an answer, the calls before it are under way
            pong = await client.call("Ping", interface="org.freedesktop.DBus.Peer")
        assert pong.error_name == (None if connections * calls_each < 2048 else f"{ERROR}LimitsExceeded")

        denied = "org.kdump.Kdump1.Error.NotAuthorized"
        for caller in (stranger, administrator, root):
            assert await asyncio.wait_for(caller.get("State"), HANG_SEC) == "armed"
            assert (await asyncio.wait_for(caller.call("Check"), HANG_SEC)).error_name is None
            reply = await asyncio.wait_for(caller.call("Arm"), HANG_SEC)
            assert reply.error_name == (denied if caller is stranger else None)
        assert sum(name in never_answers for name, _, _ in polkit.asked()) == 8


def test_a_client_that_vanishes_in_the_middle_of_a_call(daemon: RunningDaemon, bus: PrivateBus) -> None:
    async def vanish(client: BusClient) -> None:
        for member in ("Check", "Arm", "Rebuild", "Estimate"):
            client.begin(member)
        await asyncio.sleep(0.01)

    for _ in range(20):
        _run(bus, vanish)
    daemon.call("Arm")  # waits for what was asked for before
    assert (daemon.read("State"), daemon.read("Loaded")) == ("armed", True)
    assert "Traceback" not in daemon.stop()


def test_a_bus_that_is_restarted_finds_the_service_again(
    daemon: RunningDaemon, bus: PrivateBus, machine: MachineRoot
) -> None:
    put_dump(machine, 0)
    assert daemon.set("Contents", "s", "user").returncode == 0
    daemon.call("Check")
    for _ in range(3):
        bus.close()
        bus.start()
        asyncio.run(_found_again(bus))
        assert daemon.read("Contents", SETTINGS) == "user"
        assert len(daemon.dumps()) == 1
    sockets = _sockets(daemon)
    bus.close()
    bus.start()
    asyncio.run(_found_again(bus))
    assert _sockets(daemon) <= sockets
    log = daemon.stop()
    assert "connecting anew" in log
    assert "Traceback" not in log


def _sockets(daemon: RunningDaemon) -> int:
    return sum(target.startswith("socket:") for target in daemon.open_descriptors())


async def _found_again(bus: PrivateBus) -> None:
    async with BusClient(bus.address) as client:
        owned = asyncio.Event()

        def on_signal(message: Message) -> None:
            if message.member == "NameOwnerChanged" and message.body[0] == "org.kdump.Kdump1":
                owned.set()

        client.bus.add_message_handler(on_signal)
        bus_itself = {"destination": "org.freedesktop.DBus", "path": "/org/freedesktop/DBus"}
        for member, argument in (
            ("AddMatch", "type='signal',member='NameOwnerChanged'"),
            ("NameHasOwner", "org.kdump.Kdump1"),
        ):
            reply = await client.bus.call(
                Message(
                    **bus_itself,
                    interface="org.freedesktop.DBus",
                    member=member,
                    signature="s",
                    body=[argument],
                )
            )
        if not reply.body[0]:
            await asyncio.wait_for(owned.wait(), HANG_SEC)
        assert await client.get("State") == "armed"


@pytest.mark.skipif(os.geteuid() != 0, reason="others are asked for by polkit, which goes with the bus")
def test_acts_go_on_while_the_bus_is_away(
    daemon: RunningDaemon, bus: PrivateBus, machine: MachineRoot
) -> None:
    async def begin(client: BusClient) -> None:
        for number in range(20):
            body = (SETTINGS, "MaxDumps", Variant("u", number))
            client.begin("Set", "ssv", *body, interface=PROPERTIES)
        assert await client.get("State") == "armed"

    _run(bus, begin)
    bus.close()
    bus.start()
    asyncio.run(_found_again(bus))
    daemon.call("Arm")  # waits for what was asked for before
    in_file = (machine.path / "etc/kdump-service.conf.d/90-kdumpctl.conf").read_text()
    assert f"MaxDumps={daemon.read('MaxDumps', SETTINGS)}\n" in in_file


def test_nobody_waits_for_a_bus_that_went_away(bus: PrivateBus) -> None:
    """As calls do that waited for their turn to ask polkit, and get it when who asked has lost the bus."""

    async def act() -> None:
        connection = await Connection(bus.address).connect()
        connection.disconnect()
        question = Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus.Peer",
            member="Ping",
        )
        with pytest.raises(EOFError):
            await asyncio.wait_for(connection.call(question), HANG_SEC)

    asyncio.run(act())


def test_descriptors_of_a_reply_stay_open_for_who_asked(bus: PrivateBus, tmp_path: Path) -> None:
    """Those of other replies, and of one that nobody waits for any more, are closed."""
    path = tmp_path / "file"
    path.touch()

    def count() -> int:
        # The folder's own descriptor is among them, and gone by the time.
        return sum(link.resolve() == path for link in Path("/proc/self/fd").iterdir())

    async def act(client: BusClient) -> None:
        connection = await Connection(bus.address).connect()
        with path.open() as file:

            def answer(message: Message) -> Message | None:
                if message.message_type is not MessageType.METHOD_CALL:
                    return None
                return Message.new_method_return(message, "h", [0], [file.fileno()])

            client.bus.add_message_handler(answer)

            def question() -> Message:
                return Message(client.bus.unique_name, "/", "org.example.Other", "Open")

            reply = await connection.call(question())
            assert reply is not None
            assert (reply.body, reply.unix_fds, count()) == ([0], [], 1)
            asked = asyncio.ensure_future(connection.call(question(), takes_descriptors=True))
            await asyncio.sleep(0)
            asked.cancel()
            await connection.call(question())  # answered after the first
            assert count() == 1
            reply = await connection.call(question(), takes_descriptors=True)
            assert reply is not None
            assert (len(reply.unix_fds), count()) == (1, 2)
            os.close(reply.unix_fds[0])
        connection.disconnect()
        assert count() == 0

    _run(bus, act)


def test_a_full_socket_keeps_descriptors_for_later() -> None:
    """sendmsg(2) with EAGAIN: the message waits with its descriptor, which arrives once."""
    asyncio.run(_full_socket())


async def _full_socket() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setblocking(False)
    connection = Connection.__new__(Connection)  # as if it were connected: no bus is needed
    connection._sock, connection._loop = ours, asyncio.get_running_loop()
    connection.unique_name, connection._disconnected, connection._user_disconnect = ":1.1", False, False
    connection._reading = True
    from kdump_service.bus.connection import _Writer

    connection._writer = _Writer(connection)
    connection._fd = ours.fileno()
    connection._loop.add_reader(ours, lambda: None)
    read_end, write_end = os.pipe()
    signal = {"message_type": MessageType.SIGNAL, "path": "/", "interface": "a.b", "member": "C"}
    for _ in range(100):
        connection._writer.schedule_write(Message(**signal, signature="s", body=["x" * 10000], serial=1))
    with_descriptor = Message(**signal, signature="h", body=[0], unix_fds=[write_end], serial=2)
    sent = connection._loop.create_future()
    connection._writer.schedule_write(with_descriptor, sent)
    sent.add_done_callback(lambda _: os.close(write_end))
    await asyncio.sleep(0.05)
    assert not sent.done()
    received: list[int] = []

    def drain() -> None:
        while True:
            data, ancillary, *_ = theirs.recvmsg(1 << 16, socket.CMSG_SPACE(64))
            for _, _, rights in ancillary:
                received.extend(array.array("i", rights))
            if received or not data:
                return

    await asyncio.to_thread(drain)
    await asyncio.wait_for(sent, HANG_SEC)
    assert len(received) == 1
    await asyncio.sleep(0)
    os.close(received[0])
    assert os.read(read_end, 1) == b""  # both copies are closed
    os.close(read_end)
    connection._loop.remove_reader(ours)
    connection._loop.remove_writer(ours)
    ours.close()
    theirs.close()
