# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what. The daemon asks polkit about everybody but root."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from dbus_next import Message, MessageFlag, MessageType
from dbus_next.aio import MessageBus

from kdump_service.bus.authorization import Authority
from kdump_service.bus.connection import Connection
from kdump_service.bus.members import Argument, Interface, Method
from kdump_service.bus.names import ACTION_ARM, FREE
from kdump_service.bus.objects import Objects
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import put_dump
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon, close

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1")
MANAGER, SETTINGS, DUMP = (f"org.kdump.Kdump1{suffix}" for suffix in ("", ".Settings", ".Dump"))
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")


@pytest.fixture
def machine(machine: MachineRoot) -> MachineRoot:
    """A machine with a dump."""
    put_dump(machine, 0)
    return machine


@pytest.fixture
def dump(daemon: RunningDaemon, bus: PrivateBus) -> str:
    """Object path of the dump, which the daemon looks for after it has armed."""
    with bus.monitor("type='signal',member='InterfacesAdded'") as monitor:
        known = daemon.dumps() or {monitor.until(lambda _: True)["payload"]["data"][0]: {}}
    return next(iter(known))


CALLS = [
    (MANAGER, "Arm", (), "arm"),
    (MANAGER, "Disarm", (), "arm"),
    (MANAGER, "Reload", (), "arm"),
    (MANAGER, "Rebuild", (), "arm"),
    (MANAGER, "TestCrash", (), "crash"),
    (SETTINGS, "ResetSetting", ("s", "Target"), "configure"),
    (DUMP, "Open", ("s", "log"), "read-dumps"),
    (DUMP, "Keep", ("b", "true"), "delete-dumps"),
    (DUMP, "Delete", (), "delete-dumps"),
]


@needs_root
@pytest.mark.promise("rights", "only-the-right-person")
def test_without_the_right_nothing_happens(
    bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit, dump: str, machine: MachineRoot
) -> None:
    polkit.grant()
    before = daemon.dumps()
    for interface, member, arguments, right in CALLS:
        path = dump if interface == DUMP else NAME[1]
        done = bus.busctl("call", NAME[0], path, interface, member, *arguments, user=NOBODY)
        assert done.returncode != 0
        assert f"do not have the right org.kdump.Kdump1.{right}" in done.stderr
        assert polkit.asked()[-1][1] == f"org.kdump.Kdump1.{right}"
    assert daemon.read("Loaded") is True
    assert daemon.dumps() == before
    assert not (machine.path / "crashed").exists()


@needs_root
def test_without_the_right_nothing_is_set(
    bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit, machine: MachineRoot
) -> None:
    polkit.grant()
    for name, signature, value in (("Contents", "s", "user"), ("MaxDumps", "u", "1"), ("KeepFree", "t", "1")):
        done = bus.busctl("set-property", *NAME, SETTINGS, name, signature, value, user=NOBODY)
        assert "do not have the right org.kdump.Kdump1.configure" in done.stderr
    assert not (machine.path / "etc/kdump-service.conf.d").exists()


@needs_root
@pytest.mark.promise("rights")
def test_everybody_may_look(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit, dump: str) -> None:
    polkit.grant()
    assert bus.busctl("get-property", *NAME, MANAGER, "State", user=NOBODY).stdout == 's "armed"\n'
    assert bus.busctl("get-property", *NAME, SETTINGS, "Target", user=NOBODY).stdout == 's "/var/crash"\n'
    assert bus.busctl("get-property", NAME[0], dump, DUMP, "Kept", user=NOBODY).stdout == "b false\n"
    for interface, member in ((MANAGER, "Check"), (MANAGER, "Estimate"), (SETTINGS, "GetSettings")):
        assert bus.busctl("call", *NAME, interface, member, user=NOBODY).returncode == 0
    assert polkit.asked() == []


@needs_root
@pytest.mark.promise("rights")
def test_with_the_right_it_happens(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    assert bus.busctl("call", *NAME, MANAGER, "Disarm", user=NOBODY).returncode == 0
    assert daemon.read("Loaded") is False
    done = bus.busctl("set-property", *NAME, SETTINGS, "Contents", "s", "user", user=NOBODY)
    assert done.returncode == 0, done.stderr
    assert daemon.read("Contents", SETTINGS) == "user"
    assert [asked[1].rpartition(".")[2] for asked in polkit.asked()] == ["arm", "configure"]


@needs_root
def test_a_password_is_asked_for_only_if_somebody_is_there(
    bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit
) -> None:
    for allowed in ("no", "yes"):
        option = f"--allow-interactive-authorization={allowed}"
        assert bus.busctl(option, "call", *NAME, MANAGER, "Arm", user=NOBODY).returncode == 0
    assert [asked[2] for asked in polkit.asked()] == [0, 1]


@needs_root
def test_root_needs_no_polkit(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    polkit.close()
    assert bus.busctl("call", *NAME, MANAGER, "Disarm").returncode == 0
    done = bus.busctl("call", *NAME, MANAGER, "Arm", user=NOBODY)
    assert "polkit cannot be asked" in done.stderr


@pytest.fixture
def not_root(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everybody counts as an ordinary user."""

    async def user_id(authority: Authority, sender: str) -> int:
        await asyncio.sleep(0)  # lets the other calls come in between
        return 1000

    monkeypatch.setattr(Authority, "_user_id", user_id)
    yield


@pytest.mark.usefixtures("not_root")
def test_each_call_is_judged_by_its_own_sender(bus: PrivateBus, polkit: FakePolkit) -> None:
    """Forty clients, five calls each, all at once; every second client has the right."""
    asyncio.run(_many_clients(bus, polkit))


async def _many_clients(bus: PrivateBus, polkit: FakePolkit) -> None:
    done: list[str] = []

    async def act(who: str) -> str:
        await asyncio.sleep(0)
        done.append(who)
        return who

    says = Argument("who", "s")
    methods = {
        "Act": Method("Act", act, ACTION_ARM, [says], says),
        "Look": Method("Look", act, FREE, [says], says),
    }
    service = await Connection(bus.address, limited=True).connect()
    objects = Objects(service, Authority(service))
    objects.add("/org/kdump/Kdump1", Interface("org.kdump.Kdump1", {}, methods), {}, quietly=True)
    service.add_message_handler(objects.handle)
    await service.request_name("org.kdump.Kdump1")

    clients = [await MessageBus(bus_address=bus.address).connect() for _ in range(40)]
    granted = {client.unique_name for client in clients[::2]}
    polkit.grant(*granted)

    def call(client: MessageBus, member: str) -> Message:
        return client.call(
            Message(
                destination="org.kdump.Kdump1", path="/org/kdump/Kdump1", interface="org.kdump.Kdump1",
                member=member, signature="s", body=[client.unique_name], flags=MessageFlag.NONE,
            )
        )  # fmt: skip

    calls = [call(client, member) for client in clients for member in ("Act", "Look", "Act", "Act", "Act")]
    replies = await asyncio.gather(*calls)
    names = [client.unique_name for client in clients for _ in range(5)]
    for index, (name, reply) in enumerate(zip(names, replies, strict=True)):
        if name in granted or index % 5 == 1:
            assert (reply.message_type, reply.body) == (MessageType.METHOD_RETURN, [name])
        else:
            assert reply.error_name == "org.kdump.Kdump1.Error.NotAuthorized"
    assert sorted(done) == sorted([*granted] * 4 + [client.unique_name for client in clients])
    service.disconnect()
    for client in clients:
        close(client)


@needs_root
def test_interactive_flag_travels(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    """kdumpctl lets polkit ask, as a person sits before it."""
    import subprocess
    import sys

    subprocess.run(
        [sys.executable, "-m", "kdump_service.ctl.main", "arm"],
        env=daemon.environment, check=True, user=NOBODY, capture_output=True,
    )  # fmt: skip
    assert [asked[2] for asked in polkit.asked()] == [1]
