# SPDX-License-Identifier: LGPL-2.1-or-later
"""The parts of a rehearsal: what is armed, what the virtual machine boots, how it is watched, the verdict."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdump_service.arm.loader import ARMED_FILE, Loader, opened_initramfs
from kdump_service.arm.plan import plan_load
from kdump_service.config import Config
from kdump_service.errors import CannotRehearse
from kdump_service.kernel import syscall
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpFile, DumpRecord, DumpState, ImagePart, Problem
from kdump_service.rehearse import inside, qemu, rehearsal, scratch
from kdump_service.rehearse.armed import Armed, armed_now
from kdump_service.rehearse.inside import CRASHING, FOUND, HOME, LINE, READY, REFUSED, Inside
from kdump_service.rehearse.memory_log import memory_log
from kdump_service.rehearse.qemu import Boot, Line, Machine, board_of
from kdump_service.rehearse.stage import Stage, write_stage
from kdump_service.rehearse.verdict import Rehearsal, judge, larger_bytes
from tests.builders.machine_disks import ROOT_UUID, put_image, small_image_machine
from tests.builders.machine_root import RELEASE, FakeKernel, MachineRoot
from tests.hang import HANG_SEC

MIB = 1 << 20


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    machine = small_image_machine(tmp_path / "machine", built=False)
    put_image(machine, b"small image, odd in length.")
    return machine


def _arm(machine: MachineRoot, config: Config | None = None) -> KernelFiles:
    kernel_files = KernelFiles(machine.path)
    kernel = FakeKernel(machine)
    Loader(kernel_files, kernel.load, kernel.unload).load(plan_load(kernel_files, config or Config()).request)
    return kernel_files


@pytest.fixture
def armed(machine: MachineRoot) -> Armed:
    return armed_now(_arm(machine))


# What is armed


def test_what_is_armed(armed: Armed) -> None:
    assert (armed.target_kind, armed.target_uuid) == ("ext4", ROOT_UUID)
    assert (armed.target_folder, armed.target_mount_point) == ("/kdump/target/var/crash", "/kdump/target")
    assert (armed.reserved_bytes, armed.release, armed.processors) == (256 * MIB, RELEASE, 1)
    assert len(armed.identity) == 64


def test_processors_are_those_of_the_command_line(armed: Armed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def processors(line: str) -> int:
        request = dataclasses.replace(armed.request, command_line=line)
        return dataclasses.replace(armed, request=request).processors

    assert [processors(line) for line in ("", "nr_cpus=4", "nr_cpus=16", "nr_cpus=4 maxcpus=2")] == [
        8,
        4,
        8,
        2,
    ]


def _without_uuid(machine: MachineRoot) -> None:
    for path in (machine.path / "run/udev/data").iterdir():
        path.write_text("G:systemd\n")


def _change_image(machine: MachineRoot) -> None:
    [image] = (machine.path / "var/lib/kdump-service/images").glob("*.img")
    image.write_bytes(b"another content")


def _damage_settings(machine: MachineRoot) -> None:
    path = machine.path / ARMED_FILE
    whole = path.read_text()
    path.write_text(whole.replace(r"\"target_folder\": \"/", r"\"target_folder\": \""))
    assert path.read_text() != whole


@pytest.mark.parametrize(
    ("before", "after", "config", "said"),
    [
        (None, None, Config(environment="rootfs"), "the capture boot uses the root file system"),
        (None, _change_image, Config(), "has changed since it was armed"),
        (_without_uuid, None, Config(), "has no UUID"),
        (None, _damage_settings, Config(), "what the capture boot is told is damaged: target_folder: "),
        (None, lambda machine: machine.set_loaded(False), Config(), "nothing is armed"),
    ],
)
def test_what_cannot_be_rehearsed(
    machine: MachineRoot,
    before: Callable[[MachineRoot], None] | None,
    after: Callable[[MachineRoot], None] | None,
    config: Config,
    said: str,
) -> None:
    machine.write(f"boot/initrd.img-{RELEASE}", "the system's own")
    if before is not None:
        before(machine)
    kernel_files = _arm(machine, config)
    if after is not None:
        after(machine)
    with pytest.raises(CannotRehearse, match=said):
        armed_now(kernel_files)


# What the virtual machine boots


def _unpacked(archive: bytes, folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(["cpio", "-id", "--quiet"], input=archive, cwd=folder, check=True)
    return folder


@pytest.mark.parametrize("stage", ["crash", "read"])
def test_a_stage_is_the_armed_image_and_files_behind_it(armed: Armed, tmp_path: Path, stage: Stage) -> None:
    write_stage(armed, stage, tmp_path / "stage")
    whole = (tmp_path / "stage").read_bytes()
    image = Path(armed.request.initramfs.path).read_bytes()
    assert whole.startswith(image)
    place = len(image) + -len(image) % 4
    assert not any(whole[len(image) : place])
    tree = _unpacked(whole[place:], tmp_path / "tree")
    home = tree / HOME
    assert (home / "inside.py").read_bytes() == Path(inside.__file__).read_bytes()
    assert json.loads((home / "order.json").read_text()) == {
        "command_line": armed.request.command_line,
        "target_folder": "/kdump/target/var/crash",
        "target_mount_point": "/kdump/target",
    }
    service = (tree / "etc/systemd/system/kdump-rehearsal.service").read_text()
    assert f"ExecStart=/usr/bin/python3 -I /{HOME}/inside.py {stage}\n" in service
    assert f"by-uuid/{ROOT_UUID}" in (tree / "etc/systemd/system/kdump-target.mount").read_text()
    if stage == "read":
        assert not (home / "armed-kernel").exists()
        return
    assert (home / "armed-kernel").read_bytes() == Path(armed.request.kernel.path).read_bytes()
    with opened_initramfs(armed.request) as loaded:
        assert (home / "armed-image").read_bytes() == loaded.read()
    assert (home / "kernel/syscall.py").read_bytes() == Path(syscall.__file__).read_bytes()


def _machine(program: Path, tmp_path: Path) -> Machine:
    return Machine(
        board_of("x86_64"), str(program), "tcg", 2, 512 * MIB, Path("/boot/vmlinuz"), tmp_path / "initrd",
        "console=ttyS0", tmp_path / "a,b.img", 7,
    )  # fmt: skip


def test_command_of_qemu(tmp_path: Path) -> None:
    command = _machine(Path("/usr/bin/qemu-system-x86_64"), tmp_path).command()
    text = " ".join(command)
    assert "-no-reboot" in command
    assert "-accel tcg -cpu max,la57=off -smp 2 -m 512M" in text
    assert f"file={tmp_path}/a,,b.img" in text
    assert "size=536870912,share=on,mem-path=/proc/self/fd/7" in text
    kvm = dataclasses.replace(_machine(Path("qemu"), tmp_path), accelerator="kvm").command()
    assert "-accel kvm -cpu host" in " ".join(kvm)


def _program(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}")
    path.chmod(0o755)
    return path


def _boot(program: Path, tmp_path: Path, limit_of: Callable[[Boot], float]) -> Boot:
    descriptor = os.memfd_create("memory")
    try:
        machine = dataclasses.replace(_machine(program, tmp_path), memory_descriptor=descriptor)
        return machine.boot(limit_of)
    finally:
        os.close(descriptor)


def test_a_boot_is_watched_to_its_end(tmp_path: Path) -> None:
    program = _program(tmp_path, "printf 'one\\r\\ntwo\\033[1m\\nthe end'; echo no kvm >&2; exit 3\n")
    boot = _boot(program, tmp_path, lambda boot: time.monotonic() + HANG_SEC)
    assert [line.text for line in boot.lines] == ["one", "two\ufffd[1m", "the end"]
    assert (boot.status, boot.complaints, boot.ended_at is not None) == (3, "no kvm", True)


def test_a_boot_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    program = _program(tmp_path, f"sleep 1000 & echo $! > {tmp_path}/child; echo begun; wait\n")
    started = time.monotonic()
    boot = _boot(program, tmp_path, lambda boot: started + (0.5 if boot.lines else 20))
    assert ([line.text for line in boot.lines], boot.ended_at) == (["begun"], None)
    assert time.monotonic() - started < HANG_SEC
    child = int((tmp_path / "child").read_text())
    with contextlib.suppress(ProcessLookupError):  # gone, and forgotten
        descriptor = os.pidfd_open(child)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(10_000)  # pidfd_open(2): readable when the process has ended
        os.close(descriptor)


def test_what_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(qemu.ACCELERATOR_VARIABLE, raising=False)
    kvm = tmp_path / "kvm"
    assert qemu.accelerators(kvm) == ["tcg"]
    kvm.touch()
    assert qemu.accelerators(kvm) == ["kvm", "tcg"]
    for name in ("kvm", "tcg"):
        monkeypatch.setenv(qemu.ACCELERATOR_VARIABLE, name)
        assert qemu.accelerators(kvm) == [name]


def test_what_is_missing_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu, "_PATH", str(tmp_path))
    monkeypatch.setattr(scratch, "_PATH", str(tmp_path))
    with pytest.raises(CannotRehearse, match="QEMU is not installed") as refused:
        qemu.find_program(board_of("x86_64"))
    assert "qemu-system-x86;" in refused.value.hint
    with pytest.raises(CannotRehearse, match=r"mkfs\.xfs is not installed") as refused:
        scratch.make_scratch(tmp_path / "disk", 1 << 30, "xfs", ROOT_UUID)
    assert "xfsprogs" in refused.value.hint
    with pytest.raises(CannotRehearse, match="of type zfs"):
        scratch.make_scratch(tmp_path / "disk", 1 << 30, "zfs", ROOT_UUID)
    with pytest.raises(CannotRehearse, match="not possible on s390x"):
        board_of("s390x")


@pytest.mark.parametrize("kind", ["ext2", "ext4", "xfs", "btrfs", "vfat"])
def test_the_scratch_target_has_type_and_uuid(tmp_path: Path, kind: str) -> None:
    uuid = "1234-ABCD" if kind == "vfat" else ROOT_UUID
    program = {"ext2": "mke2fs", "ext4": "mke2fs"}.get(kind, f"mkfs.{kind}")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    disk = tmp_path / "disk"
    scratch.make_scratch(disk, 1 << 30, kind, uuid)
    told = subprocess.run(
        ["blkid", "-o", "export", str(disk)], capture_output=True, text=True, check=True
    ).stdout
    assert {f"UUID={uuid}", f"TYPE={kind}"} <= set(told.split())
    assert disk.stat().st_blocks * 512 < 100 * MIB


# What runs inside


@pytest.fixture
def box(armed: Armed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the virtual machine."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    write_stage(armed, "crash", tmp_path / "stage")
    whole = (tmp_path / "stage").read_bytes()
    size = armed.request.initramfs.size_bytes
    root = _unpacked(whole[size + -size % 4 :], tmp_path / "box")
    for name, text in {
        "sys/kernel/kexec_crash_size": "268435456\n",
        "proc/iomem": (
            "00000000-00000fff : Reserved\n22000000-31ffffff : Crash kernel\n"
            "40000000-40000fff : Crash kernel\n"
        ),
        "proc/sys/kernel/printk": "7\n",
        "proc/sysrq-trigger": "",
        "dev/console": "",
        "dev/kmsg": "",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def _said(root: Path) -> dict[str, Any]:
    [line] = [each for each in (root / "dev/console").read_text().splitlines() if each.startswith(LINE)]
    document: dict[str, Any] = json.loads(line[len(LINE) :])
    return document


def test_inside_it_loads_what_is_armed_and_panics(
    armed: Armed, box: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(kernel: int, image: int | None, line: str) -> None:
        assert image is not None
        loaded.append((os.pread(kernel, 1 << 20, 0), os.pread(image, 1 << 20, 0), line))

    monkeypatch.setattr(syscall, "load_crash_kernel", load)
    Inside(box).crash()
    with opened_initramfs(armed.request) as image:
        expected = (Path(armed.request.kernel.path).read_bytes(), image.read(), armed.request.command_line)
    assert loaded == [expected]
    assert _said(box) == {"what": READY, "reserved_bytes": 256 * MIB, "reserved_at": 0x22000000}
    assert (box / "dev/kmsg").read_text() == f'<0>{LINE}{{"what": "{CRASHING}"}}\n'
    assert (box / "proc/sysrq-trigger").read_text() == "c\n"


def test_inside_nothing_is_crashed_if_the_kernel_refuses(box: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kernel: int, image: int | None, line: str) -> None:
        raise OSError(errno.ENOMEM, "made to fail")

    monkeypatch.setattr(syscall, "load_crash_kernel", load)
    Inside(box).crash()
    last = (box / "dev/console").read_text().splitlines()[-1]
    assert json.loads(last.removeprefix(LINE)) == {"what": REFUSED, "errno": errno.ENOMEM}
    assert (box / "proc/sysrq-trigger").read_text() == ""


def _put_record(root: Path, **values: Any) -> DumpRecord:
    folder = root / "kdump/target/var/crash/20261123T171822Z-host"
    folder.mkdir(parents=True)
    content = b"head" + b"p" * (3 << 20)
    (folder / "vmcore").write_bytes(content)
    described: dict[str, Any] = {
        "state": DumpState.COMPLETE,
        "files": [DumpFile("vmcore", len(content), len(content))],
        "image_parts": [
            ImagePart("header", 0, 4, hashlib.sha256(b"head").hexdigest()),
            ImagePart("pages", 4, 3 << 20, hashlib.sha256(content[4:]).hexdigest()),
        ],
        "seconds_to_saved": 9.5,
        "memory_total_kib": 200_000,
        "memory_available_low_water_kib": 80_000,
        "stage_seconds": {"survey": 2.0, "write-image": 1.5},
        **values,
    }
    record = DumpRecord("20261123T171822Z-host", **described)
    (folder / "record.json").write_text(record.to_json())
    return record


def test_inside_a_dump_is_read_back(box: Path) -> None:
    record = _put_record(box)
    Inside(box).read()
    said = _said(box)
    assert (said["what"], said["wrong"]) == (FOUND, "")
    assert DumpRecord.from_document(said["record"]) == record


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (
            lambda folder: (folder / "vmcore").write_bytes(b"x" * (4 + (3 << 20))),
            "the part header is not what",
        ),
        (lambda folder: (folder / "vmcore").write_bytes(b"head"), "vmcore has 4 bytes instead of 3145732"),
        (lambda folder: (folder / "vmcore").unlink(), "No such file"),
        (lambda folder: (folder / "record.json").write_text("{"), "its record cannot be read"),
    ],
)
def test_inside_what_is_damaged_is_told(box: Path, damage: Callable[[Path], None], wrong: str) -> None:
    _put_record(box)
    damage(box / "kdump/target/var/crash/20261123T171822Z-host")
    Inside(box).read()
    assert wrong in _said(box)["wrong"]


def test_inside_no_dump_is_told(box: Path) -> None:
    Inside(box).read()
    assert _said(box) == {
        "what": FOUND,
        "record": None,
        "wrong": "its file system cannot be mounted any more",
    }


# The log out of the memory


def _ring(lines: list[str], first_id: int) -> bytes:
    """As kernel/printk/printk_ringbuffer.c lays texts out: an id, the text, up to a multiple of eight."""
    ring = b""
    for number, line in enumerate(lines):
        block = (first_id + number).to_bytes(8, "little") + line.encode()
        ring += block + bytes(-len(block) % 8)
    return ring


def test_the_log_is_found_among_other_text() -> None:
    line = "console=tty0 panic=5 systemd.unit=kdump-capture.target and more words than a message may have"
    log = ["Linux version 6.1.0 (a@b)", f"Command line: elfcorehdr=0x1 {line}", "x86: a", "Memory: 12K/34K",
           "Kernel panic - not syncing: System is deadlocked on memory"]  # fmt: skip
    strings = b"\0".join([b"Linux version %s (%s)", *(b"string %d" % number for number in range(500))])
    content = bytes(8192) + strings + bytes(4096) + _ring(log, 0x3FFF_FFFF_FFFF_FC18) + bytes(4096)
    descriptor = os.memfd_create("memory")
    try:
        os.write(descriptor, content)
        found = memory_log(descriptor, 4096, len(content) - 4096, line)
        assert (found[0], found[-1]) == (log[0], log[-1])
        assert log[1] in found
        assert memory_log(descriptor, 0, len(content), "another line") == []
        assert memory_log(descriptor, 0, 8192, line) == []
    finally:
        os.close(descriptor)


# The verdict


def _lines(*texts: str, at: float = 100.0) -> list[Line]:
    return [Line(at + number, text) for number, text in enumerate(texts)]


def _told(what: str, **values: Any) -> str:
    return LINE + json.dumps({"what": what, **values})


UP = _told(READY, reserved_bytes=256 * MIB, reserved_at=1 << 24)


def _judged(
    armed: Armed, crash: Boot, record: DumpRecord | None = None, wrong: str = "", log: list[str] | None = None
) -> Rehearsal:
    document = json.loads(record.to_json()) if record is not None else None
    read = Boot(_lines(_told(FOUND, record=document, wrong=wrong)), ended_at=1.0)
    seen = Rehearsal(passed=False, accelerator="tcg", reserved_bytes=armed.reserved_bytes)
    return judge(armed, crash, read, log or [], seen, KernelFiles(Path("/nonexistent")))


def test_passed(armed: Armed, tmp_path: Path) -> None:
    record = _put_record(tmp_path)
    lines = _lines(UP, f"[ 1.0] {_told(CRASHING)}", "Kernel panic - not syncing: sysrq triggered crash",
                   "kdump: Kernel 6.1 of host crashed at 2026", "kdump: Dump saved")  # fmt: skip
    result = _judged(armed, Boot(lines, ended_at=112.25), record)
    assert (result.passed, result.reason, result.console) == (True, "", [])
    assert (result.seconds_to_capture, result.seconds_to_saved, result.seconds_to_reboot) == (2.0, 9.5, 11.2)
    assert (result.memory_total_kib, result.memory_low_water_kib) == (200_000, 80_000)
    assert Rehearsal.from_json(json.loads(json.dumps(result.to_json()))) == result
    # Without a console that QEMU has, the clock of the machine must do.
    silent = _judged(armed, Boot(lines[:3], ended_at=112.25), record)
    assert (silent.passed, silent.seconds_to_capture) == (True, 6.0)


@pytest.mark.parametrize("where", ["console", "memory", "record"])
def test_out_of_memory_is_recognised(armed: Armed, tmp_path: Path, where: str) -> None:
    text = "Kernel panic - not syncing: System is deadlocked on memory"
    lines = _lines(UP, _told(CRASHING), *([text] if where == "console" else []))
    record = None
    if where == "record":
        problems = [Problem("write-image", "no-memory", "write-image: Cannot allocate memory")]
        record = _put_record(tmp_path, state=DumpState.FAILED, problems=problems)
    log = ["Linux version 6.1", text, " ? d_alloc+0x1b/0xa0"] if where == "memory" else None
    result = _judged(armed, Boot(lines, ended_at=120.0), record, log=log)
    assert (result.passed, result.reason) == (False, "out-of-memory")
    assert "256 MiB are too little" in result.explanation
    assert result.hint == "Reserve more: kdumpctl reserve 320M"
    assert where == "record" or result.console[-1] == text


@pytest.mark.parametrize(("reserved", "more"), [(72, 112), (128, 160), (256, 320), (1024, 1280)])
def test_what_to_reserve_instead(reserved: int, more: int) -> None:
    assert larger_bytes(reserved * MIB) == more * MIB


@pytest.mark.promise("rehearse")
def test_each_failure_has_its_reason(armed: Armed, tmp_path: Path) -> None:
    crashed = _lines(UP, _told(CRASHING))
    complete = _put_record(tmp_path / "a")
    cut_off = _put_record(
        tmp_path / "b",
        state=DumpState.INCOMPLETE,
        problems=[Problem("write-image", "target-full", "no room")],
    )
    failed = dataclasses.replace(cut_off, state=DumpState.FAILED)
    short = [*crashed, *_lines("python3: page allocation failure: order:2", at=200)]
    panic = [*crashed, *_lines("Linux version 6.1", "Kernel panic - not syncing: No working init", at=200)]
    for boot, record, wrong, reason, said in (
        (Boot(crashed, ended_at=130.0), complete, "the part pages is not", "damaged", "cannot be read back"),
        (Boot(crashed, ended_at=130.0), cut_off, "", "incomplete", "no whole dump: no room"),
        (Boot(short, ended_at=130.0), cut_off, "", "incomplete", "no whole dump: no room"),
        (Boot(crashed, ended_at=130.0), failed, "", "no-dump", "no whole dump: no room"),
        (Boot(crashed, ended_at=None), complete, "", "did-not-return", "did not come to its end"),
        (Boot(crashed, ended_at=None), None, "", "did-not-return", "neither saved a dump nor"),
        (Boot(crashed, ended_at=130.0), None, "", "no-dump", "left no dump"),
        (Boot(panic, ended_at=230.0), None, "", "no-dump", "its kernel panicked: No working init"),
        (Boot(_lines("Linux version"), ended_at=None), None, "", "does-not-start", "do not start"),
        (Boot(_lines(UP), ended_at=None), None, "", "does-not-start", "do not crash"),
        (Boot([], ended_at=1.0, status=1, complaints="no kvm"), None, "", "does-not-start", "status 1"),
    ):
        result = _judged(armed, boot, record, wrong)
        assert (result.passed, result.reason) == (False, reason)
        assert said in result.explanation
    refused = _judged(armed, Boot(_lines(UP, _told(REFUSED, errno=errno.EADDRNOTAVAIL)), ended_at=1.0))
    assert (refused.reason, "do not fit into the 256 MiB" in refused.explanation) == ("not-loaded", True)


# The whole, with a QEMU that is a script


QEMU = """\
for word in "$@"; do last=$word; case $word in *kdump-rehearsal.target*) line=$word ;; esac; done
case "$*" in *" -accel kvm "*) {kvm} ;; esac
case "$line" in
    *crashkernel=268435456*)
        echo 'Linux version'
        echo 'kdump-rehearsal: {{"what": "ready", "reserved_bytes": 268435456, "reserved_at": 16777216}}'
        echo 'kdump-rehearsal: {{"what": "crashing"}}' ;;
    *) cat {found} ;;
esac
"""


def _rehearse(
    machine: MachineRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kvm: str, memory: str = "9999999"
) -> tuple[Rehearsal, list[str]]:
    kernel_files = _arm(machine)
    machine.write("proc/meminfo", f"MemAvailable: {memory} kB\n")
    record = json.loads(_put_record(tmp_path / "record").to_json())
    (tmp_path / "found").write_text("\n" + _told(FOUND, record=record, wrong="") + "\n")
    program = _program(tmp_path, QEMU.format(kvm=kvm, found=tmp_path / "found"))
    monkeypatch.setattr(rehearsal, "find_program", lambda board: str(program))
    monkeypatch.setattr(rehearsal, "accelerators", lambda: ["kvm", "tcg"])
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    short = rehearsal.Limits(silent=0.5, crash=60, whole=60)
    tried: list[str] = []
    limits: dict[qemu.Accelerator, rehearsal.Limits] = {"kvm": short, "tcg": rehearsal.Limits(60, 60, 60)}
    result = rehearsal.rehearse(kernel_files, armed_now(kernel_files), on_stage=tried.append, limits=limits)
    return result, tried


@pytest.mark.parametrize(
    ("kvm", "tried"),
    [(":", ["kvm"]), ("sleep 1000", ["kvm", "tcg"]), ("echo no kvm >&2; exit 1", ["kvm", "tcg"])],
)
def test_where_kvm_does_not_work_it_is_emulated(
    machine: MachineRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kvm: str, tried: list[str]
) -> None:
    state = machine.path / "var/lib/kdump-service"
    (state / "rehearsal-killed").mkdir(parents=True)
    started = time.monotonic()
    result, what = _rehearse(machine, tmp_path, monkeypatch, kvm)
    assert time.monotonic() - started < HANG_SEC  # its silence is limited, not only its whole time
    assert (result.passed, what, result.accelerator) == (True, tried, tried[-1])
    assert len(result.identity) == 64
    assert list(state.glob("rehearsal-*")) == []


def test_it_takes_no_memory_that_others_need(
    machine: MachineRoot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotRehearse, match="of memory are free"):
        _rehearse(machine, tmp_path, monkeypatch, ":", memory="500000")
