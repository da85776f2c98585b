# SPDX-License-Identifier: LGPL-2.1-or-later
"""Processes that do the heavy work, one for each processor.

Processes, not threads, for two reasons. Memory of a crashed machine can be poisonous: on some machines
touching a bad page of /proc/vmcore kills who touches it (SIGBUS, or a synchronous external abort on arm64),
and that shall cost the page, not the dump. And Python's lock is no bottleneck then.

What kills by anything else, such as a want of memory, says nothing against the page: the request is done
again, by one process less.

A job is a function from a request to a reply (both short) that may fill a slot of shared memory. Requests
are handed out in order, and their results come back in order. Nobody polls: the parent sleeps in poll(2), the
workers in read(2).
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import select
import signal
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple

from kdump_service.errors import KdumpError, WorkerFailed, error_class

__all__ = ["Death", "Job", "Result", "WorkerPool"]

Job = Callable[[bytes, memoryview], bytes]

_HEADER = struct.Struct("<IBI")  # slot, status, bytes that follow
_OK, _REFUSED, _FAILED = 0, 1, 2
_DEPTH = 2
"""Requests at one worker: the one that it does, and one more so that it need not wait for us."""


_MOST_TRIES = 3
"""So often a request is done that has killed its worker for no fault of the memory that it reads."""


class Death(NamedTuple):
    """How a worker died over a request."""

    signal: int
    """0 if it was no signal."""

    @property
    def poisoned(self) -> bool:
        """Whether what it read has killed it."""
        return self.signal in (signal.SIGBUS, signal.SIGSEGV)

    def __str__(self) -> str:
        if self.signal:
            return f"was killed by {signal.Signals(self.signal).name}"
        return "ended early, as for want of memory"


class Result(NamedTuple):
    """The outcome of one request."""

    request: bytes
    reply: bytes | Death
    """A Death if the worker died over it, each time if it was not what it read."""
    slot: memoryview
    """What the job filled in; may be used until the next result is asked for."""


@dataclass
class _Worker:
    pid: int
    requests: int
    replies: int
    pending: deque[tuple[int, int]]
    """Number of the request and its slot, oldest first."""


class WorkerPool:
    """Forked processes, all with the same job. Use as a context manager."""

    def __init__(self, job: Job, workers: int, slot_bytes: int) -> None:
        self._job = job
        self._count = workers
        self._slot_bytes = slot_bytes
        self._slots = workers * (_DEPTH + 1)
        # Shared with the children; pages that nobody touches cost nothing.
        self._shared = mmap.mmap(-1, self._slots * slot_bytes)
        self._memory = memoryview(self._shared)
        self._workers: list[_Worker] = []
        self._tries: dict[int, int] = {}
        """How often a request, by its number, has killed its worker."""

    def __enter__(self) -> WorkerPool:
        for _ in range(self._count):
            try:
                self._workers.append(self._fork())
            except OSError:
                if not self._workers:
                    raise
                break  # short of memory or processes: those that there are do the work
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if kind is not None:
                os.kill(worker.pid, signal.SIGKILL)
            self._reap(worker)
        self._workers.clear()
        with contextlib.suppress(BufferError):  # a traceback may still hold a slot
            self._memory.release()
            self._shared.close()

    def map(self, requests: Iterable[bytes]) -> Iterator[Result]:
        """Do all requests; results in the order of the requests."""
        todo = iter(requests)
        free = deque(range(self._slots))
        done: dict[int, tuple[int, bytes | Death]] = {}  # number -> slot, reply
        asked: dict[int, bytes] = {}
        following = 0  # number of the next request
        wanted = 0  # number of the next result
        exhausted = False
        self._tries.clear()
        while True:
            while free and not exhausted:
                worker = min(self._workers, key=lambda worker: len(worker.pending))
                if len(worker.pending) >= _DEPTH:
                    break
                request = next(todo, None)
                if request is None:
                    exhausted = True
                    break
                slot = free.popleft()
                asked[following] = request
                self._send(worker, following, slot, request)
                following += 1
            if wanted in done:
                slot, reply = done.pop(wanted)
                yield Result(asked.pop(wanted), reply, self._slot(slot))
                free.append(slot)
                wanted += 1
                continue
            if wanted == following:
                return
            for number, slot, reply in self._collect(asked):
                done[number] = (slot, reply)

    def alone(self, request: bytes, slot: memoryview) -> bytes | Death:
        """Do one request in a process of its own, into a slot that a result came with."""
        read_end, write_end = os.pipe()
        with _no_signals():
            pid = os.fork()
            if not pid:
                _ignore_signals()
        if not pid:
            try:
                self._become_child()
                os.close(read_end)
                _answer(self._job, write_end, 0, request, slot)
            finally:
                os._exit(0)  # whatever happens: the parent's code must not go on here
        os.close(write_end)
        try:
            answer = _read_answer(read_end)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            raise
        finally:
            os.close(read_end)
            _, status = os.waitpid(pid, 0)
        return _death(status) if answer is None else _reply_of(answer)

    # One worker

    def _slot(self, number: int) -> memoryview:
        return self._memory[number * self._slot_bytes : (number + 1) * self._slot_bytes]

    def _send(self, worker: _Worker, number: int, slot: int, request: bytes) -> None:
        worker.pending.append((number, slot))
        # Shorter than a pipe's buffer, and at most _DEPTH of them: this does not block. A worker that is gone
        # is noticed when its reply is read.
        with contextlib.suppress(BrokenPipeError):
            _write_all(worker.requests, _HEADER.pack(slot, _OK, len(request)) + request)

    def _collect(self, asked: dict[int, bytes]) -> list[tuple[int, int, bytes | Death]]:
        """Wait for at least one answer."""
        poll = select.poll()
        by_descriptor = {worker.replies: worker for worker in self._workers if worker.pending}
        for descriptor in by_descriptor:
            poll.register(descriptor, select.POLLIN)
        collected: list[tuple[int, int, bytes | Death]] = []
        for descriptor, _ in poll.poll():
            worker = by_descriptor[descriptor]
            answer = _read_answer(descriptor)
            number, slot = worker.pending.popleft()
            if answer is not None:
                collected.append((number, slot, _reply_of(answer)))
                continue
            self._workers.remove(worker)  # a successor's pipes get the numbers of its descriptors
            death = self._reap(worker)
            self._tries[number] = self._tries.get(number, 0) + 1
            if death.poisoned or self._tries[number] >= _MOST_TRIES:
                collected.append((number, slot, death))
            else:
                worker.pending.appendleft((number, slot))
            if death.poisoned or not self._workers:
                self._workers.append(self._fork())
            # What it had not begun.
            for other, other_slot in worker.pending:
                successor = min(self._workers, key=lambda each: len(each.pending))
                self._send(successor, other, other_slot, asked[other])
        return collected

    def _fork(self) -> _Worker:
        with contextlib.ExitStack() as pipes:
            request_read, request_write = _pipe(pipes)
            reply_read, reply_write = _pipe(pipes)
            with _no_signals():
                pid = os.fork()
                if not pid:
                    _ignore_signals()
            pipes.pop_all()
        if pid:
            os.close(request_read)
            os.close(reply_write)
            return _Worker(pid, request_write, reply_read, deque())
        try:
            self._become_child()
            os.close(request_write)
            os.close(reply_read)
            while (message := _read_answer(request_read)) is not None:
                slot, _, request = message
                _answer(self._job, reply_write, slot, request, self._slot(slot))
        finally:
            os._exit(0)  # whatever happens: the parent's code must not go on here

    def _become_child(self) -> None:
        """Leave the parent's pipes and garbage behind."""
        # The collector marks all objects that it looks at, and each page with a mark becomes a copy of our
        # own: measured, 1 to 2 MiB for each worker.
        gc.freeze()
        for worker in self._workers:
            os.close(worker.requests)
            os.close(worker.replies)

    def _reap(self, worker: _Worker) -> Death:
        os.close(worker.requests)
        os.close(worker.replies)
        _, status = os.waitpid(worker.pid, 0)
        return _death(status)


def _death(status: int) -> Death:
    return Death(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0)


@contextlib.contextmanager
def _no_signals() -> Iterator[None]:
    """Within, no handler runs: in a new process that would be one of its parent's."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _ignore_signals() -> None:
    """What a terminal or systemd sends to all is for the parent, which ends its workers."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _pipe(until: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe that is closed at the end of the stack."""
    ends = os.pipe()
    for descriptor in ends:
        until.callback(os.close, descriptor)
    return ends


def _answer(job: Job, descriptor: int, slot: int, request: bytes, memory: memoryview) -> None:
    """Do the job and write its reply; an exception becomes an answer too."""
    status = _OK
    try:
        reply = job(request, memory)
    except MemoryError:
        os._exit(1)  # what it holds is given back, and the parent knows what to do
    except KdumpError as error:
        status, reply = _REFUSED, "\0".join((error.dbus_name(), error.hint, str(error))).encode()
    except BaseException as error:  # the edge of this process: told to the parent, which raises it
        status, reply = _FAILED, f"{type(error).__name__}: {error}".encode()
    try:
        _write_all(descriptor, _HEADER.pack(slot, status, len(reply)) + reply)
    except OSError:
        os._exit(1)  # the parent is gone


def _reply_of(answer: tuple[int, int, bytes]) -> bytes:
    _, status, reply = answer
    if status == _OK:
        return reply
    text = reply.decode("utf-8", "replace")
    if status == _REFUSED:
        name, hint, message = text.split("\0", 2)
        raise error_class(name)(message, hint)
    raise WorkerFailed(text)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _read_answer(descriptor: int) -> tuple[int, int, bytes] | None:
    """One message; None at the end of the pipe, also in the middle of a message."""
    header = _read_exactly(descriptor, _HEADER.size)
    if header is None:
        return None
    slot, status, length = _HEADER.unpack(header)
    body = _read_exactly(descriptor, length)
    return None if body is None else (slot, status, body)


def _read_exactly(descriptor: int, length: int) -> bytes | None:
    parts = []
    while length:
        part = os.read(descriptor, length)
        if not part:
            return None
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
