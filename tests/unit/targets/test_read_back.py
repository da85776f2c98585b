# SPDX-License-Identifier: LGPL-2.1-or-later
"""Damage below the file system, on a block device whose bytes are changed behind its back."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdump_service.atomic_file import write_atomically
from kdump_service.errors import TargetUnusable, VerificationFailed
from kdump_service.targets import local
from kdump_service.targets.local import LocalPlace

KIB, MIB = 1 << 10, 1 << 20
DUMP_BYTES = 400 * MIB  # 100,000 pages
PLACES = 40


class Disk:
    """A file system on a file; bytes of the file are those of the medium."""

    def __init__(self, image: Path, point: Path) -> None:
        self.image, self.point = image, point

    def extents(self, path: Path) -> list[tuple[int, int, int]]:
        """Of a file: offset, length, and where that lies on the medium."""
        listed = subprocess.run(
            ["filefrag", "-b1", "-v", path], check=True, capture_output=True, text=True
        ).stdout
        found = []
        for line in listed.splitlines():
            fields = line.replace("..", " ").replace(":", " ").split()
            if fields and fields[0].isdigit() and len(fields) >= 6:
                first, last, physical = int(fields[1]), int(fields[2]), int(fields[3])
                found.append((first, last + 1 - first, physical))
        return found

    def change(self, path: Path, offset: int, content: bytes) -> None:
        """What lies on the medium at this place of the file."""
        left = memoryview(content)
        with open(self.image, "r+b") as medium:
            for first, length, physical in self.extents(path):
                if first <= offset < first + length:
                    part = left[: first + length - offset]
                    medium.seek(physical + offset - first)
                    medium.write(part)
                    left, offset = left[len(part) :], offset + len(part)
        assert not left


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if os.geteuid():
        pytest.skip("mounting takes root")
    image, point = tmp_path / "image", tmp_path / "point"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(DUMP_BYTES + 200 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    yield Disk(image, point)
    subprocess.run(["umount", point], check=True)


def _contents(rng: random.Random) -> Iterator[bytes]:
    """Of a dump without compression: batches of half a MiB, in which no two pages are the same."""
    for _ in range(DUMP_BYTES // (512 * KIB)):
        yield rng.randbytes(512 * KIB)


@pytest.mark.promise("no-broken-dump-as-good", "read-back")
def test_damage_of_each_kind_is_noticed_in_360_places(disk: Disk) -> None:
    """Zeroed, of another place, older; of 4 KiB, 64 KiB and 1 MiB: the file is told to be damaged for each,
    by a range that holds it; and what is not damaged is not told."""
    rng = random.Random(17)
    upload = LocalPlace(disk.point).create("vmcore")
    upload.reserve(MIB)
    upload.write_at(0, rng.randbytes(MIB))
    offset = MIB
    for content in _contents(rng):
        upload.write_at(offset, content)
        offset += len(content)
    upload.flush()
    path = disk.point / "vmcore.incomplete"
    damage = [
        (kind, size) for kind in ("zeroed", "swapped", "stale") for size in (4 * KIB, 64 * KIB, MIB)
    ] * PLACES
    rng.shuffle(damage)
    # Each in a field of its own, of which the rest stays whole.
    field = (DUMP_BYTES - MIB) // len(damage) // (4 * KIB) * 4 * KIB
    assert field > MIB
    changed: list[tuple[int, int]] = []
    for number, (kind, size) in enumerate(damage):
        at = MIB + number * field + rng.randrange((field - size) // (4 * KIB) + 1) * 4 * KIB
        new = {
            "zeroed": bytes(size),
            "swapped": upload.read_at((at + DUMP_BYTES // 2) % (DUMP_BYTES - MIB), size),
            "stale": rng.randbytes(size),
        }[kind]
        disk.change(path, at, new)
        changed.append((at, size))
    with pytest.raises(VerificationFailed, match="pieces of the file are not what was written, the first"):
        upload.verify()
    told = [(piece.offset, piece.end) for piece in upload._damaged]
    unnoticed = [(at, size) for at, size in changed if not any(a < at + size and at < b for a, b in told)]
    assert unnoticed == []
    wrongly = [(a, b) for a, b in told if not any(a < at + size and at < b for at, size in changed)]
    assert wrongly == []
    with pytest.raises(VerificationFailed):
        upload.publish("vmcore")
    assert [path.name for path in disk.point.glob("vmcore*")] == ["vmcore.incomplete"]


@pytest.mark.promise("no-broken-dump-as-good", "read-back")
def test_damage_is_noticed_while_the_dump_is_written(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the cache does not hide it: the medium changes right behind each flush."""
    rng = random.Random(18)
    place = LocalPlace(disk.point, flush_bytes=4 * MIB)
    upload = place.create("vmcore")
    flush = os.fdatasync
    path = disk.point / "vmcore.incomplete"

    def flush_and_lose(descriptor: int) -> None:
        flush(descriptor)
        if upload.size_bytes >= 6 * MIB:
            disk.change(path, 5 * MIB, bytes(4 * KIB))

    monkeypatch.setattr(os, "fdatasync", flush_and_lose)
    for offset in range(0, 32 * MIB, 512 * KIB):
        upload.write_at(offset, rng.randbytes(512 * KIB))
    with pytest.raises(VerificationFailed, match="1 pieces of the file are not what was written"):
        upload.verify()
    [piece] = upload._damaged
    assert piece.offset <= 5 * MIB < piece.end
    upload.abandon()


def test_what_is_whole_is_read_from_the_medium(disk: Disk) -> None:
    """All of it, once; what was written anew, once more. A hole counts nothing, and has to be one."""
    rng = random.Random(19)
    place = LocalPlace(disk.point, flush_bytes=4 * MIB)
    upload = place.create("vmcore")
    upload.reserve(MIB)
    upload.write_at(0, rng.randbytes(MIB))
    for offset in range(MIB, 31 * MIB, 500_000):
        upload.write_at(offset, rng.randbytes(500_000))
    upload.write_at(100 * MIB + 7, b"behind a hole")
    told: list[tuple[int, int]] = []
    before = int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0])
    upload.verify(lambda done, total: told.append((done, total)))
    upload.write_at(0, b"HEAD")
    assert upload.publish("vmcore").bytes == 100 * MIB + 20
    written = len(range(MIB, 31 * MIB, 500_000)) * 500_000 + MIB
    read, cached = upload.read_back_bytes
    assert written <= read <= written + 3 * MIB
    assert cached == 0
    assert told[-1][0] == told[-1][1] > 0
    assert int(Path("/proc/self/io").read_text().split("read_bytes: ")[1].split()[0]) > before


def test_bytes_that_nobody_wrote(disk: Disk) -> None:
    upload = LocalPlace(disk.point).create("vmcore")
    upload.write_at(0, b"x" * 8192)
    upload.set_size(MIB)
    with (disk.point / "vmcore.incomplete").open("r+b") as file:
        file.seek(500_000)
        file.write(b"!")
    with pytest.raises(VerificationFailed, match=f"nobody wrote the byte at offset {500_000:#x}"):
        upload.publish("vmcore")


def test_a_record_that_the_disk_loses(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_and_lose(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        disk.change(path, 0, bytes(4))

    place = LocalPlace(disk.point)
    place.put("record.json", b"whole" * 2000)
    monkeypatch.setattr(local, "write_atomically", write_and_lose)
    with pytest.raises(TargetUnusable, match=r"record\.json is not what was written"):
        place.put("record.json", b"whole" * 2000)


def test_where_the_cache_cannot_be_gone_round(tmp_path: Path) -> None:
    """As on a file system in memory: it is compared, and does not count as read from the medium."""
    if os.geteuid():
        pytest.skip("mounting takes root")
    subprocess.run(["mount", "-t", "ramfs", "none", tmp_path], check=True)
    try:
        upload = LocalPlace(tmp_path).create("vmcore")
        upload.write_at(0, b"x" * 5 * MIB)
        upload.verify()
        assert upload.read_back_bytes == (0, 5 * MIB)
        upload.publish("vmcore")
    finally:
        subprocess.run(["umount", tmp_path], check=True)
