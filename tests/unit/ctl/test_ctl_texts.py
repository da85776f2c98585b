# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kdumpctl says of plain values: status, check, estimate, list, info, config show, watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from kdump_service.bus.client import Signal
from kdump_service.ctl.debug import choose_debugger, command_line
from kdump_service.ctl.dump_info import info_text
from kdump_service.ctl.dump_list import dumps_table
from kdump_service.ctl.readiness import check_text, estimate_text, status_text
from kdump_service.ctl.settings import settings_table
from kdump_service.ctl.watch import Watch
from kdump_service.errors import InvalidArgument, NotAuthorized, ProgramFailed
from tests.builders.time_zone import time_zone
from tests.bus.fake_state import EVIL, MANAGER, dump

NOW = 1_795_435_200.0  # 2026-11-23 12:00 UTC
STATE = MANAGER | {"Problems": []}


@pytest.fixture(autouse=True)
def utc() -> Iterator[None]:
    with time_zone("UTC"):
        yield


def test_status_of_a_machine_that_is_not_armed() -> None:
    text = status_text(
        {"State": "not-armed", "Reason": "no-reservation", "Explanation": "Do it.", "ReservedBytes": 0}
    )
    assert text.splitlines() == [
        "       State: not-armed",
        "      Reason: no-reservation",
        "              Do it.",
        "    Reserved: nothing",
    ]


def test_status_in_full() -> None:
    properties = MANAGER | {"Activity": "checking", "Progress": 0.5}
    lines = status_text(properties, dump("20261123T100000Z-web1"), now=NOW).splitlines()
    assert lines == [
        "       State: armed",
        "       Ready: yes: a crash now would be captured",
        "    Problems: warning: target-nearly-full: /var/crash has 1.2 GiB free.",
        "              what to do: kdumpctl check",
        "    Reserved: 256 MiB (crashkernel=256M)",
        "      Kernel: /boot/vmlinuz-6.1.0-30-amd64",
        "       Image: /boot/initrd.img-6.1.0-30-amd64",
        "Command line: root=UUID=1 ro irqpoll systemd.unit=kdump-capture.target",
        "      Proven: a test crash was captured with this kernel, image and target: "
        "Fri 2026-11-20 05:00:00 UTC (3 days ago)",
        "  Last crash: 20261123T100000Z-web1, oops, complete, Mon 2026-11-23 10:00:00 UTC (2 h ago)",
        "    Activity: checking, 50 %",
        "     Version: 0.1.0",
    ]


def test_the_reason_is_said_once() -> None:
    problem = ["no-reservation", "fatal", "No memory is reserved.", "Reserve some."]
    text = status_text(
        STATE | {"State": "not-armed", "Reason": "no-reservation", "Problems": [problem], "Ready": False,
                 "Explanation": "No memory is reserved. Reserve some."}
    )  # fmt: skip
    assert text.count("No memory is reserved") == 1
    assert "Problems:" not in text


def test_check() -> None:
    problems = [
        ["proven-never", "note", "Never tried.", "Try it."],
        ["no-reservation", "fatal", "No memory is reserved.", "Reserve\x1b some."],
        ["from-the-future", "whimsical", "What a later version may say.", ""],
        ["target-nearly-full", "warning", "Little room.", "Make some."],
    ]
    text = check_text(problems, STATE, False)
    assert text.splitlines() == [
        "SEVERITY   CODE                WHAT WAS FOUND, AND → WHAT TO DO",
        "fatal      no-reservation      No memory is reserved.",
        "                               → Reserve\\x1b some.",
        "warning    target-nearly-full  Little room.",
        "                               → Make some.",
        "note       proven-never        Never tried.",
        "                               → Try it.",
        "whimsical  from-the-future     What a later version may say.",
        "",
        "A crash now would not be captured: 1 fatal, 1 warning, 1 note.",
    ]
    assert check_text([], STATE, True) == "A crash now would be captured; nothing is wrong."
    starting = check_text([], {"State": "starting"}, False)
    assert starting == "A crash now would not be captured: the state is starting."


def test_estimate() -> None:
    text = estimate_text({
        "MemoryBytes": 8 << 30, "ReservedBytes": 256 << 20, "RecommendedBytes": (300 << 20) + 1,
        "Basis": "images", "DumpBytes": 2 << 30, "TargetFreeBytes": 1 << 30, "FromTheFuture": 7,
    })  # fmt: skip
    assert "  Memory of this machine: 8.00 GiB" in text
    assert "the sizes of kernel and image" in text
    assert "crashkernel=301M" in text
    assert "too little room" in text
    assert "Contents" not in text
    assert estimate_text({"ReservedBytes": 512 << 20, "RecommendedBytes": 300 << 20}).count("\n") == 1
    assert estimate_text({}) == ""


def test_list() -> None:
    dumps = [
        dump("20261119T010203Z-web1", CrashTime="2026-11-19T01:02:03Z", Presence="missing"),
        dump("20261120T010203Z-web1", CrashTime="", State="failed", Kind="", Signature="", StoredBytes=0),
        dump("20261121T010203Z-web1", Presence="unreachable", Kind=EVIL),
    ]
    lines = dumps_table(dumps).splitlines()
    assert [line.split()[-1] for line in lines[1:]] == [each["Name"] for each in dumps]
    assert [line[29:40].strip() for line in lines] == ["STATE", "missing", "failed", "unreachable"]
    assert lines[1].index("6.1.0-30-amd64") == lines[0].index("KERNEL")
    assert lines[1].startswith("Thu 2026-11-19 01:02:03 UTC  missing            -  oops")
    assert lines[2].startswith("-   ")
    assert "\x1b" not in dumps_table(dumps, colour=False)
    assert dumps_table(dumps, legend=False).splitlines() == lines[1:]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 66])
def test_a_list_fits_the_terminal(width: int) -> None:
    lines = dumps_table([dump("20261121T010203Z-web1")], width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "20261121T010203Z-web1" in lines[1]
    assert ("SIGNATURE" in lines[0]) == (width >= 120)


def test_info() -> None:
    name, when = "20261120T044911Z-web1", "2026-11-20T04:49:11Z"
    times = {"old": "2026-11-01T00:00:00Z", name: when, "lost": "", "new": "2026-11-22T00:00:00Z"}
    properties = dump(
        name, CrashTime=when, Task=EVIL, Kept=True, Test=True, Problems=["image: no space\nleft"],
        PanicMessage=f"panic {EVIL}",
    )  # fmt: skip
    text = info_text(properties, times, now=NOW)
    assert "\x1b" not in text
    assert "\u202e" not in text
    lines = text.splitlines()
    assert "       State: complete, kept" in lines
    assert "     Crashed: Fri 2026-11-20 04:49:11 UTC (3 days ago)" in lines
    assert r"        Task: evil\x1b[31m\xe2\x80\xae (PID 123, processor 2)" in lines
    at = lines.index("    Same bug: once before: Sun 2026-11-01 00:00:00 UTC")
    assert lines[at + 1] == "              2 times since: lost, Sun 2026-11-22 00:00:00 UTC"
    assert r"    Problems: image: no space\x0aleft" in lines
    assert "              read the kernel's log: kdumpctl log 20261120T044911Z-web1" in lines


def test_info_of_little() -> None:
    text = info_text(
        {"Name": "n", "State": "failed", "Presence": "missing", "Pid": -1, "Cpu": -1}, {}, now=NOW
    )
    assert text.splitlines() == [
        "        Dump: n",
        "       State: failed, the files are missing: deleted, or the target changed",
        "       Image: none",
        "  What to do: forget it: kdumpctl delete n",
    ]


def test_settings_table() -> None:
    settings: list[dict[str, Any]] = [
        {
            "Name": "Contents",
            "Type": "s",
            "Value": "user",
            "Default": "kernel",
            "Source": "/etc/x:5",
            "Unit": "",
        },
        {
            "Name": "KeepFree",
            "Type": "t",
            "Value": 1 << 27,
            "Default": 1 << 27,
            "Source": "",
            "Unit": "bytes",
        },
        {"Name": "Kernel", "Type": "s", "Value": "", "Default": "", "Source": "", "Unit": "path"},
    ]
    assert settings_table(settings).splitlines() == [
        "SETTING   VALUE", "Contents  user", "KeepFree  128M", "Kernel    -",
    ]  # fmt: skip
    settings[2]["Waits"] = "the next start"
    assert settings_table(settings, origin=True).splitlines() == [
        "SETTING   VALUE  DEFAULT  ORIGIN    WAITS FOR",
        "Contents  user   kernel   /etc/x:5  -",
        "KeepFree  128M   128M     default   -",
        "Kernel    -      -        default   the next start",
    ]


# watch


def test_watch_says_what_is_new() -> None:
    watch = Watch()
    here = Signal("owner", values={"Running": True})
    assert watch.lines(here, MANAGER) == [
        "state armed, ready",
        "warning: target-nearly-full: /var/crash has 1.2 GiB free.",
    ]
    assert watch.lines(_changed(Progress=-1.0)) == []
    assert watch.lines(_changed(State="not-armed", Ready=False, Reason="disarmed", Problems=[])) == [
        "state not-armed, not ready (disarmed)", "no longer: target-nearly-full",
    ]  # fmt: skip
    assert watch.lines(_changed(Image="/boot/new", ProvenLevel="unproven")) == [
        "image /boot/new", "proven unproven",
    ]  # fmt: skip
    assert watch.lines(_changed(Activity="checking", Progress=0.0)) == ["checking"]
    assert watch.lines(_changed(Progress=0.1)) == []
    assert watch.lines(_changed(Progress=0.3)) == ["checking: [######--------------] 30 %"]
    assert watch.lines(_changed(Progress=0.9), with_progress=False) == []
    assert (watch.activity, watch.progress) == ("checking", 0.9)
    assert watch.lines(Signal("owner", values={"Running": False}), {}) == ["the service ended"]
    assert watch.lines(Signal("owner", values={"Running": False}), {}) == []
    assert watch.lines(here, STATE) == ["the service is back", "state armed, ready"]


def _changed(**values: Any) -> Signal:
    return Signal("changed", "/org/kdump/Kdump1", "org.kdump.Kdump1", values)


def test_watch_of_dumps() -> None:
    watch = Watch()
    path = "/org/kdump/Kdump1/dump/20261120T044911Z_2dweb_5f1"
    named = "20261120T044911Z-web_1"
    changed = Signal("changed", path, "org.kdump.Kdump1.Dump", {"Kept": True, "SameBug": ["a", "b"]})
    assert watch.lines(changed) == [f"dump {named}: Kept: yes, SameBug: a, b"]
    added = Signal("added", path, "org.kdump.Kdump1.Dump", dump(named, PanicMessage=EVIL))
    assert watch.lines(added) == [rf"new dump {named}: complete, oops, evil\x1b[31m\xe2\x80\xae, 300 MiB"]
    assert watch.lines(Signal("removed", path, "org.kdump.Kdump1.Dump")) == [f"dump {named} is gone"]
    setting = Signal("changed", "/org/kdump/Kdump1", "org.kdump.Kdump1.Settings", {"Threads": 4})
    assert watch.lines(setting) == ["setting Threads=4"]


# debug


def test_which_debugger(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kdump, elf = dump("n"), dump("n", Format="elf", Compression="none")
    with pytest.raises(ProgramFailed, match="drgn and crash are not installed"):
        choose_debugger(None, kdump)
    with pytest.raises(ProgramFailed, match="gdb is not installed"):
        choose_debugger("gdb", elf)
    with pytest.raises(InvalidArgument) as caught:
        choose_debugger("gdb", kdump)
    assert "kdumpctl convert --format elf" in caught.value.hint
    with pytest.raises(InvalidArgument, match="LZ4"):
        choose_debugger(None, dump("n", Format="elf", Compression="lz4"))
    for name in ("gdb", "crash"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert choose_debugger(None, kdump) == "crash"
    assert choose_debugger("gdb", elf) == "gdb"


def test_what_is_started(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path, symbols = "/proc/self/fd/9", tmp_path / "vmlinux"
    assert command_line("crash", 9, symbols, ["-s"], path) == ["crash", "-s", str(symbols), path]
    assert command_line("gdb", 9, symbols, ["-q"], path) == ["gdb", "-q", str(symbols), path]
    assert command_line("drgn", 9, symbols, ["s.py"], path) == [
        "drgn",
        "-c",
        path,
        "-s",
        str(symbols),
        "s.py",
    ]
    with pytest.raises(NotAuthorized, match="crash cannot open it"):
        command_line("crash", 9, symbols, [], None)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "drgn").write_text("#!/usr/bin/python3\n")
    (tmp_path / "drgn").chmod(0o755)
    by_descriptor = command_line("drgn", 9, symbols, [], None)
    assert (by_descriptor[0], by_descriptor[-2:]) == ("/usr/bin/python3", ["9", str(symbols)])
