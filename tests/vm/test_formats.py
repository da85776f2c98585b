# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each format and compression, of a real kernel's memory, is opened by every tool that knows it."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import drgn
import pytest
from drgn.helpers.linux.pid import for_each_task

from .conftest import RestoredFactory
from .debuggers import OpenDump
from .kdump_bitmaps import KdumpFile, RawPages
from .lab import Lab, crash_command
from .machine import PLANTED_COMMAND
from .makedumpfile import REARRANGE, Makedumpfile
from .reference import Reference, reference_vmcore
from .symbols import vmlinux

SUITE = "bookworm"
TARGET_FULL_EXIT_CODE = 42  # as kdumpctl(8) says
INCOMPLETE = 8  # in the status of a kdump-compressed header: DUMP_DH_COMPRESSED_INCOMPLETE


@pytest.fixture(scope="module")
def reference(lab_base: Lab) -> Reference:
    return reference_vmcore(lab_base.cache, SUITE)


@pytest.fixture
def work(tmp_path: Path) -> Iterator[Path]:
    """A folder that goes when the case ends: dumps are large."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def kdumpctl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kdump_service.ctl.main", *map(str, arguments)]
    return subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def convert(source: Path, target: Path, *options: str) -> Path:
    done = kdumpctl("convert", source, target, *options)
    assert done.returncode == 0, done.stderr
    return target


def opened(lab: Lab, reference: Reference, dump: Path) -> OpenDump:
    return OpenDump(dump, vmlinux(lab.cache, reference.tree))


def crash_and_drgn_agree(dump: OpenDump) -> None:
    seen = dump.drgn(PLANTED_COMMAND)
    assert seen.panic_message == "Kernel panic - not syncing: sysrq triggered crash"
    assert seen.planted_pids == [seen.pid]
    assert not seen.unreadable
    crash = dump.crash(PLANTED_COMMAND)
    assert crash.panic_message == seen.panic_message
    assert {"panic", "sysrq_handle_crash"} <= set(crash.stack)


@pytest.mark.promise("opens-in-debuggers")
@pytest.mark.parametrize(
    "compression",
    [
        pytest.param("zstd", marks=pytest.mark.promise("kdump-zstd")),
        pytest.param("zlib", marks=pytest.mark.promise("kdump-zlib")),
        pytest.param("none", marks=pytest.mark.promise("kdump-none")),
    ],
)
def test_kdump_compressed(lab_base: Lab, reference: Reference, work: Path, compression: str) -> None:
    dump = convert(reference.vmcore, work / "dump", "--compression", compression)
    crash_and_drgn_agree(opened(lab_base, reference, dump))


@pytest.mark.promise("elf", "elf-opens-in-gdb")
def test_elf_opens_in_gdb_too(lab_base: Lab, reference: Reference, work: Path) -> None:
    dump = convert(reference.vmcore, work / "core", "--format", "elf", "--verify")
    crash_and_drgn_agree(opened(lab_base, reference, dump))
    assert opened(lab_base, reference, dump).gdb().release == reference.tree.release
    listed = subprocess.run(["readelf", "-hlnW", str(dump)], check=True, capture_output=True, text=True)
    assert "Warning" not in listed.stderr
    assert "VMCOREINFO" in listed.stdout


@pytest.mark.promise("elf-lz4")
def test_lz4_frames_unpack_to_the_same_elf(reference: Reference, work: Path) -> None:
    plain = convert(reference.vmcore, work / "core", "--format", "elf")
    packed = convert(reference.vmcore, work / "core.lz4", "--format", "elf", "--compression", "lz4")
    subprocess.run(["lz4", "-q", "-d", str(packed), str(work / "unpacked")], check=True)
    assert subprocess.run(["cmp", str(plain), str(work / "unpacked")], check=False).returncode == 0


@pytest.mark.promise("flattened")
def test_flattened_is_rearranged_by_makedumpfile(lab_base: Lab, reference: Reference, work: Path) -> None:
    direct = convert(reference.vmcore, work / "direct", "--threads", "1")
    flattened = convert(reference.vmcore, work / "flattened", "--format", "flattened")
    Makedumpfile(lab_base.cache).run([REARRANGE], flattened, work / "rearranged")
    assert subprocess.run(["cmp", str(direct), str(work / "rearranged")], check=False).returncode == 0


@pytest.mark.promise("any-dump-file")
def test_kdump_compressed_becomes_elf(lab_base: Lab, reference: Reference, work: Path) -> None:
    """The format has no virtual addresses: they come from the page tables."""
    dump = convert(reference.vmcore, work / "dump", "--contents", "user")
    core = convert(dump, work / "core", "--format", "elf", "--contents", "kernel", "--verify")
    crash_and_drgn_agree(opened(lab_base, reference, core))
    assert opened(lab_base, reference, core).gdb().release == reference.tree.release


@pytest.mark.promise("opens-in-debuggers")
def test_libkdumpfile_agrees_on_every_page(reference: Reference, work: Path) -> None:
    """drgn reads kdump-compressed files by libkdumpfile."""
    dump = convert(reference.vmcore, work / "dump", "--contents", "user")
    program = drgn.Program()
    program.set_core_dump(dump)
    with KdumpFile(dump) as file:
        frames = file.frames.tolist()
    with RawPages(reference.vmcore) as raw:
        wrong = [
            frame for frame in frames if program.read(frame << 12, 4096, physical=True) != raw.page(frame)
        ]
    assert len(frames) > 10_000
    assert wrong == []


@pytest.mark.promise("incomplete-says-so", "target-full")
@pytest.mark.parametrize("suite", [SUITE, pytest.param("trixie", marks=pytest.mark.part("kernels"))])
def test_dump_that_ran_out_of_space(lab_base: Lab, work: Path, suite: str) -> None:
    """It keeps what it has, says that it is incomplete, opens, and shows what crashed."""
    reference = reference_vmcore(lab_base.cache, suite)
    whole = convert(reference.vmcore, work / "whole").stat().st_size
    small = work / "small"
    small.mkdir()
    with small_file_system(small, whole * 3 // 4):
        done = kdumpctl("convert", reference.vmcore, small / "dump")
        assert done.returncode == TARGET_FULL_EXIT_CODE
        assert "No space left on device" in done.stderr
        cut = small / "dump.incomplete"
        with KdumpFile(cut) as file:
            assert file.incomplete
        told = kdumpctl("inspect", cut)
        assert "incomplete" in told.stdout
        assert "missing" in told.stdout
        # What every debugger needs was written first, and so were task and stack of each processor.
        seen = opened(lab_base, reference, cut).drgn(PLANTED_COMMAND)
        assert seen.panic_message == "Kernel panic - not syncing: sysrq triggered crash"
        assert seen.comm == PLANTED_COMMAND
        assert "sysrq_handle_crash" in seen.stack
        # crash asks for this option itself when a page is missing.
        symbols = vmlinux(lab_base.cache, reference.tree)
        command = [*crash_command(lab_base.cache, suite), "--zero_excluded"]
        patient = OpenDump(cut, symbols, crash_command=command)
        assert patient.crash(PLANTED_COMMAND).panic_message == seen.panic_message


@contextlib.contextmanager
def small_file_system(folder: Path, size_bytes: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.promise("any-dump-file")
@pytest.mark.guest(seconds=20)
def test_what_qemu_saves(restored: RestoredFactory, lab_base: Lab, work: Path) -> None:
    """A hypervisor's dump of a machine that did not crash, as ELF and as kdump-compressed file."""
    with restored() as machine:
        release = machine.boots[0].release
        # By this module the guest tells QEMU where its VMCOREINFO is.
        machine.run("modprobe qemu_fw_cfg")
        machine.dump_guest_memory(work / "elf", "elf")
        machine.dump_guest_memory(work / "zlib", "kdump-zlib")
    for source in ("elf", "zlib"):
        told = kdumpctl("inspect", work / source).stdout
        assert release in told
        dump = convert(work / source, work / f"{source}.dump", "--verify")
        assert dump.stat().st_size < 128 << 20  # of 1 GiB
        core = convert(dump, work / f"{source}.core", "--format", "elf")
        for converted in (dump, core):
            program = drgn.Program()
            program.set_core_dump(converted)
            program.load_debug_info([vmlinux(lab_base.cache, lab_base.tree)])
            assert program["init_uts_ns"].name.release.string_().decode() == release
            assert {"systemd", "kthreadd"} <= {
                task.comm.string_().decode() for task in for_each_task(program)
            }


@pytest.mark.promise("any-dump-file")
def test_log_and_inspection_of_a_dump(reference: Reference, work: Path) -> None:
    dump = convert(reference.vmcore, work / "dump")
    log = kdumpctl("log", dump).stdout
    assert "Linux version" in log.split("\n", 1)[0]
    assert "Kernel panic - not syncing: sysrq triggered crash" in log
    found = kdumpctl("inspect", "--verify", dump)
    assert found.returncode == 0, found.stdout
    assert reference.tree.release in found.stdout
    assert f"{PLANTED_COMMAND} (pid " in found.stdout
