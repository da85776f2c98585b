# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole capture, on a made vmcore in a root folder. Real crashes are in tests/vm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kdump_service.capture.pipeline import Capture, Interrupted, Surroundings
from kdump_service.errors import TargetFull
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord, DumpState
from kdump_service.target import local
from tests.builders.elf_core import PAGE, ElfCore, Segment
from tests.builders.machine_root import BOOT_ID, MachineRoot
from tests.builders.printk_ring import ADDRESS, VMCOREINFO, PrintkRing

CRASH_TIME = 1_795_406_400  # 2026-11-23T04:00:00Z
NAME = "20261123T040000Z-testhost"


LOG = ["Linux version 6.1", "Kernel panic - not syncing: made for a test"]


def _core() -> ElfCore:
    ring = PrintkRing()
    for line in LOG:
        ring.print(line)
    pages = b"".join(bytes([page % 7]) * PAGE for page in range(700))  # each seventh page is zero
    return ElfCore(
        segments=[
            Segment(0x4B800000, b"kernel text".ljust(5 * PAGE, b"\x90")),
            Segment(0x100000, pages),
            Segment(0x40000000, bytes(300 * PAGE)),
            Segment(0x80000000, os.urandom(2 * PAGE)),
            Segment(0x90000000, bytes(ring), ADDRESS),
        ],
        vmcoreinfo=VMCOREINFO
        | {"OSRELEASE": "6.1.0-99-amd64", "BUILD-ID": "abcdef", "CRASHTIME": str(CRASH_TIME)},
    )


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    machine = MachineRoot(tmp_path)
    machine.write("proc/vmcore", bytes(_core()))
    return machine


def _settings(machine: MachineRoot, **config: object) -> None:
    document = {
        "schema": 1,
        "boot_id": BOOT_ID,
        "host": "testhost",
        "config": {"keep_free_bytes": 0, **config},
    }
    machine.write("var/lib/kdump-service/capture.json", json.dumps(document))


def _run(machine: MachineRoot) -> DumpRecord:
    surroundings = Surroundings(
        KernelFiles(machine.path), notify=lambda text: None, clock=lambda: CRASH_TIME + 7.5
    )
    return Capture(surroundings).run()


def test_complete_dump_equals_the_source(machine: MachineRoot) -> None:
    _settings(machine)
    record = _run(machine)
    assert record.problems == []
    assert record.state is DumpState.COMPLETE
    folder = machine.path / "var/crash" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["dmesg.txt", "record.json", "vmcore"]
    assert (folder / "dmesg.txt").read_text() == "".join(
        f"[    1.50000{number}] {line}\n" for number, line in enumerate(LOG)
    )
    assert (record.panic_message, record.kernel_log_records) == (LOG[1], 2)
    vmcore = folder / "vmcore"
    assert vmcore.read_bytes() == (machine.path / "proc/vmcore").read_bytes()
    assert vmcore.stat().st_blocks * 512 < vmcore.stat().st_size - 300 * PAGE
    saved = DumpRecord.read(folder)
    saved.stage_seconds = record.stage_seconds  # the last stage is the writing of the record itself
    assert saved == record
    assert record.crash_time == "2026-11-23T04:00:00Z"
    assert record.seconds_to_saved == 7.5
    assert (record.kernel_release, record.kernel_build_id) == ("6.1.0-99-amd64", "abcdef")
    assert record.boot_id == BOOT_ID
    assert record.zero_bytes == (300 + 100) * PAGE
    assert record.peak_resident_kib == 21000


def test_only_root_can_read_it(machine: MachineRoot) -> None:
    _settings(machine)
    _run(machine)
    folder = machine.path / "var/crash" / NAME
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_lz4_frames_unpack_to_the_source(machine: MachineRoot, tmp_path: Path) -> None:
    _settings(machine, compression="lz4")
    record = _run(machine)
    assert record.state is DumpState.COMPLETE
    packed = machine.path / "var/crash" / NAME / "vmcore.lz4"
    unpacked = tmp_path / "unpacked"
    subprocess.run(["lz4", "-q", "-d", str(packed), str(unpacked)], check=True)
    assert unpacked.read_bytes() == (machine.path / "proc/vmcore").read_bytes()
    assert packed.stat().st_size < unpacked.stat().st_size / 10


def test_second_crash_in_the_same_second_keeps_the_first(machine: MachineRoot) -> None:
    _settings(machine)
    assert _run(machine).name == NAME
    assert _run(machine).name == f"{NAME}.2"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"config": 3}', '{"config": {"target": "nowhere", "compression": 5}}']
)
def test_damaged_settings_cost_no_dump(
    machine: MachineRoot, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "check_room", lambda folder, keep_free_bytes: None)
    machine.write("var/lib/kdump-service/capture.json", text)
    record = _run(machine)
    assert record.state is DumpState.COMPLETE
    assert [problem.stage for problem in record.problems] == ["settings"] * len(record.problems)
    assert (machine.path / "var/crash" / record.name / "vmcore").exists()


def test_without_vmcore_the_record_says_so(machine: MachineRoot) -> None:
    _settings(machine)
    (machine.path / "proc/vmcore").unlink()
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert [(problem.stage, problem.reason) for problem in record.problems] == [("identify", "bad-vmcore")]
    assert DumpRecord.read(machine.path / "var/crash" / record.name).state is DumpState.FAILED


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"garbage" * 100, bytes(ElfCore(e_class=1))])
def test_hostile_vmcore_is_refused_and_recorded(machine: MachineRoot, content: bytes) -> None:
    _settings(machine)
    machine.write("proc/vmcore", content)
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert record.problems[0].reason == "bad-vmcore"


def test_target_that_is_no_folder_leaves_a_record_elsewhere(machine: MachineRoot) -> None:
    _settings(machine)
    machine.write("var/crash", "a file in the way")
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert record.problems[0].reason == "target-unusable"
    saved = DumpRecord.read(machine.path / "var/lib/kdump-service/crash" / NAME)
    assert (saved.state, saved.problems) == (record.state, record.problems)


def test_target_not_mounted_is_not_written_to(machine: MachineRoot) -> None:
    document = {
        "config": {"target": "/mnt/dumps", "keep_free_bytes": 0},
        "target_mount_point": "/nonexistent-mount",
    }
    machine.write("var/lib/kdump-service/capture.json", json.dumps(document))
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert "not mounted" in record.problems[0].message
    assert not (machine.path / "mnt/dumps").exists()


def test_full_target_keeps_what_it_has_and_says_incomplete(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine)
    monkeypatch.setattr(local, "_FLUSH_BYTES", 64 * PAGE)
    calls = []

    def full_after_two(folder: Path, keep_free_bytes: int) -> None:
        calls.append(folder)
        if len(calls) > 2:
            raise TargetFull(f"{folder}: full")

    monkeypatch.setattr(local, "check_room", full_after_two)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [problem.reason for problem in record.problems] == ["target-full"]
    image = machine.path / "var/crash" / NAME / "vmcore.incomplete"
    with image.open("rb") as file:
        core = ELFFile(file)
        assert core.header["e_flags"] == 1
        assert core.num_segments() == 6
        assert image.stat().st_size == (machine.path / "proc/vmcore").stat().st_size


def test_interrupted_capture_is_incomplete(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine)

    def interrupt(*arguments: object) -> None:
        raise Interrupted

    monkeypatch.setattr("kdump_service.capture.pipeline.copy_image", interrupt)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [problem.reason for problem in record.problems] == ["interrupted"]


def test_image_changed_on_disk_is_never_called_good(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine)
    flush = local.LocalFile.flush

    def flush_and_damage(self: local.LocalFile) -> None:
        flush(self)
        with self.path.open("r+b") as file:
            file.seek(0x8000)
            file.write(b"\xff")

    monkeypatch.setattr(local.LocalFile, "flush", flush_and_damage)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert record.problems[0].reason == "verification-failed"
    assert "0x8000" in record.problems[0].message


def test_missing_compression_library_costs_no_dump(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, compression="lz4")
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    record = _run(machine)
    assert (record.state, record.compression) == (DumpState.COMPLETE, "none")
    assert "not compressing" in record.problems[0].message


def test_disk_that_fails_at_the_end_is_incomplete(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine)
    calls = []

    def failing_fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == "vmcore.incomplete":
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing_fsync)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert record.problems[0].stage == "commit"
    assert (machine.path / "var/crash" / NAME / "vmcore.incomplete").exists()
