# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdump_service.kernel.files import KernelFiles
from kdump_service.record import FALLBACK_FOLDER, DumpRecord, DumpState
from kdump_service.service.crash_reports import report_crashes
from kdump_service.store.dumps import mark_reported, scan, unreported
from tests.builders.machine_root import MachineRoot

TARGET = "/var/crash"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _dump(
    machine: MachineRoot, name: str, state: DumpState = DumpState.COMPLETE, store: str = TARGET
) -> Path:
    record = DumpRecord(name=name, state=state)
    return machine.write(f"{store.lstrip('/')}/{name}/record.json", record.to_json()).parent


def test_oldest_first_from_both_places(machine: MachineRoot) -> None:
    _dump(machine, "2026-b")
    _dump(machine, "2026-c")
    _dump(machine, "2026-a", DumpState.FAILED, FALLBACK_FOLDER)
    assert [dump.folder.name for dump in scan(machine.path, TARGET)] == ["2026-a", "2026-b", "2026-c"]


def test_no_store_is_no_error(machine: MachineRoot) -> None:
    assert scan(machine.path, TARGET) == []


def test_what_is_no_dump_is_passed_over(machine: MachineRoot) -> None:
    _dump(machine, "good")
    machine.write("var/crash/_usr_bin_program.0.crash", "apport's")
    machine.write("var/crash/empty/readme", "")
    machine.write("var/crash/torn/record.json", '{"schema": 1, "na')
    machine.write("var/crash/binary/record.json", b"\xff\xfe")
    os.mkfifo(machine.write("var/crash/fifo/x", "").with_name("record.json"))
    elsewhere = machine.write("elsewhere/record.json", DumpRecord(name="x").to_json()).parent
    (machine.path / "var/crash/link").symlink_to(elsewhere)
    assert [dump.folder.name for dump in scan(machine.path, TARGET)] == ["good"]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which takes root")
def test_folders_of_others_are_no_dumps(machine: MachineRoot) -> None:
    os.chown(_dump(machine, "planted"), 65534, 65534)
    assert scan(machine.path, TARGET) == []


def test_cut_off_capture_is_judged_by_its_files(machine: MachineRoot) -> None:
    folder = _dump(machine, "with-image", DumpState.CAPTURING)
    (folder / "vmcore.incomplete").write_bytes(bytes(5000))
    _dump(machine, "without", DumpState.CAPTURING)
    with_image, without = scan(machine.path, TARGET)
    assert with_image.record.state is DumpState.INCOMPLETE
    assert with_image.image == folder / "vmcore.incomplete"
    assert (without.record.state, without.image) == (DumpState.FAILED, None)


def test_each_is_reported_once(machine: MachineRoot) -> None:
    _dump(machine, "first")
    files = KernelFiles(machine.path)
    assert report_crashes(files, TARGET) == 1
    assert report_crashes(files, TARGET) == 0
    _dump(machine, "second")
    assert report_crashes(files, TARGET) == 1


@pytest.mark.parametrize("text", ["", "{", "7", '{"a": 1}', "[3]"])
def test_damaged_memory_of_reports_reports_again(machine: MachineRoot, text: str) -> None:
    _dump(machine, "first")
    dumps = scan(machine.path, TARGET)
    mark_reported(machine.path, dumps)
    assert unreported(machine.path, dumps) == []
    machine.write("var/lib/kdump-service/reported.json", text)
    assert unreported(machine.path, dumps) == dumps


def test_report_that_cannot_be_remembered_is_made_all_the_same(machine: MachineRoot) -> None:
    _dump(machine, "first")
    machine.write("var/lib/kdump-service", "a file in the way")
    assert report_crashes(KernelFiles(machine.path), TARGET) == 1
