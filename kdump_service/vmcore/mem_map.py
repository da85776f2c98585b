# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memmap: where the struct page of each page frame lies.

include/linux/mmzone.h, CONFIG_SPARSEMEM: memory is cut into sections, and ``mem_section`` has an entry for
each. Its ``section_mem_map`` is the address that a struct page of frame 0 would have in the section's
array: a frame's number times the size of a struct page is added. The low bits are flags. With
CONFIG_SPARSEMEM_EXTREME (x86_64 and aarch64) ``mem_section`` is an array of pointers to pages of entries,
else an array of entries. With CONFIG_SPARSEMEM_VMEMMAP the structures of all sections are one virtual
array, which is mapped piecewise and partly not at all; otherwise those of a section lie together in the
direct mapping.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.address_space import AddressSpace, Mapping
from kdump_service.vmcore.memory_image import EM_AARCH64
from kdump_service.vmcore.page_tables import ADDRESS_MASK

__all__ = ["MemMap", "MemMapRun"]

_PRESENT, _HAS_MEM_MAP = 1 << 0, 1 << 1  # SECTION_MARKED_PRESENT, SECTION_HAS_MEM_MAP
_POINTER_BYTES = 8

_SECTION_SIZE_BITS = range(24, 35)  # powerpc has 24, arm64 had 30 until 5.12
_MOST_PHYSMEM_BITS = 52  # arch/x86/include/asm/sparsemem.h, CONFIG_ARM64_PA_BITS
_STRUCT_PAGE_BYTES = range(32, 1025)  # 56 to 80 with the usual options, some 200 with KMSAN and others
_MEM_SECTION_BYTES = range(8, 257)  # 16; 32 with CONFIG_PAGE_EXTENSION


class MemMapRun(NamedTuple):
    """struct pages that lie one after the other in physical memory."""

    first_pfn: int
    page_count: int
    physical_address: int
    """Of the struct page of ``first_pfn``."""


class MemMap:
    """Finds struct pages; section by section, when they are asked for."""

    def __init__(self, space: AddressSpace) -> None:
        """Raises BadVmcore if VMCOREINFO lacks what is needed or tells nonsense, or has no mem_section."""
        info = space.image.vmcoreinfo
        self._space = space
        self._page_bytes = space.image.page_bytes
        self.struct_page_bytes = _within(info.size("page"), _STRUCT_PAGE_BYTES, "SIZE(page)")
        self._entry_bytes = _within(info.size("mem_section"), _MEM_SECTION_BYTES, "SIZE(mem_section)")
        self._entry_offset = info.offset("mem_section.section_mem_map")
        if not 0 <= self._entry_offset <= self._entry_bytes - _POINTER_BYTES:
            raise BadVmcore(f"VMCOREINFO: mem_section.section_mem_map lies at {self._entry_offset}")
        self._mem_section = info.symbol("mem_section")
        self._per_root = self._page_bytes // self._entry_bytes
        self._choose_sections(info.length("mem_section"))
        self._memory = _merged_segments(space)
        # Without it no frame has a struct page, which the caller is to hear.
        space.read(self._mem_section, _POINTER_BYTES)

    def runs(self, first_pfn: int, end_pfn: int) -> Iterator[MemMapRun]:
        """The struct pages of these frames, in order; no run is longer than a section.

        Not covered are frames without a struct page, and those whose struct page is not mapped, hangs on a
        page table that cannot be read, lies in no segment of the image, or is torn apart in physical memory.
        Where the image has no segments, reading a run may still fail. Raises BadVmcore if there are no page
        tables.
        """
        first, end = first_pfn // self.section_pages, -(-end_pfn // self.section_pages)
        for section, mem_map in self._sections(first, min(end, self._section_count)):
            start = max(section * self.section_pages, first_pfn)
            stop = min((section + 1) * self.section_pages, end_pfn)
            yield from self._runs_within(mem_map, start, stop)

    def _runs_within(self, mem_map: int, first_pfn: int, end_pfn: int) -> Iterator[MemMapRun]:
        size = self.struct_page_bytes
        start = self._space.untagged(mem_map + first_pfn * size & ADDRESS_MASK)
        for piece in _merged(self._space.mappings(start, (end_pfn - first_pfn) * size)):
            for each in self._in_image(piece):
                skipped = each.address - start
                first = -(-skipped // size)
                count = (skipped + each.length) // size - first
                if count > 0:
                    yield MemMapRun(first_pfn + first, count, each.physical_address + first * size - skipped)

    def _in_image(self, piece: Mapping) -> Iterator[Mapping]:
        """What of a piece the image's segments have; all of it if the image has none."""
        if not self._memory:
            yield piece
            return
        position, end = piece.physical_address, piece.physical_address + piece.length
        index = max(bisect_right(self._memory, (position, ADDRESS_MASK)) - 1, 0)
        for start, stop in self._memory[index:]:
            if start >= end:
                break
            first, last = max(start, position), min(stop, end)
            if first < last:
                yield Mapping(piece.address + first - position, first, last - first)

    def _sections(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Number and memmap of the sections of this range that have one."""
        size = self._entry_bytes
        word = struct.Struct(self._space.image.byte_order + "Q")
        for root, address in self._roots(first // self._per_root, -(-end // self._per_root)):
            start, stop = max(first, root * self._per_root), min(end, (root + 1) * self._per_root)
            try:
                entries = self._space.read(
                    address + (start - root * self._per_root) * size, (stop - start) * size
                )
            except BadVmcore:
                continue
            for section in range(start, stop):
                [entry] = word.unpack_from(entries, (section - start) * size + self._entry_offset)
                if entry & _PRESENT and entry & _HAS_MEM_MAP:
                    yield section, entry & ~self._flags_mask

    def _roots(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Number and address of pages of entries."""
        if not self._extreme:
            for root in range(first, end):
                yield root, self._mem_section + root * self._per_root * self._entry_bytes
            return
        at_once = self._page_bytes // _POINTER_BYTES
        while first < end:
            stop = min(end, (first // at_once + 1) * at_once)
            try:
                content = self._space.read(
                    self._mem_section + first * _POINTER_BYTES, (stop - first) * _POINTER_BYTES
                )
            except BadVmcore:
                content = b""
            pointers = struct.unpack(
                f"{self._space.image.byte_order}{len(content) // _POINTER_BYTES}Q", content
            )
            yield from ((root, pointer) for root, pointer in enumerate(pointers, first) if pointer)
            first = stop

    def _choose_sections(self, length: int) -> None:
        """Settle the size of sections: LENGTH(mem_section) must fit what is told or known of the bits."""
        for physmem_bits, size_bits in self._candidates():
            count = 1 << physmem_bits - size_bits
            extreme = length == -(-count // self._per_root)
            if extreme or length == count:
                self._extreme = extreme
                self._section_count = count
                self.section_pages = (1 << size_bits) // self._page_bytes
                # Six flags as of 6.15, five before 5.12. A memmap begins on a page, and a section's first
                # frame is a multiple of its pages, so that there is room for more of them (mmzone.h says so).
                self._flags_mask = min(self._page_bytes, self.section_pages) - 1
                return
        tried = ", ".join(f"2^{size} of 2^{physmem} bytes" for physmem, size in self._candidates())
        raise BadVmcore(f"VMCOREINFO: mem_section of {length} entries fits no size of sections ({tried})")

    def _candidates(self) -> Iterator[tuple[int, int]]:
        info = self._space.image.vmcoreinfo
        # Told since 1d50e5d0c505 (5.9) and 4f5aecdff25f (5.13). Else arch/x86/include/asm/sparsemem.h,
        # and arch/arm64/include/asm/sparsemem.h before and after f0b13ee23241 (5.12).
        physmem, size = ([48, 52], [30, 29, 27]) if self._space.machine == EM_AARCH64 else ([46, 52], [27])
        if info.has("NUMBER(MAX_PHYSMEM_BITS)"):
            physmem = [info.number("MAX_PHYSMEM_BITS")]
        if info.has("NUMBER(SECTION_SIZE_BITS)"):
            size = [info.number("SECTION_SIZE_BITS")]
        for each in physmem:
            for bits in size:
                if bits in _SECTION_SIZE_BITS and bits < each <= _MOST_PHYSMEM_BITS:
                    yield each, bits


def _within(value: int, limits: range, name: str) -> int:
    if value not in limits:
        raise BadVmcore(f"VMCOREINFO: {name}={value} is not from {limits[0]} to {limits[-1]}")
    return value


def _merged(pieces: Iterator[Mapping]) -> Iterator[Mapping]:
    """Pieces that follow each other in both spaces as one."""
    current: Mapping | None = None
    for piece in pieces:
        if (
            current is not None
            and current.address + current.length == piece.address
            and current.physical_address + current.length == piece.physical_address
        ):
            current = Mapping(current.address, current.physical_address, current.length + piece.length)
            continue
        if current is not None:
            yield current
        current = piece
    if current is not None:
        yield current


def _merged_segments(space: AddressSpace) -> list[tuple[int, int]]:
    """Start and end of the physical memory that the image's segments have, in order."""
    result: list[tuple[int, int]] = []
    pieces = ((load.physical_address, load.physical_address + load.file_bytes) for load in space.image.loads)
    for start, end in sorted(pieces):
        if result and start <= result[-1][1]:
            result[-1] = result[-1][0], max(result[-1][1], end)
        elif start < end:
            result.append((start, end))
    return result
