# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private message bus with the real daemon on it. What is faked is the kernel, at the system call."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
from dbus_next import Message, MessageType, Variant
from dbus_next.aio import MessageBus

from kdump_service.bus.connection import Connection
from tests.builders.machine_root import MachineRoot
from tests.bus.programs import Starter
from tests.hang import HANG_SEC

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>unix:abstract={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

_MONITOR_DEADLINE_SEC = 60.0
_JOURNAL_DEADLINE_SEC = 120.0
"""More than the daemon takes to try again where another program loads a kernel."""


_T = TypeVar("_T")

programs = Starter()


@pytest.fixture(scope="session", autouse=True)
def _programs_end() -> Iterator[None]:
    yield
    programs.close()


@pytest.fixture(autouse=True)
def _new_interpreters_where_asked_for(request: pytest.FixtureRequest) -> None:
    programs.forks = request.node.get_closest_marker("new_interpreter") is None


class PrivateBus:
    """A dbus-daemon of our own."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / "bus.conf"
        self._config.write_text(_BUS_CONFIG.format(socket=folder / "bus.socket"))
        self.address = ""
        self.start()

    def start(self) -> None:
        """Start it, at the same address as before."""
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def busctl(self, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run systemd's client, which nobody here wrote, as another user if asked to (needs root)."""
        return subprocess.run(
            ["busctl", f"--address={self.address}", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            user=user,
        )

    def monitor(self, match: str) -> Monitor:
        """Listen from now on to messages that match, until the monitor is closed."""
        return Monitor(self.address, match)

    def close(self) -> None:
        """End the bus."""
        self._process.terminate()
        self._process.wait(timeout=HANG_SEC)


class Monitor:
    """systemd's client, listening."""

    def __init__(self, address: str, match: str) -> None:
        self._process = subprocess.Popen(
            ["busctl", f"--address={address}", "monitor", "--json=short", f"--match={match}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._deadline = threading.Timer(_MONITOR_DEADLINE_SEC, self._process.terminate)
        self._deadline.start()
        assert self._process.stderr is not None
        assert "Monitoring" in self._process.stderr.readline()

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *exception: object) -> None:
        self._deadline.cancel()
        self._process.terminate()
        self._process.communicate(timeout=HANG_SEC)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read messages up to one that is wanted."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message: dict[str, Any] = json.loads(line)
            if wanted(message):
                return message
        raise AssertionError("the message did not come")

    def until_changed(self, name: str) -> Any:
        """The next value that is announced of a property."""

        def tells(message: dict[str, Any]) -> bool:
            return message["member"] == "PropertiesChanged" and name in message["payload"]["data"][1]

        return self.until(tells)["payload"]["data"][1][name]["data"]


class RunningDaemon:
    """The daemon in a process of its own, on the private bus."""

    def __init__(
        self,
        bus: PrivateBus,
        machine: MachineRoot,
        stop_cause: str = "stopped",
        *failures: str,
        module: str = "tests.bus.daemon_on_fake_kernel",
    ) -> None:
        """``failures``: errnos of the first loads. ``module``: what the process runs, the daemon with more
        or less of its surroundings."""
        self.machine = machine
        self.busctl = bus.busctl
        self.environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
        self.environment.pop("NOTIFY_SOCKET", None)
        self.process = programs.start(
            module, str(machine.path), stop_cause, *failures, environment=self.environment
        )
        # Read all the time: a pipe that is full would stop the daemon in the middle of a message.
        self._journal: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read_journal, daemon=True)
        self._reader.start()
        # The child says so when it has the bus name and has armed: nothing to poll for.
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"the daemon did not start: {self.stop()}")

    def _read_journal(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._journal.put(line)
        self._journal.put(None)

    def read(self, name: str, interface: str = "org.kdump.Kdump1") -> Any:
        """A property of the manager."""
        done = self.busctl("get-property", "org.kdump.Kdump1", "/org/kdump/Kdump1", interface, name, "-j")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["data"]

    def set(self, name: str, signature: str, value: str) -> subprocess.CompletedProcess[str]:
        """Set a setting."""
        interface = "org.kdump.Kdump1.Settings"
        where = ("org.kdump.Kdump1", "/org/kdump/Kdump1", interface)
        return self.busctl("set-property", *where, name, signature, "--", value)

    def call(self, member: str, *arguments: str, interface: str = "org.kdump.Kdump1") -> Any:
        """Call a method of the manager that succeeds; returns its result."""
        where = ("org.kdump.Kdump1", "/org/kdump/Kdump1", interface)
        done = self.busctl("call", "-j", *where, member, *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["data"][0] if done.stdout else None

    def dumps(self) -> dict[str, dict[str, Any]]:
        """All dumps: object path -> properties."""
        found = self.call("GetManagedObjects", interface="org.freedesktop.DBus.ObjectManager")
        return {
            path: {name: value["data"] for name, value in interfaces["org.kdump.Kdump1.Dump"].items()}
            for path, interfaces in found.items()
        }

    def kdumpctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the client, without a terminal."""
        return programs.run(
            "kdump_service.ctl.main", *arguments, environment=self.environment, folder=Path.cwd(), timeout=60
        )

    def wait_for_journal(self, text: str) -> str:
        """Read what the daemon logs until a line holds ``text``; returns what was read."""
        lines: list[str] = []
        while (line := self._journal.get(timeout=_JOURNAL_DEADLINE_SEC)) is not None:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"the daemon ended without {text!r}: {''.join(lines)}")

    def processor_seconds(self) -> float:
        """What its threads, and its children that have ended, took of processors so far (proc(5))."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def open_descriptors(self) -> list[str]:
        """What each descriptor of the daemon leads to; it may open and close some while we look."""
        targets = []
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                targets.append(str(link.readlink()))
        return targets

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal and wait; returns what the daemon logged since it was asked last."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(timeout=30)
        self._reader.join()
        return "".join(iter(self._journal.get_nowait, None))


def close(client: MessageBus) -> None:
    """End a connection of the library, which leaves its socket to the garbage collector."""
    client.disconnect()
    client._finalize()
    _ignore(client._disconnect_future)
    client._stream.close()
    client._sock.close()


def _ignore(future: asyncio.Future[Any]) -> None:
    """Have nobody complain that an error was not looked at."""
    if not future.cancelled():
        future.exception()


MOST_OF_ALL_TIME = 0.5
"""That one answer may take, of the time that many others' calls take (:meth:`BusClient.longest_share`)."""


class BusClient:
    """The library's own client, for what busctl cannot be made to do."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def __aenter__(self) -> BusClient:
        self.bus = await MessageBus(bus_address=self._address, negotiate_unix_fd=True).connect()
        return self

    async def __aexit__(self, *exception: object) -> None:
        close(self.bus)

    def begin(self, member: str, signature: str = "", *body: Any, **more: Any) -> None:
        """Send a call, and do not wait for its reply."""
        self.bus.send(self._message(member, signature, body, **more)).add_done_callback(_ignore)

    async def call(self, member: str, signature: str = "", *body: Any, **more: Any) -> Any:
        """The reply, which may be an error."""
        return await self.bus.call(self._message(member, signature, body, **more))

    def _message(
        self,
        member: str,
        signature: str,
        body: Sequence[Any],
        *,
        interface: str | None = "org.kdump.Kdump1",
        path: str = "/org/kdump/Kdump1",
        **more: Any,
    ) -> Message:
        return Message(
            destination="org.kdump.Kdump1",
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=list(body),
            **more,
        )

    async def get(self, name: str, interface: str = "org.kdump.Kdump1") -> Any:
        """A property."""
        reply = await self.call("Get", "ss", interface, name, interface="org.freedesktop.DBus.Properties")
        assert reply.message_type is MessageType.METHOD_RETURN, reply.body
        return reply.body[0].value

    async def longest_share(self, over: Callable[[], bool]) -> float:
        """Ask for the state again and again until what others want is over.

        :return: the longest that an answer took, as a share of the whole time: near one where the daemon
            answers when it is done with the others. Seconds would measure the machine and its neighbours.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        longest = 0.0
        while not over():
            start = loop.time()
            assert await self.get("State") in ("armed", "arming")
            longest = max(longest, loop.time() - start)
        print(f"{longest:.3f} of {loop.time() - began:.3f} s")
        return longest / (loop.time() - began)

    async def set(self, name: str, signature: str, value: Any) -> Any:
        """The reply to setting a setting."""
        body = ("org.kdump.Kdump1.Settings", name, Variant(signature, value))
        return await self.call("Set", "ssv", *body, interface="org.freedesktop.DBus.Properties")


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    """A bus for one test."""
    private_bus = PrivateBus(tmp_path)
    yield private_bus
    private_bus.close()


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    """A machine with 256 MiB reserved and nothing loaded."""
    return MachineRoot(tmp_path / "machine")


class FakePolkit:
    """Stands for polkitd, which needs the system bus, in a thread of its own: grants or denies by names, and
    notes who asked. Some are never answered, as where a person does not type the password."""

    def __init__(self, bus: PrivateBus) -> None:
        self._granted = self._unanswered = frozenset[str]()
        self._asked: list[tuple[str, str, int]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._end = self._run(self._serve(bus.address))

    def grant(self, *names: str) -> None:
        """From now on, grant to these unique bus names only; ``*`` is everybody."""
        self._granted = frozenset(names)

    def never_answer(self, *names: str) -> None:
        """From now on, leave questions about these unique bus names open."""
        self._unanswered = frozenset(names)

    def asked(self) -> list[tuple[str, str, int]]:
        """Subject, action and flags of each question so far."""
        return list(self._asked)

    def close(self) -> None:
        """End it."""
        if not self._loop.is_closed():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _serve(self, address: str) -> Callable[[], Coroutine[Any, Any, None]]:
        """Serve, and return what ends it."""
        bus = await Connection(address).connect()
        bus.add_message_handler(self._answer)
        await bus.request_name("org.freedesktop.PolicyKit1")

        async def end() -> None:
            bus.disconnect()
            with contextlib.suppress(EOFError, OSError):  # the bus may have been ended by a test
                await bus.wait_for_disconnect()

        return end

    def _answer(self, message: Message) -> Message | bool | None:
        if message.message_type is not MessageType.METHOD_CALL or message.member != "CheckAuthorization":
            return None
        (kind, details), action, _, flags, _ = message.body
        assert kind == "system-bus-name"
        name = details["name"].value
        self._asked.append((name, action, flags))
        if name in self._unanswered:
            return True
        granted = bool({name, "*"} & self._granted)
        return Message.new_method_return(message, "(bba{ss})", [[granted, False, {}]])


@pytest.fixture
def polkit(bus: PrivateBus) -> Iterator[FakePolkit]:
    """polkit, granting everything to everybody."""
    fake = FakePolkit(bus)
    fake.grant("*")
    yield fake
    fake.close()


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[RunningDaemon]:
    """The daemon, armed."""
    running = RunningDaemon(bus, machine)
    yield running
    if running.process.poll() is None:
        running.stop()
