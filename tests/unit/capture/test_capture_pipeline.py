# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole capture, on a made vmcore in a root folder. Real crashes are in tests/vm."""

from __future__ import annotations

import dataclasses
import errno
import faulthandler
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from kdump_service.arm.loader import Loader, LoadRequest
from kdump_service.arm.plan import plan_load, write_capture_settings
from kdump_service.capture import image
from kdump_service.capture.action import final_action
from kdump_service.capture.kernel_log import read_kernel_log
from kdump_service.capture.pipeline import Capture, Surroundings
from kdump_service.capture.stages import Interrupted, Stages
from kdump_service.config import Config
from kdump_service.dumpfile.kdump_writer import KdumpWriter
from kdump_service.dumpfile.open_image import open_image
from kdump_service.errors import BadVmcore, TargetFull, WorkerFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord, DumpState
from kdump_service.targets import local
from kdump_service.vmcore.reader import Vmcore
from tests.builders.elf_core import PAGE, ElfCore, Segment
from tests.builders.machine_disks import small_image_machine
from tests.builders.machine_root import BOOT_ID, FakeKernel, MachineRoot
from tests.builders.printk_ring import ADDRESS, VMCOREINFO, PrintkRing

CRASH_TIME = 1_795_406_400  # 2026-11-23T04:00:00Z
NAME = "20261123T040000Z-testhost"


LOG = ["Linux version 6.1", "Kernel panic - not syncing: made for a test"]


def _core(
    lines: Sequence[tuple[float, str]] = ((1.5, LOG[0]), (1.500001, LOG[1])), ring: PrintkRing | None = None
) -> ElfCore:
    """``lines`` of the log, with the seconds when they were printed."""
    ring = ring or PrintkRing()
    for seconds, line in lines:
        ring.print(line, nsec=round(seconds * 10**9))
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
        "config": {"keep_free_bytes": 0, "contents": "everything", **config},
    }
    machine.write("var/lib/kdump-service/capture.json", json.dumps(document))


def _run(machine: MachineRoot) -> DumpRecord:
    surroundings = Surroundings(
        KernelFiles(machine.path), notify=lambda text: None, clock=lambda: CRASH_TIME + 7.5
    )
    return Capture(surroundings).run()


def _without_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where numpy is not installed: the plain copy is left."""
    monkeypatch.setitem(sys.modules, "kdump_service.capture.image", None)


def _same_pages(machine: MachineRoot, name: str) -> None:
    """Each page of the dump is the page of /proc/vmcore."""
    with (
        open_image(machine.path / "proc/vmcore") as source,
        open_image(machine.path / "var/crash" / NAME / name) as saved,
    ):
        assert not saved.incomplete
        for segment in _core().segments:
            content = source.image.read_physical(segment.physical, len(segment.content))
            assert saved.image.read_physical(segment.physical, len(segment.content)) == content


@pytest.mark.promise("kdump-zstd")
def test_complete_dump_has_every_page(machine: MachineRoot) -> None:
    _settings(machine)
    record = _run(machine)
    assert record.problems == []
    assert record.state is DumpState.COMPLETE
    assert (record.format, record.compression, record.dump_level) == ("kdump", "zstd", 1)
    _same_pages(machine, "vmcore")
    pages = sum(-(-len(segment.content) // PAGE) for segment in _core().segments)
    assert (record.pages, record.lost_pages) == (pages, 0)
    assert record.zero_pages >= 400
    image = (machine.path / "var/crash" / NAME / "vmcore").read_bytes()
    assert sum(part.length for part in record.image_parts) == len(image)
    for part in record.image_parts:
        content = image[part.offset : part.offset + part.length]
        assert hashlib.sha256(content).hexdigest() == part.sha256, part.name
    assert (record.crash_kind, record.panic_message) == ("panic", LOG[1])
    assert len(record.signature) == 16


@pytest.mark.parametrize(
    ("settings", "name", "form"),
    [
        ({"compression": "zlib", "compression_level": "3"}, "vmcore", ("kdump", "zlib")),
        ({"compression": "none", "threads": "3"}, "vmcore", ("kdump", "none")),
        ({"format": "elf"}, "vmcore", ("elf", "none")),
        ({"format": "elf", "compression": "lz4", "dump_level": "0"}, "vmcore.lz4", ("elf", "lz4")),
    ],
)
@pytest.mark.promise("elf", "elf-lz4", "kdump-zlib", "kdump-none")
def test_every_form_has_every_page(
    machine: MachineRoot, settings: dict[str, str], name: str, form: tuple[str, str]
) -> None:
    _settings(machine, **settings)
    record = _run(machine)
    assert (record.problems, record.state) == ([], DumpState.COMPLETE)
    assert (record.format, record.compression) == form
    _same_pages(machine, name)


@pytest.mark.promise("never-lose-the-log")
def test_contents_log_saves_the_log_alone(machine: MachineRoot) -> None:
    _settings(machine, contents="log")
    record = _run(machine)
    assert (record.problems, record.state, record.format) == ([], DumpState.COMPLETE, "none")
    folder = machine.path / "var/crash" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["dmesg.txt", "record.json"]


def test_pages_that_cannot_be_told_apart_are_all_kept(machine: MachineRoot) -> None:
    _settings(machine, contents="kernel")  # this VMCOREINFO says nothing of struct pages
    record = _run(machine)
    assert record.state is DumpState.COMPLETE
    assert [problem.reason for problem in record.problems] == ["bad-vmcore"]
    assert "all are kept" in record.problems[0].message
    _same_pages(machine, "vmcore")


@pytest.mark.promise("steps-down", "never-lose-the-log", "target-full")
def test_too_little_room_for_what_is_configured(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, compression="none")
    monkeypatch.setattr(local.LocalPlace, "room_bytes", lambda self: 20 * PAGE)
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert record.problems[-1].reason == "target-full"
    assert "only the kernel's log was saved" in record.problems[-1].message
    folder = machine.path / "var/crash" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["dmesg.txt", "record.json"]


# Disks that are full


@pytest.fixture
def mount_tmpfs(machine: MachineRoot) -> Iterator[Callable[[str, int], None]]:
    """Mounts a file system of so many KiB below the machine's root."""
    if os.geteuid():
        pytest.skip("mounting takes root")
    mounted: list[Path] = []

    def mount(folder: str, size_kib: int) -> None:
        point = machine.path / folder
        point.mkdir(parents=True, exist_ok=True)
        options = f"size={size_kib}k,mode=755"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", point], check=True)
        mounted.append(point)

    yield mount
    for point in mounted:
        subprocess.run(["umount", point], check=True)


def _with_a_long_log(machine: MachineRoot) -> None:
    """Of 90 KiB."""
    lines = [(number / 10, f"line {number} {'x' * 3000}") for number in range(30)]
    core = _core([*lines, (10.0, LOG[1])], PrintkRing(count_bits=5, size_bits=17))
    machine.write("proc/vmcore", bytes(core))


@pytest.mark.promise("never-lose-the-log", "target-full")
def test_log_that_does_not_fit_goes_where_it_does(
    machine: MachineRoot, mount_tmpfs: Callable[[str, int], None]
) -> None:
    _settings(machine)
    _with_a_long_log(machine)
    mount_tmpfs("var/crash", 64)
    record = _run(machine)
    folder = machine.path / "var/lib/kdump-service/crash" / NAME
    text = (folder / "dmesg.txt").read_text()
    assert [f"line {number} " in text for number in range(30)] == [True] * 30
    assert text.rstrip().endswith(LOG[1])
    saved = DumpRecord.read(folder)
    assert (saved.state, saved.panic_message, saved.kernel_log_records) == (DumpState.FAILED, LOG[1], 31)
    assert [(problem.stage, problem.reason) for problem in saved.problems] == [("kernel-log", "target-full")]
    assert saved == dataclasses.replace(record, stage_seconds=saved.stage_seconds)
    assert list((machine.path / "var/crash").iterdir()) == []


@pytest.mark.promise("never-lose-the-log", "target-full")
def test_newest_lines_go_where_there_is_most_room(
    machine: MachineRoot, mount_tmpfs: Callable[[str, int], None]
) -> None:
    _settings(machine)
    _with_a_long_log(machine)
    mount_tmpfs("var/crash", 48)
    mount_tmpfs("var/lib/kdump-service/crash", 100)
    machine.write("var/lib/kdump-service/crash/other", "x" * (20 << 10))
    record = _run(machine)
    folder = machine.path / "var/lib/kdump-service/crash" / NAME
    text = (folder / "dmesg.txt.incomplete").read_text()
    assert text.startswith("[older lines of the log found no room]\n")
    assert text.rstrip().endswith(LOG[1])
    kept = [number for number in range(30) if f"line {number} " in text]
    assert kept == list(range(30 - len(kept), 30))
    assert len(kept) > 5
    saved = DumpRecord.read(folder)
    assert (saved.state, saved.panic_message) == (DumpState.FAILED, LOG[1])
    assert saved.kernel_log_records == record.kernel_log_records == len(kept) + 1
    assert [file.name for file in saved.files] == ["dmesg.txt.incomplete"]
    assert list((machine.path / "var/crash").iterdir()) == []


@pytest.mark.promise("never-lose-the-log", "target-full")
def test_log_that_finds_no_place_is_said(
    machine: MachineRoot, mount_tmpfs: Callable[[str, int], None], tmp_path: Path
) -> None:
    _settings(machine)
    _with_a_long_log(machine)
    for folder in ("var/crash", "var/lib/kdump-service/crash"):
        mount_tmpfs(folder, 4)
        machine.write(f"{folder}/other", "x" * (4 << 10))
    console = logging.FileHandler(tmp_path / "console")  # a child writes to it, too
    logging.getLogger("kdump_service").addHandler(console)
    try:
        record = _run(machine)
    finally:
        logging.getLogger("kdump_service").removeHandler(console)
        console.close()
    assert (record.state, record.panic_message) == (DumpState.FAILED, LOG[1])
    said = (tmp_path / "console").read_text()
    begin = said.index("----- end of the crashed kernel's log, which no place took -----")
    end = said.index("----- that was all -----")
    assert said[begin:end].rstrip().endswith(LOG[1])
    assert "line 29 " in said[begin:end]
    assert "line 0 " not in said[begin:end]


@pytest.mark.promise("target-full", "incomplete-says-so", "never-lose-the-log")
def test_image_that_does_not_fit_is_begun_and_its_record_is_written(
    machine: MachineRoot, mount_tmpfs: Callable[[str, int], None]
) -> None:
    _settings(machine, compression="none")
    mount_tmpfs("var/crash", 1200)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert record.problems[-1].reason == "target-full"
    assert "No space left" in record.problems[-1].message
    folder = machine.path / "var/crash" / NAME
    assert os.statvfs(folder).f_bavail * PAGE < 256 << 10  # of the batch that found no room
    saved = DumpRecord.read(folder)
    assert (saved.state, saved.panic_message) == (DumpState.INCOMPLETE, LOG[1])
    assert record.pages > 100
    assert sorted(path.name for path in folder.iterdir()) == [
        "dmesg.txt",
        "record.json",
        "vmcore.incomplete",
    ]
    with open_image(folder / "vmcore.incomplete") as opened:
        assert opened.incomplete
        content = _core().segments[1].content[: 100 * PAGE]
        assert opened.image.read_physical(0x100000, 100 * PAGE) == content


@pytest.mark.promise("engine-missing")
def test_without_the_engine_the_copy_equals_the_source(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine)
    _without_engine(monkeypatch)
    record = _run(machine)
    assert [problem.stage for problem in record.problems] == ["load-engine"]
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
    assert record.peak_resident_kib == 21000


@pytest.mark.promise("only-the-right-person")
def test_only_root_can_read_it(machine: MachineRoot) -> None:
    _settings(machine)
    _run(machine)
    folder = machine.path / "var/crash" / NAME
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_second_crash_in_the_same_second_keeps_the_first(machine: MachineRoot) -> None:
    _settings(machine)
    assert _run(machine).name == NAME
    assert _run(machine).name == f"{NAME}.2"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"config": 3}',
        '{"config": {"target": "nowhere", "compression": 5}}',
        f'{{"host": "{"x" * 300}", "config": {{}}}}',  # a name that no folder can have
        '{"target_folder": "/\\u0000", "config": {}}',
        '{"target_mount_point": "/\\ud800", "config": {}}',
        '{"schema": 2, "config": {}}',
    ],
)
@pytest.mark.promise("bad-settings")
def test_damaged_settings_cost_no_dump(
    machine: MachineRoot, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "check_room", lambda folder, keep_free_bytes: None)
    machine.write("var/lib/kdump-service/capture.json", text)
    record = _run(machine)
    assert record.state is DumpState.COMPLETE
    assert {problem.stage for problem in record.problems} <= {"settings", "survey"}
    told = [problem for problem in record.problems if problem.stage == "settings"]
    assert told and all("capture.json" in problem.message for problem in told)
    assert {problem.reason for problem in told} == {"bad-configuration"}
    assert DumpRecord.read(machine.path / "var/crash" / record.name).problems == record.problems
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


@pytest.mark.promise("target-missing")
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


def _full_after(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The target has room so many times that it is asked, then no more."""
    monkeypatch.setattr(local, "_FLUSH_BYTES", 64 * PAGE)
    calls = []

    def full_at_last(folder: Path, keep_free_bytes: int) -> None:
        calls.append(folder)
        if len(calls) > times:
            raise TargetFull(f"{folder}: full")

    monkeypatch.setattr(local, "check_room", full_at_last)


@pytest.mark.promise("no-broken-dump-as-good", "target-full", "incomplete-says-so")
def test_full_target_keeps_what_it_has_and_says_incomplete(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, compression="none")
    _full_after(monkeypatch, 7)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [problem.reason for problem in record.problems] == ["target-full"]
    assert record.pages > 200
    with open_image(machine.path / "var/crash" / NAME / "vmcore.incomplete") as saved:
        assert saved.incomplete
        first = saved.image.read_physical(0x100000, 100 * PAGE)
        assert first == _core().segments[1].content[: 100 * PAGE]
        with pytest.raises(BadVmcore, match="was lost"):
            saved.image.read_physical(0x90000000, PAGE)


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        (WorkerFailed("IndexError: a fault of ours"), "worker-failed"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "internal-error"),  # of fork(2)
        (MemoryError(), "no-memory"),
        (ZeroDivisionError("a fault of ours"), "internal-error"),
    ],
)
@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"contents": "kernel"}, False),
        ({"contents": "kernel", "plain_copy": "yes"}, True),
        ({"contents": "user"}, False),
        ({"contents": "everything"}, True),
        ({"dump_level": 16}, False),
        ({"dump_level": 0, "contents": "kernel"}, True),
    ],
)
@pytest.mark.promise("only-the-right-person")
def test_an_engine_that_fails_leaves_the_plain_copy_where_it_is_allowed(
    machine: MachineRoot,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    reason: str,
    settings: dict[str, Any],
    allowed: bool,
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise failure

    _settings(machine, **settings)
    monkeypatch.setattr("kdump_service.capture.image.survey_pages", fail)
    record = _run(machine)
    told = [(problem.stage, problem.reason) for problem in record.problems]
    vmcore = machine.path / "var/crash" / NAME / "vmcore"
    if allowed:
        assert told == [("survey", reason)]
        assert (record.state, record.format, record.dump_level) == (DumpState.COMPLETE, "elf", 0)
        assert vmcore.read_bytes() == (machine.path / "proc/vmcore").read_bytes()
    else:
        assert told == [("survey", reason), ("plain-copy", "plain-copy-refused")]
        assert record.state is DumpState.FAILED
        assert not list(vmcore.parent.glob("vmcore*"))


def test_an_engine_that_dies_is_tried_again_with_less(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, threads=3)
    plan_image = image.plan_image

    def die_unless_alone(source: Any, options: Any, *others: Any) -> Any:
        if options.threads > 1:
            _die(signal.SIGKILL)()
        return plan_image(source, options, *others)

    monkeypatch.setattr(image, "plan_image", die_unless_alone)
    record = _run(machine)
    assert (record.state, len(record.problems)) == (DumpState.COMPLETE, 1)
    assert "was killed by SIGKILL" in record.problems[0].message
    _same_pages(machine, "vmcore")


def test_an_interrupted_survey_is_the_end(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise Interrupted

    _settings(machine)
    monkeypatch.setattr("kdump_service.capture.image.survey_pages", interrupt)
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert [problem.reason for problem in record.problems] == ["interrupted"]


def test_full_target_and_a_plain_copy(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine)
    _without_engine(monkeypatch)
    _full_after(monkeypatch, 3)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert record.problems[-1].reason == "target-full"
    image = machine.path / "var/crash" / NAME / "vmcore.incomplete"
    with image.open("rb") as file:
        core = ELFFile(file)
        assert core.header["e_flags"] == 1
        assert core.num_segments() == 6
        assert image.stat().st_size == (machine.path / "proc/vmcore").stat().st_size


@pytest.mark.promise("no-broken-dump-as-good")
def test_interrupted_capture_is_incomplete(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine)

    def interrupt(*arguments: object) -> None:
        raise Interrupted

    monkeypatch.setattr("kdump_service.dumpfile.kdump_writer.KdumpWriter._place", interrupt)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [problem.reason for problem in record.problems] == ["interrupted"]


# What becomes of the process that reads the memory


def _die(number: signal.Signals) -> Callable[..., None]:
    def die(*arguments: object, **options: object) -> None:
        faulthandler.disable()
        os.kill(os.getpid(), number)

    return die


def _at_page(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Do this when so many batches of pages have been written."""
    place = KdumpWriter._place
    calls = []

    def act_at_last(self: KdumpWriter, *batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == number:
            act()
        return place(self, *batch)

    monkeypatch.setattr(KdumpWriter, "_place", act_at_last)


@pytest.mark.promise("never-lose-the-log")
def test_what_kills_the_engine_costs_neither_log_nor_record(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, contents="kernel")
    monkeypatch.setattr("kdump_service.capture.image.survey_pages", _die(signal.SIGBUS))
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert [(problem.stage, problem.reason) for problem in record.problems] == [
        *[("image", "worker-failed")] * 2,
        ("plain-copy", "plain-copy-refused"),
    ]
    assert "was killed by SIGBUS" in record.problems[0].message
    assert "leaves out; PlainCopy=yes allows it" in record.problems[2].message
    assert DumpRecord.read(machine.path / "var/crash" / NAME).panic_message == LOG[1]
    assert (machine.path / "var/crash" / NAME / "dmesg.txt").exists()


@pytest.mark.promise("no-broken-dump-as-good", "incomplete-says-so")
def test_what_kills_the_engine_while_it_writes(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine, compression="none")
    _at_page(monkeypatch, 5, _die(signal.SIGKILL))
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert "was killed by SIGKILL" in record.problems[0].message
    saved = DumpRecord.read(machine.path / "var/crash" / NAME)
    assert saved.panic_message == LOG[1]
    [log_file, image] = saved.files
    path = machine.path / "var/crash" / NAME / "vmcore.incomplete"
    assert (log_file.name, image.name, image.size_bytes) == (
        "dmesg.txt",
        "vmcore.incomplete",
        path.stat().st_size,
    )
    with open_image(path) as opened:
        assert opened.incomplete


@pytest.mark.promise("no-broken-dump-as-good", "incomplete-says-so")
def test_sigterm_while_pages_are_written(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were written are described: the child comes to an end."""
    _settings(machine, compression="none")
    supervisor = os.getpid()

    def terminate() -> None:
        os.kill(supervisor, signal.SIGTERM)
        signal.pause()

    _at_page(monkeypatch, 5, terminate)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [(problem.stage, problem.reason) for problem in record.problems] == [
        ("write-image", "interrupted")
    ]
    assert record.pages > 100
    with open_image(machine.path / "var/crash" / NAME / "vmcore.incomplete") as saved:
        assert saved.image.read_physical(0x100000, 100 * PAGE) == _core().segments[1].content[: 100 * PAGE]


@pytest.mark.parametrize("when", ["load-engine", "kernel-log", "identify"])
@pytest.mark.promise("only-the-right-person")
def test_sigterm_is_followed_by_no_plain_copy(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    _settings(machine, contents="kernel")
    supervisor = os.getpid()
    done = Stages.__call__

    def terminate(self: Stages, name: str) -> AbstractContextManager[None]:
        if name == when and os.getpid() != supervisor:
            os.kill(supervisor, signal.SIGTERM)
            signal.pause()
        return done(self, name)

    monkeypatch.setattr(Stages, "__call__", terminate)
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert [problem.reason for problem in record.problems] == ["interrupted"]
    saved = DumpRecord.read(machine.path / "var/crash" / record.name)
    assert (saved.state, saved.problems) == (record.state, record.problems)
    assert not list((machine.path / "var/crash" / record.name).glob("vmcore*"))


@pytest.mark.parametrize("dies", ["open_vmcore", "save_kernel_log"])
def test_what_kills_who_reads_the_log_costs_the_log(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    """Of the headers, the name by the crash; the image is saved all the same."""
    _settings(machine)
    monkeypatch.setattr(f"kdump_service.capture.pipeline.{dies}", _die(signal.SIGSEGV))
    record = _run(machine)
    assert record.state is DumpState.COMPLETE
    assert {problem.reason for problem in record.problems} == {"worker-failed"}
    assert (machine.path / "var/crash" / record.name / "vmcore").exists()


# Pages that kill whoever reads them


def _poison(monkeypatch: pytest.MonkeyPatch, machine: MachineRoot, *physical: int) -> None:
    """From now on, reading these pages of /proc/vmcore kills."""
    with open_image(machine.path / "proc/vmcore") as opened:
        assert isinstance(opened.image, Vmcore)
        offsets = [
            extent.offset + address - extent.start
            for address in physical
            for extent in opened.image.extents
            if extent.start <= address < extent.end
        ]
    assert len(offsets) == len(physical)

    def guarded(length_of: Callable[[Any], int], read: Callable[..., Any]) -> Callable[..., Any]:
        def guarded_read(descriptor: int, what: Any, offset: int) -> Any:
            length = length_of(what)
            if Path(f"/proc/self/fd/{descriptor}").readlink().name == "vmcore" and any(
                offset < bad + PAGE and bad < offset + length for bad in offsets
            ):
                _die(signal.SIGBUS)()
            return read(descriptor, what, offset)

        return guarded_read

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    refusing = SimpleNamespace(mmap=refuse, MAP_PRIVATE=0, PROT_READ=0)
    monkeypatch.setattr("kdump_service.vmcore.reader.mmap", refusing)
    monkeypatch.setattr(os, "pread", guarded(int, os.pread))
    monkeypatch.setattr(os, "preadv", guarded(lambda views: sum(map(len, views)), os.preadv))


@pytest.mark.promise("never-lose-the-log")
def test_a_page_of_the_log_kills(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs the records that lie in it, wholly or in part."""
    lines = [(number / 10, f"line {number} {'x' * 300}") for number in range(30)]
    core = _core([*lines, (10.0, LOG[1])], PrintkRing(count_bits=5, size_bits=14))
    machine.write("proc/vmcore", bytes(core))
    _settings(machine)
    ring = core.segments[4]
    text = ring.content.index(b"line 15 ")
    _poison(monkeypatch, machine, (ring.physical + text) // PAGE * PAGE)
    record = _run(machine)
    log_text = (machine.path / "var/crash" / NAME / "dmesg.txt").read_text()
    assert record.panic_message == LOG[1]
    assert 10 < log_text.count("line ") < 30
    assert "line 15 " not in log_text
    told = [problem.message for problem in record.problems if problem.stage == "kernel-log"]
    assert any("records of the log could not be read" in text for text in told)
    assert any("1 pages of the crashed kernel's memory kill" in text for text in told)
    # And the dump lacks one page.
    assert (record.state, record.lost_pages) == (DumpState.INCOMPLETE, 1)


def test_a_page_of_the_headers_kills(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine)
    monkeypatch.setattr("kdump_service.vmcore.reader.PlainFile.read", _die(signal.SIGBUS))
    record = _run(machine)
    assert record.state is DumpState.FAILED
    assert {problem.stage for problem in record.problems} == {"identify"}
    assert "kills whoever reads it" in record.problems[0].message


@pytest.mark.promise("no-broken-dump-as-good")
def test_a_page_kills_at_the_second_reading(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is compared. The dump is made once more, without it."""
    _settings(machine)
    verify = image.verify_image

    def poison_and_verify(*arguments: Any) -> int:
        _poison(monkeypatch, machine, 0x100000 + 5 * PAGE)
        return verify(*arguments)

    monkeypatch.setattr(image, "verify_image", poison_and_verify)
    record = _run(machine)
    assert (record.state, record.lost_pages) == (DumpState.INCOMPLETE, 1)
    with open_image(machine.path / "var/crash" / NAME / "vmcore.incomplete") as saved:
        assert saved.image.read_physical(0x100000, 5 * PAGE) == _core().segments[1].content[: 5 * PAGE]
        with pytest.raises(BadVmcore, match="was lost"):
            saved.image.read_physical(0x100000 + 5 * PAGE, PAGE)


def test_pages_that_kill_the_plain_copy(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine)
    _without_engine(monkeypatch)
    _poison(monkeypatch, machine, 0x100000 + 5 * PAGE, 0x80000000)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert f"{2 * PAGE} bytes of the crashed kernel's memory could not be read" in record.problems[1].message
    copy = (machine.path / "var/crash" / NAME / "vmcore.incomplete").read_bytes()
    source = (machine.path / "proc/vmcore").read_bytes()
    pages = range(PAGE, len(source), PAGE)  # the first has the flag
    assert sum(copy[at : at + PAGE] != source[at : at + PAGE] for at in pages) == 2


def test_memory_that_kills_everywhere_is_given_up(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine)
    _without_engine(monkeypatch)
    _poison(monkeypatch, machine, *(0x100000 + number * PAGE for number in range(1, 100)))
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert "was killed by SIGBUS" in record.problems[-1].message
    assert (machine.path / "var/crash" / NAME / "dmesg.txt").exists()


# Disks that do not answer


def _hang(*arguments: object, **options: object) -> None:
    """As a process does that sleeps in the kernel, but for that it can be killed."""
    while True:
        signal.pause()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five seconds without a sign of life are too long."""
    monkeypatch.setattr("kdump_service.capture.pipeline._WORK_SEC", -5)


@pytest.mark.promise("never-hang", "never-lose-the-log")
@pytest.mark.usefixtures("impatient")
def test_target_that_does_not_answer_is_gone_without(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, stall_timeout_sec=10)
    opened = local.LocalTarget.open

    def open_or_hang(self: local.LocalTarget, name: str) -> local.LocalPlace:
        if self._folder == machine.path / "var/crash":
            _hang()
        return opened(self, name)

    monkeypatch.setattr(local.LocalTarget, "open", open_or_hang)
    record = _run(machine)
    assert [(problem.stage, problem.reason) for problem in record.problems] == [("open-target", "stalled")]
    assert "showed no sign of life for 5 s" in record.problems[0].message
    folder = machine.path / "var/lib/kdump-service/crash" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["dmesg.txt", "record.json"]
    assert DumpRecord.read(folder).panic_message == LOG[1]


@pytest.mark.promise("never-hang", "never-lose-the-log")
@pytest.mark.usefixtures("impatient")
def test_target_that_stops_to_answer_amid_the_log(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes whole to the other disk, and nobody asks this one again."""
    _settings(machine, stall_timeout_sec=10)
    asked: list[str] = []
    for name in ("discard", "files", "room_bytes"):
        monkeypatch.setattr(local.LocalPlace, name, lambda self, name=name: asked.append(name))
    create = local.LocalPlace.create

    def create_or_hang(self: local.LocalPlace, name: str, **how: Any) -> local.LocalUpload:
        if machine.path / "var/crash" in self._folder.parents:
            _hang()
        return create(self, name, **how)

    monkeypatch.setattr(local.LocalPlace, "create", create_or_hang)
    record = _run(machine)
    assert [(problem.stage, problem.reason) for problem in record.problems] == [("kernel-log", "stalled")]
    assert asked == []
    folder = machine.path / "var/lib/kdump-service/crash" / NAME
    assert sorted(path.name for path in folder.iterdir()) == ["dmesg.txt", "record.json"]
    assert DumpRecord.read(folder).panic_message == LOG[1]


def test_who_reads_the_log_dies_once(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    _settings(machine, contents="log")

    def die_once(*arguments: Any) -> Any:
        if not (machine.path / "died").exists():
            (machine.path / "died").touch()
            _die(signal.SIGKILL)()
        return read_kernel_log(*arguments)

    monkeypatch.setattr("kdump_service.capture.pipeline.read_kernel_log", die_once)
    record = _run(machine)
    assert (record.state, record.panic_message) == (DumpState.COMPLETE, LOG[1])
    assert [(problem.stage, problem.reason) for problem in record.problems] == [
        ("kernel-log", "worker-failed")
    ]
    assert (machine.path / "var/crash" / NAME / "dmesg.txt").exists()


@pytest.mark.promise("never-hang", "never-lose-the-log", "incomplete-says-so")
@pytest.mark.usefixtures("impatient")
def test_target_that_stops_to_answer(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the image is written, and for good: the last record goes to the other disk."""
    _settings(machine, stall_timeout_sec=10, compression="none")

    def hang_from_now_on(self: Any, *arguments: Any, **options: Any) -> None:
        (machine.path / "dead").touch()
        _hang()

    put = local.LocalPlace.put

    def put_or_hang(self: local.LocalPlace, name: str, content: bytes) -> Any:
        if (machine.path / "dead").exists() and machine.path / "var/crash" in self._folder.parents:
            _hang()
        return put(self, name, content)

    _at_page(monkeypatch, 3, lambda: hang_from_now_on(None))
    monkeypatch.setattr(local.LocalPlace, "put", put_or_hang)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert [problem.reason for problem in record.problems] == ["stalled", "stalled"]
    saved = DumpRecord.read(machine.path / "var/lib/kdump-service/crash" / NAME)
    assert (saved.state, saved.panic_message) == (DumpState.INCOMPLETE, LOG[1])
    on_target = DumpRecord.read(machine.path / "var/crash" / NAME)
    assert (on_target.state, on_target.panic_message) == (DumpState.CAPTURING, LOG[1])
    assert (machine.path / "var/crash" / NAME / "dmesg.txt").exists()


@pytest.mark.parametrize("action", ["reboot", "poweroff", "halt"])
def test_end_without_those_who_do_not_answer(monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """systemd would wait for them: reboot(2) does not."""
    ended: list[str] = []
    ran: list[list[str]] = []
    monkeypatch.setattr("kdump_service.kernel.reboot.end_at_once", ended.append)
    monkeypatch.setattr("kdump_service.capture.action.run", lambda command, timeout_sec: ran.append(command))
    final_action(action, at_once=True)
    assert ended == [action]
    final_action(action)
    assert ended == [action]
    assert len(ran) == (0 if action == "reboot" else 2)


@pytest.mark.promise("no-broken-dump-as-good", "read-back")
def test_image_changed_on_disk_is_never_called_good(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _settings(machine, compression="none")
    flush = local.LocalUpload.flush

    def flush_and_damage(self: local.LocalUpload) -> None:
        flush(self)
        if self.size_bytes > 0x41000:
            with self._path.open("r+b") as file:
                file.seek(0x40000)
                file.write(b"\xff" * 0x10)

    monkeypatch.setattr(local.LocalUpload, "flush", flush_and_damage)
    record = _run(machine)
    assert record.state is DumpState.INCOMPLETE
    assert record.problems[0].reason == "verification-failed"
    assert "1 pieces of the file are not what was written" in record.problems[0].message


@pytest.mark.parametrize(
    ("settings", "library"), [({}, "zstandard"), ({"format": "elf", "compression": "lz4"}, "lz4.frame")]
)
@pytest.mark.promise("engine-missing")
def test_missing_compression_library_costs_no_dump(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], library: str
) -> None:
    _settings(machine, **settings)
    monkeypatch.setitem(sys.modules, library, None)
    # It may have been imported before, with its library.
    monkeypatch.delitem(sys.modules, "kdump_service.dumpfile.lz4_file", raising=False)
    record = _run(machine)
    assert (record.state, record.compression) == (DumpState.COMPLETE, "none")
    assert "not compressed" in record.problems[0].message
    _same_pages(machine, "vmcore")


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


MARK = "kdump-service: the crash that follows was asked for"


@pytest.mark.parametrize(
    ("lines", "test"),
    [
        ([(500.0, MARK), (500.2, LOG[1])], True),
        ([(500.0, MARK), (529.0, LOG[1])], True),  # a busy machine prints late
        ([(500.0, MARK), (531.0, LOG[1])], False),  # it did not happen then
        ([(500.0, f"systemd[1]: {MARK}."), (500.2, LOG[1])], True),
        ([(500.0, MARK), (500.1, LOG[1]), (500.2, "Rebooting")], True),
        ([(500.0, "kdump-service: something else"), (500.2, LOG[1])], False),
        ([(500.2, LOG[1])], False),
    ],
)
def test_record_says_what_was_armed_and_whether_it_is_a_test(
    machine: MachineRoot, lines: list[tuple[float, str]], test: bool
) -> None:
    machine.write("proc/vmcore", bytes(_core(lines)))
    document = {"boot_id": BOOT_ID, "armed_identity": "a" * 64, "config": {"contents": "log"}}
    machine.write("var/lib/kdump-service/capture.json", json.dumps(document))
    # What the crashed system left on its disk says nothing: the capture boot may not see it.
    machine.write("var/lib/kdump-service/test-crash.json", json.dumps({"boot_id": BOOT_ID}))
    _run(machine)
    saved = DumpRecord.read(machine.path / "var/crash" / NAME)
    assert (saved.armed_identity, saved.test) == ("a" * 64, test)


@pytest.mark.parametrize(
    ("settings", "environment"),
    [
        ({"boot_id": BOOT_ID, "small_image": True}, "initramfs"),
        ({"boot_id": BOOT_ID}, "rootfs"),
        ({}, ""),  # whoever left nothing more did not tell
    ],
)
def test_record_says_what_the_capture_ran_in(
    machine: MachineRoot, settings: dict[str, object], environment: str
) -> None:
    document = {"config": {"contents": "log"}, **settings}
    machine.write("var/lib/kdump-service/capture.json", json.dumps(document))
    folder = machine.path / "var/crash" / _run(machine).name
    assert DumpRecord.read(folder).environment == environment
    # Records of earlier versions do not tell.
    told = json.loads((folder / "record.json").read_text())
    del told["environment"]
    assert DumpRecord.from_document(told).environment == ""


# When it was armed


def _run_for(machine: MachineRoot, seconds: float) -> None:
    machine.write("proc/uptime", f"{seconds} 20.00\n")


def _told_uptime(request: LoadRequest) -> object:
    return json.loads(dict(request.added_files)["var/lib/kdump-service/capture.json"])["armed_uptime_seconds"]


def test_when_it_was_armed_makes_no_look_a_reload(tmp_path: Path) -> None:
    """With the small image, the settings are part of what is loaded."""
    machine = small_image_machine(tmp_path)
    files, kernel = KernelFiles(tmp_path), FakeKernel(machine)
    loader = Loader(files, kernel.load, kernel.unload)
    _run_for(machine, 4.21)
    first = plan_load(files, Config()).request
    loader.load(first)
    _run_for(machine, 5.0)
    write_capture_settings(files, Config(), _identity_in(first))
    _run_for(machine, 1000)
    assert plan_load(files, Config()).request == loader.loaded_request() == first
    # It is loaded anew for other settings, but was armed with this kernel, image and target all the time.
    assert _told_uptime(plan_load(files, Config(contents="log")).request) == _told_uptime(first) == 4.2
    assert _told_uptime(plan_load(files, Config(command_line_append="quiet")).request) == 1000
    loader.unload()
    assert _told_uptime(plan_load(files, Config()).request) == 1000


def _identity_in(request: LoadRequest) -> str:
    settings = json.loads(dict(request.added_files)["var/lib/kdump-service/capture.json"])
    return str(settings["armed_identity"])


def test_when_it_was_armed_with_the_root_file_system(machine: MachineRoot) -> None:
    files, kernel = KernelFiles(machine.path), FakeKernel(machine)
    path = machine.path / "var/lib/kdump-service/capture.json"

    def told(identity: str) -> float:
        write_capture_settings(files, Config(), identity)
        return float(json.loads(path.read_text())["armed_uptime_seconds"])

    assert told("") == 0  # nothing is loaded
    Loader(files, kernel.load, kernel.unload).load(plan_load(files, Config()).request)
    _run_for(machine, 4.21)
    assert told("a" * 64) == 4.2
    _run_for(machine, 1000)
    written = path.stat()
    assert told("a" * 64) == 4.2
    assert path.stat().st_ino == written.st_ino
    assert told("b" * 64) == 1000
    for damage in ("", "[]", "{", '{"boot_id": 1}', path.read_text().replace("1000.0", "null")):
        _run_for(machine, 2000)
        path.write_text(damage)
        assert told("b" * 64) == 2000
    # The next boot has another age.
    path.write_text(path.read_text().replace(BOOT_ID, "f" * 32))
    _run_for(machine, 3)
    assert told("b" * 64) == 3


@pytest.mark.parametrize(
    ("said", "recorded"),
    [("4.2", 4.2), ("7", 7), ("-1", 0), ("1e300", 0), ("NaN", 0), ("Infinity", 0), ('"4"', 0), ("null", 0)],
)
def test_record_says_when_it_was_armed(machine: MachineRoot, said: str, recorded: float) -> None:
    text = f'{{"boot_id": "{BOOT_ID}", "config": {{"contents": "log"}}, "armed_uptime_seconds": {said}}}'
    machine.write("var/lib/kdump-service/capture.json", text)
    name = _run(machine).name
    assert DumpRecord.read(machine.path / "var/crash" / name).armed_uptime_seconds == recorded
