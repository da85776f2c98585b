# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl on a bus: against a service that says what a test wants, fails, hangs and comes back."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbus_next import Message, MessageType, Variant

from tests.builders.machine_root import RELEASE, MachineRoot
from tests.builders.stored_dumps import name_of, put_dump
from tests.bus.conftest import BusClient, FakePolkit, PrivateBus, RunningDaemon, programs
from tests.bus.fake_state import ESTIMATE, EVIL, MANAGER, SETTINGS, dump
from tests.hang import HANG_SEC, wait_until

KDUMPCTL = [sys.executable, "-m", "kdump_service.ctl.main"]
MANAGER_PATH = "/org/kdump/Kdump1"
OLD, NEW, OTHER = "20261119T010203Z-web1", "20261120T010203Z-web1", "20261121T010203Z-web1"
PROPERTIES, OBJECT_MANAGER = "org.freedesktop.DBus.Properties", "org.freedesktop.DBus.ObjectManager"
INTERACTIVE, NO_AUTOSTART = 4, 2  # flags of messages, by the D-Bus specification
READING = [
    ["status"], ["check"], ["estimate"], ["list"], ["info"], ["show"], ["config", "show"],
    ["config", "get", "Contents"], ["watch"],
]  # fmt: skip
CHANGING = [
    ["arm"], ["disarm"], ["reload"], ["rebuild"], ["delete", NEW], ["keep", NEW], ["dump", NEW, "-o", "out"],
    ["export", NEW, "-o", "out"], ["log", NEW], ["debug", NEW], ["config", "set", "Contents", "log"],
    ["config", "reset", "Contents"], ["test", "--yes"],
]  # fmt: skip


class Service:
    """The fake service as a process."""

    def __init__(self, bus: PrivateBus, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "DBUS_SYSTEM_BUS_ADDRESS": bus.address,
            "TZ": "UTC",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        for name in ("COLUMNS", "NO_COLOR", "SUDO_UID", "SYSTEMD_PAGER", "SYSTEMD_PAGERSECURE"):
            self.environment.pop(name, None)
        dumps = {
            "_1": dump(OLD, SameBug=[NEW], Presence="missing"),
            "_2": dump(NEW, SameBug=[OLD], Task=EVIL),
            "_3": dump(
                OTHER, Signature="f" * 16, State="incomplete", Files=["dmesg.txt", "vmcore.incomplete"]
            ),
        }
        self.state: dict[str, Any] = {
            "manager": {**MANAGER, "LastCrash": f"{MANAGER_PATH}/dump/_3"},
            "dumps": dumps,
            "settings": SETTINGS,
            "estimate": ESTIMATE,
        }
        self.say()
        for name in (NEW, OTHER):
            files = folder / "files" / name
            files.mkdir(parents=True)
            (files / "log").write_bytes(b"[    0.000000] Linux\n[    1.000000] evil \x1b[31m\xff\n")
            (files / "record").write_text('{"name": "x"}\n')
            with open(files / "image", "wb") as image:
                image.write(name.encode())
                image.truncate(64 << 20)
        self.start()

    def say(self, **changes: Any) -> None:
        """From now on, have the service say this."""
        self.state.update(changes)
        temporary = self.folder / "state.new"
        temporary.write_text(json.dumps(self.state))
        temporary.rename(self.folder / "state.json")

    def start(self) -> None:
        """Start it, and wait until it has its name."""
        self.process = programs.start(
            "tests.bus.fake_service", str(self.folder), environment=self.environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def stop(self) -> None:
        """End it."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait(timeout=HANG_SEC)

    def announce(self, kind: str, path: str, interface: str = "org.kdump.Kdump1", **values: Any) -> None:
        """Have it emit a signal."""
        assert self.process.stdin is not None
        document = {"kind": kind, "path": path, "interface": interface, "values": values}
        self.process.stdin.write(json.dumps(document) + "\n")
        self.process.stdin.flush()

    def calls(self, *members: str) -> list[tuple[str, str, list[Any], int]]:
        """Path, member, arguments and flags of each call so far, of these members."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [tuple(call) for call in map(json.loads, lines) if not members or call[1] in members]

    def kdumpctl(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the client; with options of subprocess.run, by that."""
        if not options:
            return programs.run(
                "kdump_service.ctl.main", *arguments,
                environment=self.environment, folder=self.folder, timeout=60,
            )  # fmt: skip
        return subprocess.run(
            [*KDUMPCTL, *arguments],
            check=False,
            **{"env": self.environment, "cwd": self.folder, "capture_output": True, "text": True,
               "timeout": 60, "stdin": subprocess.DEVNULL, **options},
        )  # fmt: skip


@pytest.fixture
def service(bus: PrivateBus, tmp_path: Path) -> Iterator[Service]:
    running = Service(bus, tmp_path)
    yield running
    running.stop()


# What is read


def test_status(service: Service) -> None:
    done = service.kdumpctl("status")
    assert done.returncode == 0
    assert f"Last crash: {OTHER}, oops, incomplete, " in done.stdout
    service.say(manager={**service.state["manager"], "State": "not-armed", "LastCrash": "/nonsense"})
    done = service.kdumpctl("status", "--json")
    assert done.returncode == 3
    assert json.loads(done.stdout) == service.state["manager"]
    assert service.kdumpctl("status").returncode == 3


@pytest.mark.parametrize(("severity", "state", "code"), [
    ("warning", "armed", 0), ("fatal", "armed", 4), ("note", "starting", 4), ("from-the-future", "armed", 0),
    ("note", "arming", 0),
])  # fmt: skip
def test_check(service: Service, severity: str, state: str, code: int) -> None:
    """The service may be about to load the next crash kernel while one is loaded."""
    problem = ["some-code", severity, "Something was found.", "Do something."]
    ready = state != "starting" and severity != "fatal"
    service.say(manager={**MANAGER, "State": state, "Ready": ready, "Problems": [problem]})
    done = service.kdumpctl("check")
    assert done.returncode == code
    assert "some-code" in done.stdout
    assert ("would be captured" in done.stdout) == (code == 0)
    found = json.loads(service.kdumpctl("check", "--json=short").stdout)
    assert found == {
        "captured": code == 0,
        "state": state,
        "problems": [dict(zip(("code", "severity", "what", "remedy"), problem, strict=True))],
    }


LOADING = ["not-yet-armed", "fatal", "The crash kernel is being loaded.", "Wait a moment."]


@pytest.mark.parametrize("problems", [[LOADING], []], ids=["load-known", "load-begun-after-the-check"])
def test_check_waits_for_a_load(service: Service, problems: list[list[str]]) -> None:
    """A verdict amid a load would be about neither what was loaded nor what will be."""
    amid_load = {"State": "arming", "Ready": False, "Loaded": False}
    service.say(manager={**MANAGER, **amid_load, "Problems": problems})
    with subprocess.Popen(
        [*KDUMPCTL, "check"], env=service.environment, stdout=subprocess.PIPE, text=True
    ) as client:
        wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls("GetAll")))
        service.say(manager={**MANAGER, "State": "armed", "Ready": True, "Problems": []})
        service.announce("changed", MANAGER_PATH, State="armed")
        told, _ = client.communicate(timeout=30)
    assert client.returncode == 0, told
    assert len(service.calls("Check")) == 2


def test_list(service: Service) -> None:
    lines = service.kdumpctl("list").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["NAME", OLD, NEW, OTHER]
    assert "  missing  " in lines[1]

    def names(*arguments: str) -> list[str]:
        done = service.kdumpctl("list", "--no-legend", *arguments)
        assert done.returncode == 0, done.stderr
        return [line.split()[-1] for line in done.stdout.splitlines()]

    assert names("-r", "-n", "2") == [OTHER, NEW]
    assert names("--since", "2026-11-20", "--until", "2026-11-20 23:00") == [NEW]
    assert names("-S", "2026-11-21 UTC") == [OTHER]
    assert names("f" * 16, "20261119") == [OLD, OTHER]
    assert names("--since", "2027-01-01") == []
    assert service.kdumpctl("list", "--until", "@0").stdout == "No dumps.\n"
    assert service.kdumpctl("list", "--until", "@0", "-q").stdout == ""
    found = json.loads(service.kdumpctl("list", "--json=short", "-n1").stdout)
    assert found == [service.state["dumps"]["_3"]]
    assert json.loads(service.kdumpctl("list", "--json", "--until", "@0").stdout) == []


@pytest.mark.parametrize("verb", ["list", "info", "show", "log", "dump", "export", "debug", "delete", "keep"])
def test_no_match(service: Service, verb: str) -> None:
    done = service.kdumpctl(verb, "nope")
    assert (done.returncode, done.stdout) == (45, "")
    assert done.stderr == "kdumpctl: no dump matches 'nope'. kdumpctl list shows all names.\n"


def test_no_dumps(service: Service) -> None:
    service.say(dumps={})
    assert service.kdumpctl("list").returncode == 0
    done = service.kdumpctl("info")
    assert (done.returncode, done.stderr) == (45, "kdumpctl: there are no dumps\n")


def test_info(service: Service) -> None:
    newest = service.kdumpctl("info").stdout
    assert f"Dump: {OTHER}" in newest
    told = service.kdumpctl("info", NEW, OLD).stdout
    assert told.index(f"Dump: {OLD}") < told.index(f"Dump: {NEW}")
    assert "Same bug: once before: Thu 2026-11-19 01:02:03 UTC" in told
    assert "Same bug: once since: Fri 2026-11-20 01:02:03 UTC" in told
    assert r"Task: evil\x1b[31m\xe2\x80\xae (PID 123" in told


def test_info_counts_all_of_a_bug(service: Service) -> None:
    """SameBug of the service has 50 names at most."""
    names = [f"20261120T0102{second:02}Z-web1" for second in range(60)]
    dumps = {
        name[13:15]: dump(name, SameBug=[each for each in names if each != name][-50:]) for name in names
    }
    others = {f"_{sign}": dump(f"2026112{sign}T000000Z-web1", Signature="") for sign in (1, 2)}
    service.say(dumps={**dumps, **others})
    newest = "Fri 2026-11-20 01:02:"
    last = service.kdumpctl("info", names[-1]).stdout
    dates = ", ".join(f"{newest}{second} UTC" for second in range(58, 53, -1))
    assert f"Same bug: 59 times before: {dates} and 54 more\n" in last
    assert " since: " not in last
    early = service.kdumpctl("info", names[4]).stdout
    assert f"Same bug: 4 times before: {newest}03 UTC, " in early
    assert f"55 times since: {newest}59 UTC, " in early
    assert "Same bug:" not in service.kdumpctl("info", "20261121").stdout


def test_show(service: Service) -> None:
    done = service.kdumpctl("show", "-p", "Signature", "-p", "Kept,CallTrace", NEW)
    assert done.stdout == "Signature=0123456789abcdef\nKept=no\nCallTrace=victim_write\nCallTrace=vfs_write\n"
    assert service.kdumpctl("show", "-p", "Name", "--value").stdout == f"{OTHER}\n"
    assert json.loads(service.kdumpctl("show", "--json").stdout) == service.state["dumps"]["_3"]
    assert service.kdumpctl("show", "-p", "Colour").returncode == 46


def test_estimate_and_settings(service: Service) -> None:
    assert "Recommended reservation: 200 MiB" in service.kdumpctl("estimate").stdout
    assert json.loads(service.kdumpctl("estimate", "--json").stdout) == ESTIMATE
    assert "/etc/kdump-service.conf:5" in service.kdumpctl("config", "show", "--origin").stdout
    assert json.loads(service.kdumpctl("config", "show", "--json").stdout) == SETTINGS
    assert service.kdumpctl("config", "get", "keepfree").stdout == "128M\n"
    assert service.kdumpctl("config", "get", "MaxAgeSec").stdout == "30d\n"
    assert service.kdumpctl("config", "get", "MaxAgeSec", "--json").stdout == "2592000\n"
    assert service.kdumpctl("config", "get", "Contents", "--allowed").stdout.split() == SETTINGS[1]["Allowed"]


def test_what_only_reads_starts_nothing(service: Service) -> None:
    for arguments in READING:
        if arguments != ["watch"]:
            assert service.kdumpctl(*arguments).returncode == 0
    assert all(flags & NO_AUTOSTART for *_, flags in service.calls())


# What changes something


def test_changes(service: Service) -> None:
    def act(*arguments: str) -> str:
        done = service.kdumpctl(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for verb in ("arm", "disarm", "reload", "rebuild"):
        assert "State: armed" in act(verb)
    assert act("delete", NEW, "20261119") == f"{NEW}: deleted\n{OLD}: forgotten\n"
    assert act("keep", "f" * 16) == f"{OTHER}: kept\n"
    assert act("keep", "--off", NEW, OTHER) == f"{NEW}: no longer kept\n{OTHER}: no longer kept\n"
    act("config", "set", "KeepFree", "512M")
    act("config", "set", "CompressionLevel", "-5")
    told = service.kdumpctl("config", "set", "MaxAgeSec", "30d")
    assert told.stdout == "MaxAgeSec=30d (the default)\n"
    assert told.stderr == "kdumpctl: note: it is put to use later: the next crash\n"
    assert act("config", "reset", "Contents") == "Contents=user (/etc/kdump-service.conf:5)\n"

    calls = service.calls("Arm", "Disarm", "Reload", "Rebuild", "Delete", "Keep", "Set", "ResetSetting")
    settings = "org.kdump.Kdump1.Settings"
    dumps = f"{MANAGER_PATH}/dump"
    assert [call[:3] for call in calls] == [
        (MANAGER_PATH, "Arm", []), (MANAGER_PATH, "Disarm", []), (MANAGER_PATH, "Reload", []),
        (MANAGER_PATH, "Rebuild", []), (f"{dumps}/_2", "Delete", []), (f"{dumps}/_1", "Delete", []),
        (f"{dumps}/_3", "Keep", [True]), (f"{dumps}/_2", "Keep", [False]), (f"{dumps}/_3", "Keep", [False]),
        (MANAGER_PATH, "Set", [settings, "KeepFree", 512 << 20]),
        (MANAGER_PATH, "Set", [settings, "CompressionLevel", -5]),
        (MANAGER_PATH, "Set", [settings, "MaxAgeSec", 2592000]),
        (MANAGER_PATH, "ResetSetting", ["Contents"]),
    ]  # fmt: skip
    assert all(flags & INTERACTIVE for *_, flags in calls)


def test_what_is_ambiguous_changes_nothing(service: Service) -> None:
    done = service.kdumpctl("delete", NEW, "2026")
    assert done.returncode == 46
    assert "Write more of the name" in done.stderr
    assert service.kdumpctl("config", "set", "KeepFree", "much").returncode == 10
    assert service.kdumpctl("config", "set", "Colour", "red").returncode == 10
    assert service.calls("Delete", "Set") == []


# The files of a dump


def test_dump(service: Service) -> None:
    done = service.kdumpctl("dump", "-o", "out", NEW)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"out: 64.0 MiB, of {NEW}\n", "")
    out, image = service.folder / "out", service.folder / "files" / NEW / "image"
    assert out.read_bytes() == image.read_bytes()
    assert out.stat().st_blocks < 100
    assert service.kdumpctl("dump", "-o", "out").returncode == 41
    assert out.read_bytes() == image.read_bytes()
    done = service.kdumpctl("dump", "-o", "out", "--force")
    assert done.stderr == "kdumpctl: note: this dump is incomplete: it can be read up to a point\n"
    assert out.read_bytes().startswith(OTHER.encode())


def test_dump_to_standard_output(service: Service) -> None:
    written = subprocess.run(
        [*KDUMPCTL, "dump", NEW], env=service.environment, stdout=subprocess.PIPE, check=True, timeout=30
    ).stdout
    assert written == (service.folder / "files" / NEW / "image").read_bytes()
    with open("/dev/full", "wb") as full:
        failed = service.kdumpctl("dump", NEW, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert failed.returncode == 42


def test_export(service: Service) -> None:
    done = service.kdumpctl("export", NEW)
    assert done.stdout == f"{NEW}.tar: record, log\n"
    assert "--image adds it" in done.stderr
    for name in ("one", "two"):
        assert service.kdumpctl("export", NEW, "--image", "-o", name).returncode == 0
    one = (service.folder / "one").read_bytes()
    assert one == (service.folder / "two").read_bytes()
    assert (service.folder / "one").stat().st_mode & 0o777 == 0o600
    with tarfile.open(service.folder / "one") as bundle:
        assert [member.name for member in bundle] == [
            f"{NEW}/{name}" for name in ("properties.json", "record.json", "dmesg.txt", "vmcore")
        ]
        assert {(member.uid, member.mode, member.mtime) for member in bundle} == {(0, 0o600, 1795136523)}
        image = bundle.extractfile(f"{NEW}/vmcore")
        assert image is not None
        assert image.read() == (service.folder / "files" / NEW / "image").read_bytes()
        properties = bundle.extractfile(f"{NEW}/properties.json")
        assert properties is not None
        assert json.load(properties) == service.state["dumps"]["_2"]


def test_export_of_what_is_missing(service: Service) -> None:
    service.say(errors={"Open": ["org.kdump.Kdump1.Error.DumpMissing", "there is no such file"]})
    done = service.kdumpctl("export", OLD, "--image")
    assert done.stdout == f"{OLD}.tar: properties only\n"
    assert done.stderr.count("there is no such file") == 3
    assert service.kdumpctl("dump", OLD, "-o", "out").returncode == 45
    assert not (service.folder / "out").exists()


def test_log(service: Service) -> None:
    done = service.kdumpctl("log", NEW)
    assert done.stdout == "[    0.000000] Linux\n[    1.000000] evil \\x1b[31m\\xff\n"
    (service.folder / NEW).write_text("no dump")  # a file of that name is meant first
    assert service.kdumpctl("log", NEW).returncode == 40
    assert service.kdumpctl("log", "no/such/file").returncode == 40
    assert service.kdumpctl("log", "--json").returncode == 40  # from the image, which is none


def test_debug_says_what_is_missing(service: Service) -> None:
    service.environment["PATH"] = "/nonexistent"
    assert "drgn and crash are not installed" in service.kdumpctl("debug", NEW).stderr
    program = service.folder / "bin/drgn"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "$@"; /bin/head -c 20 <"$2"\n')
    program.chmod(0o755)
    service.environment["PATH"] = str(program.parent)
    done = service.kdumpctl("debug", NEW)
    assert done.returncode == 50
    assert "the symbols of kernel 6.1.0-30-amd64 are not here" in done.stderr
    assert "ab" * 20 in done.stderr
    symbols = service.folder / "vmlinux"
    symbols.touch()
    done = service.kdumpctl("debug", NEW, "--symbols", str(symbols), "--", "-q")
    assert re.fullmatch(rf"-c /proc/self/fd/\d+ -s {symbols} -q\n{NEW[:20]}", done.stdout), done
    assert "gdb opens ELF images only" in service.kdumpctl("debug", NEW, "--debugger", "gdb").stderr


# The test crash


def test_test_crash(service: Service) -> None:
    done = service.kdumpctl("test")
    assert done.returncode == 46
    assert "Give --yes where no terminal is" in done.stderr
    service.say(manager={**MANAGER, "Problems": [["x", "fatal", "Bad.", "Repair it."]]})
    assert service.kdumpctl("test", "--yes").returncode == 32
    assert service.calls("TestCrash") == []
    service.say(manager=MANAGER, errors={"TestCrash": ["org.kdump.Kdump1.Error.NotReady", "no"]})
    done = service.kdumpctl("test", "--yes")
    assert (done.returncode, done.stderr) == (32, "kdumpctl: no\n")


@pytest.mark.parametrize(
    ("word", "crashed"), [("crash", True), (os.uname().nodename, True), ("yes", False), ("", False)]
)
def test_the_test_crash_is_confirmed(service: Service, word: str, crashed: bool) -> None:
    terminal = Terminal(service, "test")
    terminal.read_until("to go on: ")
    terminal.type(f"{word}\n")
    code, _ = terminal.end()
    assert (code, len(service.calls("TestCrash"))) == ((1, 1) if crashed else (46, 0))


# Terminals


class Terminal:
    """kdumpctl on a terminal of its own."""

    def __init__(self, service: Service, *arguments: str, columns: int = 100, **environment: str) -> None:
        self.text = ""
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:  # the child
            os.chdir(service.folder)
            changed = {"TERM": "xterm", "PAGER": "cat", "COLUMNS": str(columns), **environment}
            os.execvpe(sys.executable, [*KDUMPCTL, *arguments], {**service.environment, **changed})

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._descriptor, text.encode())

    def _read(self) -> bool:
        if not select.select([self._descriptor], [], [], 30)[0]:
            raise AssertionError(f"nothing more comes: {self.text!r}")
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError as error:
            assert error.errno == errno.EIO  # the other side of the terminal is closed
            return False
        self.text += data.decode()
        return bool(data)

    def read_until(self, text: str) -> None:
        """Read until this is there."""
        while text not in self.text:
            assert self._read(), self.text

    def end(self) -> tuple[int, str]:
        """The exit code, and all text, when it ends."""
        while self._read():
            pass
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1]), self.text


def test_colours_are_for_terminals(service: Service) -> None:
    assert "\x1b[32marmed\x1b[0m" in Terminal(service, "status").end()[1]
    assert "\x1b" not in Terminal(service, "status", NO_COLOR="1").end()[1]
    assert "\x1b" not in Terminal(service, "status", TERM="dumb").end()[1]
    assert "\x1b" not in service.kdumpctl("status").stdout


def test_tables_fit_the_terminal(service: Service) -> None:
    for columns in (120, 80):
        text = Terminal(service, "list", columns=columns, NO_COLOR="1").end()[1]
        assert max(map(len, text.splitlines())) <= columns
        assert NEW in text


def test_the_pager_is_used(service: Service) -> None:
    assert Terminal(service, "list", PAGER="sed s/^/P:/", NO_COLOR="1").end()[1].startswith("P:TIME")
    assert Terminal(service, "list", "--no-pager", PAGER="false", NO_COLOR="1").end()[1].startswith("TIME")
    assert Terminal(service, "list", PAGER="true").end() == (0, "")


def test_a_dump_does_not_go_to_a_terminal(service: Service) -> None:
    code, text = Terminal(service, "dump").end()
    assert code == 10
    assert "a dump is not written to a terminal" in text


def test_progress_of_the_service_is_shown(service: Service) -> None:
    service.say(hang=["Rebuild"])
    terminal = Terminal(service, "rebuild")
    wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls("Rebuild")))
    service.announce("changed", MANAGER_PATH, Activity="building\x1b", Progress=0.25)
    terminal.read_until("building\\x1b: [#####---------------] 25 %")
    service.process.kill()
    code, text = terminal.end()
    assert code == 60
    assert text.rstrip().endswith("Start it: systemctl start kdump.service")


def test_progress_of_others_is_not_shown(service: Service, bus: PrivateBus) -> None:
    service.say(hang=["Rebuild"])
    terminal = Terminal(service, "rebuild")
    wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls("Rebuild")))
    service.announce("changed", MANAGER_PATH, Activity="building", Progress=0.25)
    terminal.read_until("25 %")
    asyncio.run(_forge(bus))
    service.announce("changed", MANAGER_PATH, Progress=0.5)
    terminal.read_until("50 %")
    terminal.type("\x03")
    code, text = terminal.end()
    assert code == 130
    assert "forged" not in text


async def _forge(bus: PrivateBus) -> None:
    """Send to everybody on the bus what the service says, then that the service is who sends this, as the bus
    would say it, and the first once more."""
    forged = {
        "Activity": Variant("s", "forged"),
        "Progress": Variant("s", "x"),
        "State": Variant("s", "forged"),
    }
    path = f"{MANAGER_PATH}/dump/forged"
    async with BusClient(bus.address) as forger:
        signals = [
            (PROPERTIES, "PropertiesChanged", "sa{sv}as", ["org.kdump.Kdump1", forged, []]),
            (OBJECT_MANAGER, "InterfacesAdded", "oa{sa{sv}}", [path, {"org.kdump.Kdump1.Dump": forged}]),
            (OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, ["org.kdump.Kdump1.Dump"]]),
        ]
        owners = [["org.kdump.Kdump1", ":1.0", ""], ["org.kdump.Kdump1", "", forger.bus.unique_name]]
        taken_over = [("org.freedesktop.DBus", "NameOwnerChanged", "sss", body) for body in owners]
        for name in await _others(forger):
            for interface, member, signature, body in [*signals, *taken_over, *signals]:
                place = "/org/freedesktop/DBus" if member == "NameOwnerChanged" else MANAGER_PATH
                message = Message(
                    name, place, interface, member, MessageType.SIGNAL, signature=signature, body=body
                )
                forger.bus.send(message)
        await _others(forger)  # an answer comes when the bus has taken what was sent before


async def _others(client: BusClient) -> list[str]:
    """Unique names of all other connections."""
    where = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus")
    reply = await client.bus.call(Message(*where, "ListNames"))
    return [name for name in reply.body[0] if name[0] == ":" and name != client.bus.unique_name]


async def _send_descriptors(bus: PrivateBus, path: Path) -> None:
    """Send signals to everybody on the bus, each with as many descriptors as the library takes of one."""
    async with BusClient(bus.address) as sender:
        with path.open() as file:
            for name in await _others(sender):
                for interface, member in ((PROPERTIES, "PropertiesChanged"), ("org.example.Other", "Gift")):
                    message = Message(
                        name, MANAGER_PATH, interface, member, MessageType.SIGNAL, signature="ah",
                        body=[[*range(16)]], unix_fds=[file.fileno()] * 16,
                    )  # fmt: skip
                    sender.bus.send(message)
            await _others(sender)


@pytest.mark.parametrize("arguments", [["rebuild"], ["status"], ["watch"], ["test"]], ids=" ".join)
def test_interrupted(service: Service, arguments: list[str]) -> None:
    service.say(hang=["Rebuild", "GetAll", "Check"])
    terminal = Terminal(service, *arguments)
    wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls()))
    terminal.type("\x03")
    code, text = terminal.end()
    assert code == 130
    assert text in ("", "^C")


# watch


def _watching(service: Service) -> tuple[subprocess.Popen[str], Callable[[], str]]:
    """kdumpctl watch, and what reads its next line, without the time."""
    watch = subprocess.Popen(
        [*KDUMPCTL, "watch"],
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def line() -> str:
        assert watch.stdout is not None
        return watch.stdout.readline().rstrip("\n").partition(" ")[2]

    return watch, line


def test_watch(service: Service) -> None:
    watch, line = _watching(service)
    assert line() == "state armed, ready"
    assert line().startswith("warning: target-nearly-full: ")
    service.announce("changed", MANAGER_PATH, State="not-armed", Ready=False, Reason="disarmed")
    assert line() == "state not-armed, not ready (disarmed)"
    path = f"{MANAGER_PATH}/dump/20261122_2dweb1"
    service.announce("added", path, "org.kdump.Kdump1.Dump", **dump("20261122-web1", PanicMessage=EVIL))
    assert line() == r"new dump 20261122-web1: complete, oops, evil\x1b[31m\xe2\x80\xae, 300 MiB"
    service.announce("changed", path, "org.kdump.Kdump1.Dump", Kept=True)
    assert line() == "dump 20261122-web1: Kept: yes"
    service.announce("removed", path)
    assert line() == "dump 20261122-web1 is gone"
    service.stop()
    assert line() == "the service ended"
    service.start()
    assert line() == "the service is back"
    assert line() == "state armed, ready"
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=20)[1] == ""
    assert watch.returncode == 130


def test_watch_sees_the_service_alone(service: Service, bus: PrivateBus) -> None:
    """Anybody may send signals to a connection, and may say of them what he likes but who sends them."""
    watch, line = _watching(service)
    assert line() == "state armed, ready"
    assert line().startswith("warning: target-nearly-full: ")
    for state in ("not-armed", "failed"):
        asyncio.run(_forge(bus))
        service.announce("misnamed", MANAGER_PATH, State="misnamed")
        service.announce("changed", MANAGER_PATH, State=state)
        assert line() == f"state {state}, ready"
        service.stop()
        assert line() == "the service ended"
        asyncio.run(_forge(bus))
        service.start()
        assert line() == "the service is back"
        assert line() == "state armed, ready"
        assert line().startswith("warning: target-nearly-full: ")
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=20) == ("", "")


def test_watch_closes_descriptors_that_it_did_not_ask_for(service: Service, bus: PrivateBus) -> None:
    """Whoever sends them would else have it run out of them."""
    watch, line = _watching(service)
    assert line() == "state armed, ready"
    assert line().startswith("warning: target-nearly-full: ")
    path = service.folder / "files" / NEW / "log"
    asyncio.run(_send_descriptors(bus, path))
    service.announce("changed", MANAGER_PATH, State="failed")
    assert line() == "state failed, ready"  # so it has read what was sent before
    targets = [link.readlink() for link in Path(f"/proc/{watch.pid}/fd").iterdir()]
    assert path not in targets
    watch.send_signal(signal.SIGINT)
    assert watch.communicate(timeout=20) == ("", "")


def test_watch_without_a_service_waits_for_it(service: Service, bus: PrivateBus) -> None:
    service.stop()
    watch = subprocess.Popen(
        [*KDUMPCTL, "watch", "--json"], env=service.environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    assert json.loads(watch.stdout.readline())["properties"] == {}
    service.start()
    assert json.loads(watch.stdout.readline())["properties"]["State"] == "armed"
    bus.close()
    assert "the system bus went away" in watch.communicate(timeout=20)[1]
    assert watch.returncode == 60


# What goes wrong


@pytest.mark.parametrize("arguments", [*READING, *CHANGING], ids=" ".join)
def test_without_a_bus(tmp_path: Path, arguments: list[str]) -> None:
    environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent"}
    done = programs.run(
        "kdump_service.ctl.main", *arguments, environment=environment, folder=tmp_path, timeout=30
    )
    assert done.returncode == 60
    assert re.fullmatch(r"kdumpctl: the system bus cannot be reached: .*\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [*READING[:-1], *CHANGING], ids=" ".join)
def test_without_a_service(service: Service, arguments: list[str]) -> None:
    service.stop()
    done = service.kdumpctl(*arguments)
    assert (done.returncode, done.stdout) == (60, "")
    assert re.fullmatch(
        r"kdumpctl: the service does not answer: .*systemctl start kdump.service\n", done.stderr
    )


@pytest.mark.parametrize("arguments", CHANGING, ids=" ".join)
def test_without_the_right(service: Service, arguments: list[str]) -> None:
    members = [
        "Arm",
        "Disarm",
        "Reload",
        "Rebuild",
        "Delete",
        "Keep",
        "Open",
        "Set",
        "ResetSetting",
        "TestCrash",
    ]
    error = ["org.kdump.Kdump1.Error.NotAuthorized", "you do not have the right. Ask somebody."]
    service.say(errors=dict.fromkeys(members, error))
    done = service.kdumpctl(*arguments)
    assert (done.returncode, done.stderr) == (61, "kdumpctl: you do not have the right. Ask somebody.\n")
    assert not (service.folder / "out").exists()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("org.kdump.Kdump1.Error.NoReservation", 21),
        ("org.kdump.Kdump1.Error.FromTheFuture", 1),
        ("org.freedesktop.DBus.Error.UnknownMethod", 1),
        ("org.freedesktop.DBus.Error.AccessDenied", 61),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", 61),
        ("org.freedesktop.DBus.Error.Spawn.ChildExited", 60),
        ("org.freedesktop.DBus.Error.NoReply", 60),
    ],
)
def test_errors_keep_their_kind(service: Service, name: str, code: int) -> None:
    service.say(errors={"Arm": [name, "what happened"]})
    done = service.kdumpctl("arm")
    assert done.returncode == code
    assert "what happened" in done.stderr
    assert "Traceback" not in done.stderr


IMPATIENT = """
import sys
from kdump_service.bus import client
from kdump_service.ctl.main import main
client._ALIVE_INTERVAL_SEC, client._ALIVE_LIMIT_SEC = 0.3, 4
sys.exit(main())
"""


def test_a_service_that_hangs(service: Service) -> None:
    service.process.send_signal(signal.SIGSTOP)
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, "status"], env=service.environment, capture_output=True, text=True,
        check=False, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (60, "")
    assert "nothing within 4 s" in done.stderr


def test_a_call_that_takes_long(service: Service) -> None:
    """As when somebody has to look for a password: the service lives, and so the client waits."""
    service.say(hang=["Arm"])
    arm = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "arm"], env=service.environment, stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: (service.folder / "calls").exists() and len(service.calls("Ping")) >= 17)
    assert arm.poll() is None
    arm.send_signal(signal.SIGINT)
    assert arm.communicate(timeout=20)[1] == ""


def test_the_service_dies_in_the_middle(service: Service) -> None:
    service.say(hang=["Arm"])
    arm = subprocess.Popen([*KDUMPCTL, "arm"], env=service.environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls("Arm")))
    service.process.kill()
    assert "the service does not answer" in arm.communicate(timeout=20)[1]
    assert arm.returncode == 60


@pytest.mark.parametrize(
    "arguments", [["arm"], ["status"], ["config", "set", "KeepFree", "1G"]], ids=" ".join
)
def test_the_bus_dies_in_the_middle(service: Service, bus: PrivateBus, arguments: list[str]) -> None:
    service.say(hang=["Arm", "GetAll", "Set", "Ping"])
    client = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *arguments],
        env=service.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (service.folder / "calls").exists() and bool(service.calls("Ping")))
    bus.close()
    assert re.fullmatch(r"kdumpctl: the system bus went away.*\n", client.communicate(timeout=20)[1])
    assert client.returncode == 60


def test_streams_that_are_closed_or_full(service: Service) -> None:
    shell = f"exec {' '.join(KDUMPCTL)}"
    for redirection, code in (
        (">&-", 0),
        ("2>&-", 0),
        (">&- 2>&-", 0),
        (">/dev/full", 42),
        ("</dev/null", 0),
    ):
        done = subprocess.run(
            ["sh", "-c", f"{shell} list {redirection}"], env=service.environment, capture_output=True,
            text=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == code, redirection
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr


def test_a_reader_that_has_enough(service: Service) -> None:
    process = subprocess.Popen(
        [*KDUMPCTL, "list"],
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert (process.communicate(timeout=20)[1], process.returncode) == ("", 0)


def test_a_locale_that_knows_few_letters(service: Service) -> None:
    service.environment.update(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    done = service.kdumpctl("check", stdin=subprocess.DEVNULL)  # by an interpreter of its own, which reads it
    assert done.returncode == 0
    assert "\\u2192 Make room." in done.stdout


# The real daemon


@pytest.fixture
def crashed(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[RunningDaemon]:
    """The daemon of a machine that crashed three times, twice for the same reason."""
    put_dump(machine, 0)
    put_dump(machine, 1, signature="fedcba9876543210", state="failed", files=[])
    put_dump(machine, 2)
    daemon = RunningDaemon(bus, machine)
    daemon.call("Check")  # returns when it has looked for dumps
    yield daemon
    daemon.stop()


def _does(daemon: RunningDaemon, *arguments: str) -> str:
    done = daemon.kdumpctl(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_daemon_tells_of_its_dumps(crashed: RunningDaemon, tmp_path: Path) -> None:
    lines = _does(crashed, "list", "--no-legend").splitlines()
    assert [line.split()[-1] for line in lines] == [name_of(0), name_of(1), name_of(2)]
    assert len(_does(crashed, "list", "--no-legend", "0123456789abcdef").splitlines()) == 2
    assert "once before" in _does(crashed, "info")
    assert _does(crashed, "show", "-p", "KernelRelease", "--value") == f"{RELEASE}\n"
    assert f"Last crash: {name_of(2)}, panic, complete" in _does(crashed, "status")
    assert _does(crashed, "log", name_of(0)) == "the log\n"
    _does(crashed, "dump", name_of(0), "-o", str(tmp_path / "image"))
    assert (tmp_path / "image").read_bytes() == b"image 0".ljust(8192, b"\0")
    _does(crashed, "export", "--image", "-o", str(tmp_path / "bundle"))
    with tarfile.open(tmp_path / "bundle") as bundle:
        assert [name.partition("/")[2] for name in bundle.getnames()] == [
            "properties.json", "record.json", "dmesg.txt", "vmcore",
        ]  # fmt: skip
    assert crashed.kdumpctl("dump", name_of(1), "-o", str(tmp_path / "none")).returncode == 45
    assert not (tmp_path / "none").exists()


def test_the_daemon_keeps_and_deletes(crashed: RunningDaemon) -> None:
    _does(crashed, "keep", name_of(0))
    assert _does(crashed, "show", name_of(0), "-p", "Kept") == "Kept=yes\n"
    _does(crashed, "keep", "--off", name_of(0))
    assert _does(crashed, "show", name_of(0), "-p", "Kept") == "Kept=no\n"
    assert _does(crashed, "delete", name_of(0)) == f"{name_of(0)}: deleted\n"
    assert "missing" in _does(crashed, "list", name_of(0))
    assert crashed.kdumpctl("log", name_of(0)).returncode == 45
    assert _does(crashed, "delete", name_of(0)) == f"{name_of(0)}: forgotten\n"
    assert crashed.kdumpctl("info", name_of(0)).returncode == 45


def test_the_daemon_takes_settings(daemon: RunningDaemon, machine: MachineRoot) -> None:
    drop_in = "/etc/kdump-service.conf.d/90-kdumpctl.conf"
    assert _does(daemon, "config", "set", "keepfree", "512M").startswith(f"KeepFree=512M ({drop_in}:")
    assert _does(daemon, "config", "set", "MaxAgeSec", "30d").startswith("MaxAgeSec=30d ")
    assert _does(daemon, "config", "get", "KeepFree") == "512M\n"
    assert f"KeepFree={512 << 20}\n" in (machine.path / drop_in.lstrip("/")).read_text()
    for line in _does(daemon, "config", "show", "--no-legend").splitlines():
        key, value = line.split(maxsplit=1)
        _does(daemon, "config", "set", key, "" if value == "-" else value)  # what is shown can be typed
    assert _does(daemon, "config", "reset", "KeepFree") == "KeepFree=128M (the default)\n"
    done = daemon.kdumpctl("config", "set", "Contents", "nonsense")
    assert done.returncode == 10
    assert "nonsense" in done.stderr
    allowed = _does(daemon, "config", "get", "--allowed", "Contents").split()
    assert allowed == ["log", "kernel", "user", "everything"]


def test_the_daemon_checks_and_estimates(daemon: RunningDaemon, machine: MachineRoot) -> None:
    done = daemon.kdumpctl("check")
    told = json.loads(daemon.kdumpctl("check", "--json").stdout)
    fatal = any(problem["severity"] == "fatal" for problem in told["problems"])
    assert done.returncode == (4 if fatal else 0)
    assert "Reserved by crashkernel=: 256 MiB" in _does(daemon, "estimate")
    machine.set_loaded(False)
    done = daemon.kdumpctl("check")
    assert done.returncode == 4
    assert "unloaded-by-others" in done.stdout
    assert daemon.kdumpctl("test", "--yes").returncode == 32
    assert not (machine.path / "crashed").exists()
