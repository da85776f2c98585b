# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.mem_map import MemMap, MemMapRun
from tests.builders.machine_memory import X86_64, Aarch64, Machine
from tests.builders.struct_page import GENERATIONS
from tests.unit.machine_image import ImageOfMachine

MIB, GIB = 1 << 20, 1 << 30
END = 1 << 40
FOUR_SECTIONS = [(0, 512 * MIB)]


def _mem_map(machine: Machine, *, loads: bool = True, missing: set[int] | None = None) -> MemMap:
    return MemMap(AddressSpace(ImageOfMachine(machine, loads=loads, missing=missing or ())))


def _runs(machine: Machine, first: int = 0, end: int = END, *, loads: bool = True) -> list[MemMapRun]:
    return list(_mem_map(machine, loads=loads).runs(first, end))


def _ranges(runs: list[MemMapRun]) -> list[tuple[int, int]]:
    """First frame and count, runs that follow each other as one."""
    result: list[tuple[int, int]] = []
    for run in runs:
        if result and sum(result[-1]) == run.first_pfn:
            result[-1] = result[-1][0], result[-1][1] + run.page_count
        else:
            result.append((run.first_pfn, run.page_count))
    return result


@pytest.mark.parametrize("loads", [True, False], ids=["loads", "no loads"])
@pytest.mark.parametrize(
    "architecture",
    [
        X86_64(),
        X86_64(levels=5),
        Aarch64(),
        Aarch64(16384, va_bits=47),
        Aarch64(65536, va_bits=52, pa_bits=52),
    ],
    ids=str,
)
def test_every_frame_of_present_sections(architecture: X86_64 | Aarch64, loads: bool) -> None:
    machine = Machine(architecture, memory=[(MIB, 600 * MIB), (4 * GIB, 300 * MIB)])
    assert len(machine.sections) >= 3
    used = 4 * GIB // machine.page_bytes + 77
    machine.pages.cache(used)
    mem_map = _mem_map(machine, loads=loads)
    assert mem_map.section_pages == machine.section_pages
    # One run for each section: its struct pages are in one piece.
    assert list(mem_map.runs(0, END)) == [
        MemMapRun(first, machine.section_pages, machine.memmap_physical(first))
        for first in (section * machine.section_pages for section in machine.sections)
    ]
    [run] = mem_map.runs(used, used + 1)
    content = machine.image().read_physical(run.physical_address, mem_map.struct_page_bytes)
    assert content == machine.pages.bytes(used)


def test_leaves_apart_from_each_other() -> None:
    machine = Machine(memory=FOUR_SECTIONS, memmap_leaf_bytes=4096, scattered=True)
    runs = _runs(machine, 0x1000, 0x3000)
    assert [run.page_count for run in runs] == [64] * 128
    assert all(run.physical_address == machine.memmap_physical(run.first_pfn) for run in runs)
    assert _ranges(runs) == [(0x1000, 0x2000)]


def test_small_leaves_in_one_piece() -> None:
    machine = Machine(memory=FOUR_SECTIONS, memmap_leaf_bytes=4096)
    assert [run.page_count for run in _runs(machine)] == [0x8000] * 4


def test_leaves_of_two_tables_in_one_piece() -> None:
    layout = replace(GENERATIONS["6.1"], struct_page_bytes=128)
    machine = Machine(memory=FOUR_SECTIONS, generation=layout, memmap_leaf_bytes=4096)
    assert [run.page_count for run in _runs(machine)] == [0x8000] * 4


@pytest.mark.parametrize("loads", [True, False], ids=["loads", "no loads"])
@pytest.mark.parametrize("extreme", [True, False], ids=["extreme", "flat"])
@pytest.mark.parametrize("vmemmap", [True, False], ids=["vmemmap", "no vmemmap"])
@pytest.mark.parametrize("mem_section_bytes", [16, 32])
def test_kinds_of_sparsemem(loads: bool, extreme: bool, vmemmap: bool, mem_section_bytes: int) -> None:
    machine = Machine(
        memory=FOUR_SECTIONS, extreme=extreme, vmemmap=vmemmap, mem_section_bytes=mem_section_bytes
    )
    assert _runs(machine, loads=loads) == [
        MemMapRun(first, 0x8000, machine.memmap_physical(first)) for first in range(0, 0x20000, 0x8000)
    ]


@pytest.mark.parametrize("flags", [0b11, 0b1111, 0b111111, 0xFFF])
def test_flags_are_no_part_of_the_address(flags: int) -> None:
    machine = Machine(section_flags=flags)
    assert _runs(machine)[0].physical_address == machine.memmap_physical(0)


def test_sections_without_memmap() -> None:
    machine = Machine(memory=FOUR_SECTIONS)
    machine.set_section(0, machine.vmemmap_start | 0b1101)  # no SECTION_HAS_MEM_MAP
    machine.set_section(2, machine.vmemmap_start | 0b1110)  # not SECTION_MARKED_PRESENT
    assert _ranges(_runs(machine)) == [(0x8000, 0x8000), (0x18000, 0x8000)]
    machine.set_section(1, 0)
    machine.set_section(3, 0x1234_5678_9ABC_DEF3)
    assert _runs(machine) == []


def test_parts_of_sections() -> None:
    machine = Machine(memory=FOUR_SECTIONS)
    assert _ranges(_runs(machine, 0x7FFF, 0x10001)) == [(0x7FFF, 0x8002)]
    assert [run.page_count for run in _runs(machine, 0x7FFF, 0x10001)] == [1, 0x8000, 1]
    assert _runs(machine, 0x8000, 0x8000) == []
    assert _runs(machine, 0x20000, END) == []


def test_what_is_not_mapped_costs_itself() -> None:
    machine = Machine(memory=FOUR_SECTIONS, memmap_leaf_bytes=4096)
    machine.unmap_memmap(0x1000)
    machine.unmap_memmap(0x10000, shift=21)
    assert _ranges(_runs(machine)) == [(0, 0x1000), (0x1040, 0x10000 - 0x1040), (0x18000, 0x8000)]


def test_what_cannot_be_read_costs_itself() -> None:
    # 256 sections of 128 MiB have one root: the ranges are at both sides of its end.
    machine = Machine(memory=[(0, 256 * MIB), (32 * GIB, 256 * MIB)], memmap_leaf_bytes=4096)
    table = machine.tables.entry_address(machine.pages.address(0x8000), 12) >> 12
    [root, second] = (
        int.from_bytes(machine.memory.read(machine.mem_section + at, 8), "little") - machine.direct(0) >> 12
        for at in (0, 8)
    )
    low, high = (0, 0x10000), (0x800000, 0x10000)
    assert _ranges(list(_mem_map(machine).runs(0, END))) == [low, high]
    assert _ranges(list(_mem_map(machine, missing={table}).runs(0, END))) == [(0, 0x8000), high]
    assert _ranges(list(_mem_map(machine, missing={root}).runs(0, END))) == [high]
    assert _ranges(list(_mem_map(machine, missing={second}).runs(0, END))) == [low]
    with pytest.raises(BadVmcore, match="not in the image"):
        _mem_map(machine, missing={machine.mem_section >> 12})


def test_a_memmap_outside_the_segments_costs_itself() -> None:
    machine = Machine(memory=FOUR_SECTIONS, memmap_leaf_bytes=4096)
    image = ImageOfMachine(machine)
    hole = machine.memmap_physical(0x1000)
    assert len(image.loads) == 2
    memory = image.loads[1]
    image.loads[1:] = [
        memory._replace(file_bytes=hole, memory_bytes=memory.memory_bytes),
        memory._replace(
            physical_address=hole + 4096,
            virtual_address=memory.virtual_address + hole + 4096,
            file_bytes=memory.file_bytes - hole - 4096,
        ),
    ]
    assert _ranges(list(MemMap(AddressSpace(image)).runs(0, END))) == [
        (0, 0x1000),
        (0x1040, 0x20000 - 0x1040),
    ]


def test_hugetlb_vmemmap_optimisation() -> None:
    # All but the first page of a huge page's 8 pages of struct pages are mapped to the second one.
    machine = Machine(memory=FOUR_SECTIONS, memmap_leaf_bytes=4096)
    shared = machine.memmap_physical(0x200 + 64)
    for pfn in range(0x200 + 128, 0x400, 64):
        machine.remap_memmap(pfn, shared)
    runs = _runs(machine, 0, 0x800)
    assert _ranges(runs) == [(0, 0x800)]
    assert [(run.first_pfn, run.page_count) for run in runs] == [
        (0, 0x280),
        *((pfn, 64) for pfn in range(0x280, 0x400, 64)),
        (0x400, 0x400),
    ]
    assert {run.physical_address for run in runs[1:-1]} == {shared}


def test_struct_pages_that_are_torn_apart() -> None:
    layout = replace(GENERATIONS["6.1"], struct_page_bytes=56)
    machine = Machine(memory=FOUR_SECTIONS, generation=layout, memmap_leaf_bytes=4096, scattered=True)
    covered = set()
    for run in _runs(machine, 0, 0x1000):
        assert run.physical_address == machine.memmap_physical(run.first_pfn)
        covered |= set(range(run.first_pfn, run.first_pfn + run.page_count))
    torn = {pfn for pfn in range(0x1000) if pfn * 56 // 4096 != (pfn * 56 + 55) // 4096}
    assert covered == set(range(0x1000)) - torn


def test_a_terabyte_is_looked_at_only_as_far_as_asked() -> None:
    machine = Machine(memory=[(0, 1 << 40)], shared_memmap=True)
    image = ImageOfMachine(machine)
    mem_map = MemMap(AddressSpace(image))
    runs = mem_map.runs(0, 1 << 28)
    assert len(list(itertools.islice(runs, 256))) == 256
    few = len(image.made.reads)
    assert few < 8
    assert sum(run.page_count for run in runs) == (1 << 28) - 256 * 0x8000
    # 32 tables of page table entries, 32 pages of sections, and not much besides.
    assert len(image.made.reads) < 100


@pytest.mark.parametrize(
    ("machine", "section_bytes"),
    [
        (Machine(X86_64(), memory=FOUR_SECTIONS), 128 * MIB),
        (Machine(X86_64(levels=5), memory=FOUR_SECTIONS), 128 * MIB),
        (Machine(Aarch64(), memory=FOUR_SECTIONS), 128 * MIB),
        (Machine(Aarch64(), memory=FOUR_SECTIONS, section_size_bits=30), GIB),
        (Machine(Aarch64(65536), memory=FOUR_SECTIONS), 512 * MIB),
        (Machine(Aarch64(65536, pa_bits=52), memory=FOUR_SECTIONS, section_size_bits=30), GIB),
    ],
    ids=lambda value: "",
)
def test_sizes_that_old_kernels_do_not_tell(machine: Machine, section_bytes: int) -> None:
    del machine.vmcoreinfo["NUMBER(SECTION_SIZE_BITS)"]
    assert _mem_map(machine).section_pages * machine.page_bytes == section_bytes
    del machine.vmcoreinfo["NUMBER(MAX_PHYSMEM_BITS)"]
    assert _mem_map(machine).section_pages * machine.page_bytes == section_bytes
    assert sum(run.page_count for run in _runs(machine)) * machine.page_bytes == max(512 * MIB, section_bytes)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("NUMBER(SECTION_SIZE_BITS)", "0"),
        ("NUMBER(SECTION_SIZE_BITS)", "-1"),
        ("NUMBER(SECTION_SIZE_BITS)", "12"),
        ("NUMBER(SECTION_SIZE_BITS)", "28"),  # does not fit the length
        ("NUMBER(SECTION_SIZE_BITS)", "4000000000"),
        ("NUMBER(MAX_PHYSMEM_BITS)", "0"),
        ("NUMBER(MAX_PHYSMEM_BITS)", "26"),
        ("NUMBER(MAX_PHYSMEM_BITS)", "64"),
        ("NUMBER(MAX_PHYSMEM_BITS)", "4000000000"),
        ("LENGTH(mem_section)", "0"),
        ("LENGTH(mem_section)", "2049"),
        ("SIZE(mem_section)", "0"),
        ("SIZE(mem_section)", "100000"),
        ("SIZE(page)", "0"),
        ("SIZE(page)", "-64"),
        ("SIZE(page)", "1048576"),
        ("OFFSET(mem_section.section_mem_map)", "16"),
        ("OFFSET(mem_section.section_mem_map)", "-8"),
        ("SYMBOL(mem_section)", "0"),
        ("SYMBOL(mem_section)", "ffffffffffffffff"),
    ],
)
def test_nonsense_in_vmcoreinfo(key: str, value: str) -> None:
    machine = Machine()
    machine.vmcoreinfo[key] = value
    with pytest.raises(BadVmcore):
        _mem_map(machine)
    del machine.vmcoreinfo[key]
    if "NUMBER" not in key:
        with pytest.raises(BadVmcore, match="has no"):
            _mem_map(machine)


def test_more_physical_memory_than_an_address_can_tell() -> None:
    machine = Machine()
    machine.vmcoreinfo["NUMBER(MAX_PHYSMEM_BITS)"] = "60"
    machine.vmcoreinfo["LENGTH(mem_section)"] = str(1 << 60 - 27 - 8)
    with pytest.raises(BadVmcore, match="fits no size"):
        _mem_map(machine)


def test_roots_that_lead_nowhere() -> None:
    machine = Machine(X86_64(levels=5))
    machine.write(machine.mem_section + 8, bytes(range(256)) * 100)
    assert _ranges(_runs(machine, 0, 1 << 27)) == [(0, 0x10000)]
