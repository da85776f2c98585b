# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run external programs: no shell, a fixed environment, no standard input, a time limit that holds.

A process that sleeps uninterruptibly, as one does that asks a dead file system, cannot be killed. It is then
left behind: its end is looked for when the next program runs, and the same command is not started a second
time while it lives, so that a dead file system costs one process, not one for each question.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Sequence

from kdump_service.errors import ProgramFailed

__all__ = ["Beside", "run"]

# What programs print is parsed, so their language is fixed; PATH is that of a Debian system service.
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
}

_DEATH_SEC = 1.0
"""What a killed process is given to go. One that can go does so at once."""

_left_behind: dict[str, subprocess.Popen[str]] = {}
"""Processes that did not go when they were killed, by command."""
_lock = threading.Lock()


def run(command: Sequence[str], *, timeout_sec: float, name: str = "", complaints_too: bool = False) -> str:
    """Run ``command`` and return what it printed on standard output; ``complaints_too``, also on standard
    error, behind that.

    Returns or raises within ``timeout_sec`` and a second, whatever the program does. Raises ProgramFailed
    with ``name``, else with the command as it could be typed, its exit status and the last lines that it
    wrote to standard error.
    """
    typed = name or shlex.join(command)
    _forget_the_dead()
    if typed in _left_behind:
        raise ProgramFailed(f"{typed}: an earlier one hangs in the kernel and cannot be killed")
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_ENVIRONMENT,
            text=True,
            errors="replace",
            process_group=0,  # what it started is ended with it
        )
    except OSError as error:
        raise ProgramFailed(f"{typed}: cannot be started: {error.strerror}") from error
    finished = False
    try:
        output, complaints = process.communicate(timeout=timeout_sec)
        finished = True
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{typed}: not finished after {timeout_sec:g} s") from None
    finally:
        if not finished:  # or interrupted from the keyboard: leave no process behind that nobody awaits
            _end(typed, process)
    if process.returncode != 0:
        said = " / ".join(complaints.strip().splitlines()[-3:]) or "no message"
        raise ProgramFailed(f"{typed}: exit status {process.returncode}: {said}")
    return output + complaints if complaints_too else output


class Beside:
    """A program that runs beside us, and not longer than we do. Use as a context manager."""

    def __init__(self, command: Sequence[str], *, pass_fds: Sequence[int] = ()) -> None:
        """Start it; these open files are passed on. Raises ProgramFailed."""
        self._typed = shlex.join(command)
        self._complaints = open(os.memfd_create("complaints"), "rb")  # noqa: SIM115  (closed in __exit__)
        try:
            self._process = subprocess.Popen(
                # Who is killed takes it with them (prctl(2), PR_SET_PDEATHSIG).
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                env=_ENVIRONMENT,
                pass_fds=pass_fds,
                process_group=0,
            )
        except OSError as error:
            self._complaints.close()
            raise ProgramFailed(f"{self._typed}: cannot be started: {error.strerror}") from error

    def __enter__(self) -> Beside:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._complaints.close()

    def read(self, timeout_sec: float) -> bytes | None:
        """What it printed; empty if it has closed its output, None if it printed nothing in this time."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return os.read(descriptor, 1 << 16) if poll.poll(max(timeout_sec, 0) * 1000) else None

    def end(self) -> tuple[int, str]:
        """After its output has ended: the exit status, and what it complained of."""
        try:
            status = self._process.wait(timeout=_DEATH_SEC)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._complaints.seek(0)
        return status, self._complaints.read(1 << 16).decode(errors="replace").strip()


def _end(typed: str, process: subprocess.Popen[str]) -> None:
    """Kill a process and what it started, and wait for it, but not for ever."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(timeout=_DEATH_SEC)
    except subprocess.TimeoutExpired:
        with _lock:
            _left_behind[typed] = process
    # Not read to their end: what it started may hold them open.
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()


def _forget_the_dead() -> None:
    with _lock:
        for typed, process in list(_left_behind.items()):
            if process.poll() is not None:
                del _left_behind[typed]
