# SPDX-License-Identifier: LGPL-2.1-or-later
"""Whatever happens while a file is written, its old content or the new one is there, whole."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdump_service.atomic_file import sync_folder, write_atomically


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    write_atomically(path, "old")
    return path


def _names(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_content_is_replaced(path: Path) -> None:
    write_atomically(path, "n\u00e9w\n")
    assert path.read_bytes() == "n\u00e9w\n".encode()
    assert _names(path) == ["file"]


# What a crash leaves


class _Edge:
    """Notes the calls that matter, in their order, and by the names of the files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, ...]] = []
        self._fsync, self._rename = os.fsync, os.rename
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(os, "rename", self.rename)

    def fsync(self, descriptor: int) -> None:
        # All of the content has left the buffers of the program by then.
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.seen.append(("fsync", file.name, file.read_text() if file.is_file() else ""))
        self._fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self.seen.append(("rename", source.name, target.name))
        self._rename(source, target)


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = _Edge(monkeypatch)
    write_atomically(path, "new")
    assert edge.seen == [
        ("fsync", ".file.new", "new"),
        ("rename", ".file.new", "file"),
        ("fsync", path.parent.name, ""),
    ]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_killed_while_it_writes(path: Path, call: str) -> None:
    child = os.fork()
    if child == 0:
        setattr(os, call, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        write_atomically(path, "new")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert path.read_text() == "old"
    assert _names(path) == [".file.new", "file"]
    # What it left is in nobody's way, however long it is.
    (path.parent / ".file.new").write_text("a longer text than the next one")
    write_atomically(path, "newer")
    assert path.read_text() == "newer"
    assert _names(path) == ["file"]


# What fails


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_error_leaves_the_old_content_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert _names(path) == ["file"]


def test_a_name_that_may_not_last_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, "new")
    assert path.read_text() == "new"
    assert _names(path) == ["file"]


def test_a_text_that_is_none_leaves_nothing(path: Path) -> None:
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half a pair: \ud800")
    assert path.read_text() == "old"
    assert _names(path) == ["file"]


def test_something_in_place_of_the_temporary_file(path: Path) -> None:
    (path.parent / ".file.new").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert _names(path) == [".file.new", "file"]


def test_no_such_folder(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(path.parent / "none" / "file", "new")


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_file_system(small_file_system: Path) -> None:
    path = small_file_system / "file"
    write_atomically(path, "old")
    with pytest.raises(OSError) as caught:
        write_atomically(path, "n" * (128 << 10))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == "old"
    assert _names(path) == ["file"]


def test_file_system_that_is_mounted_read_only(small_file_system: Path) -> None:
    path = small_file_system / "file"
    write_atomically(path, "old")
    subprocess.run(["mount", "-o", "remount,ro", small_file_system], check=True)
    with pytest.raises(OSError) as caught:
        write_atomically(path, "new")
    assert caught.value.errno == errno.EROFS
    assert path.read_text() == "old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every folder")
def test_folder_without_the_right_to_write(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        with pytest.raises(PermissionError):
            write_atomically(path, "new")
    finally:
        path.parent.chmod(0o700)
    assert path.read_text() == "old"


# Links and rights


def test_a_link_in_place_of_the_file_is_replaced(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    write_atomically(link, "new")
    assert (link.is_symlink(), link.read_text(), path.read_text()) == (False, "new", "old")


def test_a_link_in_place_of_the_temporary_file_is_not_followed(path: Path) -> None:
    precious = path.with_name("precious")
    precious.write_text("precious")
    path.with_name(".file.new").symlink_to(precious)
    with pytest.raises(OSError) as caught:
        write_atomically(path, "new")
    assert caught.value.errno == errno.ELOOP
    assert (precious.read_text(), path.read_text()) == ("precious", "old")


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_only_root_reads_what_is_not_said_to_be_for_others(path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_atomically(path, "secret")
        write_atomically(path.with_name("open"), "for all", mode=0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.with_name("open").stat().st_mode) == 0o644 & ~mask


def test_rights_of_the_file_before_do_not_last(path: Path) -> None:
    path.chmod(0o666)
    write_atomically(path, "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_sync_of_what_is_no_folder(path: Path) -> None:
    with pytest.raises(NotADirectoryError):
        sync_folder(path)


def test_no_descriptor_stays_open(path: Path) -> None:
    def count() -> int:
        return len([*Path("/proc/self/fd").iterdir()])

    before = count()
    write_atomically(path, "new")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "\ud800")
    assert count() == before
