# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the crashed kernel's memory by its virtual addresses.

The program headers of a core name the virtual addresses of the kernel's image and of the direct mapping of
memory: what lies there needs no page tables. The rest (the memmap, vmalloc), and everything in an image
that tells no virtual addresses, is found by the kernel's page tables. Their root lies in the kernel's
image, and VMCOREINFO tells where that is.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.memory_image import EM_AARCH64, EM_X86_64, MemoryImage
from kdump_service.vmcore.page_tables import ADDRESS_MASK, Mapping, PageTables, TableFormat, x86_64_format
from kdump_service.vmcore.page_tables_aarch64 import aarch64_format, untagged
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["AddressSpace", "Mapping"]

_BLOCK_BYTES = 64 << 10
_MOST_BLOCKS = 32
"""Blocks that are kept: 2 MiB."""

_MOST_IMAGE_BYTES = 1 << 30
"""KERNEL_IMAGE_SIZE of x86_64 (arch/x86/include/asm/page_64_types.h), more than any other has."""

_IMAGE_SYMBOLS = (
    "_stext",
    "swapper_pg_dir",
    "init_top_pgt",
    "init_uts_ns",
    "node_online_map",
    "prb",
    "clear_seq",
)
"""Symbols of VMCOREINFO that are objects within the kernel's image on every architecture."""


class AddressSpace:
    """Translation and small reads, for one thread."""

    def __init__(self, image: MemoryImage) -> None:
        self.image = image
        info = image.vmcoreinfo
        # e_machine is not in every format; what VMCOREINFO tells then decides.
        self.machine = image.machine or (EM_AARCH64 if info.has("NUMBER(VA_BITS)") else EM_X86_64)
        loads = (
            Mapping(each.virtual_address, each.physical_address, max(each.file_bytes, each.memory_bytes))
            for each in image.loads
            if each.file_bytes or each.memory_bytes
        )
        self._loads = sorted(loads, key=lambda each: each.address)
        self._load_starts = [each.address for each in self._loads]
        self._image_start, self._image_end = _image_range(info)
        self._format: TableFormat | None = None
        self._tables: PageTables | None = None
        self._blocks: OrderedDict[tuple[int, int], bytes | None] = OrderedDict()

    def translate(self, address: int) -> tuple[int, int]:
        """Physical address, and how many bytes from there on follow each other in both spaces.

        Raises BadVmcore if the address is not mapped or the page tables cannot be read.
        """
        address = self.untagged(address)
        load = self._load(address)
        if load is None and self._image_start <= address < self._image_end:
            # Between two objects of the image is the image: no need of page tables, which may be damaged.
            offset = self._table_format().image_offset
            if offset is not None:
                return address - offset & ADDRESS_MASK, self._image_end - address
        mapping = load or self._page_tables().translate(address)
        within = address - mapping.address
        return mapping.physical_address + within, mapping.length - within

    def mappings(self, address: int, length: int) -> Iterator[Mapping]:
        """What of a range is mapped, in order, in pieces that may follow each other in memory.

        Left out, without an error, is what is not mapped or whose page tables cannot be read. Raises
        BadVmcore if there are no page tables at all.
        """
        address = self.untagged(address)
        end = min(address + length, ADDRESS_MASK + 1)
        while address < end:
            load = self._load(address)
            if load is not None:
                within = address - load.address
                step = min(load.length - within, end - address)
                yield Mapping(address, load.physical_address + within, step)
                address += step
                continue
            following = bisect_right(self._load_starts, address)
            stop = min(end, self._load_starts[following]) if following < len(self._loads) else end
            yield from self._page_tables().mappings(address, stop)
            address = stop

    def page_table_addresses(self, most: int) -> Iterator[int]:
        """Physical addresses of the kernel's page tables; see PageTables.addresses. Raises BadVmcore if there
        are none."""
        return self._page_tables().addresses(most)

    def read(self, address: int, length: int) -> bytes:
        """Copy out bytes. Raises BadVmcore where they are not mapped or not in the image."""
        parts = []
        while length > 0:
            physical, contiguous = self.translate(address)
            part = min(length, contiguous)
            parts.append(self._read_physical(physical, part))
            address += part
            length -= part
        return b"".join(parts)

    def unsigned(self, address: int, length: int) -> int:
        """An unsigned integer of 1, 2, 4 or 8 bytes; also a pointer."""
        return int.from_bytes(self.read(address, length), "little" if self.image.byte_order == "<" else "big")

    def untagged(self, address: int) -> int:
        """A pointer as the page tables know it."""
        return untagged(address) if self.machine == EM_AARCH64 else address

    def _load(self, address: int) -> Mapping | None:
        index = bisect_right(self._load_starts, address) - 1
        if index >= 0:
            load = self._loads[index]
            if address - load.address < load.length:
                return load
        return None

    def _table_format(self) -> TableFormat:
        if self._format is None:
            if self.machine == EM_X86_64:
                self._format = x86_64_format(self.image.vmcoreinfo)
            elif self.machine == EM_AARCH64:
                self._format = aarch64_format(self.image.vmcoreinfo, self.image.page_bytes)
            else:
                raise BadVmcore(f"page tables of ELF machine {self.machine} are not supported")
        return self._format

    def _page_tables(self) -> PageTables:
        if self._tables is None:
            table_format = self._table_format()
            root = table_format.root_address
            load = self._load(root)
            if load is not None:
                physical = load.physical_address + root - load.address
            elif table_format.image_offset is not None:
                physical = root - table_format.image_offset & ADDRESS_MASK
            else:
                raise BadVmcore(
                    f"the kernel's page tables at {root:#x} are in no segment of the image, "
                    "and VMCOREINFO does not tell where its image lies in memory"
                )
            self._tables = PageTables(self.image, table_format, physical)
        return self._tables

    def _read_physical(self, address: int, length: int) -> bytes:
        """Through the cache; what is as large as a block goes past it."""
        if length >= _BLOCK_BYTES:
            return self.image.read_physical(address, length)
        parts = []
        while length > 0:
            part = self._from_block(address, length)
            parts.append(part)
            address += len(part)
            length -= len(part)
        return b"".join(parts)

    def _from_block(self, address: int, length: int) -> bytes:
        """The bytes that are wanted, as far as one block or page has them."""
        # A filtered image may have a page without its neighbours, a segment may end within a page.
        for size in (_BLOCK_BYTES, self.image.page_bytes):
            start = address // size * size
            block = self._block(start, size)
            if block is not None:
                return block[address - start :][:length]
        return self.image.read_physical(address, length)

    def _block(self, start: int, size: int) -> bytes | None:
        """A block of memory, from the cache; None if the image does not have all of it."""
        key = start, size
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        try:
            block = self.image.read_physical(start, size)
        except BadVmcore:
            block = None
        self._blocks[key] = block
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks.popitem(last=False)
        return block


def _image_range(info: VmcoreInfo) -> tuple[int, int]:
    """First and last address that are known to be of the kernel's image; 0 and 0 if none is."""
    symbols = []
    for name in _IMAGE_SYMBOLS:
        # A damaged line costs itself: without this range there still are segments and page tables.
        with contextlib.suppress(BadVmcore):
            symbols.append(info.symbol(name))
    start, end = min(symbols, default=0), max(symbols, default=0)
    return (start, end) if end - start <= _MOST_IMAGE_BYTES else (0, 0)
