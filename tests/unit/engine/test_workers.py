# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
import faulthandler
import mmap
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdump_service.engine.workers import Death, Job, WorkerPool
from kdump_service.errors import BadVmcore, WorkerFailed

SLOT_BYTES = 4096


def _numbers(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield number.to_bytes(4, "little")


def _number(request: bytes) -> int:
    return int.from_bytes(request, "little")


def _square(request: bytes, slot: memoryview) -> bytes:
    """An honest job: its reply is the square, and the slot is filled with the request."""
    slot[:] = request * (SLOT_BYTES // 4)
    return (_number(request) ** 2).to_bytes(4, "little")


def _run(job: Job, count: int, workers: int = 2) -> list[int | Death]:
    """The replies, as numbers; slots must hold what ``_square`` puts there."""
    replies: list[int | Death] = []
    with WorkerPool(job, workers, SLOT_BYTES) as pool:
        for index, result in enumerate(pool.map(_numbers(count))):
            assert _number(result.request) == index
            if isinstance(result.reply, Death):
                replies.append(result.reply)
            else:
                assert bytes(result.slot) == result.request * (SLOT_BYTES // 4)
                replies.append(_number(result.reply))
    return replies


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """No descriptor, and no process, dead or alive."""

    def descriptors_and_children() -> tuple[set[str], str]:
        own = Path("/proc/self")
        children = own / "task" / str(os.getpid()) / "children"
        return {each.name for each in (own / "fd").iterdir()}, children.read_text()

    before = descriptors_and_children()
    yield
    assert descriptors_and_children() == before


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 100])
def test_results_come_in_order(workers: int, count: int) -> None:
    assert _run(_square, count, workers) == [number**2 for number in range(count)]


def test_the_first_may_be_the_last_to_be_done() -> None:
    """A worker waits for a file that another one makes: those behind it are done before."""
    with tempfile.TemporaryDirectory() as folder:
        gate = Path(folder) / "gate"
        os.mkfifo(gate)

        def job(request: bytes, slot: memoryview) -> bytes:
            if _number(request) in (0, 3):
                with gate.open("wb" if _number(request) else "rb"):
                    pass
            return _square(request, slot)

        assert _run(job, 50) == [number**2 for number in range(50)]


def test_all_workers_work() -> None:
    pids: set[bytes] = set()
    with WorkerPool(lambda request, slot: str(os.getpid()).encode(), 3, SLOT_BYTES) as pool:
        for result in pool.map(_numbers(30)):
            assert isinstance(result.reply, bytes)
            pids.add(result.reply)
    assert len(pids) == 3
    assert str(os.getpid()).encode() not in pids


def test_a_result_may_be_used_until_the_next_is_asked_for() -> None:
    with WorkerPool(_square, 2, SLOT_BYTES) as pool:
        results = pool.map(_numbers(100))
        previous = next(results)
        for result in results:
            # All workers have had their time, and more work than slots.
            assert bytes(result.slot[:4]) == result.request
            previous = result
        assert bytes(previous.slot[:4]) == (99).to_bytes(4, "little")


def test_a_pool_takes_more_than_one_round() -> None:
    with WorkerPool(_square, 2, SLOT_BYTES) as pool:
        for _ in range(3):
            assert len(list(pool.map(_numbers(10)))) == 10


def test_requests_and_replies_of_a_few_kilobytes() -> None:
    with WorkerPool(lambda request, slot: request[::-1], 2, SLOT_BYTES) as pool:
        requests = [bytes([number]) + bytes(5000) + b"end" for number in range(20)]
        assert [result.reply for result in pool.map(requests)] == [each[::-1] for each in requests]


def test_nothing_is_begun_that_nobody_asked_for() -> None:
    begun: list[int] = []

    def requests() -> Iterator[bytes]:
        for request in _numbers(1000):
            begun.append(_number(request))
            yield request

    with WorkerPool(_square, 2, SLOT_BYTES) as pool:
        results = pool.map(requests())
        next(results)
        assert len(begun) <= 2 * 3
        next(results)
        assert len(begun) <= 2 * 3 + 1


# What goes wrong


def test_an_exception_in_a_job_is_ours_to_know() -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        if _number(request) == 7:
            raise LookupError("nothing there")
        return _square(request, slot)

    with pytest.raises(WorkerFailed, match="LookupError: nothing there"):
        _run(job, 100)


def test_an_error_of_ours_is_what_it_is() -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        raise BadVmcore("no page tables at 0x1000", "Look elsewhere.")

    with pytest.raises(BadVmcore) as caught:
        _run(job, 10)
    assert caught.value.explanation() == "no page tables at 0x1000. Look elsewhere."


@pytest.mark.parametrize("possible", [1, 2])
def test_fewer_processes_where_there_is_no_room_for_more(
    monkeypatch: pytest.MonkeyPatch, possible: int
) -> None:
    monkeypatch.setattr(os, "fork", _fork_so_often(possible))
    assert _run(_square, 50, 4) == [number**2 for number in range(50)]


def test_no_process_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fork", _fork_so_often(0))
    with pytest.raises(BlockingIOError):
        _run(_square, 50, 4)


def _fork_so_often(times: int) -> Callable[[], int]:
    fork = os.fork
    left = iter(range(times))

    def limited() -> int:
        if next(left, None) is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return fork()

    return limited


def test_a_job_that_exits_is_an_exception_too() -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        sys.exit(3)

    with pytest.raises(WorkerFailed, match="SystemExit: 3"):
        _run(job, 10)


def _touch_what_is_not_there() -> None:
    """SIGBUS: a page of a mapping whose file has become shorter."""
    faulthandler.disable()  # pytest's: it would tell of it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryFile() as file:
        file.truncate(mmap.PAGESIZE)
        mapping = mmap.mmap(file.fileno(), mmap.PAGESIZE, prot=mmap.PROT_READ)
        file.truncate(0)
        mapping[0]


@pytest.mark.parametrize("signal_number", [signal.SIGSEGV, signal.SIGBUS], ids=["SIGSEGV", "SIGBUS"])
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("deadly", [{0}, {5}, {49}, {4, 5, 6, 7}, {3, 10, 17, 24, 31, 38, 45}])
def test_a_killed_worker_costs_its_request_only(
    deadly: set[int], workers: int, signal_number: signal.Signals
) -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        if _number(request) in deadly:
            if signal_number == signal.SIGBUS:
                _touch_what_is_not_there()
            faulthandler.disable()
            os.kill(os.getpid(), signal_number)
        return _square(request, slot)

    death = Death(signal_number)
    assert death.poisoned
    expected = [death if number in deadly else number**2 for number in range(50)]
    assert _run(job, 50, workers) == expected


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGBUS], ids=["SIGKILL", "SIGBUS"])
def test_every_request_kills(signal_number: signal.Signals) -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        faulthandler.disable()
        os.kill(os.getpid(), signal_number)
        return b""

    assert _run(job, 100, 3) == [Death(signal_number)] * 100


def _want_memory() -> None:
    raise MemoryError


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("end", [_be_killed, _want_memory])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_what_a_want_of_memory_kills_is_done_again(
    tmp_path: Path, workers: int, end: Callable[[], None]
) -> None:
    """By fewer processes: those that there are, while several are there, die."""

    def job(request: bytes, slot: memoryview) -> bytes:
        mark = tmp_path / str(_number(request))
        if _number(request) in (3, 4, 20) and not mark.exists():
            mark.touch()
            end()
        (tmp_path / f"by-{os.getpid()}").touch()
        return _square(request, slot)

    assert _run(job, 200, workers) == [number**2 for number in range(200)]
    # The last of them is followed by another.
    assert len(list(tmp_path.glob("by-*"))) <= workers + max(3 - workers + 1, 0)


def test_what_kills_again_and_again_is_told() -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        if _number(request) == 7:
            raise MemoryError
        return _square(request, slot)

    replies = _run(job, 20)
    assert replies[7] == Death(0)
    assert str(replies[7]) == "ended early, as for want of memory"
    assert [reply for reply in replies if isinstance(reply, int)] == [
        number**2 for number in range(20) if number != 7
    ]


def test_a_worker_that_dies_idle_costs_nothing() -> None:
    with WorkerPool(lambda request, slot: str(os.getpid()).encode(), 2, SLOT_BYTES) as pool:
        [result] = pool.map([b"who?"])
        assert isinstance(result.reply, bytes)
        os.kill(int(result.reply), signal.SIGKILL)
        replies = [result.reply for result in pool.map(_numbers(20))]
    assert len(replies) == 20
    assert all(isinstance(reply, bytes) for reply in replies)


def test_requests_that_raise() -> None:
    def requests() -> Iterator[bytes]:
        yield from _numbers(7)
        raise LookupError("no more")

    def everything() -> None:
        with WorkerPool(_square, 2, SLOT_BYTES) as pool:
            for _ in pool.map(requests()):
                pass

    with pytest.raises(LookupError, match="no more"):
        everything()


def test_leaving_in_the_middle_ends_the_workers() -> None:
    """Also those that would never have ended by themselves."""

    def job(request: bytes, slot: memoryview) -> bytes:
        if _number(request) > 4:
            signal.pause()
        return _square(request, slot)

    class Enough(Exception):
        pass

    def some() -> None:
        with WorkerPool(job, 2, SLOT_BYTES) as pool:
            for result in pool.map(_numbers(100)):
                if _number(result.request) == 4:
                    raise Enough

    with pytest.raises(Enough):
        some()


def test_leaving_early_without_an_error() -> None:
    with WorkerPool(_square, 2, SLOT_BYTES) as pool:
        next(pool.map(_numbers(100)))


def test_alone() -> None:
    """One request in a process of its own, while the workers have theirs."""

    def job(request: bytes, slot: memoryview) -> bytes:
        match request:
            case b"die":
                os.kill(os.getpid(), signal.SIGKILL)
            case b"fail":
                raise LookupError("nothing there")
        slot[: len(request)] = request
        return request.upper()

    with WorkerPool(job, 2, SLOT_BYTES) as pool:
        for result in pool.map([b"die", b"a", b"b", b"c"]):
            if isinstance(result.reply, Death):
                assert pool.alone(b"live", result.slot) == b"LIVE"
                assert bytes(result.slot[:4]) == b"live"
                assert pool.alone(b"die", result.slot) == Death(signal.SIGKILL)
                with pytest.raises(WorkerFailed, match="LookupError"):
                    pool.alone(b"fail", result.slot)
            else:
                assert bytes(result.slot[:1]) == result.request


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_what_is_sent_to_all_is_for_the_parent(signal_number: signal.Signals) -> None:
    def job(request: bytes, slot: memoryview) -> bytes:
        os.kill(os.getpid(), signal_number)
        return _square(request, slot)

    def handler(*arguments: object) -> None:
        raise AssertionError

    former = signal.signal(signal_number, handler)
    try:
        assert _run(job, 3) == [0, 1, 4]
    finally:
        signal.signal(signal_number, former)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """Though it is killed: they read the end of their pipe."""
    program = """
import os, signal, sys
from kdump_service.engine.workers import WorkerPool
def job(request, slot):
    return str(os.getpid()).encode()
with WorkerPool(job, 3, 4096) as pool:
    for result in pool.map(bytes([n]) for n in range(30)):
        print(result.reply.decode(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    # The workers have its standard output: communicate() returns when the last of them is gone.
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    output, _ = parent.communicate(timeout=60)
    assert parent.returncode == -signal.SIGKILL
    assert len(set(output.split())) == 3


def test_no_exception_leads_a_worker_into_the_parents_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where even forking goes wrong, the child ends; what is behind the fork is for the parent alone."""
    parent = os.getpid()

    def broken(pool: WorkerPool) -> None:
        raise OSError("no descriptors")

    monkeypatch.setattr(WorkerPool, "_become_child", broken)
    try:
        replies = _run(_square, 5)
    finally:
        if os.getpid() != parent:
            os._exit(1)
    assert replies == [Death(0)] * 5
