# SPDX-License-Identifier: LGPL-2.1-or-later
"""The process that flushes and reads back beside the one that writes."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdump_service.errors import TargetUnusable, VerificationFailed
from kdump_service.targets.flusher import Flusher
from kdump_service.targets.local import LocalPlace, LocalUpload
from kdump_service.targets.pieces import Piece

KIB, MIB = 1 << 10, 1 << 20


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


def _begin(folder: Path) -> LocalUpload:
    """Of which a quarter of a MiB is flushed at a time."""
    upload = LocalPlace(folder, flush_bytes=MIB).create("vmcore")
    upload.reserve(64 * KIB)
    upload.write_at(0, b"head" * 16 * KIB)
    return upload


def _write(upload: LocalUpload, content: bytes, offset: int = 64 * KIB) -> None:
    for at in range(0, len(content), 200_000):
        upload.write_at(offset + at, content[at : at + 200_000])


def test_all_is_read_back_beside(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(20 * MIB)
    upload = _begin(tmp_path)
    _write(upload, content)
    assert upload._flusher is not None
    told: list[tuple[int, int]] = []
    upload.verify(lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] == len(content) + 64 * KIB
    assert sum(upload.read_back_bytes) == len(content) + 64 * KIB
    upload.write_at(4, b"HEAD")
    stored = upload.publish("vmcore")
    assert (tmp_path / "vmcore").read_bytes() == b"headHEAD" + b"head" * (16 * KIB - 2) + content
    assert stored.bytes == len(content) + 64 * KIB


def test_bytes_that_are_not_flushed_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = _begin(tmp_path)
    most = 0
    pwrite = os.pwrite

    def noting(descriptor: int, data: Any, offset: int) -> int:
        nonlocal most
        most = max(most, upload._unflushed_bytes + upload._flushing_bytes)
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", noting)
    _write(upload, bytes(20 * MIB))
    upload.publish("vmcore")
    assert 200_000 < most < 2 * MIB


@pytest.mark.parametrize("when", [1, 5, 40])
@pytest.mark.promise("no-broken-dump-as-good")
def test_killed_it_is_gone_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """As for want of memory: what it had read back is read once more, here."""
    asked = []
    flush = Flusher.flush

    def flush_or_die(self: Flusher, pieces: list[Piece]) -> None:
        asked.append(len(pieces))
        if len(asked) == when:
            os.kill(self._pid, signal.SIGKILL)
        flush(self, pieces)

    monkeypatch.setattr(Flusher, "flush", flush_or_die)
    content = random.Random(2).randbytes(12 * MIB)
    upload = _begin(tmp_path)
    _write(upload, content)
    upload.publish("vmcore")
    assert (tmp_path / "vmcore").read_bytes()[64 * KIB :] == content


def test_no_process_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", fail)
    content = random.Random(3).randbytes(5 * MIB)
    upload = _begin(tmp_path)
    _write(upload, content)
    upload.publish("vmcore")
    assert (tmp_path / "vmcore").read_bytes()[64 * KIB :] == content


def test_flush_that_fails_is_the_targets_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    upload = _begin(tmp_path)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(TargetUnusable, match=r"vmcore\.incomplete: Input/output error"):
        _write(upload, bytes(20 * MIB))
    upload.abandon()


@pytest.mark.promise("no-broken-dump-as-good")
def test_pages_that_cannot_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bad sector: told as damage, with its place."""
    read = os.preadv

    def fail(descriptor: int, views: Any, offset: int) -> int:
        if offset <= 3 * MIB < offset + sum(map(len, views)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, views, offset)

    monkeypatch.setattr(os, "preadv", fail)
    upload = _begin(tmp_path)
    _write(upload, bytes(8 * MIB))
    with pytest.raises(VerificationFailed, match="pieces of the file are not what was written"):
        upload.verify()
    assert upload._damaged
    assert all(piece.offset <= 3 * MIB + 4 * KIB and piece.end >= 3 * MIB for piece in upload._damaged)
    upload.abandon()


def test_what_is_written_anew_is_not_compared_with_what_it_was(tmp_path: Path) -> None:
    """Behind the head, after it was flushed."""
    upload = _begin(tmp_path)
    content = bytearray(random.Random(4).randbytes(8 * MIB))
    _write(upload, bytes(content))
    for offset in range(0, 4 * MIB, 300_000):
        content[offset : offset + 10] = b"0123456789"
        upload.write_at(64 * KIB + offset, b"0123456789")
    upload.publish("vmcore")
    assert (tmp_path / "vmcore").read_bytes()[64 * KIB :] == content


def test_it_ends_with_who_writes(tmp_path: Path) -> None:
    """Though that is killed, and leaves its end of the pipe to nobody."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        upload = _begin(tmp_path)
        _write(upload, bytes(4 * MIB))
        assert upload._flusher is not None
        os.write(write_end, b"%d\n" % upload._flusher._pid)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(write_end)
    with open(read_end, encoding="ascii") as told:
        of_flusher = os.pidfd_open(int(told.readline()))
    select.select([of_flusher], [], [])  # readable when it has ended (pidfd_open(2))
    os.close(of_flusher)
