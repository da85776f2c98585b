# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import contextlib
import hashlib
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import drgn
import numpy as np
import pytest
import zstandard

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile import kdump_writer
from kdump_service.dumpfile.kdump_format import Header, Layout, SubHeader, pack_header, parse_header
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.page_codec import decompressor, encode_pages, page_codec
from kdump_service.engine import dump, page_stream, vital
from kdump_service.engine.dump import Dump
from kdump_service.engine.survey import Survey, survey_pages
from kdump_service.errors import BadVmcore, TargetFull
from kdump_service.pfn import PfnBitmap
from tests.builders.machine_memory import X86_64, Aarch64, Machine
from tests.unit.machine_image import ImageOfMachine
from tests.unit.machine_pages import PagesOfMachine, dump_machine

MIB = 1 << 20
SMALL = [(MIB, 31 * MIB)]
COMPRESSIONS = ["zstd", "zlib", "none"]
ZLIB, INCOMPLETE, ZSTD = 0x1, 0x8, 0x20
LENGTHS = {4096: 15 * MIB, 16384: 31 * MIB, 65536: 71 * MIB}
"""Memory of machines, by their page size."""
EARLY_PAGES = 256
FIRST = 0x300
"""Frames from here on have content: 32 that does not shrink, 32 that does, and 32 of user memory."""


def _machine(architecture: X86_64 | Aarch64 | None = None) -> Machine:
    architecture = architecture or X86_64()
    memory = [(MIB, LENGTHS[architecture.page_bytes])]
    machine = Machine(architecture, memory=memory, generation="6.12")
    random = np.random.default_rng(1)
    for pfn in range(FIRST, FIRST + 32):
        machine.write(pfn * machine.page_bytes, random.bytes(machine.page_bytes))
    machine.fill(FIRST + 32, 64)
    for pfn in range(FIRST + 32, FIRST + 64):
        machine.write(pfn * machine.page_bytes + 64, bytes(machine.page_bytes - 64))
    for pfn in range(FIRST + 64, FIRST + 96):
        machine.pages.anon(pfn)
    return machine


@pytest.fixture(scope="module")
def machine() -> Machine:
    made = _machine()
    _survey(made)  # page tables are made when they are asked for
    return made


def _content(machine: Machine, pfn: int) -> bytes:
    return machine.memory.read(pfn * machine.page_bytes, machine.page_bytes)


def _drgn_page(program: drgn.Program, machine: Machine, pfn: int) -> bytes | None:
    """A page as drgn, which has libkdumpfile inside, reads it; None where it says that there is none."""
    try:
        return bytes(program.read(pfn * machine.page_bytes, machine.page_bytes, physical=True))
    except drgn.FaultError:
        return None


def _open_in_drgn(path: Path) -> drgn.Program:
    program = drgn.Program()
    program.set_core_dump(str(path))
    # Before the first read, libkdumpfile looks for page tables, which a dump that was cut off may not have.
    with contextlib.suppress(drgn.FaultError):
        program.read(0, 1, physical=True)
    return program


# Read by others


@pytest.mark.parametrize(
    "architecture",
    [X86_64(), X86_64(levels=5), Aarch64(), Aarch64(16384, va_bits=47), Aarch64(65536, pa_bits=52)],
    ids=str,
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.promise("opens-in-debuggers", "kdump-zstd", "kdump-zlib", "kdump-none")
def test_drgn_reads_every_page(tmp_path: Path, architecture: X86_64 | Aarch64, compression: str) -> None:
    machine = _machine(architecture)
    dump = tmp_path / "dump"
    survey, written = dump_machine(machine, dump, DumpOptions(31, "kdump", compression))
    assert written.raw_pages >= 32
    program = _open_in_drgn(dump)
    assert program.platform is not None
    assert program.platform.arch.name == ("X86_64" if architecture.e_machine == 62 else "AARCH64")
    assert program["UTS_RELEASE"].string_() == b"6.12.0-test"
    first = MIB // machine.page_bytes
    for pfn in range(first, survey.kept.end_pfn):
        expected = _content(machine, pfn) if pfn in survey.kept else None
        assert _drgn_page(program, machine, pfn) == expected, f"frame {pfn:#x}"
    assert FIRST + 64 not in survey.kept


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_our_reader_reads_every_page(machine: Machine, tmp_path: Path, compression: str) -> None:
    survey, _ = dump_machine(machine, tmp_path / "dump", DumpOptions(31, "kdump", compression, threads=2))
    with KdumpFile(tmp_path / "dump") as dump:
        assert not dump.incomplete
        assert np.array_equal(dump.present(0), survey.kept.bits(0))
        assert np.array_equal(dump.existing(0), survey.existing.bits(0))
        [*runs] = np.concatenate(list(survey.kept.runs())).tolist()
        for first, count in runs:
            buffer = bytearray(count * 4096)
            dump.read_pages(first, count, memoryview(buffer))
            assert buffer == machine.memory.read(first * 4096, count * 4096)
        with pytest.raises(BadVmcore, match="0x340 is not in the file"):
            dump.read_pages(FIRST + 60, 8, memoryview(bytearray(8 * 4096)))
        with pytest.raises(BadVmcore, match="0x40000 is past the end"):
            dump.read_pages(1 << 18, 1, memoryview(bytearray(4096)))
        assert dump.read_physical(FIRST * 4096 + 4000, 200) == machine.memory.read(FIRST * 4096 + 4000, 200)
        with pytest.raises(BadVmcore):
            dump.read_physical(0x340 * 4096 - 8, 16)


@pytest.mark.skipif(not shutil.which("makedumpfile"), reason="makedumpfile is not installed")
@pytest.mark.parametrize("compression", ["zlib", "none"])  # Debian's has no zstd
def test_makedumpfile_filters_it_anew(tmp_path: Path, compression: str) -> None:
    machine = Machine(memory=SMALL, generation="5.10")
    machine.fill(0x200, 0x400)
    machine.pages.thp(0x200)
    machine.pages.cache(0x500)
    dump_machine(machine, tmp_path / "dump", DumpOptions(0, "kdump", compression))
    command = ["makedumpfile", "-c", "-d", "30", str(tmp_path / "dump"), str(tmp_path / "filtered")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    image = ImageOfMachine(machine)
    source = PagesOfMachine(image)
    expected = survey_pages(image, source, 30, workers=1)
    with KdumpFile(tmp_path / "filtered") as filtered:
        # Written by somebody else, and read by us.
        assert np.array_equal(filtered.present(0), expected.kept.bits(0))
        assert np.array_equal(filtered.existing(0), expected.existing.bits(0))
        assert filtered.sub_header.dump_level == 30
        assert filtered.vmcoreinfo.release == "5.10.0-test"
        buffer = bytearray(4096)
        for pfn in range(0x100, 0x2000):
            if pfn in expected.kept:
                filtered.read_pages(pfn, 1, memoryview(buffer))
                assert buffer == _content(machine, pfn)


@pytest.mark.skipif(not shutil.which("makedumpfile"), reason="makedumpfile is not installed")
def test_a_compression_that_we_cannot_undo(tmp_path: Path) -> None:
    core = _machine().write_elf(tmp_path / "core")
    command = ["makedumpfile", "-l", "-d", "0", str(core), str(tmp_path / "lzo")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    with (
        KdumpFile(tmp_path / "lzo") as dump,
        pytest.raises(BadVmcore, match=r"frame 0x320 at offset 0x[0-9a-f]+: .* with LZO cannot be read"),
    ):
        dump.read_pages(FIRST + 32, 1, memoryview(bytearray(4096)))


@pytest.mark.skipif(not shutil.which("crash"), reason="crash is not installed")
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.promise("opens-in-debuggers")
def test_crash_knows_the_kernel(machine: Machine, tmp_path: Path, compression: str) -> None:
    dump_machine(machine, tmp_path / "dump", DumpOptions(31, "kdump", compression))
    command = ["crash", "--osrelease", str(tmp_path / "dump")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "6.12.0-test\n"


# What is in the file


@pytest.mark.parametrize("architecture", [X86_64(), Aarch64(65536, pa_bits=52)], ids=["4K", "64K"])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_headers(tmp_path: Path, architecture: X86_64 | Aarch64, compression: str) -> None:
    """By the offsets of diskdump_mod.h, as a 64-bit machine has them."""
    machine = _machine(architecture)
    survey, _ = dump_machine(machine, tmp_path / "dump", DumpOptions(27, "kdump", compression))
    data = (tmp_path / "dump").read_bytes()
    block = machine.page_bytes
    assert struct.unpack_from("<8si", data) == (b"KDUMP   ", 6)
    names = [data[12 + 65 * index :][:65].rstrip(b"\0").decode() for index in range(6)]
    word = "x86_64" if architecture.e_machine == 62 else "aarch64"
    assert names == ["Linux", "crashed", "6.12.0-test", "#1 SMP", word, "(none)"]
    assert struct.unpack_from("<QQ", data, 408) == (1700000000, 0)
    status, block_size, sub_blocks, bitmap_blocks, max_mapnr = struct.unpack_from("<iiiII", data, 424)
    assert status == {"zstd": ZSTD, "zlib": ZLIB, "none": 0}[compression]
    assert block_size == block
    assert max_mapnr == survey.existing.end_pfn == (MIB + LENGTHS[block]) // block
    assert struct.unpack_from("<4Ii", data, 444) == (0, 0, 0, 0, 1)

    phys_base, level, split, start, end = struct.unpack_from("<qiiQQ", data, block)
    assert phys_base == int(machine.vmcoreinfo.get("NUMBER(phys_base)", "0"))
    assert (level, split, start, end) == (27, 0, 0, 0)
    info_at, info_bytes, note_at, note_bytes, *erase_info = struct.unpack_from("<6Q", data, block + 32)
    assert data[note_at : note_at + note_bytes] == machine.notes()
    assert data[info_at : info_at + info_bytes] == machine.vmcoreinfo_text()
    assert note_at == block + 104
    assert erase_info == [0, 0]
    assert struct.unpack_from("<QQQ", data, block + 80) == (0, 0, max_mapnr)

    bitmaps_at = (1 + sub_blocks) * block
    assert note_at + note_bytes <= bitmaps_at
    one = bitmap_blocks * block // 2
    assert bitmap_blocks == 2 * -(-max_mapnr // (8 * block))
    for bitmap, start in ((survey.existing, bitmaps_at), (survey.kept, bitmaps_at + one)):
        bits = np.unpackbits(np.frombuffer(data, np.uint8, one, start), bitorder="little")
        assert np.array_equal(bits[:max_mapnr], bitmap.bits(0)[:max_mapnr])
        assert not bits[max_mapnr:].any()


def _descriptors(path: Path) -> dict[int, tuple[int, int, int]]:
    """Offset, size and flags, by frame."""
    with KdumpFile(path) as dump:
        frames = np.flatnonzero(dump.present(0)).tolist()
        rows = dump.descriptors(0, dump.page_count)
        columns = (rows[name].tolist() for name in ("offset", "size", "flags"))
        return dict(zip(frames, zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_how_pages_are_stored(machine: Machine, tmp_path: Path, compression: str) -> None:
    dump_machine(machine, tmp_path / "dump", DumpOptions(31, "kdump", compression))
    descriptors = _descriptors(tmp_path / "dump")
    data = (tmp_path / "dump").read_bytes()
    flag = {"zstd": ZSTD, "zlib": ZLIB, "none": 0}[compression]
    zero_pages = set()
    ends = []
    for pfn, (offset, size, flags) in descriptors.items():
        stored = data[offset : offset + size]
        content = _content(machine, pfn)
        if not any(content):
            zero_pages.add((offset, size, flags))
        elif flags:
            ends.append((offset, offset + size))
            assert flags == flag
            assert size < 4096
            assert content == (
                zlib.decompress(stored) if flag == ZLIB else zstandard.ZstdDecompressor().decompress(stored)
            )
        else:
            ends.append((offset, offset + size))
            assert stored == content
    # All pages of zeros are one.
    [(zero_offset, zero_size, zero_flags)] = zero_pages
    assert (zero_size, zero_flags) == (4096, 0)
    assert not any(data[zero_offset : zero_offset + 4096])
    # Nothing else is in the file, and nothing twice.
    pieces = sorted([*ends, (zero_offset, zero_offset + 4096)])
    with KdumpFile(tmp_path / "dump") as dump:
        borders = [dump.data_offset, *(end for _, end in pieces)]
    assert [start for start, _ in pieces] == borders[:-1]
    assert borders[-1] == len(data)
    # What does not shrink stands as it is.
    for pfn in range(FIRST, FIRST + 32):
        assert descriptors[pfn][1:] == (4096, 0)


def test_more_descriptors_than_are_written_at_once(tmp_path: Path) -> None:
    machine = Machine()
    machine.fill(0x100, 64)
    machine.fill(0x8000, 64)
    survey, _ = dump_machine(machine, tmp_path / "dump", DumpOptions(0, threads=2))
    assert len(survey.kept) == 255 << 8 > 3 * kdump_writer._DESCRIPTORS_AT_ONCE
    program = _open_in_drgn(tmp_path / "dump")
    for pfn in (*range(0x100, 0x150), *range(0x7FF0, 0x8050), 0xFFFF):
        assert _drgn_page(program, machine, pfn) == _content(machine, pfn)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_manifest_is_that_of_the_file(machine: Machine, tmp_path: Path, compression: str) -> None:
    sink = _RecordingSink()
    writer = _write(machine, sink, compression)
    writer.finish(complete=True)
    data = sink.content()
    end = 0
    for part in writer.parts():
        assert part.offset == end
        end += part.length
        assert hashlib.sha256(data[part.offset : end]).hexdigest() == part.sha256, part.name
    assert end == len(data)


def test_a_machine_that_tells_nothing_of_itself(tmp_path: Path) -> None:
    machine = Machine(memory=SMALL)
    machine.fill(0x200)
    machine.vmcoreinfo.clear()
    dump_machine(machine, tmp_path / "dump", DumpOptions(0))
    with KdumpFile(tmp_path / "dump") as dump:
        assert dump.read_physical(0x200 * 4096, 4096) == machine.content_of(0x200)
        assert len(dump.vmcoreinfo) == 0
        assert dump.header.cpus == 1


# While it is written


class _RecordingSink:
    """Keeps what is written, and can tell what was there after each byte of it."""

    rewritable = True

    def __init__(self, most_bytes: int = 1 << 40) -> None:
        self.writes: list[tuple[int, bytes]] = []
        self._most_bytes = most_bytes
        self._reserved = 0

    def reserve(self, size_bytes: int) -> None:
        """See Sink."""
        if size_bytes > self._most_bytes:
            raise TargetFull("no room")
        self._reserved = size_bytes

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """See Sink."""
        if offset + len(data) > max(self._most_bytes, self._reserved):
            raise TargetFull("no room")
        self.writes.append((offset, bytes(data)))

    def set_size(self, size_bytes: int) -> None:
        """See Sink."""

    @property
    def head_calls(self) -> int:
        """Calls until headers and bitmaps stand."""
        return next(index for index, (offset, _) in enumerate(self.writes) if offset >= self._reserved)

    @property
    def head_bytes(self) -> int:
        """What is reserved at the beginning: all but the pages."""
        return self._reserved

    def content(self, calls: int = 1 << 30, cut: int = 1 << 30) -> bytes:
        """The file after so many calls, the last of which was cut off after so many bytes."""
        data = bytearray(self._reserved)
        for index, (offset, part) in enumerate(self.writes[:calls]):
            written = part[:cut] if index == calls - 1 else part
            data.extend(bytes(max(offset + len(written) - len(data), 0)))
            data[offset : offset + len(written)] = written
        return bytes(data)


def _write(machine: Machine, sink: _RecordingSink, compression: str = "zstd") -> kdump_writer.KdumpWriter:
    image = ImageOfMachine(machine)
    source = PagesOfMachine(image)
    survey = survey_pages(image, source, 31, workers=1)
    writer = Dump(image, source, survey, DumpOptions(31, "kdump", compression)).write(sink)
    assert isinstance(writer, kdump_writer.KdumpWriter)
    return writer


@contextlib.contextmanager
def _many_small_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kdump_writer, "_DESCRIPTORS_AT_ONCE", 200)
        patch.setattr(page_stream, "BATCH_BYTES", 32 * 4096)
        patch.setattr(vital, "_EARLY_BYTES", EARLY_PAGES * 4096)
        yield


@pytest.fixture(scope="module")
def recorded() -> _RecordingSink:
    with _many_small_steps():
        sink = _RecordingSink()
        _write(_machine(), sink).finish(complete=True)
    assert len(sink.writes) > 40
    return sink


def _in_order_of_writing(machine: Machine) -> list[int]:
    """The kernel's image, its page tables and the top of memory first; without them, nobody opens a dump."""
    kept = set(np.flatnonzero(_survey(machine).kept.bits(0)).tolist())
    image = machine.image_physical // 4096
    tables = [machine.root_physical, *machine.tables.made.values()]
    vital_frames = {*range(image, image + 512), *(address // 4096 for address in tables)}
    vital_frames |= set(range(0x1000 - EARLY_PAGES, 0x1000))
    return sorted(kept & vital_frames) + sorted(kept - vital_frames)


def _readable(machine: Machine, path: Path) -> set[int]:
    """The frames that our reader gives; each must be right."""
    found = set()
    with KdumpFile(path) as dump:
        assert dump.incomplete
        buffer = bytearray(4096)
        for pfn in np.flatnonzero(dump.present(0)).tolist():
            with contextlib.suppress(BadVmcore):
                dump.read_pages(pfn, 1, memoryview(buffer))
                assert buffer == _content(machine, pfn), f"frame {pfn:#x}"
                found.add(pfn)
    return found


@pytest.mark.promise("incomplete-says-so", "no-broken-dump-as-good")
def test_cut_off_at_any_point_while_it_was_written(
    machine: Machine, recorded: _RecordingSink, tmp_path: Path
) -> None:
    path = tmp_path / "dump"
    found: set[int] = set()
    last = len(recorded.writes) - 1  # the one behind it takes the flag away
    for calls in (*range(recorded.head_calls + 1, last, 2), last):
        length = len(recorded.writes[calls - 1][1])
        for cut in (length // 2, length):
            path.write_bytes(recorded.content(calls, cut))
            before, found = found, _readable(machine, path)
            assert found >= before
    assert found == set(_in_order_of_writing(machine))
    path.write_bytes(recorded.content())
    with KdumpFile(path) as dump:
        assert not dump.incomplete


@pytest.mark.parametrize("seed", range(4))
def test_vital_pages_come_in_parts_that_lie_between_each_other(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    kept = _survey(machine).kept
    part_of = np.random.default_rng(seed).integers(0, 4, kept.bits(0).size)

    def parts(*of: object) -> Iterator[PfnBitmap]:
        for number in (2, 0, 1):
            part = PfnBitmap(kept.end_pfn)
            part.set_bits(0, kept.bits(0) & (part_of == number))
            yield part

    monkeypatch.setattr(dump, "vital_parts", parts)
    sink = _RecordingSink()
    with _many_small_steps():
        writer = _write(machine, sink)
        (tmp_path / "torn").write_bytes(sink.content())
        assert _readable(machine, tmp_path / "torn") == set(_in_order_of_writing(machine))
        writer.finish(complete=True)
    path = tmp_path / "dump"
    path.write_bytes(sink.content())
    with KdumpFile(path) as written:
        buffer = bytearray(4096)
        for pfn in _in_order_of_writing(machine):
            written.read_pages(pfn, 1, memoryview(buffer))
            assert buffer == _content(machine, pfn), f"frame {pfn:#x}"
    for part in writer.parts():
        stored = sink.content()[part.offset : part.offset + part.length]
        assert hashlib.sha256(stored).hexdigest() == part.sha256


def _survey(machine: Machine) -> Survey:
    image = ImageOfMachine(machine)
    return survey_pages(image, PagesOfMachine(image), 31, workers=1)


def test_cut_off_within_headers_and_bitmaps(recorded: _RecordingSink, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    for calls in range(recorded.head_calls + 1):
        length = len(recorded.writes[calls - 1][1]) if calls else 0
        for cut in {0, 7, 8, 11, 12, 400, 464, 4096, 4200, length // 2, length}:
            path.write_bytes(recorded.content(calls, cut))
            try:
                with KdumpFile(path) as dump:
                    assert dump.incomplete
            except BadVmcore:
                assert calls <= 1  # once the headers stand, it opens


@pytest.mark.promise("incomplete-says-so")
def test_drgn_opens_what_was_cut_off(machine: Machine, recorded: _RecordingSink, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    kept = sorted(_in_order_of_writing(machine))
    for calls in range(recorded.head_calls + 1, len(recorded.writes), len(recorded.writes) // 8):
        path.write_bytes(recorded.content(calls, 100))
        readable = _readable(machine, path)
        program = _open_in_drgn(path)
        for pfn in kept[:: len(kept) // 200]:
            page = _drgn_page(program, machine, pfn)
            assert page == (_content(machine, pfn) if pfn in readable else None), f"frame {pfn:#x}"


def test_a_dump_that_was_cut_shorter_afterwards(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    dump_machine(machine, path, DumpOptions(31))
    data = path.read_bytes()
    descriptors = _descriptors(path)
    last = max(descriptors, key=lambda pfn: descriptors[pfn][0])
    for length in (descriptors[last][0] + 1, descriptors[FIRST + 1][0]):
        path.write_bytes(data[:length])
        with KdumpFile(path) as dump:
            assert dump.read_physical(FIRST * 4096, 4096) == _content(machine, FIRST)
            with pytest.raises(BadVmcore, match=f"frame {last:#x} claims"):
                dump.read_physical(last * 4096, 4096)
    path.write_bytes(data[: min(offset for offset, _, _ in descriptors.values()) - 24])
    with KdumpFile(path) as dump, pytest.raises(BadVmcore, match="ends within the page descriptors"):
        dump.read_physical(0xFFF * 4096, 4096)


@pytest.mark.parametrize("room", [0.2, 0.5, 0.9, 0.999])
def test_a_full_target_keeps_what_it_took(
    machine: Machine, recorded: _RecordingSink, tmp_path: Path, room: float
) -> None:
    pages_bytes = len(recorded.content()) - recorded.head_bytes
    sink = _RecordingSink(recorded.head_bytes + int(pages_bytes * room))
    with _many_small_steps(), pytest.raises(TargetFull):
        _write(machine, sink)
    path = tmp_path / "dump"
    path.write_bytes(sink.content())
    found = _readable(machine, path)
    # All up to some frame, and none behind it.
    kept = _in_order_of_writing(machine)
    assert found == set(kept[: len(found)])
    assert found
    program = _open_in_drgn(path)
    for pfn in kept[:: len(kept) // 100]:
        assert _drgn_page(program, machine, pfn) == (_content(machine, pfn) if pfn in found else None)
    if room > 0.2:
        # By virtual addresses too: the page tables are there.
        for pfn in kept[: len(found) : 100]:
            assert program.read(machine.direct(pfn * 4096), 4096) == _content(machine, pfn)


def test_no_room_for_headers() -> None:
    with pytest.raises(TargetFull):
        _write(_machine(), _RecordingSink(10000))


# Files that are not as they should be


@pytest.fixture(scope="module")
def sound(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "dump"
    dump_machine(machine, path, DumpOptions(31))
    return path.read_bytes()


@pytest.fixture
def patched(sound: bytes, tmp_path: Path) -> Path:
    (tmp_path / "dump").write_bytes(sound)
    return tmp_path / "dump"


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (0, b"DISKDUMP", "not with a kdump-compressed header"),
        (8, b"\x07", "version 7 at offset 8 is not supported"),
        (8, b"\0\0\0\0", "version 0 at offset 8"),
        (8, b"\0\0\0\6", "big-endian"),
        (428, b"\0\0\0\0", "block size 0 at offset 428"),
        (428, b"\0\0\0\x80", "no page size"),
        (428, b"\0\x20\0\0", "."),  # twice as large: nothing is where it should be
        (432, b"\0\0\0\0", "0 blocks of sub header"),
        (432, b"\xff\xff\xff\xff", "-1 blocks of sub header"),
        (432, b"\xff\xff\xff\x7f", "blocks of sub header at offset 432 are not plausible"),
        (436, b"\0\0\0\0", "0 blocks of bitmaps are too few"),
        (436, b"\xff\xff\xff\xff", "within the bitmaps"),
        (4096 + 12, b"\1", "split"),
        (4096 + 32, b"\0\0", "places VMCOREINFO"),
        (4096 + 40, b"\xff\xff\xff\xff", "places VMCOREINFO"),
        (4096 + 48, b"\xff\xff\xff\xff\xff\xff\xff\xff", "places the ELF notes"),
        (4096 + 56, b"\xff\xff\xff\xff\xff\xff\xff\xff", "places the ELF notes"),
        (4096 + 96, b"\xff\xff\xff\xff\xff\xff\xff\xff", "blocks of bitmaps are too few"),
    ],
)
def test_nonsense_in_the_headers(patched: Path, offset: int, content: bytes, message: str) -> None:
    with patched.open("r+b") as file:
        file.seek(offset)
        file.write(content)
    with pytest.raises(BadVmcore, match=message) as caught:
        KdumpFile(patched)
    assert str(caught.value).startswith(f"{patched}: ")


@pytest.mark.parametrize("version", range(1, 7))
def test_older_versions_of_the_header(patched: Path, version: int, machine: Machine) -> None:
    """Fields that a version does not have yet are not believed, whatever stands there."""
    data = bytearray(patched.read_bytes())
    data[8:12] = version.to_bytes(4, "little")
    for since, start, end in ((2, 12, 16), (3, 32, 48), (4, 48, 64), (6, 96, 104)):
        if version < since:
            data[4096 + start : 4096 + end] = b"\xff" * (end - start)
    patched.write_bytes(data)
    with KdumpFile(patched) as dump:
        assert dump.read_physical(FIRST * 4096, 4096) == _content(machine, FIRST)
        assert dump.end_pfn == 0x1000
        assert bool(len(dump.vmcoreinfo)) == (version >= 3)
        assert bool(dump.notes) == (version >= 4)


@pytest.mark.parametrize("length", [0, 7, 8, 463, 464, 4096, 4199, 4200, 8192, 12000])
def test_files_that_end_early(patched: Path, length: int) -> None:
    patched.write_bytes(patched.read_bytes()[:length])
    with pytest.raises(BadVmcore, match=r"begins with|ends"):
        KdumpFile(patched)


def test_frames_beyond_32_bits() -> None:
    """A machine with memory at 52 bits of address; its bitmaps alone would be too large for a test."""
    sub_header = SubHeader(0, 31, False, 0, 0, 0, 0, 1 << 40)
    header = Header(6, {}, 0, 0, 4096, 1, 1 << 25, 1 << 40, 1)
    packed = pack_header(header, sub_header)
    assert parse_header(packed).max_mapnr == 0xFFFFFFFF
    assert struct.unpack_from("<Q", packed, 4096 + 96) == (1 << 40,)
    layout = Layout(4096, 100, 1 << 40, 5)
    assert layout.one_bitmap_bytes == 1 << 37
    assert layout.data_offset == 4096 * 2 + (1 << 38) + 5 * 24


# Single pages

PAGE = b"".join(number.to_bytes(8, "little") for number in range(512))


@pytest.mark.parametrize(
    ("compression", "level"),
    [("zstd", None), ("zstd", -7), ("zstd", 19), ("zlib", None), ("zlib", 1), ("zlib", 9)],
)
@pytest.mark.parametrize("page_bytes", [4096, 65536])
def test_levels_of_compression(compression: str, level: int | None, page_bytes: int) -> None:
    codec = page_codec(compression, level)
    pages = (PAGE * 48)[: 3 * page_bytes] if page_bytes == 4096 else PAGE * 48
    target = memoryview(bytearray(len(pages)))
    encoded = encode_pages(memoryview(pages), page_bytes, np.zeros(3, np.bool_), codec, target)
    assert encoded.kinds.tolist() == [2, 2, 2]
    unpack = decompressor(codec.flag, page_bytes)
    start = 0
    for number, size in enumerate(encoded.sizes.tolist()):
        data = bytes(target[start : start + size])
        assert unpack(data) == pages[number * page_bytes : (number + 1) * page_bytes]
        if compression == "zstd":
            assert zstandard.frame_content_size(data) == page_bytes
        start += size


def _zstd_without_size(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(data)


def _zstd_with_window(log: int) -> bytes:
    """A frame that makes its reader allocate so much, in two blocks, as a stream is."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=log, write_content_size=False)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    first = stream.compress(PAGE[:100]) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return first + stream.compress(PAGE[100:]) + stream.flush()


@pytest.mark.parametrize(
    ("flag", "data"),
    [
        (ZLIB, zlib.compress(PAGE)),
        (ZLIB, zlib.compress(PAGE, 0)),
        (ZSTD, zstandard.ZstdCompressor(level=1).compress(PAGE)),
        (ZSTD, _zstd_without_size(PAGE)),
        (ZSTD, _zstd_with_window(23)),
        (0, PAGE),
    ],
    ids=["zlib", "zlib stored", "zstd", "zstd without size", "zstd with a large window", "raw"],
)
@pytest.mark.promise("any-dump-file")
def test_pages_of_other_writers(flag: int, data: bytes) -> None:
    assert decompressor(flag, 4096)(data) == PAGE


@pytest.mark.parametrize(
    ("flag", "data"),
    [
        (0, PAGE[:-1]),
        (ZLIB, zlib.compress(PAGE[:-1])),
        (ZLIB, zlib.compress(PAGE + b"x")),
        (ZLIB, zlib.compress(bytes(100 << 20))),
        (ZLIB, zlib.compress(PAGE)[:-4] + b"1234"),
        (ZLIB, zlib.compress(PAGE)[:100]),
        (ZLIB, PAGE),
        (ZSTD, zstandard.ZstdCompressor().compress(PAGE[:-1])),
        (ZSTD, zstandard.ZstdCompressor().compress(PAGE + b"x")),
        (ZSTD, zstandard.ZstdCompressor().compress(bytes(100 << 20))),
        (ZSTD, _zstd_without_size(bytes(100 << 20))),
        (ZSTD, _zstd_without_size(PAGE)[:-4] + b"1234"),
        (ZSTD, _zstd_with_window(27)),
        (ZSTD, zstandard.ZstdCompressor().compress(b"")),
        (ZSTD, zstandard.ZstdCompressor().compress(PAGE)[:100]),
        (ZSTD, PAGE),
        (ZSTD, b""),
    ],
    ids=range(17),
)
def test_pages_that_are_none(flag: int, data: bytes) -> None:
    with pytest.raises(BadVmcore, match="page"):
        decompressor(flag, 4096)(data)


@pytest.mark.parametrize(
    ("flag", "name"), [(2, "LZO"), (4, "snappy"), (0x40, "method 0x40"), (0x21, "method 0x21")]
)
def test_methods_that_we_do_not_know(flag: int, name: str) -> None:
    with pytest.raises(BadVmcore, match=f"pages compressed with {name} cannot be read here"):
        decompressor(flag, 4096)
