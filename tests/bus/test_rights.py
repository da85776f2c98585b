# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what. The daemon asks polkit about everybody but root."""

from __future__ import annotations

import asyncio
import os

import pytest
from dbus_next import Message, MessageType
from dbus_next.aio import MessageBus

from kdump_service.bus import authorization
from kdump_service.bus.connection import connect
from kdump_service.errors import NotAuthorized
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1", "org.kdump.Kdump1")
NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")


@needs_root
@pytest.mark.parametrize("member", ["Arm", "Disarm", "Reload"])
def test_without_the_right_nothing_happens(
    bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit, member: str
) -> None:
    polkit.grant()
    done = bus.busctl("call", *NAME, member, user=NOBODY)
    assert done.returncode != 0
    assert "do not have the right org.kdump.Kdump1.arm" in done.stderr
    assert "b true" in bus.busctl("get-property", *NAME, "Loaded").stdout


@needs_root
def test_everybody_may_look(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    polkit.grant()
    assert bus.busctl("get-property", *NAME, "State", user=NOBODY).stdout == 's "armed"\n'
    assert bus.busctl("call", *NAME, "ListDumps", user=NOBODY).stdout == "aa{sv} 0\n"
    assert polkit.asked() == []


@needs_root
def test_with_the_right_it_happens(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    assert bus.busctl("call", *NAME, "Disarm", user=NOBODY).returncode == 0
    assert "b false" in bus.busctl("get-property", *NAME, "Loaded").stdout
    assert [action for _, action in polkit.asked()] == ["org.kdump.Kdump1.arm"]


@needs_root
def test_root_needs_no_polkit(bus: PrivateBus, daemon: RunningDaemon, polkit: FakePolkit) -> None:
    polkit.close()
    assert bus.busctl("call", *NAME, "Disarm").returncode == 0
    done = bus.busctl("call", *NAME, "Arm", user=NOBODY)
    assert "polkit cannot be asked" in done.stderr


def test_each_call_sees_its_own_caller(
    bus: PrivateBus, polkit: FakePolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many clients at once: the service side asks polkit about the very sender of each message."""
    asyncio.run(_many_clients(bus, polkit, monkeypatch))


async def _many_clients(bus: PrivateBus, polkit: FakePolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_root(connection: MessageBus, sender: str) -> int:
        await asyncio.sleep(0)  # lets the other calls come in between
        return 1000

    monkeypatch.setattr(authorization, "_user_id", not_root)
    service = await connect(MessageBus(bus_address=bus.address))
    service.add_message_handler(authorization.remember_caller)

    def serve(message: Message) -> bool:
        if message.member != "Probe":
            return False

        async def reply() -> None:
            try:
                await authorization.require(service, "org.kdump.Kdump1.arm")
                await service.send(Message.new_method_return(message, "b", [True]))
            except NotAuthorized:
                await service.send(Message.new_method_return(message, "b", [False]))

        task = asyncio.ensure_future(reply())
        tasks.add(task)
        return True

    tasks: set[asyncio.Future[None]] = set()
    service.add_message_handler(serve)
    clients = [await connect(MessageBus(bus_address=bus.address)) for _ in range(40)]
    granted = {client.unique_name for client in clients[::2]}
    polkit.grant(*granted)
    calls = [
        client.call(Message(destination=service.unique_name, path="/", interface="t.t", member="Probe"))
        for client in clients
        for _ in range(5)
    ]
    replies = await asyncio.gather(*calls)
    assert all(reply.message_type is MessageType.METHOD_RETURN for reply in replies)
    found = {reply.destination: reply.body[0] for reply in replies}
    assert found == {client.unique_name: client.unique_name in granted for client in clients}
    for connection in (service, *clients):
        connection.disconnect()
