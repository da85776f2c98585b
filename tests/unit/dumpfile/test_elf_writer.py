# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from kdump_service.dumpfile.elf_writer import MOST_HEADERS, ElfWriter, batches_of, plan_elf
from kdump_service.dumpfile.page_codec import FILL
from kdump_service.dumpfile.sink import StreamSink
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap
from kdump_service.vmcore.elf import PT_LOAD, ProgramHeader
from kdump_service.vmcore.page_source import ElfPages
from kdump_service.vmcore.reader import Vmcore
from tests.builders.elf_core import PAGE, ElfCore, Segment
from tests.unit.dumpfile.small_core import (
    DIRECT,
    TEXT,
    FileSink,
    SinkFull,
    bitmap,
    page,
    plan_of,
    small_core,
    write_elf,
    write_pages,
)


def _dump(source: Path, pages: Iterable[int], target: Path) -> Path:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, pages)
        write_elf(ElfWriter(FileSink(target), plan, kept), core, plan, kept)
    return target


def _loads(path: Path) -> list[tuple[int, int, int, int]]:
    """Virtual and physical frame, frames in the file and in memory, as pyelftools reads them."""
    with path.open("rb") as file:
        headers = [each.header for each in ELFFile(file).iter_segments("PT_LOAD")]
    fields = ("p_vaddr", "p_paddr", "p_filesz", "p_memsz")
    return [tuple(each[name] // PAGE for name in fields) for each in headers]


def _content(path: Path, pfn: int) -> bytes:
    """A frame as pyelftools finds it; zeros where a header says so; an error where there is none."""
    with path.open("rb") as file:
        for each in ELFFile(file).iter_segments("PT_LOAD"):
            start = pfn * PAGE - each["p_paddr"]
            if 0 <= start < each["p_memsz"]:
                return bytes(each.data()[start : start + PAGE]).ljust(PAGE, b"\0")
    raise AssertionError(f"frame {pfn:#x} is in no segment")


TEXT_KEPT = range(0x400, 0x410)
KEPT = [*range(0x100, 0x108), *range(0x110, 0x112), 0x3FF, *TEXT_KEPT, 0x900]


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    return small_core(
        tmp_path / "core", [(0x100, 0x400), (0x800, 0x200)], text=(0x400, 0x20), zero={0x102, 0x111}
    )


def test_headers_are_those_of_the_source_cut_where_pages_are_left_out(source: Path, tmp_path: Path) -> None:
    dump = _dump(source, KEPT, tmp_path / "dump")
    assert _loads(dump) == [
        (TEXT // PAGE, 0x400, 0x10, 0x20),
        # The gap of 8 frames is bridged.
        (DIRECT // PAGE + 0x100, 0x100, 0x12, 0x2FF),
        (DIRECT // PAGE + 0x3FF, 0x3FF, 0x11, 0x101),
        # Begins with frames that are left out.
        (DIRECT // PAGE + 0x800, 0x800, 0, 0x100),
        (DIRECT // PAGE + 0x900, 0x900, 1, 0x100),
    ]
    with dump.open("rb") as file:
        oracle = ELFFile(file)
        notes, *loads = (each.header for each in oracle.iter_segments())
        # What crash needs.
        assert oracle.header.e_phoff == 64
        assert notes.p_type == "PT_NOTE"
        assert all(each.p_align == 0 for each in loads)
        assert 0 < notes.p_offset + notes.p_filesz <= min(each.p_offset for each in loads)
        assert all(each.p_offset % PAGE == 0 for each in loads)
        with Vmcore(source) as core:
            assert next(oracle.iter_segments("PT_NOTE")).data() == core.note_segment


@pytest.mark.promise("elf")
def test_pages_that_are_kept_and_no_others(source: Path, tmp_path: Path) -> None:
    dump = _dump(source, KEPT, tmp_path / "dump")
    for pfn in (*KEPT, 0x108, 0x112, 0x410, 0x800, 0x9FF):
        known = pfn in KEPT and pfn not in (0x102, 0x111)
        assert _content(dump, pfn) == (page(pfn) if known else bytes(PAGE))
    content = dump.read_bytes()
    for pfn in (*range(0x100, 0x500), *range(0x800, 0xA00)):
        # Once, also what two segments show; and nothing of what was left out.
        assert content.count(page(pfn)[:16]) == (
            PAGE // 16 if pfn in KEPT and pfn not in (0x102, 0x111) else 0
        )
    with Vmcore(dump) as core:
        pages = ElfPages(core)
        assert set(np.flatnonzero(pages.present(0)).tolist()) == {*KEPT, *range(0x108, 0x110)}


def test_zeros_and_lost_pages_are_not_written(source: Path, tmp_path: Path) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        sink = FileSink(tmp_path / "dump")
        writer = ElfWriter(sink, plan, kept)
        write_pages(writer, ElfPages(core), batches_of(plan, kept), lost={0x405})
        writer.finish(complete=True)
    pages = sum(length for offset, length in sink.written if offset >= plan.data_offset)
    assert pages == (len(KEPT) - 3) * PAGE
    assert (tmp_path / "dump").stat().st_size == plan.size_bytes
    assert _content(tmp_path / "dump", 0x405) == bytes(PAGE)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_both_byte_orders(tmp_path: Path, byte_order: str) -> None:
    source = small_core(tmp_path / "core", [(0x100, 0x10)], byte_order=byte_order)
    dump = _dump(source, [0x101], tmp_path / "dump")
    assert _content(dump, 0x101) == page(0x101)
    with Vmcore(dump) as core:
        assert core.byte_order == byte_order


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        # crash does not look at the p_filesz of a single PT_LOAD.
        ([0x100], [(0x100, 1, 1), (0x101, 0, 0xF)]),
        ([], [(0x100, 0, 8), (0x108, 0, 8)]),
        (range(0x100, 0x110), [(0x100, 0x10, 0x10)]),
        ([0x10F], [(0x100, 0, 0xF), (0x10F, 1, 1)]),
    ],
)
def test_one_load(tmp_path: Path, pages: Iterable[int], expected: list[tuple[int, int, int]]) -> None:
    source = small_core(tmp_path / "core", [(0x100, 0x10)])
    dump = _dump(source, pages, tmp_path / "dump")
    assert [each[1:] for each in _loads(dump)] == expected
    assert [each[0] - each[1] for each in _loads(dump)] == [DIRECT // PAGE] * len(expected)


def test_loads_may_begin_and_end_within_a_page(tmp_path: Path) -> None:
    content = b"".join(page(pfn) for pfn in range(0x10, 0x14))
    segments = [
        Segment(0x10200, content[0x200:0x2800], DIRECT + 0x10200),
        Segment(0x12800, content[0x2800:0x3100], DIRECT + 0x12800),
        # Not mapped anywhere, as in cores of QEMU and of kexec-tools.
        Segment(0x200100, b"x" * 0x1000, 0),
        Segment(0x800000, b"y" * 0x100, 0xFFFFFFFFFFFFFFFF),
    ]
    source = tmp_path / "core"
    source.write_bytes(bytes(ElfCore(segments, {"OSRELEASE": "6.1.0"})))
    dump = _dump(source, [0x11, 0x12, 0x13, 0x201, 0x800], tmp_path / "dump")
    with dump.open("rb") as file:
        found = [
            (each["p_vaddr"], each["p_paddr"], each["p_memsz"], bytes(each.data()))
            for each in ELFFile(file).iter_segments("PT_LOAD")
        ]
    assert found == [
        (DIRECT + 0x10200, 0x10200, 0xE00, b""),
        # Two segments of the source that go on from one to the other are one.
        (DIRECT + 0x11000, 0x11000, 0x2100, content[0x1000:0x3100]),
        (0, 0x200100, 0xF00, b""),
        (0, 0x201000, 0x100, b"x" * 0x100),
        (0xFFFFFFFFFFFFFFFF, 0x800000, 0x100, b"y" * 0x100),
    ]


def test_a_filtered_core_can_be_filtered_again(source: Path, tmp_path: Path) -> None:
    once = _dump(source, KEPT, tmp_path / "once")
    twice = _dump(once, [0x100, 0x900], tmp_path / "twice")
    assert twice.read_bytes() == _dump(source, [0x100, 0x900], tmp_path / "direct").read_bytes()


def _load(first_pfn: int, count: int, virtual: int = DIRECT) -> ProgramHeader:
    return ProgramHeader(PT_LOAD, 0, virtual + first_pfn * PAGE, first_pfn * PAGE, 0, count * PAGE)


def test_longer_gaps_are_bridged_until_the_headers_are_few_enough() -> None:
    end = 66_000 * 300
    kept = PfnBitmap(end)
    for chunk in range(kept.chunk_count):
        pfns = np.arange(chunk * CHUNK_PAGES, (chunk + 1) * CHUNK_PAGES)
        # 66,000 gaps of 299 frames, and one of 2999.
        kept.set_bits(chunk, (pfns % 300 == 0) & (pfns < end) & ((pfns <= 3000) | (pfns >= 6000)))
    plan = plan_elf(kept, PAGE, [_load(0, end)], b"", 62)
    assert plan.gap_pages == 512
    assert len(plan.loads) == 2
    assert plan.page_count == 3001 + end - 299 - 6000
    # With a second mapping of the same memory, each gap costs two headers.
    few = bitmap(range(0, 33_000 * 300, 300), end)
    assert len(plan_elf(few, PAGE, [_load(0, end)], b"", 62).loads) == 33_000
    assert len(plan_elf(few, PAGE, [_load(0, end), _load(0, end, TEXT)], b"", 62).loads) == 2


def test_order_of_the_pages() -> None:
    pfns = [3, 4, 10, 600, CHUNK_PAGES - 2, CHUNK_PAGES - 1, CHUNK_PAGES, CHUNK_PAGES + 100]
    kept = bitmap(pfns, CHUNK_PAGES + 101)
    plan = plan_elf(kept, PAGE, [_load(0, CHUNK_PAGES + 101)], b"", 62)
    arrays = [array.tolist() for array in batches_of(plan, kept)]
    assert arrays == [
        [[3, 2], [FILL, 5], [10, 1], [600, 1], [CHUNK_PAGES - 2, 2]],
        [[CHUNK_PAGES, 1], [FILL, 99], [CHUNK_PAGES + 100, 1]],
    ]
    assert plan.page_count == sum(count for array in arrays for _, count in array)


@pytest.mark.parametrize(
    ("loads", "message"),
    [
        ([], "no segments"),
        ([_load(0, 0)], "no segments"),
        ([_load(1 << 50, 1)], "claims physical memory"),
        ([_load(2 * index, 1) for index in range(MOST_HEADERS + 1)], "60001 segments are too many"),
        ([_load(2 * index, 2, 0) for index in range(MOST_HEADERS)], None),
        # Each needs two headers: nothing of the first frame is kept.
        ([_load(5, 95, index << 32) for index in range(MOST_HEADERS)], "60000 segments are too many"),
    ],
)
def test_loads_that_make_no_core(loads: list[ProgramHeader], message: str | None) -> None:
    kept = bitmap([10], 100)
    if message is None:
        plan_elf(kept, PAGE, loads, b"", 62)
    else:
        with pytest.raises(BadVmcore, match=message):
            plan_elf(kept, PAGE, loads, b"", 62)


@pytest.mark.promise("incomplete-says-so")
def test_a_dump_that_is_cut_off_opens(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "dump"
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        pages = ElfPages(core)
        for calls in itertools.count(2):  # the length and the headers
            sink = FileSink(target, calls)
            try:
                write_elf(ElfWriter(sink, plan, kept), core, plan, kept)
                break
            except SinkFull:
                pass
            written = {
                (offset - plan.data_offset) // PAGE + index
                for offset, length in sink.written
                for index in range(length // PAGE if offset >= plan.data_offset else 0)
            }
            with Vmcore(target) as dump:
                assert dump.header.flags & 1
                found, expected = (memoryview(bytearray(PAGE)) for _ in range(2))
                for place, pfn in _places(batches_of(plan, kept)):
                    ElfPages(dump).read_pages(pfn, 1, found)
                    pages.read_pages(pfn, 1, expected)
                    assert found == (expected if place in written else bytes(PAGE))
    assert calls > 5
    with Vmcore(target) as dump:
        assert not dump.header.flags & 1


def _places(runs: Iterable[np.ndarray[tuple[int, int], np.dtype[np.int64]]]) -> Iterable[tuple[int, int]]:
    """Number of each page in the file, and its frame."""
    place = 0
    for array in runs:
        for first, count in array.tolist():
            if first != FILL:
                yield from ((place + index, first + index) for index in range(count))
            place += count


def test_a_stream_gets_the_same_bytes(source: Path, tmp_path: Path) -> None:
    dump = _dump(source, KEPT, tmp_path / "dump")
    stream = io.BytesIO()
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        write_elf(ElfWriter(StreamSink(stream), plan, kept), core, plan, kept)
    assert stream.getvalue() == dump.read_bytes()


def test_manifest(source: Path, tmp_path: Path) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        writer = ElfWriter(FileSink(tmp_path / "dump"), plan, kept)
        write_elf(writer, core, plan, kept)
    content = (tmp_path / "dump").read_bytes()
    position = 0
    for part in writer.parts():
        assert part.offset == position
        position += part.length
        assert hashlib.sha256(content[part.offset : position]).hexdigest() == part.sha256
    assert position == len(content)


def test_what_has_not_all_pages_is_not_complete(source: Path, tmp_path: Path) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        writer = ElfWriter(FileSink(tmp_path / "dump"), plan, kept)
        write_pages(writer, ElfPages(core), [next(iter(batches_of(plan, kept)))[:1]])
    with pytest.raises(VerificationFailed, match="the file ends at"):
        writer.finish(complete=True)
    writer.finish(complete=False)
    with Vmcore(tmp_path / "dump") as dump:
        assert dump.header.flags & 1
