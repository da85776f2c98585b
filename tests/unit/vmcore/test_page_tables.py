# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import random
from pathlib import Path

import drgn
import pytest

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.page_tables import PageTables
from kdump_service.vmcore.page_tables_aarch64 import aarch64_format
from tests.builders.machine_memory import IMAGE_BYTES, X86_64, Aarch64, Machine
from tests.unit.machine_image import ImageOfMachine

MIB, GIB = 1 << 20, 1 << 30
RAM = [(MIB, 255 * MIB)]
HIGH_RAM = [(0xB << 48, 256 * MIB)]  # bits 51, 49 and 48 of the physical address are set

MACHINES: dict[str, tuple[X86_64 | Aarch64, list[tuple[int, int]]]] = {
    "x86-64": (X86_64(), RAM),
    "x86-64 5 levels": (X86_64(levels=5), RAM),
    "x86-64 encrypted": (X86_64(sme_mask=1 << 47), RAM),
    "4K 39": (Aarch64(va_bits=39), RAM),
    "4K 48": (Aarch64(), RAM),
    "4K 48 before 5.4": (Aarch64(flipped=False), RAM),
    "4K 52 LPA2": (Aarch64(va_bits=52, pa_bits=52), HIGH_RAM),
    "4K 52 on 48": (Aarch64(va_bits=52, actual_va_bits=48, pa_bits=52), RAM),
    "16K 36": (Aarch64(16384, va_bits=36), RAM),
    "16K 47": (Aarch64(16384, va_bits=47), RAM),
    "16K 48": (Aarch64(16384), RAM),
    "16K 52 LPA2": (Aarch64(16384, va_bits=52, pa_bits=52), HIGH_RAM),
    "16K 52 on 47": (Aarch64(16384, va_bits=52, actual_va_bits=47, pa_bits=52), RAM),
    "64K 42": (Aarch64(65536, va_bits=42), RAM),
    "64K 48": (Aarch64(65536), RAM),
    "64K 52 LPA": (Aarch64(65536, va_bits=52, pa_bits=52), HIGH_RAM),
    "64K 52 on 48": (Aarch64(65536, va_bits=52, actual_va_bits=48, pa_bits=52), HIGH_RAM),
}


def _space(machine: Machine, *, loads: bool = True, missing: set[int] | None = None) -> AddressSpace:
    return AddressSpace(ImageOfMachine(machine, loads=loads, missing=missing or ()))


@pytest.mark.parametrize("loads", [True, False], ids=["loads", "no loads"])
@pytest.mark.parametrize("name", MACHINES)
def test_what_is_mapped(name: str, loads: bool) -> None:
    architecture, memory = MACHINES[name]
    machine = Machine(architecture, memory=memory, scattered=True)
    space = _space(machine, loads=loads)
    chance = random.Random(name)
    [(start, length)] = machine.ranges
    for _ in range(50):
        physical = start + chance.randrange(length)
        assert space.translate(machine.direct(physical))[0] == physical
        within = chance.randrange(IMAGE_BYTES)
        assert space.translate(machine.symbol_address(within))[0] == machine.image_physical + within
        pfn = physical // machine.page_bytes
        assert space.translate(machine.pages.address(pfn))[0] == machine.memmap_physical(pfn)


@pytest.mark.parametrize(
    "name", [name for name in MACHINES if "encrypted" not in name]
)  # drgn does not know it
def test_reads_the_same_as_drgn(name: str, tmp_path: Path) -> None:
    architecture, memory = MACHINES[name]
    machine = Machine(architecture, memory=memory, scattered=True)
    pfn = memory[0][0] // machine.page_bytes + 100
    machine.pages.buddy(pfn, 3)
    program = drgn.Program()
    program.set_core_dump(machine.write_elf(tmp_path / "vmcore"))
    space = _space(machine)
    address = machine.pages.address(pfn - 8)
    content = space.read(address, 1024)
    assert content == program.read(address, 1024)
    assert any(content)


def test_contiguous_bytes_end_with_the_leaf() -> None:
    machine = Machine(memory=[(0, 3 * GIB)])
    space = _space(machine, loads=False)
    assert space.translate(machine.direct(GIB + 5)) == (GIB + 5, GIB - 5)
    memmap = machine.memmap_physical(0x100)
    assert space.translate(machine.pages.address(0x100)) == (memmap, 2 * MIB - 0x100 * 64)
    small = Machine(memmap_leaf_bytes=4096)
    assert _space(small).translate(small.pages.address(0x1001))[1] == 4096 - 64


def test_loads_need_no_page_tables() -> None:
    machine = Machine()
    machine.fill(0x1000)
    machine.write(machine.root_physical, bytes(4096))
    space = _space(machine)
    assert space.read(machine.direct(0x1000000), 4096) == machine.content_of(0x1000)
    with pytest.raises(BadVmcore, match="not mapped"):
        space.translate(machine.pages.address(0x1000))
    # Nor do the kernel's own symbols where there are no loads.
    space = _space(machine, loads=False)
    assert space.translate(machine.symbol_address(0x40000)) == (machine.image_physical + 0x40000, 0x10000)


@pytest.mark.parametrize("name", ["init_top_pgt", "swapper_pg_dir", "init_level4_pgt"])
def test_names_of_the_root(name: str) -> None:
    machine = Machine()
    root = machine.vmcoreinfo.pop("SYMBOL(init_top_pgt)")
    del machine.vmcoreinfo["SYMBOL(swapper_pg_dir)"]
    machine.vmcoreinfo[f"SYMBOL({name})"] = root
    assert _space(machine, loads=False).translate(machine.direct(MIB))[0] == MIB


def test_page_size_bit_has_no_meaning_at_the_top() -> None:
    machine = Machine()
    index = 0xFFFFEA0000000000 >> 39 & 511
    entry = int.from_bytes(machine.memory.read(machine.root_physical + 8 * index, 8), "little")
    machine.write(machine.root_physical + 8 * index, (entry | 0x80).to_bytes(8, "little"))
    assert _space(machine).translate(machine.pages.address(0x1000))[0] == machine.memmap_physical(0x1000)


def test_root_is_found_by_loads_alone() -> None:
    machine = Machine()
    del machine.vmcoreinfo["NUMBER(phys_base)"]
    assert _space(machine).translate(machine.pages.address(0x1000))[0] == machine.memmap_physical(0x1000)
    with pytest.raises(BadVmcore, match="does not tell where"):
        _space(machine, loads=False).translate(machine.direct(MIB))


def test_addresses_that_are_not_mapped() -> None:
    machine = Machine(memmap_leaf_bytes=4096)
    machine.unmap_memmap(0x1000)
    space = _space(machine)
    for address in (
        machine.pages.address(0x1000),
        machine.direct(1 << 40),
        0xFFFF_7FFF_FFFF_F000,  # not canonical
        0x1000,
        -1,
        1 << 64,
    ):
        with pytest.raises(BadVmcore):
            space.translate(address)
        with pytest.raises(BadVmcore):
            space.read(address, 8)
    assert space.translate(machine.pages.address(0x1000 + 64))  # the page behind the hole


def test_an_unreadable_table_costs_its_range() -> None:
    machine = Machine(memory=[(0, 512 * MIB)], memmap_leaf_bytes=4096)
    lost = 2  # the section whose leaves hang on the lost table
    table = machine.tables.entry_address(machine.pages.address(lost << 15), 12) // 4096
    image = ImageOfMachine(machine, missing={table})
    space = AddressSpace(image)
    with pytest.raises(BadVmcore, match="page table"):
        space.translate(machine.pages.address(lost << 15))
    pieces = list(space.mappings(machine.pages.address(0), 4 * 2 * MIB))
    assert [(piece.address - machine.pages.address(0), piece.length) for piece in pieces] == [
        (0, 2 * MIB),
        (2 * MIB, 2 * MIB),
        (6 * MIB, 2 * MIB),
    ]
    assert image.made.reads.count((table * 4096, 4096)) == 2


def test_tables_that_lead_in_circles() -> None:
    machine = Machine()
    address = machine.pages.address(0x1000)
    entry = machine.architecture.table_entry(machine.root_physical)
    machine.write(machine.root_physical, entry.to_bytes(8, "little") * 512)
    space = _space(machine)
    physical, _ = space.translate(address)
    assert physical // 4096 == machine.root_physical // 4096  # after four levels there is an end
    assert len(list(space.mappings(address, 64 * 4096))) == 64


def test_random_tables_end_in_errors_at_worst() -> None:
    chance = random.Random(3)
    for _ in range(20):
        machine = Machine()
        for physical in {machine.root_physical, *machine.tables.made.values()}:
            content = bytearray(machine.memory.read(physical, 4096))
            for _ in range(300):
                content[chance.randrange(4096)] = chance.randrange(256)
            machine.write(physical, bytes(content))
        space = _space(machine, loads=False)
        for pfn in range(0x100, 0x10000, 0x800):
            try:
                space.read(machine.pages.address(pfn), 64)
            except BadVmcore:
                continue
        assert sum(piece.length for piece in space.mappings(machine.pages.address(0), 4 * MIB)) <= 4 * MIB


def test_pointers_with_a_tag() -> None:
    machine = Machine(Aarch64())
    machine.fill(0x1000)
    for loads in (True, False):
        tagged = machine.direct(0x1000000) & ~(0xF << 56) | 0x3 << 56
        assert _space(machine, loads=loads).read(tagged, 4096) == machine.content_of(0x1000)


def test_t1sz_as_early_backports_wrote_it() -> None:
    machine = Machine(Aarch64(va_bits=52, actual_va_bits=48))
    machine.vmcoreinfo["NUMBER(tcr_el1_t1sz)"] = machine.vmcoreinfo.pop("NUMBER(TCR_EL1_T1SZ)")
    assert _space(machine, loads=False).translate(machine.direct(MIB))[0] == MIB
    plain = Machine(Aarch64(va_bits=48))
    del plain.vmcoreinfo["NUMBER(TCR_EL1_T1SZ)"]
    assert _space(plain, loads=False).translate(plain.direct(MIB))[0] == MIB


def test_a_reserved_descriptor_is_no_page() -> None:
    machine = Machine(Aarch64(), memmap_leaf_bytes=4096)
    address = machine.pages.address(0x1000)
    machine.tables.set_entry(address, 12, 0x40000401)
    with pytest.raises(BadVmcore, match="not mapped"):
        _space(machine).translate(address)


@pytest.mark.parametrize(
    ("key", "value", "page_bytes"),
    [
        ("NUMBER(VA_BITS)", "8", 65536),
        ("NUMBER(VA_BITS)", "64", 65536),
        ("NUMBER(TCR_EL1_T1SZ)", "0x3f", 4096),
    ],
)
def test_address_bits_that_aarch64_does_not_have(key: str, value: str, page_bytes: int) -> None:
    machine = Machine(Aarch64(page_bytes))
    machine.vmcoreinfo[key] = value
    with pytest.raises(BadVmcore, match="bits"):
        _space(machine, loads=False).translate(machine.direct(MIB))


def test_page_sizes_that_aarch64_does_not_have() -> None:
    with pytest.raises(BadVmcore, match="8192"):
        aarch64_format(ImageOfMachine(Machine(Aarch64())).vmcoreinfo, 8192)


def test_machine_by_vmcoreinfo() -> None:
    for architecture in (X86_64(), Aarch64()):
        machine = Machine(architecture)
        image = ImageOfMachine(machine, loads=False)
        image.machine = 0
        assert AddressSpace(image).translate(machine.direct(MIB))[0] == MIB
    image.machine = 22
    with pytest.raises(BadVmcore, match="machine 22"):
        AddressSpace(image).translate(machine.direct(MIB))


@pytest.mark.parametrize("value", ["nonsense", "-1", "0"])
def test_a_damaged_symbol_costs_itself(value: str) -> None:
    machine = Machine()
    machine.vmcoreinfo["SYMBOL(node_online_map)"] = value
    space = _space(machine, loads=False)
    assert space.translate(machine.symbol_address(0x40000))[0] == machine.image_physical + 0x40000
    assert space.translate(machine.direct(MIB))[0] == MIB


def test_the_other_byte_order() -> None:
    machine = Machine(Aarch64(16384, va_bits=47))

    class Swapped(ImageOfMachine):
        def read_physical(self, address: int, length: int) -> bytes:
            content = super().read_physical(address, length)
            return b"".join(content[at : at + 8][::-1] for at in range(0, length, 8))

    image = Swapped(machine, loads=False)
    image.byte_order = ">"
    tables = PageTables(image, aarch64_format(image.vmcoreinfo, 16384), machine.root_physical)
    assert tables.translate(machine.direct(3 * MIB)).physical_address == 3 * MIB


def test_small_reads_share_a_block() -> None:
    machine = Machine()
    machine.fill(0x1000, 32)
    image = ImageOfMachine(machine)
    space = AddressSpace(image)
    for at in range(0x1000000, 0x1010000, 64):
        assert space.unsigned(machine.direct(at), 8) == int.from_bytes(machine.memory.read(at, 8), "little")
    assert image.made.reads == [(0x1000000, 0x10000)]
    content = machine.memory.read(0x1000100, 0x1F000)
    assert space.read(machine.direct(0x1000100), 0x1F000) == content
    assert len(image.made.reads) == 2


def test_a_missing_neighbour_costs_nothing() -> None:
    machine = Machine()
    machine.fill(0x1000, 16)
    image = ImageOfMachine(machine, missing={0x1001})
    space = AddressSpace(image)
    for _ in range(3):
        for pfn in (0x1000, 0x1002):
            assert space.read(machine.direct(pfn * 4096 + 8), 80) == machine.content_of(pfn)[8:88]
        with pytest.raises(BadVmcore, match="0x1001"):
            space.read(machine.direct(0x1001000), 8)
        with pytest.raises(BadVmcore, match="0x1001"):
            space.read(machine.direct(0x1000FF8), 16)
    assert image.made.reads.count((0x1000000, 0x10000)) == 1
    assert image.made.reads.count((0x1002000, 0x1000)) == 1


def test_a_segment_may_end_within_a_page() -> None:
    machine = Machine(memory=[(MIB, 4 * MIB), (16 * MIB + 0x234, 64 * MIB + 0x111)])
    space = _space(machine)
    end = 80 * MIB + 0x345
    machine.write(end - 8, b"the end.")
    assert space.read(machine.direct(end - 8), 8) == b"the end."
    with pytest.raises(BadVmcore):
        space.read(machine.direct(end - 4), 8)
