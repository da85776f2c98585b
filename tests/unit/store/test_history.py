# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crashes are known after their dumps are gone."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from kdump_service.store import history
from kdump_service.store.dumps import Presence, scan
from kdump_service.store.history import catalogue
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import FALLBACK, TARGET, name_of, put_dump

RECORDS = "var/lib/kdump-service/records"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _remember_all(machine: MachineRoot) -> None:
    for dump in scan(machine.path, TARGET):
        history.remember(machine.path, dump)


def _presences(machine: MachineRoot, target: str = TARGET) -> dict[str, str]:
    return {dump.name: str(dump.presence) for dump in catalogue(machine.path, target)}


@pytest.mark.promise("same-bug")
def test_record_survives_its_dump(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    put_dump(machine, 2)
    _remember_all(machine)
    [before, _] = catalogue(machine.path, TARGET)
    shutil.rmtree(folder)
    [gone, there] = catalogue(machine.path, TARGET)
    assert (gone.name, gone.folder, gone.record) == (name_of(1), folder, before.record)
    assert (gone.presence, there.presence) == (Presence.MISSING, Presence.PRESENT)
    history.forget(machine.path, gone.name)
    assert _presences(machine) == {name_of(2): "present"}


def test_files_are_for_root_alone(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    _remember_all(machine)
    folder = machine.path / RECORDS
    assert oct(folder.stat().st_mode)[-3:] == "700"
    assert [oct(path.stat().st_mode)[-3:] for path in folder.iterdir()] == ["600"]


def test_target_that_cannot_be_read_makes_its_dumps_unreachable(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    put_dump(machine, 2, store=FALLBACK, state="failed")
    _remember_all(machine)
    shutil.rmtree(machine.path / "var/crash")
    machine.write("var/crash", "a file in its place")
    assert _presences(machine) == {name_of(1): "unreachable", name_of(2): "present"}


def test_another_target_makes_dumps_missing(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    _remember_all(machine)
    assert _presences(machine, "/srv/crash") == {name_of(1): "missing"}
    assert _presences(machine) == {name_of(1): "present"}


def test_disk_that_is_away_makes_dumps_unreachable(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = {machine.path / "var/crash"}
    monkeypatch.setattr(os.path, "ismount", lambda path: path in mounted)
    folder = put_dump(machine, 1)
    _remember_all(machine)
    entry = json.loads((machine.path / RECORDS / f"{name_of(1)}.json").read_text())
    assert (entry["folder"], entry["mount_point"]) == (f"/var/crash/{name_of(1)}", "/var/crash")
    shutil.rmtree(folder)
    assert _presences(machine) == {name_of(1): "missing"}
    mounted.clear()
    assert _presences(machine) == {name_of(1): "unreachable"}


def test_name_that_comes_again_is_another_crash(machine: MachineRoot) -> None:
    """Where the clock was set back, as on a board without a battery."""
    folder = put_dump(machine, 1)
    _remember_all(machine)
    [dump] = catalogue(machine.path, TARGET)
    assert history.is_known(machine.path, dump)
    shutil.rmtree(folder)
    put_dump(machine, 1, boot_id="f" * 32)
    [again] = catalogue(machine.path, TARGET)
    assert not history.is_known(machine.path, again)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "7", "[]", "{}", '{"schema": 1}', "\xff", "[" * 100_000,
        '{"schema": 1, "folder": 3, "mount_point": "", "record": {}}',
        '{"schema": 1, "folder": "/etc", "mount_point": "", "record": {}}',
        '{"schema": 2, "folder": "/var/crash/damaged", "mount_point": "", "record": {}}',
        '{"schema": 1, "folder": "/var/crash/damaged", "mount_point": 7, "record":'
        ' {"schema": 1, "name": "damaged", "state": "failed"}}',
        '{"schema": 1, "folder": "/var/crash/damaged", "mount_point": "", "record":'
        ' {"schema": 1, "name": "damaged", "state": "capturing"}}',
    ],
)  # fmt: skip
def test_damaged_entry_is_passed_over(machine: MachineRoot, text: str) -> None:
    put_dump(machine, 1)
    _remember_all(machine)
    machine.write(f"{RECORDS}/damaged.json", text)
    machine.write(f"{RECORDS}/.{name_of(1)}.json.new", "cut off while it was written")
    assert _presences(machine) == {name_of(1): "present"}


def test_history_that_is_no_folder_is_no_obstacle(machine: MachineRoot) -> None:
    machine.write(RECORDS, "a file in its place")
    put_dump(machine, 1)
    assert _presences(machine) == {name_of(1): "present"}
    with pytest.raises(OSError):
        _remember_all(machine)


def test_links_in_the_history_are_not_followed(machine: MachineRoot) -> None:
    folder = put_dump(machine, 1)
    _remember_all(machine)
    entry = machine.path / RECORDS / f"{name_of(1)}.json"
    entry.rename(machine.path / "elsewhere.json")
    entry.symlink_to(machine.path / "elsewhere.json")
    shutil.rmtree(folder)
    assert _presences(machine) == {}


def test_oldest_of_those_that_are_gone_are_dropped(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_RECORDS", 3)
    folders = [put_dump(machine, number) for number in range(6)]
    _remember_all(machine)
    for folder in folders[1:5]:
        shutil.rmtree(folder)
    history.prune(machine.path, {name_of(0), name_of(5)})
    assert _presences(machine) == {name_of(0): "present", name_of(4): "missing", name_of(5): "present"}


def test_marks_of_kept_dumps(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    put_dump(machine, 2)
    history.keep(machine.path, name_of(1), False)
    history.keep(machine.path, name_of(1), True)
    history.keep(machine.path, name_of(1), True)
    assert [dump.kept for dump in catalogue(machine.path, TARGET)] == [True, False]
    history.keep(machine.path, name_of(1), False)
    assert [dump.kept for dump in catalogue(machine.path, TARGET)] == [False, False]


def test_marks_that_cannot_be_read_protect_all(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    machine.write("var/lib/kdump-service/kept", "a file in its place")
    assert [dump.kept for dump in catalogue(machine.path, TARGET)] == [True]


def test_same_bug(machine: MachineRoot) -> None:
    for number, signature in enumerate(["a" * 16, "b" * 16, "a" * 16, "", ""]):
        put_dump(machine, number, signature=signature)
    dumps = catalogue(machine.path, TARGET)
    others = [[other.name for other in history.same_bug(dumps, dump)] for dump in dumps]
    assert others == [[name_of(2)], [], [name_of(0)], [], []]
