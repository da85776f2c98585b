# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that do what may kill, hang, or take much memory, so that it costs no more than itself.

The memory of a crashed machine is read by children of a small supervisor, which keeps the record. A child
tells what it does through a pipe; one that says nothing for too long is killed. SIGTERM ends the capture: the
supervisor asks the child that runs to come to an end, kills it if it does not, and starts no other one.
"""

from __future__ import annotations

import contextlib
import enum
import gc
import json
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple

from kdump_service.capture.stages import Interrupted
from kdump_service.errors import describe

__all__ = ["Children", "End", "Outcome", "Report"]

_FEED_SEC = 30.0
"""So often systemd is told that a child is waited for; WatchdogSec= of the unit is two minutes."""
_END_SEC = 5.0
"""What a child has to come to an end that was asked to: to describe the pages that it has written."""
_DEATH_SEC = 2.0
"""What a child that was killed has to go. One that does not, sleeps in the kernel, and is left behind."""
_LENGTH = struct.Struct("<I")
_OOM_SCORE_FILE = "/proc/self/oom_score_adj"
_OOM_SCORE, _OOM_SCORE_OF_WORKERS = "0", "500"
"""The supervisor has -900 (kdump-capture.service): what can be done again dies first."""


class End(enum.Enum):
    """How a child ended."""

    DONE = enum.auto()
    KILLED = enum.auto()
    """By a signal, or it ended without a word."""
    SILENT = enum.auto()
    """It said nothing for too long, and was killed."""
    INTERRUPTED = enum.auto()
    """The capture was asked to end."""


class Outcome(NamedTuple):
    """What became of a child."""

    end: End
    value: Any = None
    """What its work returned; None if it came to no end."""
    signal: int = 0
    """What killed it."""
    error: str = ""
    """What its work raised, though it must not."""
    limit_sec: float = 0.0
    """For how long it might say nothing."""

    def __str__(self) -> str:
        if self.error:
            return f"failed: {self.error}"
        if self.end is End.SILENT:
            return f"showed no sign of life for {self.limit_sec:g} s"
        if self.signal:
            return f"was killed by {signal.Signals(self.signal).name}"
        return "ended without a word"


class Report:
    """In a child: what it tells the supervisor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def notify(self, text: str) -> None:
        """Assignments as of sd_notify(3), which systemd takes from the supervisor alone."""
        self._send("notify", text)

    def record(self, document: dict[str, Any]) -> None:
        """The record as it is now."""
        self._send("record", document)

    def done(self, value: Any) -> None:
        """The end, and what came of it."""
        self._send("done", value)

    def failed(self, error: str) -> None:
        """The end by a fault of ours."""
        self._send("failed", error)

    def _send(self, kind: str, content: Any) -> None:
        data = json.dumps([kind, content]).encode()
        view = memoryview(_LENGTH.pack(len(data)) + data)
        while view:
            view = view[os.write(self._descriptor, view) :]


class Children:
    """Runs one child at a time. Use as a context manager, in the main thread: within, SIGTERM is its own."""

    def __init__(
        self, notify: Callable[[str], object], take_record: Callable[[dict[str, Any]], object]
    ) -> None:
        self._handlers: dict[str, Callable[[Any], object]] = {"notify": notify, "record": take_record}
        self.interrupted = False
        """Whether the capture was asked to end."""
        self.left_behind: list[int] = []
        """Processes that sleep in the kernel, and could not be killed."""

    def __enter__(self) -> Children:
        self._woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._former = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, self._interrupt),
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda number, frame: None),
        }
        self._former_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._wake = wake
        return self

    def __exit__(self, *exception: object) -> None:
        signal.set_wakeup_fd(self._former_wake)
        for number, handler in self._former.items():
            signal.signal(number, handler)
        os.close(self._wake)
        os.close(self._woken)

    def run(
        self,
        work: Callable[[Report], Any],
        *,
        silence_sec: float,
        in_grandchildren: Callable[[], object] = lambda: None,
        interrupted_too: bool = False,
    ) -> Outcome:
        """Do the work in a child; it must not raise.

        It may say nothing for ``silence_sec``, in which systemd is told that all is well.
        ``interrupted_too``: also after the capture was asked to end. ``in_grandchildren`` is called in each
        process that it forks. Raises OSError if there can be no child.
        """
        if self.interrupted and not interrupted_too:
            return Outcome(End.INTERRUPTED)
        read_end, write_end = os.pipe()
        try:
            with _no_signals():
                try:
                    pid = os.fork()
                    if not pid:
                        _become_child()
                except OSError:
                    os.close(write_end)
                    raise
            if not pid:
                try:
                    os.close(read_end)
                    _work(work, Report(write_end), write_end, in_grandchildren)
                finally:
                    os._exit(1)  # whatever happens: the parent's code must not go on here
            os.close(write_end)
            return self._attend(pid, read_end, silence_sec, interrupted_too)
        finally:
            os.close(read_end)

    def _attend(self, pid: int, pipe: int, silence_sec: float, interrupted_too: bool) -> Outcome:
        """Take what a child tells until it ends, which its end of the pipe does with it."""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        end = End.KILLED
        told: dict[str, Any] = {}
        said = bytearray()
        until = time.monotonic() + silence_sec
        killed = False
        while True:
            left = max(until - time.monotonic(), 0)
            events = dict(poll.poll(min(left, _FEED_SEC) * 1000))
            if self._woken in events:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 1 << 10)
            if self.interrupted and not interrupted_too and end is End.KILLED and not killed:
                end, until = End.INTERRUPTED, time.monotonic() + _END_SEC
                os.kill(pid, signal.SIGUSR1)
            if pipe in events:
                part = os.read(pipe, 1 << 16)
                if not part:
                    break
                said += part
                self._take(said, told)
                if end is End.KILLED and not killed:
                    until = time.monotonic() + silence_sec
            elif not events and left > _FEED_SEC:
                self._handlers["notify"]("WATCHDOG=1")
            elif not events and killed:  # it sleeps in the kernel
                self.left_behind.append(pid)
                return Outcome(end, None, signal.SIGKILL, "", silence_sec)
            elif not events:
                end = End.SILENT if end is End.KILLED else end
                os.kill(pid, signal.SIGKILL)
                killed, until = True, time.monotonic() + _DEATH_SEC
        _, status = os.waitpid(pid, 0)  # its files are closed: nothing holds it any more
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        if end is End.KILLED and "done" in told:
            end = End.DONE
        return Outcome(end, told.get("done"), number, told.get("failed", ""), silence_sec)

    def _take(self, said: bytearray, told: dict[str, Any]) -> None:
        """What a child said: the end of its work, or something on the way."""
        for kind, content in _messages(said):
            if kind in ("done", "failed"):
                told[kind] = content
            else:
                self._handlers[kind](content)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True


def _work(
    work: Callable[[Report], Any],
    report: Report,
    write_end: int,
    in_grandchildren: Callable[[], object],
) -> None:
    def become_grandchild() -> None:
        os.close(write_end)  # the supervisor waits for its end
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # their parent ends them
        _set_oom_score(_OOM_SCORE_OF_WORKERS)
        in_grandchildren()

    os.register_at_fork(after_in_child=become_grandchild)
    try:
        report.done(work(report))
    except Interrupted:
        pass  # the supervisor has asked for it, and knows
    except BaseException as error:  # the edge of this process: told to the supervisor
        report.failed(describe(error))
    os._exit(0)


def _become_child() -> None:
    # systemd sends SIGTERM to all processes of the unit; the supervisor decides what it means.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, _be_interrupted)
    signal.set_wakeup_fd(-1)
    # The collector marks all objects that it looks at, and each page with a mark becomes a copy of our own.
    gc.freeze()
    _set_oom_score(_OOM_SCORE)


def _be_interrupted(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def _set_oom_score(score: str) -> None:
    # Where it cannot be set, another may die first: no reason to save nothing.
    with contextlib.suppress(OSError), open(_OOM_SCORE_FILE, "w", encoding="ascii") as file:
        file.write(score)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Within, no handler runs: in a new process that would be one of its parent's."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _messages(said: bytearray) -> Iterator[tuple[str, Any]]:
    """Take whole messages from the front."""
    while len(said) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(said)
        if len(said) < _LENGTH.size + length:
            return
        kind, content = json.loads(bytes(said[_LENGTH.size : _LENGTH.size + length]))
        del said[: _LENGTH.size + length]
        yield kind, content
