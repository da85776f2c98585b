# SPDX-License-Identifier: LGPL-2.1-or-later
"""Folders as targets, on file systems that are really full, read-only, or out of inodes."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kdump_service.errors import TargetFull, TargetUnusable
from kdump_service.targets.contract import Can, StoredFile, end_upload
from kdump_service.targets.local import LocalPlace, LocalTarget, place_of_file

MIB = 1 << 20
MountTmpfs = Callable[[str], Path]


@pytest.fixture
def mount_tmpfs(tmp_path: Path) -> Iterator[MountTmpfs]:
    """Mounts a file system in memory with these options."""
    if os.geteuid():
        pytest.skip("mounting takes root")
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        point = tmp_path / f"mounted{len(mounted)}"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", point], check=True)
        mounted.append(point)
        return point

    yield mount
    for point in mounted:
        subprocess.run(["umount", point], check=True)


def test_each_dump_has_a_place_of_its_own(tmp_path: Path) -> None:
    target = LocalTarget(tmp_path / "deep/crash")
    names = [target.open("dump").name for _ in range(12)]
    assert names == ["dump", *(f"dump.{number}" for number in range(2, 13))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "deep/crash").iterdir()} == {0o700}


def test_what_is_put_is_replaced_as_a_whole(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    assert place.put("record", b"a" * 5000) == StoredFile("record", 5000, 8192)
    assert place.put("record", b"\xff\0").bytes == 2
    assert (tmp_path / "record").read_bytes() == b"\xff\0"
    assert [path.name for path in tmp_path.iterdir()] == ["record"]
    assert stat.S_IMODE((tmp_path / "record").stat().st_mode) == 0o600


def test_upload_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path, flush_bytes=MIB)
    upload = place.create("vmcore")
    assert (place.can, upload.can, upload.rewritable) == (*[Can.REWRITE | Can.READ_BACK] * 2, True)
    upload.reserve(8192)
    upload.write_at(40 * MIB, memoryview(b"x" * 3 * MIB))
    upload.write_at(0, b"head")
    upload.write_at(0, b"HEAD")
    upload.set_size(50 * MIB)
    assert (upload.size_bytes, upload.read_at(43 * MIB - 1, 2)) == (50 * MIB, b"x\0")
    assert upload.read_at(50 * MIB - 1, 10) == b"\0"
    assert [path.name for path in tmp_path.iterdir()] == ["vmcore.incomplete"]
    stored = upload.publish("vmcore")
    assert (stored.name, stored.bytes) == ("vmcore", 50 * MIB)
    assert 3 * MIB < stored.disk_bytes < 4 * MIB
    content = (tmp_path / "vmcore").read_bytes()
    assert (content[:5], content[40 * MIB :].count(b"x")) == (b"HEAD\0", 3 * MIB)
    assert [path.name for path in tmp_path.iterdir()] == ["vmcore"]


def test_what_is_abandoned_goes_on_saying_so(tmp_path: Path) -> None:
    upload = LocalPlace(tmp_path).create("vmcore")
    upload.write_at(0, b"begun")
    assert end_upload(upload, "vmcore", whole=False).name == "vmcore.incomplete"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(upload._descriptor)
    with pytest.raises(TargetUnusable, match=r"vmcore\.incomplete: File exists"):
        LocalPlace(tmp_path).create("vmcore")
    assert (tmp_path / "vmcore.incomplete").read_bytes() == b"begun"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    place, name = place_of_file(tmp_path / "dump")
    upload = place.create(name)
    upload.write_at(0, b"new")
    (tmp_path / "dump").write_text("came meanwhile")
    with pytest.raises(TargetUnusable, match="dump: File exists") as raised:
        upload.publish(name)
    assert raised.value.hint == "Remove it, or write it anew with --force."
    assert (tmp_path / "dump").read_text() == "came meanwhile"
    assert (tmp_path / "dump.incomplete").read_text() == "new"
    with pytest.raises(TargetUnusable, match="dump: File exists"):
        place.create(name)
    place, name = place_of_file(tmp_path / "dump", replace=True)
    end_upload(place.create(name), name, whole=True)
    assert (tmp_path / "dump").read_bytes() == b""


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("vmcore.incomplete", "record"):
        (tmp_path / name).symlink_to("precious")
    with pytest.raises(TargetUnusable):
        LocalPlace(tmp_path).create("vmcore")
    with pytest.raises(TargetUnusable):
        LocalPlace(tmp_path, replace=True).create("vmcore")
    LocalPlace(tmp_path).put("record", b"mine")
    assert (tmp_path / "precious").read_text() == "precious"


def test_full_disk(mount_tmpfs: MountTmpfs) -> None:
    folder = mount_tmpfs("size=8m")
    place = LocalTarget(folder, keep_free_bytes=MIB).open("dump")
    place.put("record", b"first")
    assert 6 * MIB < place.room_bytes() < 7 * MIB
    upload = place.create("vmcore")
    with pytest.raises(TargetFull, match="No space left"):
        upload.reserve(9 * MIB)
    with pytest.raises(TargetFull, match="No space left") as raised:
        upload.write_at(0, bytes(9 * MIB))
    assert raised.value.hint == "Make room on the target, or lower KeepFree=."
    assert place.room_bytes() == 0
    with pytest.raises(TargetFull):
        place.put("record", bytes(MIB))
    assert (folder / "dump/record").read_text() == "first"
    with pytest.raises(TargetFull, match=r"less than KeepFree=1M"):
        place.create("another")
    end_upload(upload, "vmcore", whole=False)


def test_room_for_a_record_is_kept_on_a_disk_that_is_full(mount_tmpfs: MountTmpfs) -> None:
    """As often as it is written, as long as there is some; then what was written last stays."""
    folder = mount_tmpfs("size=8m")
    place = LocalTarget(folder, kept_room={"record": 32 << 10}).open("dump")
    place.keep_room()
    place.put("record", b"first" * 1000)
    upload = place.create("vmcore")
    with pytest.raises(TargetFull):
        for offset in range(0, 9 * MIB, 4096):
            upload.write_at(offset, b"x" * 4096)
    assert place.room_bytes() == 0
    assert place.put("record", b"second" * 4000).bytes == 24000
    assert (folder / "dump/record").read_bytes() == b"second" * 4000
    assert [file.name for file in place.files()] == ["record", "vmcore.incomplete"]
    place.release_room()
    upload.abandon()
    assert sorted(path.name for path in (folder / "dump").iterdir()) == ["record", "vmcore.incomplete"]
    with pytest.raises(TargetFull):
        place.put("record", b"x" * MIB)
    assert (folder / "dump/record").read_bytes() == b"second" * 4000
    place.discard()
    assert list(folder.iterdir()) == []
    with pytest.raises(TargetFull):
        LocalTarget(folder, kept_room={"record": 9 * MIB}).open("dump").keep_room()


def test_room_for_production_is_kept_but_for_the_log(mount_tmpfs: MountTmpfs) -> None:
    place = LocalPlace(mount_tmpfs("size=8m"), keep_free_bytes=4 * MIB, flush_bytes=MIB)
    upload = place.create("vmcore")
    upload.write_at(0, b"x" * 3 * MIB)
    with pytest.raises(TargetFull, match=r"less than KeepFree=4M"):
        upload.write_at(3 * MIB, b"x" * 2 * MIB)
    assert upload.read_at(5 * MIB - 1, 1) == b"x"
    log = place.create("dmesg.txt", is_log=True)
    log.write_at(0, b"x" * 2 * MIB)
    assert log.publish("dmesg.txt").bytes == 2 * MIB
    upload.abandon()


@pytest.mark.parametrize(("options", "error"), [("size=8m,nr_inodes=3", TargetFull), ("ro", TargetUnusable)])
def test_no_file_can_be_made(
    mount_tmpfs: MountTmpfs, options: str, error: type[TargetFull | TargetUnusable]
) -> None:
    folder = mount_tmpfs(options)
    place = LocalPlace(folder)
    with pytest.raises(error) as raised:
        for name in ("first", "second", "third"):
            place.create(name).abandon()
    assert str(folder) in str(raised.value)
    with pytest.raises(error):
        place.put("record", b"x")
    with pytest.raises(error):
        LocalTarget(folder).open("dump")


def test_place_that_is_gone(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path / "gone")
    for act in (place.room_bytes, lambda: place.put("record", b""), lambda: place.create("vmcore")):
        with pytest.raises(TargetUnusable, match="gone"):
            act()
