# SPDX-License-Identifier: LGPL-2.1-or-later
"""One run of one command: how long, how much processor, how much memory, how large what it wrote.

Time and memory come from different runs, since who looks at the memory 50 times a second takes time.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CommandFailed", "Memory", "Run", "memory_of_run", "timed_run", "warm"]

TIMEOUT_SEC = 3600.0
SAMPLES_PER_SEC = 50.0
PIECE = 4 << 20
USER_HZ = os.sysconf("SC_CLK_TCK")


class CommandFailed(Exception):
    """A contestant ended with another status than 0; the message ends with what it said."""


@dataclass(frozen=True)
class Run:
    """What a run took."""

    wall_seconds: float
    synced_seconds: float
    """Until the disk has it, too: what a capture waits for."""
    user_seconds: float
    system_seconds: float
    """Both with all threads and child processes."""
    output_bytes: int
    stored_bytes: int
    """What the file takes on the disk, without its holes."""
    others_cpu_seconds: float
    """Processor time that went elsewhere meanwhile, other machines included: a run with much of it is worth
    little."""

    @property
    def cpu_seconds(self) -> float:
        """In user mode and in the kernel."""
        return self.user_seconds + self.system_seconds


@dataclass(frozen=True)
class Memory:
    """The most that all processes of a run had at once: each page counted once, shared ones in part (PSS)."""

    peak_kib: int
    peak_anonymous_kib: int
    """Without mapped files: programs, libraries and the vmcore."""
    samples: int


def warm(vmcore: Path) -> None:
    """Have the file in the page cache, as far as it fits; holes too."""
    buffer = bytearray(PIECE)
    with vmcore.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def timed_run(command: Sequence[str], output: Path | None = None) -> tuple[Run, str]:
    """Run it, alone; the second is what it said. `output` is removed before and after."""
    _remove(output)
    os.sync()
    busy = _busy_seconds()
    start = time.perf_counter()
    with _process(command) as (process, said):
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        busy = _busy_seconds() - busy
        if output:
            _write_back(output)
        synced = time.perf_counter() - start
        text = _text_of(command, process.returncode, said)
    found = output.stat() if output else None
    _remove(output)
    own = usage.ru_utime + usage.ru_stime
    run = Run(
        wall_seconds=wall,
        synced_seconds=synced,
        user_seconds=usage.ru_utime,
        system_seconds=usage.ru_stime,
        output_bytes=found.st_size if found else 0,
        stored_bytes=found.st_blocks * 512 if found else 0,
        others_cpu_seconds=max(busy - own, 0.0),
    )
    return run, text


def memory_of_run(command: Sequence[str], output: Path | None = None) -> Memory:
    """Run it and look at its memory. A peak that lasts for less than a 50th of a second can be missed."""
    _remove(output)
    peak = anonymous = samples = 0
    with _process(command) as (process, said), _ending(process) as ended:
        # The interval is that of the samples; the process's end is an event.
        while not ended.poll(1000 / SAMPLES_PER_SEC):
            total, private = _memory_of_session(process.pid)
            peak, anonymous = max(peak, total), max(anonymous, private)
            samples += 1
        process.wait()
        _text_of(command, process.returncode, said)
    _remove(output)
    return Memory(peak_kib=peak, peak_anonymous_kib=anonymous, samples=samples)


@contextmanager
def _ending(process: subprocess.Popen[bytes]) -> Iterator[select.poll]:
    """Tells when it has ended."""
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        yield poll
    finally:
        os.close(descriptor)


@contextmanager
def _process(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A session of its own, by which its child processes are found, and which ends with us."""
    with tempfile.NamedTemporaryFile(prefix="kdump-bench-") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *command],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        guard = threading.Timer(TIMEOUT_SEC, os.kill, (process.pid, signal.SIGKILL))
        guard.start()
        try:
            yield process, Path(said.name)
        finally:
            guard.cancel()
            if process.returncode is None:
                process.kill()
                process.wait()


def _text_of(command: Sequence[str], status: int | None, said: Path) -> str:
    text = said.read_text(errors="replace")
    if status != 0:
        last = "\n".join(text.splitlines()[-20:])
        raise CommandFailed(f"{' '.join(command)}\nended with status {status}:\n{last}")
    return text


def _write_back(output: Path) -> None:
    with suppress(FileNotFoundError), output.open("rb") as file:
        os.fsync(file.fileno())


def _remove(output: Path | None) -> None:
    if output:
        output.unlink(missing_ok=True)


def _busy_seconds() -> float:
    """Processor time that was not idle, since boot, of all processors; what a host stole included."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]  # proc(5): user to steal
    idle, waiting = fields[3], fields[4]
    return (sum(map(int, fields)) - int(idle) - int(waiting)) / USER_HZ


def _memory_of_session(session: int) -> tuple[int, int]:
    """KiB of PSS of its processes, and the part that is no file's."""
    total = private = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):  # it ended meanwhile
            if os.getsid(int(folder.name)) != session:
                continue
            lines = (folder / "smaps_rollup").read_text().splitlines()[1:]
            rows = dict(line.split(":", 1) for line in lines)
            total += _kib(rows["Pss"])
            private += _kib(rows["Pss_Anon"]) + _kib(rows["Pss_Shmem"])
    return total, private


def _kib(text: str) -> int:
    return int(text.split(maxsplit=1)[0])
