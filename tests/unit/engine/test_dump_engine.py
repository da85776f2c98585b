# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.identity import identity_of
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import open_image
from kdump_service.dumpfile.page_codec import FILL, EncodedPages, PageKind, encode_pages, page_codec
from kdump_service.engine import page_stream, vital
from kdump_service.engine.dump import Dump
from kdump_service.engine.page_stream import Batch, PageStream, batches
from kdump_service.engine.predict import Prediction
from kdump_service.engine.survey import Survey, survey_everything, survey_pages
from kdump_service.engine.verify import SAMPLE_PAGES, check_descriptors, sampled_runs, verify_dump
from kdump_service.errors import BadVmcore, VerificationFailed, WorkerFailed
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap
from kdump_service.targets.local import LocalPlace
from kdump_service.vmcore.page_source import PageSource
from kdump_service.vmcore.virtual_loads import virtual_loads
from tests.builders.machine_memory import X86_64, Aarch64, Machine
from tests.unit.machine_image import ImageOfMachine
from tests.unit.machine_pages import PagesOfMachine, dump_machine, io_error, kills

MIB, GIB = 1 << 20, 1 << 30
SMALL = [(MIB, 31 * MIB)]
"""Frames 0x100 to 0x2000; tests use those up to 0x1800."""


# Batches

RUNS = st.lists(st.tuples(st.integers(0, 1 << 40) | st.just(FILL), st.integers(1, 600)), max_size=20)


def _frames(runs: Iterable[NDArray[np.int64]]) -> list[int]:
    return [
        FILL if first == FILL else first + index
        for array in runs
        for first, count in array.tolist()
        for index in range(count)
    ]


def _array(runs: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(runs, np.int64).reshape(-1, 2)


@settings(derandomize=True)
@given(st.lists(RUNS, max_size=3), st.integers(1, 300))
def test_batches_cover_exactly_the_runs(chunks: list[list[tuple[int, int]]], most: int) -> None:
    arrays = [_array(runs) for runs in chunks]
    cut = list(batches(iter(arrays), most))
    assert _frames(batch.runs for batch in cut) == _frames(arrays)
    assert all(0 < batch.page_count <= most for batch in cut)
    assert len(cut) == sum(-(-int(array[:, 1].sum()) // most) for array in arrays)


@settings(derandomize=True)
@given(RUNS.filter(lambda runs: sum(count for _, count in runs) > 1))
def test_halves_have_the_same_frames(runs: list[tuple[int, int]]) -> None:
    batch = Batch(_array(runs))
    first, second = batch.halves()
    assert _frames([first.runs, second.runs]) == _frames([batch.runs])
    assert 0 <= second.page_count - first.page_count <= 1


# Pages that cannot be read


def _raw(
    pages: memoryview, lost: NDArray[np.bool_], target: memoryview, page_bytes: int = 4096
) -> EncodedPages:
    return encode_pages(pages, page_bytes, lost, page_codec("none"), target)


def _read(source: PageSource, runs: list[tuple[int, int]], workers: int = 2) -> tuple[dict[int, bytes], int]:
    """What came through the stream, and how many readers died; pages that were lost are absent."""
    found: dict[int, bytes] = {}
    page_bytes = source.page_bytes
    with PageStream(
        source, lambda pages, lost, target: _raw(pages, lost, target, page_bytes), workers
    ) as stream:
        seen = []
        for encoded in stream.encode(batches([_array(runs)], stream.batch_pages)):
            frames = _frames([encoded.batch.runs])
            seen += frames
            position = 0
            assert len(frames) == len(encoded.pages.kinds) == len(encoded.pages.sizes)
            for pfn, kind, size in zip(frames, encoded.pages.kinds, encoded.pages.sizes, strict=True):
                if kind != PageKind.LOST:
                    found[pfn] = bytes(encoded.data[position : position + size]) or bytes(page_bytes)
                position += size
            assert position == len(encoded.data)
        assert seen == _frames([_array(runs)])
        return found, stream.deaths


@pytest.fixture(scope="module")
def machine() -> Machine:
    made = Machine(memory=SMALL)
    made.fill(0x100, 0x1700)
    for pfn in range(0x104, 0x1800, 16):
        made.write(pfn * 4096, bytes(4096))
    return made


def _content(machine: Machine, pfns: Iterable[int]) -> dict[int, bytes]:
    return {pfn: machine.memory.read(pfn * machine.page_bytes, machine.page_bytes) for pfn in pfns}


@pytest.mark.parametrize("workers", [1, 3])
def test_every_page_comes_in_order(machine: Machine, workers: int) -> None:
    runs = [(0x100, 1), (0x102, 700), (0x1000, 0x300), (0x500, 3)]
    found, deaths = _read(PagesOfMachine(ImageOfMachine(machine)), runs, workers)
    assert found == _content(machine, _frames([_array(runs)]))
    assert deaths == 0


@pytest.mark.parametrize("fault", [io_error, kills])
@pytest.mark.parametrize(
    "bad",
    [
        {0x200},  # the first one
        {0x2FF, 0x300},  # at the border of two batches
        {0x5FF},  # the last one
        {0x240, 0x241, 0x242, 0x27F, 0x3A0},
    ],
    ids=lambda bad: f"{len(bad)} from {min(bad):#x}",
)
def test_a_bad_page_costs_itself(machine: Machine, bad: set[int], fault: Callable[[], None]) -> None:
    source = PagesOfMachine(ImageOfMachine(machine), faults=dict.fromkeys(bad, fault))
    found, deaths = _read(source, [(0x200, 0x400)])
    assert found == _content(machine, sorted(set(range(0x200, 0x600)) - bad))
    assert (deaths > 0) == (fault is kills)


def test_bad_pages_of_both_kinds(machine: Machine) -> None:
    faults = {0x210: io_error, 0x211: kills, 0x290: kills, 0x291: io_error}
    source = PagesOfMachine(ImageOfMachine(machine), faults=faults)
    found, _ = _read(source, [(0x200, 0x100)])
    assert found == _content(machine, sorted(set(range(0x200, 0x300)) - faults.keys()))


def test_a_want_of_memory_costs_no_page(machine: Machine, tmp_path: Path) -> None:
    """The kernel kills a reader; and one that has more than a few pages to read is killed each time."""

    def killed_once() -> None:
        if not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    source = PagesOfMachine(ImageOfMachine(machine), faults={0x211: killed_once})
    found, deaths = _read(source, [(0x200, 0x300)])
    assert (found, deaths) == (_content(machine, range(0x200, 0x500)), 0)

    class Greedy(PagesOfMachine):
        def read_pages(self, first_pfn: int, count: int, target: memoryview) -> None:
            if count > 16:
                raise MemoryError
            super().read_pages(first_pfn, count, target)

    found, deaths = _read(Greedy(ImageOfMachine(machine)), [(0x200, 0x100)])
    assert found == _content(machine, range(0x200, 0x300))
    assert deaths > 2

    def always() -> None:
        raise MemoryError

    source = PagesOfMachine(ImageOfMachine(machine), faults={0x211: always})
    with pytest.raises(WorkerFailed, match="ended early, as for want of memory, and so did its successors"):
        _read(source, [(0x200, 0x100)])


def test_a_page_that_is_in_a_batch_of_its_own(machine: Machine) -> None:
    found, deaths = _read(PagesOfMachine(ImageOfMachine(machine), faults={0x200: kills}), [(0x200, 1)])
    assert found == {}
    assert deaths == 1


@pytest.fixture
def few_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bad pages are looked for one by one only a few times."""
    monkeypatch.setattr(page_stream, "_MOST_DEATHS", 10)


@pytest.mark.usefixtures("few_deaths")
@pytest.mark.promise("unreadable-pages", "never-hang")
def test_many_deadly_pages_cost_batches_but_it_ends(machine: Machine) -> None:
    faults = dict.fromkeys((*range(0x300, 0x3F0), 0x510), kills)
    found, deaths = _read(PagesOfMachine(ImageOfMachine(machine), faults=faults), [(0x200, 0x600)])
    assert 10 < deaths < 25
    missing = set(range(0x200, 0x800)) - found.keys()
    assert faults.keys() <= missing
    # In the batch with which it began, some are left beside; behind it, the batch is lost with its page.
    assert missing <= {*range(0x300, 0x400), *range(0x500, 0x600)}
    assert found == _content(machine, sorted(found))


def test_pages_of_64_kib() -> None:
    machine = Machine(Aarch64(65536, va_bits=52, pa_bits=52), memory=[(0, 64 * MIB)])
    machine.fill(0x40, 40)
    source = PagesOfMachine(ImageOfMachine(machine), faults={0x50: io_error, 0x51: kills})
    found, _ = _read(source, [(0x40, 40)])
    assert found == _content(machine, sorted(set(range(0x40, 0x68)) - {0x50, 0x51}))


# Whole dumps


FORMATS = [
    ("kdump", "zstd"),
    ("kdump", "zlib"),
    ("kdump", "none"),
    ("elf", "none"),
    ("elf", "lz4"),
    ("flattened", "zlib"),
]


@pytest.mark.parametrize(("dump_format", "compression"), FORMATS)
@pytest.mark.promise("unreadable-pages")
def test_bad_pages_are_told_and_the_rest_is_saved(
    machine: Machine, tmp_path: Path, dump_format: str, compression: str
) -> None:
    faults = {0x200: io_error, 0x300: kills, 0x301: io_error, 0x302: kills}
    options = DumpOptions(0, dump_format, compression, threads=2)
    survey, written = dump_machine(machine, tmp_path / "dump", options, faults)
    assert written.lost == [(0x200, 1), (0x300, 3)]
    assert written.lost_pages == 4
    assert written.killed_readers > 0
    assert written.pages == len(survey.kept)
    source = PagesOfMachine(ImageOfMachine(machine), faults=faults)
    with open_image(tmp_path / "dump") as dump:
        assert dump.incomplete
        # That none of the bad pages is touched again shows in that this process lives.
        compared = verify_dump(source, dump, survey.kept, every_page=True, lost=written.lost)
        assert compared == len(survey.kept) - 4
        if dump_format != "elf":
            with pytest.raises(BadVmcore, match="0x301 was lost"):
                dump.pages.read_pages(0x301, 1, memoryview(bytearray(4096)))


def test_lost_pages_are_told_in_order(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though some are read before their turn. Verification relies on it: to read them again may kill."""
    monkeypatch.setattr(vital, "_EARLY_BYTES", MIB)
    faults = dict.fromkeys((0x180, 0x1000, 0x1F80, 0x1FF0), kills)
    survey, written = dump_machine(machine, tmp_path / "dump", DumpOptions(0, threads=2), faults)
    assert written.lost == [(pfn, 1) for pfn in sorted(faults)]
    source = PagesOfMachine(ImageOfMachine(machine), faults=faults)
    with open_image(tmp_path / "dump") as dump:
        verify_dump(source, dump, survey.kept, every_page=True, lost=written.lost)


@pytest.mark.parametrize("dump_format", ["kdump", "elf"])
def test_broken_memory_is_never_read(tmp_path: Path, dump_format: str) -> None:
    machine = Machine(memory=SMALL)
    machine.pages.kernel(0x200, 64)
    machine.pages.hwpoison(0x210)
    machine.pages.offline(0x220, 4)
    faults = dict.fromkeys((528, 544, 545, 546, 547), kills)
    _, written = dump_machine(machine, tmp_path / "dump", DumpOptions(0, dump_format, threads=2), faults)
    assert written.killed_readers == written.lost_pages == 0


def test_counts_of_pages_of_zeros_and_what_does_not_shrink(tmp_path: Path) -> None:
    machine = Machine(memory=SMALL)
    machine.write(0x200 * 4096, np.random.default_rng(1).bytes(10 * 4096))
    survey, written = dump_machine(machine, tmp_path / "dump", DumpOptions(31, "kdump", "zstd"))
    assert written.pages == len(survey.kept) == len(survey.existing)
    # Those that do shrink are the machine's own: tables, struct pages.
    assert 10 <= written.raw_pages < 20
    assert 0x1E00 < written.pages - 10 > written.zero_pages > 0x1900


@pytest.mark.usefixtures("few_deaths")
def test_a_gap_in_an_elf_core_is_no_lost_page(tmp_path: Path) -> None:
    """Frames that stand for a gap are lost with their batch where too many readers died, but nobody misses
    them."""
    made = Machine(memory=SMALL)
    made.fill(0x200, 0x600)
    for pfn in range(0x200, 0x800, 2):
        made.pages.anon(pfn)
    faults = dict.fromkeys(range(0x201, 0x401, 2), kills)
    survey, written = dump_machine(made, tmp_path / "dump", DumpOptions(31, "elf", threads=2), faults)
    assert 10 < written.killed_readers < 25
    assert written.pages == len(survey.kept)
    assert all(pfn in survey.kept and count == 1 for pfn, count in written.lost)
    assert {pfn for pfn, _ in written.lost} >= faults.keys()
    assert written.lost_pages == len(written.lost)
    assert 0 <= written.zero_pages < len(survey.kept) - 0x300


# How large it will be


@pytest.mark.parametrize(
    "architecture", [X86_64(), Aarch64(65536, va_bits=52, pa_bits=52)], ids=["4K", "64K"]
)
@pytest.mark.parametrize(("dump_format", "compression"), FORMATS)
def test_prediction(
    tmp_path: Path, architecture: X86_64 | Aarch64, dump_format: str, compression: str
) -> None:
    made = Machine(architecture, memory=[(0, 64 * MIB)])
    data = np.random.default_rng(1)
    for pfn in range(16 * MIB // made.page_bytes, 48 * MIB // made.page_bytes, 3):
        made.write(pfn * made.page_bytes, data.bytes(made.page_bytes // 2))
    image = ImageOfMachine(made)
    source = PagesOfMachine(image)
    survey = survey_everything(source)
    options = DumpOptions(0, dump_format, compression, threads=2)
    dump = Dump(image, source, survey, options)
    advances: list[tuple[int, int]] = []
    predicted = dump.predict_bytes(lambda done, total: advances.append((done, total)))
    # Many, since the highest levels of compression take long: a watchdog is fed by them.
    assert len(advances) > 2
    assert advances[-1][0] == advances[-1][1]
    sink = LocalPlace(tmp_path).create("dump")
    dump.write(sink).finish(complete=True)
    sink.publish("dump")
    # The zero page of a kdump-compressed file, the slot of LZ4 frames.
    real = dump.format.head_bytes + dump.written.data_bytes + made.page_bytes
    assert predicted.expected_bytes == pytest.approx(real, rel=0.25)
    assert predicted.expected_bytes <= predicted.at_most_bytes
    assert real <= predicted.at_most_bytes * 1.05


@pytest.mark.parametrize(("dump_format", "compression"), FORMATS)
def test_where_there_is_room_for_all_no_sample_is_needed(
    tmp_path: Path, dump_format: str, compression: str
) -> None:
    made = Machine(memory=[(0, 16 * MIB)])
    data = np.random.default_rng(2)
    for pfn in range(2048, 3072):  # these do not shrink
        made.write(pfn * made.page_bytes, data.bytes(made.page_bytes))
    image = ImageOfMachine(made)
    source = PagesOfMachine(image)
    dump = Dump(image, source, survey_everything(source), DumpOptions(0, dump_format, compression))
    sampled: list[int] = []

    def predicted(room_bytes: int) -> Prediction:
        return dump.predict_bytes(lambda done, total: sampled.append(done), room_bytes=room_bytes)

    most = dump.format.head_bytes + 16 * MIB
    told = predicted(most)
    if compression != "lz4":
        assert (told.expected_bytes, told.at_most_bytes, sampled) == (most, most, [])
    assert predicted(most - 1).at_most_bytes < most
    assert sampled
    sink = LocalPlace(tmp_path).create("dump")
    dump.write(sink).finish(complete=True)
    sink.publish("dump")
    assert (tmp_path / "dump").stat().st_size <= most


def test_prediction_of_nothing() -> None:
    image = ImageOfMachine(Machine(memory=SMALL))
    source = PagesOfMachine(image, missing=range(0x100, 0x2000))
    dump = Dump(image, source, survey_everything(source), DumpOptions(0))
    assert dump.predict_bytes().at_most_bytes == dump.format.head_bytes


# What the headers say


@pytest.mark.parametrize("architecture", [X86_64(), Aarch64()], ids=["x86_64", "aarch64"])
def test_identity(architecture: X86_64 | Aarch64) -> None:
    machine = Machine(architecture, memory=SMALL, generation="6.12")
    image = ImageOfMachine(machine)
    identity = identity_of(image)
    assert identity.uts == {
        "sysname": "Linux",
        "nodename": "crashed",
        "release": "6.12.0-test",
        "version": "#1 SMP",
        "machine": "x86_64" if architecture.e_machine == 62 else "aarch64",
        "domainname": "(none)",
    }
    assert identity.timestamp == 1700000000
    assert identity.phys_base == int(machine.vmcoreinfo.get("NUMBER(phys_base)", "0"))
    assert identity.cpus == 1
    assert identity.notes == machine.notes()
    start, length = identity.vmcoreinfo
    assert identity.notes[start : start + length] == machine.vmcoreinfo_text()


@pytest.mark.parametrize("damage", ["no symbol", "no memory", "another structure", "no VMCOREINFO"])
def test_identity_without_utsname(damage: str) -> None:
    machine = Machine(memory=SMALL)
    match damage:
        case "no symbol":
            del machine.vmcoreinfo["SYMBOL(init_uts_ns)"]
        case "no memory":
            machine.vmcoreinfo["SYMBOL(init_uts_ns)"] = "1000"
        case "another structure":
            machine.vmcoreinfo["OFFSET(uts_namespace.name)"] = "4"
        case _:
            machine.vmcoreinfo.clear()
    uts = identity_of(ImageOfMachine(machine)).uts
    assert uts["machine"] == "x86_64"
    assert uts["release"] == ("(none)" if damage == "no VMCOREINFO" else "6.1.0-test")
    assert uts["nodename"] == "(none)"


def test_an_old_utsname_has_a_counter_in_front() -> None:
    machine = Machine(memory=SMALL)
    utsname = machine.memory.read(machine.image_physical + 0x40000, 6 * 65)
    machine.write(machine.image_physical + 0x40000, bytes(4) + utsname)
    del machine.vmcoreinfo["OFFSET(uts_namespace.name)"]
    assert identity_of(ImageOfMachine(machine)).uts["nodename"] == "crashed"


@pytest.mark.parametrize("architecture", [X86_64(), X86_64(levels=5), Aarch64(), Aarch64(16384, va_bits=47)])
def test_virtual_addresses_from_page_tables(architecture: X86_64 | Aarch64) -> None:
    machine = Machine(architecture, memory=[(16 * MIB, 64 * MIB), (96 * MIB, 64 * MIB)])
    image = ImageOfMachine(machine, loads=False)
    found = virtual_loads(image, survey_everything(PagesOfMachine(image)).existing)
    assert [(each.virtual_address, each.physical_address, each.memory_bytes) for each in found] == [
        (each.virtual, each.physical, each.length) for each in machine.loads()
    ]


# Verification


@pytest.fixture(scope="module")
def sound(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Survey, bytes]:
    path = tmp_path_factory.mktemp("sound") / "dump"
    survey, _ = dump_machine(machine, path, DumpOptions(31, "kdump", "none"))
    return survey, path.read_bytes()


@pytest.fixture
def dumped(
    machine: Machine, sound: tuple[Survey, bytes], tmp_path: Path
) -> tuple[PagesOfMachine, Survey, Path]:
    """Where a dump is from, what it should hold, and where it is, to be damaged."""
    survey, content = sound
    (tmp_path / "dump").write_bytes(content)
    return PagesOfMachine(ImageOfMachine(machine)), survey, tmp_path / "dump"


def _patch(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def _verify(dumped: tuple[PagesOfMachine, Survey, Path], *, every_page: bool = True) -> int:
    source, survey, path = dumped
    with open_image(path) as written:
        return verify_dump(source, written, survey.kept, every_page=every_page)


def _descriptor_offset(path: Path, pfn: int) -> int:
    with KdumpFile(path) as dump:
        number = int(np.count_nonzero(dump.present(0)[:pfn]))
        return dump.data_offset - (dump.page_count - number) * 24


def test_a_sound_file(dumped: tuple[PagesOfMachine, Survey, Path]) -> None:
    assert _verify(dumped) == len(dumped[1].kept)
    assert 900 < _verify(dumped, every_page=False) <= SAMPLE_PAGES


@pytest.mark.promise("read-back")
def test_one_wrong_byte(dumped: tuple[PagesOfMachine, Survey, Path]) -> None:
    source, _, path = dumped
    content = bytearray(4096)
    source.read_pages(0x1235, 1, memoryview(content))
    offset = path.read_bytes().index(bytes(content))
    _patch(path, offset + 1000, bytes([content[1000] ^ 1]))
    with pytest.raises(VerificationFailed, match="0x12353e8 was not saved as it was read"):
        _verify(dumped)


@pytest.mark.parametrize("bit", [0, 7])
def test_a_wrong_bitmap(dumped: tuple[PagesOfMachine, Survey, Path], bit: int) -> None:
    *_, path = dumped
    with KdumpFile(path) as dump:
        # Bitmap 2, of one block, stands right before the descriptors.
        offset = dump.data_offset - dump.page_count * 24 - 4096 + 0x1230 // 8
    _patch(path, offset, bytes([0xFF & ~(1 << bit)]))
    with pytest.raises(VerificationFailed, match=f"wrong about having frame {0x1230 + bit:#x}"):
        _verify(dumped)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (0, (16).to_bytes(8, "little"), "points outside"),
        (0, b"\xff" * 8, "points outside"),
        (0, bytes(8), "1 pages have no data"),
        (8, bytes(4), "points outside"),
        (8, b"\x01\x10\0\0", "points outside"),
        (8, b"\xff\x0f\0\0", "points outside"),  # a raw page must be a whole one
        (12, b"\x80", "cannot be read"),
        (12, b"\x20", "cannot be read"),
        (12, b"\x01", "cannot be read"),
    ],
)
def test_a_wrong_descriptor(
    dumped: tuple[PagesOfMachine, Survey, Path], field: int, value: bytes, message: str
) -> None:
    *_, path = dumped
    _patch(path, _descriptor_offset(path, 0x1234) + field, value)
    with pytest.raises(VerificationFailed, match=message):
        _verify(dumped)


def test_lost_pages_are_counted(dumped: tuple[PagesOfMachine, Survey, Path]) -> None:
    *_, path = dumped
    for pfn in (0x200, 0x201):
        _patch(path, _descriptor_offset(path, pfn), bytes(24))
    with KdumpFile(path) as dump:
        check_descriptors(dump, lost_pages=2)
        with pytest.raises(VerificationFailed, match="2 pages have no data, though only 1 could"):
            check_descriptors(dump, lost_pages=1)


def test_what_an_elf_core_was_to_leave_out(tmp_path: Path) -> None:
    machine = Machine(memory=SMALL)
    machine.fill(0x200, 32)
    machine.pages.anon(0x210)
    survey, _ = dump_machine(machine, tmp_path / "dump", DumpOptions(31, "elf"))
    source = PagesOfMachine(ImageOfMachine(machine))
    with open_image(tmp_path / "dump") as dump:
        assert verify_dump(source, dump, survey.kept, every_page=True) == len(survey.kept)
        gap = (tmp_path / "dump").read_bytes().index(machine.content_of(0x20F)) + 4096
    _patch(tmp_path / "dump", gap + 4095, b"x")
    with (
        open_image(tmp_path / "dump") as dump,
        pytest.raises(VerificationFailed, match="from 0x210 on were left out, but not wholly"),
    ):
        verify_dump(source, dump, survey.kept, every_page=True)


# The first pass


def test_memory_without_content() -> None:
    """What a filtered dump names only: it existed, and there is nothing to be judged."""
    machine = Machine(memory=[(MIB, GIB), (5 * GIB, GIB)])
    image = ImageOfMachine(machine)
    source = PagesOfMachine(image, missing=range(0x100, 1 << 18))
    survey = survey_pages(image, source, 31, workers=1)
    assert [survey.existing.count(chunk) for chunk in range(6)] == [0x3FF00, 0x100, 0, 0, 0, 1 << 18]
    assert [survey.kept.count(chunk) for chunk in range(6)] == [0, 0x100, 0, 0, 0, 1 << 18]


def test_progress_of_the_survey() -> None:
    machine = Machine(memory=[(MIB, 2 * GIB)])
    image = ImageOfMachine(machine)
    told: list[tuple[int, int]] = []
    survey_pages(
        image, PagesOfMachine(image), 31, workers=2, advance=lambda done, total: told.append((done, total))
    )
    assert told == [(1 << 18, 0x80100), (2 << 18, 0x80100), (0x80100, 0x80100)]


MACHINES_OF_A_TERABYTE = {
    "sparse": "Machine(memory=[(1 << 20, 1 << 30), (1 << 39, 1 << 30), ((1 << 40) - (1 << 30), 1 << 30)])",
    "full": "Machine(Aarch64(65536, va_bits=52, pa_bits=52), memory=[(0, 1 << 40)], shared_memmap=True)",
}
SURVEY = """
import resource, sys
from pathlib import Path
from kdump_service.dumpfile.open_image import open_image
from kdump_service.engine.survey import survey_pages
from tests.builders.machine_memory import Aarch64, Machine
machine = {machine}
for pfn in range(0, machine.section_pages, 64):
    machine.pages.kernel(pfn, 64)
    machine.pages.buddy(pfn, 5)
with open_image(machine.write_elf(Path(sys.argv[1]))) as core:
    survey = survey_pages(core.image, core.pages, 31, workers=2)
print(len(survey.existing), survey.excluded["free"], len(survey.kept))
# Not getrusage(RUSAGE_SELF): that remembers the memory of pytest, before exec.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) >> 10, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


@pytest.mark.parametrize("kind", MACHINES_OF_A_TERABYTE)
def test_a_machine_of_a_terabyte_takes_little_memory(tmp_path: Path, kind: str) -> None:
    # In a process of its own, whose memory nobody else has used.
    program = SURVEY.format(machine=MACHINES_OF_A_TERABYTE[kind])
    core = tmp_path / "core"
    done = subprocess.run(
        [sys.executable, "-c", program, core], capture_output=True, text=True, check=True, timeout=120
    )
    existing, free, kept, *peaks = map(int, done.stdout.split())
    assert existing == (3 << 18 if kind == "sparse" else 1 << 24)
    assert kept == existing - free
    assert free == (0x7F00 // 2 if kind == "sparse" else existing // 2)
    assert max(peaks) < 64  # MiB
    core.unlink()


CUT_SHORT = """
import numpy as np
from kdump_service.dumpfile.identity import identity_of
from kdump_service.dumpfile.kdump_writer import KdumpWriter
from kdump_service.dumpfile.page_codec import EncodedPages, PageKind, page_codec
from kdump_service.engine.survey import Survey
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap
from tests.builders.machine_memory import Machine
from tests.unit.machine_image import ImageOfMachine

class Sink:
    rewritable = True
    written = {{}}
    def reserve(self, size_bytes): pass
    def set_size(self, size_bytes): pass
    def write_at(self, offset, data):
        if offset > 1 << 24:
            self.written[offset] = bytes(data)

frames = PfnBitmap({frames})
for chunk in range(frames.chunk_count):
    frames.set_bits(chunk, np.ones(CHUNK_PAGES, np.bool_))
identity = identity_of(ImageOfMachine(Machine(memory=[(1 << 20, 1 << 24)])))
writer = KdumpWriter(Sink(), identity, Survey(31, frames, frames), 4096, page_codec("none", None))

def write(write, pfn):
    pages = EncodedPages(np.array([PageKind.RAW], np.uint8), np.array([4096], np.uint32))
    write(np.array([(pfn, 1)]), pages, memoryview(bytes(4096)))

early = [{frames} - 1, 5, {frames} // 2]
for pfn in early:
    write(writer.write_early, pfn)
for pfn in range(3):
    write(writer.write, pfn)
writer.flush()
described = 0
for pfn in (*early, 0, 1, 2):
    at = writer.layout.descriptors_offset + 24 * pfn
    for offset, data in Sink.written.items():
        if offset <= at < offset + len(data):
            last = data[at - offset : at - offset + 24]
    described += int.from_bytes(last[8:12], "little") == 4096
print(described)
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak) >> 10)
"""


def test_a_dump_that_is_cut_short_takes_little_memory() -> None:
    """Of 256 GiB that are to be kept, three pages are written, and three early ones, the last among them."""
    program = CUT_SHORT.format(frames=1 << 26)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    described, peak = map(int, done.stdout.split())
    assert described == 6
    assert peak < 64  # MiB


@pytest.mark.parametrize(("most", "together"), [(1024, 8), (1024, 1), (10**6, 8), (64, 8)])
def test_sample_is_spread_over_all_that_is_kept(most: int, together: int) -> None:
    kept = PfnBitmap(3 * CHUNK_PAGES)
    for chunk in range(kept.chunk_count):
        kept.set_bits(chunk, np.random.default_rng(chunk).random(CHUNK_PAGES) < 0.5)
    every = np.concatenate([frames(runs) for runs in kept.runs()])
    sample = np.concatenate([frames(runs) for runs in sampled_runs(kept, most, together)])
    ranks = np.searchsorted(every, sample)
    assert np.array_equal(every[ranks], sample)
    assert min(most, len(every)) - together < len(sample) <= min(most, len(every))
    gaps = np.diff(ranks)
    assert gaps.min() == 1 if together > 1 else gaps.min() > 1
    assert gaps.max() <= 2 * len(every) * together / most + together
    assert (ranks[0], ranks[-1]) == (0, len(every) - 1)


def frames(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those of runs, one by one."""
    return np.concatenate([np.arange(first, first + count) for first, count in runs.tolist()])
