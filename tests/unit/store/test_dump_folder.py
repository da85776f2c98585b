# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open and delete dumps, also where somebody else can write to the folder above them."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_service.errors import DumpMissing, InvalidArgument, TargetUnusable
from kdump_service.store import dump_folder, history
from kdump_service.store.dump_folder import delete, keep, occupied_bytes, open_file
from kdump_service.store.dumps import Presence, StoredDump
from kdump_service.store.history import catalogue
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import TARGET, name_of, put_dump

NOBODY = 65534


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _only(machine: MachineRoot) -> StoredDump:
    [dump] = catalogue(machine.path, TARGET)
    return dump


def _read(descriptor: int) -> bytes:
    with open(descriptor, "rb") as file:
        return file.read()


def test_files_by_their_words(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    dump = _only(machine)
    assert _read(open_file(dump, "image")).startswith(b"image 1")
    assert _read(open_file(dump, "log")) == b"the log\n"
    assert _read(open_file(dump, "record")).startswith(b"{")


def test_descriptor_can_only_be_read(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    descriptor = open_file(_only(machine), "image")
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    assert flags & (os.O_ACCMODE | os.O_NONBLOCK) == os.O_RDONLY
    assert not os.get_inheritable(descriptor)
    with pytest.raises(OSError):
        os.write(descriptor, b"x")
    os.close(descriptor)


def test_log_that_was_cut_off(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    (folder / "dmesg.txt").rename(folder / "dmesg.txt.incomplete")
    assert _read(open_file(_only(machine), "log")) == b"the log\n"


@pytest.mark.parametrize(
    "word", ["", "vmcore", "dmesg.txt", "../image", "image\0", "IMAGE", "/etc/shadow", "x" * 9999, "\ud800"]
)
def test_other_words_are_refused(machine: MachineRoot, word: str) -> None:
    put_dump(machine, 1)
    with pytest.raises(InvalidArgument) as caught:
        open_file(_only(machine), word)
    str(caught.value).encode()


def test_what_is_not_there(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    put_dump(machine, 2, state="failed", files=[])
    first, second = catalogue(machine.path, TARGET)
    with pytest.raises(DumpMissing):
        open_file(second, "image")
    (folder / "vmcore").unlink()
    with pytest.raises(DumpMissing):
        open_file(first, "image")
    for each in (folder / "record.json", folder / "dmesg.txt"):
        each.unlink()
    folder.rmdir()
    with pytest.raises(DumpMissing):
        open_file(first, "record")
    with pytest.raises(TargetUnusable):
        open_file(replace(first, presence=Presence.UNREACHABLE), "record")


def test_links_pipes_and_folders_are_not_opened(machine: MachineRoot) -> None:
    secret = machine.write("etc/shadow", "secret")
    folder = put_dump(machine, 1)
    dump = _only(machine)
    image = folder / "vmcore"
    image.unlink()
    image.symlink_to(secret)
    with pytest.raises(TargetUnusable):
        open_file(dump, "image")
    image.unlink()
    os.mkfifo(image)
    with pytest.raises(TargetUnusable):
        open_file(dump, "image")
    image.unlink()
    image.mkdir()
    with pytest.raises(TargetUnusable):
        open_file(dump, "image")
    moved = folder.rename(folder.with_name("moved"))
    folder.symlink_to(moved)
    with pytest.raises(TargetUnusable):
        open_file(dump, "log")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which takes root")
def test_files_of_others_are_not_opened(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    dump = _only(machine)
    os.chown(folder / "vmcore", NOBODY, NOBODY)
    with pytest.raises(TargetUnusable):
        open_file(dump, "image")
    os.chown(folder, NOBODY, NOBODY)
    with pytest.raises(TargetUnusable):
        open_file(dump, "log")
    with pytest.raises(TargetUnusable):
        delete(machine.path, dump)
    assert (folder / "vmcore").exists()


def test_delete_leaves_the_record_then_forgets_it(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    machine.write(f"var/crash/{name_of(1)}/notes/deeper/of-an-administrator", "x")
    keep(machine.path, _only(machine), True)
    delete(machine.path, _only(machine))
    assert not folder.exists()
    gone = _only(machine)
    assert (gone.presence, gone.kept) == (Presence.MISSING, False)
    assert gone.record.signature == "0123456789abcdef"
    delete(machine.path, gone)
    assert catalogue(machine.path, TARGET) == []
    delete(machine.path, gone)  # once more is no error


def test_delete_of_what_is_gone_meanwhile(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    dump = _only(machine)
    folder.rename(machine.path / "elsewhere")
    delete(machine.path, dump)
    assert _only(machine).presence is Presence.MISSING


def test_delete_follows_no_links(machine: MachineRoot) -> None:
    precious = machine.write("home/precious/file", "precious")
    folder = put_dump(machine, 1)
    (folder / "link-to-file").symlink_to(precious)
    (folder / "link-to-folder").symlink_to(precious.parent)
    (folder / "hard-link").hardlink_to(precious)
    delete(machine.path, _only(machine))
    assert not folder.exists()
    assert precious.read_text() == "precious"


def test_delete_where_the_name_is_a_link_now(machine: MachineRoot) -> None:
    precious = machine.write("home/precious/record.json", "precious")
    folder = put_dump(machine, 1)
    dump = _only(machine)
    folder.rename(machine.path / "moved")
    folder.symlink_to(precious.parent)
    with pytest.raises(TargetUnusable):
        delete(machine.path, dump)
    assert precious.exists()


def test_unreachable_is_not_deleted(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    dump = _only(machine)
    history.remember(machine.path, dump)
    with pytest.raises(TargetUnusable):
        delete(machine.path, replace(dump, presence=Presence.UNREACHABLE))
    assert _only(machine).presence is Presence.PRESENT


def test_what_cannot_be_removed_is_named(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put_dump(machine, 1)
    machine.write(f"var/crash/{name_of(1)}/sub/stuck", "x")
    real = os.unlink

    def unlink(path: str, *, dir_fd: int | None = None) -> None:
        if path == "stuck":
            raise OSError(errno.EPERM, "Operation not permitted", path)
        real(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(TargetUnusable, match=f"{folder}/sub/stuck: Operation not permitted"):
        delete(machine.path, _only(machine))
    # Cut off, the deletion leaves a dump that is listed and can be deleted.
    assert (folder / "record.json").exists()
    monkeypatch.undo()
    delete(machine.path, _only(machine))
    assert _only(machine).presence is Presence.MISSING


def test_folders_without_end_are_left(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    machine.write(f"var/crash/{name_of(1)}/" + "a/" * 200 + "file", "x")
    with pytest.raises(TargetUnusable, match="lies too deep"):
        delete(machine.path, _only(machine))
    assert folder.exists()


def test_full_disk_does_not_keep_a_dump_from_being_deleted(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    machine.write("var/lib/kdump-service/records", "a file in its place")
    delete(machine.path, _only(machine))
    assert not folder.exists()


def test_nobody_who_swaps_names_gets_another_folder_deleted(machine: MachineRoot) -> None:
    """Somebody renames a link and a folder over the dump's name, again and again, while it is deleted."""
    precious = machine.write("home/precious/file", "precious")
    stop = threading.Event()

    def swap() -> None:
        place = machine.path / "var/crash"
        link = place / "evil"
        while not stop.is_set():
            for number in range(40):
                name = place / name_of(number)
                link.unlink(missing_ok=True)
                link.symlink_to(precious.parent)
                try:
                    aside = name.rename(place / f"aside{number}")
                    link.rename(name)
                    name.unlink()
                    aside.rename(name)
                except OSError:
                    continue

    swapper = threading.Thread(target=swap)
    for number in range(40):
        put_dump(machine, number)
    dumps = catalogue(machine.path, TARGET)
    swapper.start()
    try:
        for dump in dumps:
            try:
                delete(machine.path, dump)
            except TargetUnusable:
                continue
    finally:
        stop.set()
        swapper.join()
    assert precious.read_text() == "precious"


def test_occupied_is_what_the_file_system_counts(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    with open(folder / "sparse", "wb") as file:
        file.truncate(1 << 30)
    size = occupied_bytes(_only(machine))
    assert size == sum(path.stat().st_blocks for path in folder.iterdir()) * 512
    assert size < 1 << 20


def test_target_that_hangs_is_no_wait(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dump(machine, 1)
    dump = _only(machine)
    answers = threading.Event()

    def hangs(path: Path) -> object:
        answers.wait()
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(dump_folder, "PATIENCE_SEC", 0.05)
    monkeypatch.setattr(dump_folder, "own_folder", hangs)
    with pytest.raises(TargetUnusable, match="does not answer"):
        open_file(dump, "image")
    with pytest.raises(TargetUnusable, match="does not answer"):
        delete(machine.path, dump)
    answers.set()
