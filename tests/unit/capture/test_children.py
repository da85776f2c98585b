# SPDX-License-Identifier: LGPL-2.1-or-later
"""What may become of a child, and what its supervisor then knows."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdump_service.capture import children
from kdump_service.capture.children import Children, End, Outcome, Report
from kdump_service.capture.stages import Interrupted

Told = list[tuple[str, Any]]


@pytest.fixture
def told() -> Told:
    return []


@pytest.fixture
def supervisor(told: Told) -> Iterator[Children]:
    with Children(
        lambda text: told.append(("notify", text)), lambda document: told.append(("record", document))
    ) as supervisor:
        yield supervisor


def _run(supervisor: Children, work: Callable[[Report], Any], **how: Any) -> Outcome:
    return supervisor.run(work, **{"silence_sec": 60, **how})


def _sleep_for_ever(report: Report) -> None:
    while True:
        signal.pause()


def _interrupt_when(told: Told, monkeypatch: pytest.MonkeyPatch, supervisor: Children) -> None:
    """SIGTERM comes when the child has said something."""
    notify = supervisor._handlers["notify"]

    def interrupt(text: str) -> None:
        notify(text)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(supervisor._handlers, "notify", interrupt)


def test_what_a_child_tells_and_returns(supervisor: Children, told: Told) -> None:
    large = {"text": "x" * 300_000}  # more than a pipe holds

    def work(report: Report) -> list[int]:
        report.notify("WATCHDOG=1")
        report.record(large)
        report.notify("STATUS=ü")
        return [os.getpid()]

    outcome = _run(supervisor, work)
    assert outcome == Outcome(End.DONE, [outcome.value[0]], limit_sec=60)
    assert outcome.value[0] != os.getpid()
    assert told == [("notify", "WATCHDOG=1"), ("record", large), ("notify", "STATUS=ü")]
    assert _run(supervisor, lambda report: None) == Outcome(End.DONE, limit_sec=60)


@pytest.mark.parametrize("number", [signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV])
def test_child_that_is_killed(supervisor: Children, told: Told, number: signal.Signals) -> None:
    def work(report: Report) -> None:
        report.record({"so": "far"})
        faulthandler.disable()
        os.kill(os.getpid(), number)

    outcome = _run(supervisor, work)
    assert outcome == Outcome(End.KILLED, None, number, limit_sec=60)
    assert str(outcome) == f"was killed by {number.name}"
    assert told == [("record", {"so": "far"})]


def test_child_that_raises_or_leaves(supervisor: Children) -> None:
    def work(report: Report) -> None:
        raise ZeroDivisionError("a fault of ours")

    outcome = _run(supervisor, work)
    assert (outcome.end, str(outcome)) == (End.KILLED, "failed: ZeroDivisionError: a fault of ours")
    assert str(_run(supervisor, lambda report: os._exit(3))) == "ended without a word"


def test_child_that_says_nothing_is_killed(supervisor: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = _run(supervisor, _sleep_for_ever, silence_sec=0.2)
    assert (outcome.end, outcome.signal) == (End.SILENT, signal.SIGKILL)
    assert str(outcome) == "showed no sign of life for 0.2 s"

    def work(report: Report) -> str:
        for _ in range(10):
            time.sleep(0.05)  # the work of a child that goes on
            report.notify("WATCHDOG=1")
        return "done"

    assert _run(supervisor, work).value == "done"


def test_grandchildren_do_not_keep_the_supervisor_waiting(supervisor: Children) -> None:
    """Neither when the child ends, nor when it is killed: such as readers that sleep in the kernel."""
    pids = []
    for kill in (False, True):
        read_end, write_end = os.pipe()

        def work(report: Report, write_end: int = write_end, kill: bool = kill) -> None:
            pid = os.fork()
            if not pid:
                os.write(write_end, b"%d\n" % os.getpid())
                signal.pause()
            os.write(write_end, b"")
            if kill:
                os.kill(os.getpid(), signal.SIGKILL)

        # Else it would wait until the grandchild ends, which it does not.
        assert _run(supervisor, work).end is (End.KILLED if kill else End.DONE)
        os.close(write_end)
        with open(read_end, encoding="ascii") as lines:
            pids.append(int(lines.readline()))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_grandchildren_die_first_of_want_of_memory(supervisor: Children) -> None:
    def work(report: Report) -> list[str]:
        read_end, write_end = os.pipe()
        if not os.fork():
            os.write(write_end, Path("/proc/self/oom_score_adj").read_bytes())
            os._exit(0)
        return [os.read(read_end, 100).decode(), Path("/proc/self/oom_score_adj").read_text()]

    worker, child = map(int, _run(supervisor, work).value)
    assert worker == 500
    assert child == 0
    called = _run(supervisor, _calls_in_grandchild, in_grandchildren=lambda: os.environ.update(CALLED="yes"))
    assert called.value == ["yes", None]


def _calls_in_grandchild(report: Report) -> list[str | None]:
    read_end, write_end = os.pipe()
    if not os.fork():
        os.write(write_end, os.environ.get("CALLED", "no").encode())
        os._exit(0)
    return [os.read(read_end, 100).decode(), os.environ.get("CALLED")]


def test_sigterm_lets_a_child_come_to_an_end(
    supervisor: Children, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    _interrupt_when(told, monkeypatch, supervisor)

    def work(report: Report) -> str:
        os.kill(os.getpid(), signal.SIGTERM)  # systemd sends it to all
        try:
            report.notify("begun")
            signal.pause()
        except Interrupted:
            report.record({"came to": "an end"})
        return "done"

    assert _run(supervisor, work) == Outcome(End.INTERRUPTED, "done", limit_sec=60)
    assert told == [("notify", "begun"), ("record", {"came to": "an end"})]
    # And none begins.
    assert supervisor.interrupted
    assert _run(supervisor, lambda report: report.notify("another")) == Outcome(End.INTERRUPTED)
    assert len(told) == 2


def test_child_that_does_not_come_to_an_end_is_killed(
    supervisor: Children, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "_END_SEC", 0.2)
    _interrupt_when(told, monkeypatch, supervisor)

    def work(report: Report) -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        report.notify("begun")
        _sleep_for_ever(report)

    outcome = _run(supervisor, work)
    assert (outcome.end, outcome.signal) == (End.INTERRUPTED, signal.SIGKILL)


def test_child_that_cannot_be_killed_is_left_behind(
    supervisor: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that sleeps in the kernel: nothing here does, so that it is the kill that is left out."""
    monkeypatch.setattr(children, "_DEATH_SEC", 0.2)
    pids = []
    with monkeypatch.context() as patched:
        patched.setattr(os, "kill", lambda pid, number: pids.append((pid, number)))
        outcome = _run(supervisor, _sleep_for_ever, silence_sec=0.2)
    assert outcome.end is End.SILENT
    [(pid, number)] = pids
    assert supervisor.left_behind == [pid]
    assert number == signal.SIGKILL
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_no_more_processes(supervisor: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "fork", fail)
    with pytest.raises(BlockingIOError):
        _run(supervisor, lambda report: None)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_handlers_are_given_back() -> None:
    handler: Callable[..., None] = lambda number, frame: None  # noqa: E731
    former = signal.signal(signal.SIGTERM, handler)
    try:
        with Children(lambda text: None, lambda document: None) as supervisor:
            assert _run(supervisor, lambda report: 1).value == 1
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGTERM, former)
