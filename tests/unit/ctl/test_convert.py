# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl convert, inspect and log, on machines that never were."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_service.ctl.main import main
from kdump_service.dump_options import COMPRESSIONS_OF, DumpOptions
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import open_image
from kdump_service.engine.convert import convert_file
from kdump_service.errors import BadVmcore, ConfigError, TargetUnusable
from kdump_service.record import DumpFile, DumpRecord, ImagePart
from tests.builders import printk_ring
from tests.builders.machine_memory import Aarch64, Machine
from tests.builders.printk_ring import PrintkRing
from tests.unit.dumpfile.small_core import page, small_core

MIB = 1 << 20
KDUMPCTL = [sys.executable, "-m", "kdump_service.ctl.main"]
FIRST, END = 0x100, 0x1000
"""All frames of the machine."""


@pytest.fixture(scope="module")
def machine() -> Machine:
    made = Machine(memory=[(MIB, 15 * MIB)], generation="6.12")
    made.fill(0x200, 0x200)
    made.pages.thp(0x200)
    made.pages.buddy(0x400, 3)
    made.pages.cache(0x500)
    made.pages.cache(0x501, private=True)
    ring = PrintkRing(address=made.direct(0x600 * 4096))
    ring.print("Linux version 6.12.0-test")
    ring.print("Kernel panic - not syncing: sysrq triggered crash", level=0, caller_id=77)
    made.write(0x600 * 4096, bytes(ring))
    made.vmcoreinfo |= printk_ring.VMCOREINFO | {"SYMBOL(prb)": f"{ring.address:x}"}
    made.pages.kernel(0x600, 8)
    return made


@pytest.fixture(scope="module")
def core(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine as its capture kernel would see it."""
    return machine.write_elf(tmp_path_factory.mktemp("machine") / "core")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def _run(*arguments: object) -> int:
    """kdumpctl, in this process."""
    return main([str(each) for each in arguments])


def _pages(path: Path) -> dict[int, bytes]:
    """Every page of a file by our reader; the other tests hold that against other readers."""
    with open_image(path) as opened:
        assert not opened.incomplete
        frames = np.flatnonzero(opened.pages.present(0))
        result = {}
        for run in np.split(frames, np.flatnonzero(np.diff(frames) != 1) + 1):
            buffer = bytearray(len(run) * 4096)
            opened.pages.read_pages(int(run[0]), len(run), memoryview(buffer))
            for index, pfn in enumerate(run.tolist()):
                result[pfn] = bytes(buffer[index * 4096 : (index + 1) * 4096])
        return result


def _left_out(level: int) -> set[int]:
    """What the machine has of the classes of a level."""
    result: set[int] = set()
    classes = {2: [0x500], 4: [0x500, 0x501], 8: range(0x200, 0x400), 16: range(0x400, 0x408)}
    for bit, frames in classes.items():
        if level & bit:
            result |= set(frames)
    return result


# From format to format

FORMATS: dict[str, list[object]] = {
    "elf": [],
    "elf lz4": ["--format", "elf", "--compression", "lz4"],
    "elf none": ["--format", "elf"],
    "kdump zstd": [],
    "kdump zlib": ["--compression", "zlib", "--compression-level", 6],
    "kdump none": ["--compression", "none"],
    "flattened": ["--format", "flattened"],
}


@pytest.fixture(scope="module")
def whole_dumps(core: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The core in each format, with all of its pages."""
    folder = tmp_path_factory.mktemp("formats")
    result = {"elf": core}
    for name, options in FORMATS.items():
        if name != "elf":
            result[name] = folder / name.replace(" ", "-")
            assert _run("convert", core, result[name], "--level", 0, "--threads", 1, *options) == 0
    return result


@pytest.mark.parametrize("target", ["elf none", "elf lz4", "kdump zlib", "flattened"])
@pytest.mark.parametrize("source", ["elf", "elf none", "elf lz4", "kdump zstd", "flattened"])
@pytest.mark.promise("any-dump-file")
def test_every_page_on_every_way(
    machine: Machine, whole_dumps: dict[str, Path], out: Path, source: str, target: str
) -> None:
    options = [*FORMATS[target], "--verify", "--threads", 1]
    assert _run("convert", whole_dumps[source], out, "--level", 16, *options) == 0
    found = _pages(out)
    for pfn in range(FIRST, END):
        content = machine.memory.read(pfn * 4096, 4096)
        if pfn in range(0x400, 0x408):
            # A short gap of an ELF core is zeros.
            assert found.get(pfn, bytes(4096)) == bytes(4096)
        else:
            assert found[pfn] == content, f"frame {pfn:#x}"
    with open_image(out) as opened:
        assert opened.image.note_segment == machine.notes()
        assert opened.image.vmcoreinfo.release == "6.12.0-test"
        assert opened.image.machine == 62


def test_a_core_made_of_a_kdump_file_has_the_addresses_of_the_first_one(
    machine: Machine, whole_dumps: dict[str, Path], out: Path
) -> None:
    assert _run("convert", whole_dumps["kdump zstd"], out, "--format", "elf", "--level", 0) == 0
    with out.open("rb") as file:
        found = [each.header for each in ELFFile(file).iter_segments("PT_LOAD")]
    expected = machine.loads()
    assert [(each.p_vaddr, each.p_paddr, each.p_memsz) for each in found] == [
        (each.virtual, each.physical, each.length) for each in expected
    ]


@pytest.mark.parametrize("level", [0, 1, 4, 8, 18, 31])
@pytest.mark.parametrize("dump_format", ["kdump", "elf"])
def test_levels(core: Path, machine: Machine, out: Path, dump_format: str, level: int) -> None:
    assert _run("convert", core, out, "--format", dump_format, "--level", level) == 0
    found = _pages(out)
    left_out = _left_out(level)
    if dump_format == "kdump":
        assert found.keys() == set(range(FIRST, END)) - left_out
    for pfn, content in found.items():
        assert content == (bytes(4096) if pfn in left_out else machine.memory.read(pfn * 4096, 4096))


@pytest.mark.parametrize(("contents", "level"), [("kernel", 31), ("user", 23), ("everything", 1)])
def test_contents(core: Path, out: Path, contents: str, level: int) -> None:
    assert _run("convert", core, out, "--contents", contents) == 0
    assert _pages(out).keys() == set(range(FIRST, END)) - _left_out(level)


def test_filtering_again_is_filtering_once(whole_dumps: dict[str, Path], tmp_path: Path) -> None:
    once, first, again = (tmp_path / name for name in ("once", "first", "again"))
    assert _run("convert", whole_dumps["elf"], once, "--level", 31) == 0
    assert _run("convert", whole_dumps["elf"], first, "--level", 6) == 0
    assert _run("convert", first, again, "--level", 31, "--threads", 3) == 0
    assert _pages(again) == _pages(once)


def test_machines_with_large_pages(tmp_path: Path) -> None:
    machine = Machine(Aarch64(65536, pa_bits=52), memory=[(0, 64 * MIB)])
    machine.fill(0x20, 4)
    source = machine.write_elf(tmp_path / "core")
    for name in ("kdump", "elf", "flattened"):
        assert _run("convert", source, tmp_path / name, "--format", name, "--verify") == 0
        source = tmp_path / name
        with open_image(source) as opened:
            assert opened.pages.page_bytes == 65536
            assert opened.image.read_physical(0x21 * 65536, 65536) == machine.content_of(0x21)


# What it tells


def test_a_summary_for_people(core: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("convert", core, out, "--threads", 2) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    pages = END - FIRST - len(_left_out(31))
    assert f"{out}: " in printed.out
    assert re.search(rf", {pages} pages \(\d+ of zeros\), \d+ compared, in ", printed.out)
    assert "left out: free 8, cache 1, cache-private 1, user 512\n" in printed.out


def test_a_summary_for_programs(core: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("convert", core, out, "--json", "--verify") == 0
    told = json.loads(capsys.readouterr().out)
    pages = END - FIRST - len(_left_out(31))
    assert told["pages"] == told["verified_pages"] == pages
    assert 0 < told["zero_pages"] < pages
    assert told["bytes"] == out.stat().st_size
    assert told["excluded"]["user"] == 512
    assert (told["format"], told["compression"], told["level"]) == ("kdump", "zstd", 31)
    assert told["lost_pages"] == 0
    assert told["notes"] == []
    assert told["parts"][-1]["offset"] + told["parts"][-1]["length"] == told["bytes"]


def test_a_dump_is_for_its_owner_alone(core: Path, out: Path) -> None:
    assert _run("convert", core, out) == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert sorted(each.name for each in out.parent.iterdir()) == ["out"]


# What cannot be done


def _fails(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object) -> None:
    assert _run(*arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("kdumpctl: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--level 32", "dump level 32 is not between 0 and 31"),
        ("--level -1", "dump level -1 is not between 0 and 31"),
        ("--threads 0", "0 threads are too few"),
        ("--threads -3", "-3 threads are too few"),
        ("--compression lz4", "format kdump cannot be compressed with lz4, only with zstd, zlib, none"),
        ("--format elf --compression zstd", "format elf cannot be compressed with zstd, only with none, lz4"),
        ("--format elf --compression zlib", "format elf cannot be compressed with zlib"),
        ("--format flattened --compression lz4", "cannot be compressed with lz4"),
        ("--compression-level 20", "zstd has levels from -7 to 19, not 20"),
        ("--compression zlib --compression-level 0", "zlib has levels from 1 to 9, not 0"),
        ("--compression none --compression-level 1", "none has levels from 0 to 0, not 1"),
    ],
)
def test_impossible_options(
    core: Path, out: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    _fails(capsys, 10, message, "convert", core, out, *options.split())
    assert not any(out.parent.iterdir())


@pytest.mark.parametrize(
    "options",
    [
        "--format vmcore",
        "--compression lzo",
        "--contents log",
        "--level 1 --contents user",
        "--level all",
        "",
    ],
)
def test_wrong_usage(core: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    with pytest.raises(SystemExit) as caught:
        _run("convert", core, *(["out", *options.split()] if options else []))
    assert caught.value.code == 2
    assert "usage: kdumpctl convert" in capsys.readouterr().err


def _bad_input(path: Path, kind: str, core: Path) -> None:
    content = core.read_bytes()
    match kind:
        case "missing":
            return
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("This is no dump.\n" * 100)
        case "gzip":
            path.write_bytes(b"\x1f\x8b\x08\x00" + bytes(100))
        case "executable":
            path.write_bytes(content[:16] + b"\x02\0" + content[18:])
        case "32 bits":
            path.write_bytes(content[:4] + b"\x01" + content[5:])
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "headers only":
            path.write_bytes(content[:100])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "No such file or directory"),
        ("folder", "Is a directory"),
        ("empty", "is empty"),
        ("text", "which is no known format. Known are"),
        ("gzip", "is compressed with gzip. Unpack it with gzip -d first."),
        ("executable", "ELF type 2 at offset 16 is not a core"),
        ("32 bits", "ELF class 1 at offset 4 is not supported"),
        ("truncated", "claims bytes"),
        ("headers only", "ends within program header"),
    ],
)
@pytest.mark.parametrize("verb", ["convert", "inspect", "log"])
def test_bad_input(
    core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, kind: str, message: str
) -> None:
    source = tmp_path / "in"
    _bad_input(source, kind, core)
    outs = [tmp_path / "out"] if verb == "convert" else []
    _fails(capsys, 40, message, verb, source, *outs)
    assert str(source) in message or not outs or not outs[0].exists()
    assert [each.name for each in tmp_path.iterdir()] == ([] if kind == "missing" else ["in"])


def test_a_core_of_no_linux(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing can be told of its pages; at levels that need not know, they can be copied."""
    machine = Machine(memory=[(MIB, 15 * MIB)])
    machine.vmcoreinfo.clear()
    source = machine.write_elf(tmp_path / "core")
    _fails(capsys, 40, "VMCOREINFO has no SIZE(page)", "convert", source, tmp_path / "out")
    for level in (0, 1):
        assert _run("convert", source, tmp_path / "out", "--level", level, "--force") == 0
        assert _pages(tmp_path / "out").keys() == set(range(FIRST, END))


@pytest.mark.parametrize("existing", ["out", "out.incomplete"])
def test_what_is_there_is_not_overwritten(
    core: Path, out: Path, capsys: pytest.CaptureFixture[str], existing: str
) -> None:
    path = out.with_name(existing)
    path.write_text("precious")
    _fails(capsys, 41, f"{path}: File exists. Remove it, or write it anew with --force", "convert", core, out)
    assert path.read_text() == "precious"
    assert list(out.parent.iterdir()) == [path]
    assert _run("convert", core, out, "--force") == 0
    assert _pages(out)
    assert list(out.parent.iterdir()) == [out]


def test_out_in_a_folder_that_is_not_there(core: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = out / "dump"
    _fails(capsys, 41, f"{target}.incomplete: No such file or directory", "convert", core, target)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_out_is_a_folder(core: Path, out: Path, capsys: pytest.CaptureFixture[str], force: list[str]) -> None:
    out.mkdir()
    _fails(capsys, 41, str(out), "convert", core, out, *force)
    assert out.is_dir()


def test_a_name_that_leads_elsewhere(core: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A link in place of the file that is being written is not followed."""
    precious = out.with_name("precious")
    precious.write_text("precious")
    out.with_name("out.incomplete").symlink_to(precious)
    _fails(capsys, 41, "out.incomplete", "convert", core, out, "--force")
    assert precious.read_text() == "precious"


def test_in_is_out(core: Path, tmp_path: Path) -> None:
    path = tmp_path / "core"
    shutil.copy(core, path)
    assert _run("convert", path, path, "--level", 31, "--force") == 0
    assert _pages(path).keys() == set(range(FIRST, END)) - _left_out(31)


# No room


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def _check_incomplete(path: Path, machine: Machine) -> int:
    """It opens, says what it is, and every page that it has is right; how many have content."""
    count = 0
    with open_image(path) as opened:
        assert opened.incomplete
        for pfn in range(0x200, 0x400):
            try:
                page = opened.image.read_physical(pfn * 4096, 4096)
            except BadVmcore:
                continue
            if any(page):
                assert page == machine.content_of(pfn)
                count += 1
    return count


def test_a_full_file_system(
    core: Path, machine: Machine, small_file_system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = small_file_system / "out"
    options = ["--level", 0, "--compression", "none"]
    message = f"{out}.incomplete: No space left on device. Make room, or write to another folder"
    _fails(capsys, 42, message, "convert", core, out, *options)
    assert [each.name for each in small_file_system.iterdir()] == ["out.incomplete"]
    assert 0 < _check_incomplete(small_file_system / "out.incomplete", machine) < 0x200


@pytest.mark.parametrize("dump_format", ["kdump", "elf", "flattened"])
def test_a_limit_to_the_size_of_files(core: Path, machine: Machine, out: Path, dump_format: str) -> None:
    arguments = [str(core), str(out), "--level", "0", "--format", dump_format, "--compression", "none"]
    done = subprocess.run(
        [*KDUMPCTL, "convert", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB)),
    )
    message = "File too large. Make room, or write to another folder."
    assert done.stderr == f"kdumpctl: {out}.incomplete: {message}\n"
    assert done.returncode == 42
    assert [each.name for each in out.parent.iterdir()] == ["out.incomplete"]
    if dump_format == "kdump":
        assert 0 < _check_incomplete(out.with_name("out.incomplete"), machine) < 0x200


def test_no_room_for_the_head(core: Path, out: Path) -> None:
    command = [*KDUMPCTL, "convert", str(core), str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000)),
    )
    assert done.returncode == 42
    assert "File too large" in done.stderr


@pytest.mark.parametrize("dump_format", ["kdump", "flattened"])
def test_memory_of_a_big_endian_machine(
    tmp_path: Path, out: Path, capsys: pytest.CaptureFixture[str], dump_format: str
) -> None:
    """As of s390x. A kdump-compressed file of it would be read by nobody; an ELF core can be made of it."""
    source = small_core(tmp_path / "big", [(0x100, 0x100)], byte_order=">")
    capsys.readouterr()
    options = ["--level", 0, "--format", dump_format]
    message = "a kdump-compressed file of a big-endian machine is not supported. Use --format elf"
    _fails(capsys, 10, message, "convert", source, out, *options)
    assert not list(out.parent.glob("out*"))
    for number, compression in enumerate(("none", "lz4")):
        target = tmp_path / f"elf{number}"
        options = ["--level", 0, "--format", "elf", "--compression", compression]
        assert _run("convert", source, target, *options) == 0
        with open_image(target) as opened:
            assert (opened.image.byte_order, opened.incomplete) == (">", False)
            assert opened.image.read_physical(0x105 * 4096, 4096) == page(0x105)


# Pipes and signals


@pytest.mark.parametrize(
    "options",
    [
        ["--format", "flattened"],
        ["--format", "elf"],
        ["--format", "elf", "--compression", "lz4"],
    ],
    ids=" ".join,
)
def test_to_a_pipe(core: Path, machine: Machine, out: Path, options: list[str]) -> None:
    command = [*KDUMPCTL, "convert", str(core), "-", "--json", *options]
    done = subprocess.run(command, capture_output=True, check=True, timeout=60)
    told = json.loads(done.stderr)
    out.write_bytes(done.stdout)
    found = _pages(out)
    assert told["pages"] == END - FIRST - len(_left_out(31))
    for pfn in set(range(FIRST, END)) - _left_out(31):
        assert found[pfn] == machine.memory.read(pfn * 4096, 4096)


def test_what_cannot_go_to_a_pipe(core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = "format kdump cannot be written to a pipe. Use --format flattened or --format elf"
    _fails(capsys, 10, message, "convert", core, "-")


def test_a_pipe_that_nobody_reads(core: Path) -> None:
    command = [*KDUMPCTL, "convert", str(core), "-", "--format", "elf"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 41
    assert errors == "kdumpctl: standard output: Broken pipe\n"


def test_a_full_device_behind_the_pipe(core: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [*KDUMPCTL, "convert", str(core), "-", "--format", "flattened"]
        done = subprocess.run(
            command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert done.returncode == 42
    assert done.stderr == "kdumpctl: standard output: No space left on device\n"


@pytest.mark.parametrize("verb", ["log", "inspect"])
def test_a_reader_that_has_enough(core: Path, verb: str) -> None:
    """As with "| head"."""
    process = subprocess.Popen(
        [*KDUMPCTL, verb, str(core)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


INTERRUPTED = """
import os, signal, sys
from kdump_service.ctl import main, offline
class InterruptedProgress(offline.ProgressLine):
    def __call__(self, what, done, total):
        if what == {what!r} and done > {done}:
            os.killpg(0, signal.SIGINT)  # as a terminal does: to all of us
offline.ProgressLine = InterruptedProgress
sys.exit(main.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("what", "done"), [("Filtering", 0), ("Writing", 0), ("Writing", 1500), ("Verifying", 0)]
)
def test_interrupted(core: Path, machine: Machine, out: Path, what: str, done: int) -> None:
    program = INTERRUPTED.format(what=what, done=done)
    arguments = ["convert", str(core), str(out), "--level", "0", "--threads", "3"]
    command = [sys.executable, "-c", program, *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # The workers have its standard error: communicate() returns when the last of them is gone.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == ""
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    if what == "Filtering":
        assert not any(out.parent.iterdir())
        return
    assert [each.name for each in out.parent.iterdir()] == ["out.incomplete"]
    count = _check_incomplete(out.with_name("out.incomplete"), machine)
    assert count == 0x200 or done == 0


# Inspect


def _inspected(
    capsys: pytest.CaptureFixture[str], path: Path, *options: str, code: int = 0
) -> dict[str, Any]:
    assert _run("inspect", path, "--json", *options) == code
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize("name", FORMATS)
def test_inspect(whole_dumps: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    capsys.readouterr()
    found = _inspected(capsys, whole_dumps[name], "--verify")
    wrapping = {"flattened": "flattened", "elf lz4": "lz4"}.get(name, "")
    assert (found["format"], found["wrapping"]) == ("elf" if "elf" in name else "kdump", wrapping)
    assert found["state"] == "complete"
    assert found["bytes"] == whole_dumps[name].stat().st_size
    assert found["pages"] == found["existing_pages"] == END - FIRST
    assert found["checked"] == f"{END - FIRST} pages read"
    assert found["dump_level"] == (None if "elf" in name else 0)
    assert found["kernel_release"] == "6.12.0-test"
    assert (found["machine"], found["host"], found["crash_time"]) == ("x86_64", "crashed", 1700000000)
    assert found["panic_message"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert found["problems"] == []


@pytest.mark.promise("no-broken-dump-as-good")
def test_inspect_holds_a_dump_against_its_record(
    core: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A byte of a page that is not compressed: nothing in the file itself says that it is another one."""
    path = tmp_path / "vmcore"
    told = convert_file(core, path, DumpOptions(0, "kdump", "none"))
    record = DumpRecord(
        "20261123T040000Z-crashed",
        files=[DumpFile("vmcore", told.bytes, told.bytes)],
        image_parts=[ImagePart(**dataclasses.asdict(part)) for part in told.parts],
    )
    (tmp_path / "record.json").write_text(record.to_json())
    capsys.readouterr()
    sound = _inspected(capsys, path, "--verify")
    assert (sound["problems"], sound["checked"].endswith(", held against the SHA-256 of 4 parts")) == (
        [],
        True,
    )
    pages = next(part for part in told.parts if part.name == "pages")
    for offset in (pages.offset, pages.offset + pages.length - 1):
        with path.open("r+b") as file:
            file.seek(offset)
            [byte] = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 0x10]))
        assert _inspected(capsys, path)["problems"] == []
        [problem] = _inspected(capsys, path, "--verify", code=43)["problems"]
        assert problem.startswith(
            f"the pages, {pages.length} bytes at offset {pages.offset:#x}, are not what"
        )
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(bytes([byte]))
    # Another file in the same folder has no record, and a record that is none is told.
    path.rename(tmp_path / "other")
    assert "SHA-256" not in _inspected(capsys, tmp_path / "other", "--verify")["checked"]
    (tmp_path / "record.json").write_text("{")
    assert _run("inspect", tmp_path / "other", "--verify") == 0
    assert f"{tmp_path / 'record.json'} cannot be used" in capsys.readouterr().err


def test_inspect_for_people(whole_dumps: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("inspect", whole_dumps["flattened"]) == 0
    printed = capsys.readouterr().out
    assert "Format: kdump in flattened\n" in printed
    assert f"Pages: {END - FIRST} of {END - FIRST} of 4" in printed
    assert "Crashed: 2023-11-14" in printed
    assert "Problem" not in printed


def test_inspect_tells_what_is_wrong(
    whole_dumps: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(whole_dumps["kdump zstd"].read_bytes())
    content[len(content) // 2 :: 500] = bytes(len(content[len(content) // 2 :: 500]))
    out.write_bytes(content)
    found = _inspected(capsys, out, "--verify", code=43)
    assert "a compressed page is damaged" in found["problems"][0]
    assert len(found["problems"]) <= 11


def test_a_flattened_dump_that_was_cut_off(
    whole_dumps: dict[str, Path], machine: Machine, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a connection that broke leaves it: its log, its pages, and what is told of it."""
    cut = out.with_name("cut")
    cut.write_bytes(whole_dumps["flattened"].read_bytes()[:-100])
    found = _inspected(capsys, cut, "--verify")
    assert (found["format"], found["wrapping"], found["state"]) == ("kdump", "flattened", "incomplete")
    assert found["panic_message"] == "Kernel panic - not syncing: sysrq triggered crash"
    assert found["problems"] == []
    assert _run("log", cut) == 0
    assert "Kernel panic - not syncing" in capsys.readouterr().out
    assert _run("convert", cut, out, "--level", 0) == 0
    assert f"{cut} says that it is incomplete" in capsys.readouterr().err
    assert _check_incomplete(out, machine) > 0x100
    assert _check_incomplete(cut, machine) > 0x100


def test_damage_in_what_was_cut_off_is_told(
    whole_dumps: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Descriptors that point before the pages are no consequence of a missing end."""
    content = bytearray(whole_dumps["flattened"].read_bytes())
    with open_image(whole_dumps["flattened"]) as opened:
        assert isinstance(opened.image, KdumpFile)
        first = opened.image.descriptors(0, 1).tobytes()
    place = content.index(first)
    for number in range(3):
        content[place + 24 * number : place + 24 * number + 8] = (1).to_bytes(8, "little")
    out.write_bytes(content[:-40])
    found = _inspected(capsys, out, code=43)
    assert found["state"] == "incomplete"
    assert "points outside of the pages" in found["problems"][0]


def test_inspect_a_dump_that_was_cut_off(
    whole_dumps: dict[str, Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = whole_dumps["kdump none"].read_bytes()
    out.write_bytes(content[: len(content) * 2 // 3])
    found = _inspected(capsys, out, code=43)
    assert any("points outside of the pages" in each for each in found["problems"])


# Log


@pytest.mark.parametrize("name", FORMATS)
def test_log(whole_dumps: dict[str, Path], capsys: pytest.CaptureFixture[str], name: str) -> None:
    capsys.readouterr()
    assert _run("log", whole_dumps[name]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("] Linux version 6.12.0-test")
    assert second.endswith("] Kernel panic - not syncing: sysrq triggered crash")


def test_log_with_callers_and_as_json(core: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("log", core, "--caller") == 0
    assert "[   T77] Kernel panic" in capsys.readouterr().out
    assert _run("log", core, "--json") == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert records[1]["text"] == "Kernel panic - not syncing: sysrq triggered crash"


BY_DESCRIPTOR = """
import sys
from kdump_service.bus.client import BusDump
from kdump_service.ctl import dump_files
from kdump_service.ctl.main import main
descriptor = int(sys.argv[1])
try:
    open(f"/proc/self/fd/{descriptor}").close()
    sys.exit("the file can be opened anew, so that this shows nothing")
except PermissionError:
    pass
dump_files._opened = lambda pattern, what: (BusDump("/dump", {"Name": "stored"}), descriptor)
sys.exit(main(["log", "stored", "--caller"]))
"""


@pytest.mark.parametrize("name", ["elf", "elf lz4", "kdump zstd", "flattened"])
def test_log_of_a_dump_that_may_be_read_but_not_opened(
    whole_dumps: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """As a descriptor of the service's comes to who is not root, and may read dumps."""
    path = tmp_path / "image"
    shutil.copy(whole_dumps[name], path)
    with path.open("rb") as file:
        path.chmod(0)  # that keeps off all but root
        done = subprocess.run(
            [sys.executable, "-c", BY_DESCRIPTOR, str(file.fileno())], pass_fds=[file.fileno()],
            user=65534 if os.geteuid() == 0 else None, cwd=Path(__file__).parents[3],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "[   T77] Kernel panic" in done.stdout


def test_a_core_that_names_no_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(memory=[(MIB, 15 * MIB)])
    source = machine.write_elf(tmp_path / "core")
    _fails(capsys, 40, "VMCOREINFO names no log", "log", source)


# Options by themselves


def test_every_possible_combination_is_accepted() -> None:
    for dump_format, compressions in COMPRESSIONS_OF.items():
        for compression in ("auto", *compressions):
            options = DumpOptions(31, dump_format, compression)
            options.check()
            assert options.codec in compressions


@pytest.mark.parametrize(
    "options",
    [
        DumpOptions(format="vmcore"),
        DumpOptions(compression="lzo"),
        DumpOptions(format="elf", compression="zstd"),
        DumpOptions(level=32),
        DumpOptions(level=-1),
        DumpOptions(threads=0),
        DumpOptions(compression_level=100),
        DumpOptions(compression="zlib", compression_level=-1),
    ],
    ids=str,
)
def test_convert_checks_its_options_first(tmp_path: Path, options: DumpOptions) -> None:
    with pytest.raises(ConfigError):
        convert_file(tmp_path / "missing", tmp_path / "out", options)


@pytest.mark.parametrize("links", [True, False], ids=["links", "no-links"])
@pytest.mark.parametrize("came", ["file", "dangling link"])
def test_what_came_meanwhile_is_not_replaced(
    core: Path, out: Path, monkeypatch: pytest.MonkeyPatch, came: str, links: bool
) -> None:
    """Unless that was asked for. The file system may have no hard links, as FAT."""

    def come(what: str, done: int, total: int) -> None:
        if what == "Verifying" and not os.path.lexists(out):
            if came == "file":
                out.write_text("mine")
            else:
                out.symlink_to("nowhere")

    if not links:
        monkeypatch.setattr(os, "link", lambda *given, **how: (_ for _ in ()).throw(PermissionError(1, "no")))
    with pytest.raises(TargetUnusable, match=f"{out}: File exists"):
        convert_file(core, out, DumpOptions(), progress=come)
    assert out.is_symlink() or out.read_text() == "mine"
    with open_image(out.with_name("out.incomplete")) as opened:
        assert not opened.incomplete
    convert_file(core, out, DumpOptions(), replace=True, progress=come)
    assert not out.is_symlink()
    with open_image(out) as opened:
        assert not opened.incomplete
    assert [each.name for each in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("replace", [True, False])
def test_content_is_on_the_disk_before_the_name(
    core: Path, out: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    did: list[tuple[str, bool]] = []

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(first: Any, *others: Any, **how: Any) -> Any:
            of_folder = name == "fsync" and stat.S_ISDIR(os.fstat(first).st_mode)
            did.append(("fsync of the folder" if of_folder else name, out.exists()))
            return real(first, *others, **how)

        return call

    for name in ("fsync", "rename", "link"):
        monkeypatch.setattr(os, name, noted(name))
    convert_file(core, out, DumpOptions(), replace=replace)
    created, *did = did
    assert created == ("fsync of the folder", False)
    assert did == [("fsync", False), ("rename" if replace else "link", False), ("fsync of the folder", True)]


def test_errors_of_convert_file(core: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        convert_file(tmp_path / "missing", tmp_path / "out", DumpOptions())
    with pytest.raises(TargetUnusable):
        convert_file(core, tmp_path / "no" / "out", DumpOptions())
