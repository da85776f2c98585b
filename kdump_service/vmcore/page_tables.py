# SPDX-License-Identifier: LGPL-2.1-or-later
"""Walks of the kernel's page tables, and how those of x86_64 are laid out.

x86_64: Intel SDM volume 3, 4.5 (4-level and 5-level paging). A table is a page of 512 entries. An entry is
present if bit 0 is set; at the levels of 1 GiB and 2 MiB it is a leaf if bit 7 (page size) is set.
VMCOREINFO tells root and place of the kernel's image: arch/x86/kernel/vmcore_info_64.c (machine_kexec_64.c
before 6.9).
"""

from __future__ import annotations

import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["ADDRESS_MASK", "HOLE", "LEAF", "TABLE", "Mapping", "PageTables", "TableFormat", "x86_64_format"]

ADDRESS_MASK = (1 << 64) - 1
HOLE, TABLE, LEAF = range(3)
"""What an entry can be."""

_ENTRY_BYTES = 8
_MOST_TABLES = 64
"""Tables that are kept: 256 KiB with pages of 4 KiB, 4 MiB with pages of 64 KiB."""

_START_KERNEL_MAP = 0xFFFFFFFF80000000  # arch/x86/include/asm/page_64_types.h
_PRESENT, _PAGE_SIZE = 0x1, 0x80  # arch/x86/include/asm/pgtable_types.h: _PAGE_PRESENT, _PAGE_PSE
_X86_ADDRESS = (1 << 52) - (1 << 12)  # SDM: MAXPHYADDR is at most 52
_X86_LEAF_SHIFTS = (12, 21, 30)


class Mapping(NamedTuple):
    """A range of virtual addresses that lies in one piece in physical memory."""

    address: int
    physical_address: int
    length: int


class TableFormat(NamedTuple):
    """How a processor reads the kernel's tables, and where the kernel keeps them."""

    page_bytes: int
    """Size of a page, and of a table."""
    address_bits: int
    """How many low bits of an address the tables translate; the bits above are ones in kernel addresses."""
    decode: Callable[[int, int], tuple[int, int]]
    """(entry, shift of its level) -> what it is, and the physical address in it."""
    root_address: int
    """Kernel virtual address of the top table, which lies in the kernel's image."""
    image_offset: int | None
    """Virtual minus physical addresses of the kernel's image; None if VMCOREINFO does not tell."""


class PageTables:
    """The tables below one root. Reads whole tables and keeps the last few."""

    def __init__(self, image: MemoryImage, table_format: TableFormat, root: int) -> None:
        self._image = image
        self._decode = table_format.decode
        self._root = root
        self._page_bytes = table_format.page_bytes
        self._index_bits = (table_format.page_bytes // _ENTRY_BYTES).bit_length() - 1
        page_shift = table_format.page_bytes.bit_length() - 1
        levels = -(-(table_format.address_bits - page_shift) // self._index_bits)
        self._top_shift = page_shift + self._index_bits * (levels - 1)
        self._top_bytes = _ENTRY_BYTES << table_format.address_bits - self._top_shift
        self._low_bits = (1 << table_format.address_bits) - 1
        self._lowest = ADDRESS_MASK ^ self._low_bits
        self._tables: OrderedDict[int, array[int]] = OrderedDict()

    def translate(self, address: int) -> Mapping:
        """From an address to the end of its leaf. Raises BadVmcore if it is not mapped."""
        if not self._lowest <= address <= ADDRESS_MASK:
            raise BadVmcore(f"{address:#x} is not in the range of the kernel's page tables")
        shift, table, index = self._descend(address)
        kind, physical = self._decode(table[index], shift)
        if kind != LEAF:
            raise BadVmcore(
                f"kernel address {address:#x} is not mapped: the page table entry for its "
                f"{1 << shift:#x} bytes is {table[index]:#x}"
            )
        within = address & (1 << shift) - 1
        return Mapping(address, physical + within, (1 << shift) - within)

    def mappings(self, address: int, end: int) -> Iterator[Mapping]:
        """What of a range is mapped, in order; neighbours within a table are merged where they are in memory.

        Left out is what is not mapped and what hangs on a table that cannot be read.
        """
        address = max(address, self._lowest)
        end = min(end, ADDRESS_MASK + 1)
        while address < end:
            try:
                shift, table, index = self._descend(address)
            except _TableUnreadable as error:
                address = (address >> error.shift) + 1 << error.shift
                continue
            start = physical_start = length = 0
            for entry in table[index : index + (end - 1 >> shift) - (address >> shift) + 1]:
                kind, physical = self._decode(entry, shift)
                if kind == TABLE:
                    break
                within = address & (1 << shift) - 1
                step = min((1 << shift) - within, end - address)
                if kind == LEAF and length and physical_start + length == physical + within:
                    length += step
                else:
                    if length:
                        yield Mapping(start, physical_start, length)
                    start, physical_start = address, physical + within
                    length = step if kind == LEAF else 0
                address += step
            if length:
                yield Mapping(start, physical_start, length)

    def addresses(self, most: int) -> Iterator[int]:
        """Physical addresses of the tables themselves, at most so many, those nearest to the root first.

        Left out is what hangs on a table that cannot be read.
        """
        level = [self._root]
        shift, length = self._top_shift, self._top_bytes
        lowest_shift = self._page_bytes.bit_length() - 1
        while level and most > 0:
            yield from level[:most]
            most -= len(level)
            following: list[int] = []
            for physical in level if shift > lowest_shift and most > 0 else ():
                try:
                    table = self._table(physical, length, shift)
                except _TableUnreadable:
                    continue
                decoded = (self._decode(entry, shift) for entry in table if entry)
                following += [below for kind, below in decoded if kind == TABLE]
                if len(following) >= most:
                    break
            level = following
            length = self._page_bytes
            shift -= self._index_bits

    def _descend(self, address: int) -> tuple[int, array[int], int]:
        """Shift, table and index of the entry that is a leaf or a hole. Raises _TableUnreadable."""
        shift = self._top_shift
        index = (address & self._low_bits) >> shift
        table = self._table(self._root, self._top_bytes, shift + self._index_bits)
        while True:
            kind, physical = self._decode(table[index], shift)
            if kind != TABLE:
                return shift, table, index
            # decode knows no tables at the last level, so this ends.
            table = self._table(physical, self._page_bytes, shift)
            shift -= self._index_bits
            index = address >> shift & (1 << self._index_bits) - 1

    def _table(self, physical: int, length: int, shift: int) -> array[int]:
        table = self._tables.get(physical)
        if table is not None:
            self._tables.move_to_end(physical)
            return table
        try:
            content = self._image.read_physical(physical, length)
        except BadVmcore as error:
            raise _TableUnreadable(
                f"the page table at {physical:#x} cannot be read: {error}", shift
            ) from error
        table = array("Q", content)
        if self._image.byte_order != ("<" if sys.byteorder == "little" else ">"):
            table.byteswap()
        self._tables[physical] = table
        if len(self._tables) > _MOST_TABLES:
            self._tables.popitem(last=False)
        return table


class _TableUnreadable(BadVmcore):
    """``shift`` tells the size of the range that hangs on the table."""

    def __init__(self, message: str, shift: int) -> None:
        super().__init__(message)
        self.shift = shift


def x86_64_format(info: VmcoreInfo) -> TableFormat:
    """The tables of an x86_64 kernel. Raises BadVmcore where VMCOREINFO does not tell enough."""
    # 4.18 and later tell; a kernel without the key has 4 levels.
    five_levels = info.has("NUMBER(pgtable_l5_enabled)") and info.number("pgtable_l5_enabled") != 0
    # AMD's memory encryption: the bit stands among those of the address.
    sme_mask = info.number("sme_mask") if info.has("NUMBER(sme_mask)") else 0
    address_mask = _X86_ADDRESS & ~sme_mask

    def decode(entry: int, shift: int) -> tuple[int, int]:
        if not entry & _PRESENT:
            return HOLE, 0
        if shift == 12 or (entry & _PAGE_SIZE and shift in _X86_LEAF_SHIFTS):
            return LEAF, entry & address_mask & -(1 << shift)
        return TABLE, entry & address_mask

    # init_top_pgt since 65ade2f872b4 (4.13), init_level4_pgt before; swapper_pg_dir is another name of both.
    name = next(
        (each for each in ("init_top_pgt", "swapper_pg_dir") if info.has(f"SYMBOL({each})")),
        "init_level4_pgt",
    )
    # phys_base itself, since 401721ecd1dc (4.10).
    image_offset = _START_KERNEL_MAP - info.number("phys_base") if info.has("NUMBER(phys_base)") else None
    return TableFormat(4096, 57 if five_levels else 48, decode, info.symbol(name), image_offset)
