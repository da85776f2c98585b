# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes struct page arrays as kernels of several generations leave them; imports nothing of the package.

    pages = PageStructures(GENERATIONS["6.1"])
    pages.buddy(0x1000, order=3)
    pages.cache(0x2000, private=True)
    pages.hugetlb(0x40000, order=18)               # 1 GiB: may cross sections
    pages.set(0x3000, flags=1 << 4)                # any field by hand
    pages.bytes(0x1000, 8)                         # the memory of 8 structures

Page frames that nobody described are zeros, as in a memmap that was never initialised; ``kernel()`` makes
those of a page in use by the kernel. Where kernels differ in how they say a thing, the generation decides:

    generation  what says "hugetlb", "slab", and the order of a compound page
    4.19        destructor 2 in page[1]; PG_slab; order byte in page[1]; no offline type
    5.10 6.1    the same, other flag numbers (PG_workingset was put in), offline type
    6.3         the same, exported as members of struct folio (1c5509be58f6)
    6.6         PG_hugetlb (9c5ccf2db04b) and, in the low byte, the order (ebc1baf5c9b4) in page[1].flags;
                PG_writeback and PG_head moved into the low byte, where tail pages have none
    6.9         page type hugetlb (d99e3140a4d3)
    6.10        page type slab (46df8e73a4a3)
    6.11        page types in the top byte of _mapcount, still as bits that are cleared
    6.12        one type per page, as a number in the top byte (4ffca5a96678); no PG_error
    6.16        VMCOREINFO tells of unaccepted memory
    7.1         compound_head is called compound_info (d50569612c29) and holds a mask in tail pages

Flag numbers are those of a 64-bit kernel with CONFIG_MEMORY_FAILURE, from include/linux/page-flags.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GENERATIONS", "PageLayout", "PageStructures"]

Array = NDArray[Any]

ZONE_AND_NODE = 0x0017FFFFC0000000
"""The upper bits of flags (zone, node, last cpu), as an x86_64 kernel shows them for zone Normal."""

_OLD_419 = (
    "locked error referenced up_to_date dirty lru active waiters slab owner_priv_1 arch_1 reserved private "
    "private_2 writeback head mappedtodisk reclaim swapbacked unevictable mlocked uncached hwpoison"
)
_OLD_510 = (
    "locked referenced up_to_date dirty lru active workingset waiters error slab owner_priv_1 arch_1 "
    "reserved private private_2 writeback head mappedtodisk reclaim swapbacked unevictable mlocked uncached "
    "hwpoison"
)
_NEW_66 = (
    "locked writeback referenced up_to_date dirty lru head waiters active workingset error slab owner_priv_1 "
    "arch_1 reserved private private_2 mappedtodisk reclaim swapbacked unevictable mlocked uncached hwpoison"
)
_NEW_610 = _NEW_66.replace(" slab", "")
_NEW_612 = (
    "locked writeback referenced up_to_date dirty lru head waiters active workingset owner_priv_1 owner_2 "
    "arch_1 reserved private private_2 reclaim swapbacked unevictable mlocked hwpoison"
)
_NEW_614 = _NEW_612.replace("unevictable", "unevictable dropbehind")


def _numbers(names: str) -> dict[str, int]:
    return {name: number for number, name in enumerate(names.split())}


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


def _bit_types(**bits: int) -> dict[str, int]:
    """Page types as bits that are cleared in a word of ones."""
    return {name: ~bit for name, bit in bits.items()}


def _byte_types(**numbers: int) -> dict[str, int]:
    return {name: _signed(number << 24) for name, number in numbers.items()}


@dataclass(frozen=True)
class PageLayout:
    """Where a kernel keeps what in struct page. ``dataclasses.replace`` makes odd ones."""

    name: str
    flags: dict[str, int]
    """Flag name (without PG_) -> bit."""
    types: dict[str, int]
    """Page type -> the signed number that stands in _mapcount."""
    struct_page_bytes: int = 64
    offsets: dict[str, int] = field(
        default_factory=lambda: {
            "flags": 0,
            "compound_head": 8,
            "lru": 8,
            "mapping": 24,
            "private": 40,
            "_mapcount": 48,
            "_refcount": 52,
        }
    )
    compound: str = "page"
    """Where page[1] has the order: ``page`` or ``folio`` (bytes, exported so, with destructor), ``flags``."""
    hugetlb: str = "dtor"
    """``dtor``, ``flag`` (bit ``active`` of page[1].flags) or ``type``."""
    compound_head_name: str = "compound_head"
    masked_tails: bool = False
    """A tail page holds the mask that leads from its struct page to the head's, not the head's address."""
    slab_in_mapping: bool = False
    """struct slab has counters where mapping lies, so that its low bit may be set (6.2, 130d4df57390)."""
    free_area_orders: int = 11
    exported_types: tuple[str, ...] = ("buddy", "offline", "hugetlb", "slab")
    """Those of the types that VMCOREINFO tells, where the kernel has them."""

    DTOR_OFFSET = 16
    ORDER_OFFSET = 17

    def mask(self, *names: str) -> int:
        """The flags as a mask; ``swapcache`` is another name of owner_priv_1."""
        result = 0
        for name in names:
            result |= 1 << self.flags["owner_priv_1" if name == "swapcache" else name]
        return result

    def vmcoreinfo(self) -> dict[str, str]:
        """The lines of VMCOREINFO that are about struct page."""
        info = {"SIZE(page)": str(self.struct_page_bytes)}
        for name, offset in self.offsets.items():
            shown = self.compound_head_name if name == "compound_head" else name
            info[f"OFFSET(page.{shown})"] = str(offset)
        if self.compound == "page":
            info["OFFSET(page.compound_dtor)"] = str(self.DTOR_OFFSET)
            info["OFFSET(page.compound_order)"] = str(self.ORDER_OFFSET)
        elif self.compound == "folio":
            info["OFFSET(folio._folio_dtor)"] = str(self.struct_page_bytes + self.DTOR_OFFSET)
            info["OFFSET(folio._folio_order)"] = str(self.struct_page_bytes + self.ORDER_OFFSET)
        info["LENGTH(zone.free_area)"] = str(self.free_area_orders)
        for name in ("lru", "private", "swapcache", "swapbacked", "slab", "hwpoison"):
            if name == "swapcache" or name in self.flags:
                info[f"NUMBER(PG_{name})"] = str(self.mask(name).bit_length() - 1)
        info["NUMBER(PG_head_mask)"] = str(self.mask("head"))
        if self.hugetlb == "dtor":
            info["NUMBER(HUGETLB_PAGE_DTOR)"] = "2"
        elif self.hugetlb == "flag":
            info["NUMBER(PG_hugetlb)"] = str(self.flags["active"])
        for name in self.exported_types:
            if name in self.types:
                info[f"NUMBER(PAGE_{name.upper()}_MAPCOUNT_VALUE)"] = str(self.types[name])
        return info


def _generations() -> dict[str, PageLayout]:
    old = PageLayout("4.19", _numbers(_OLD_419), _bit_types(buddy=0x80, balloon=0x100, table=0x400))
    types = _bit_types(buddy=0x80, offline=0x100, table=0x200, guard=0x400)
    v5_10 = PageLayout("5.10", _numbers(_OLD_510), types)
    v6_1 = replace(v5_10, name="6.1")
    v6_3 = replace(v6_1, name="6.3", compound="folio", slab_in_mapping=True)
    v6_6 = replace(v6_3, name="6.6", flags=_numbers(_NEW_66), compound="flags", hugetlb="flag")
    v6_9 = replace(v6_6, name="6.9", hugetlb="type", types=types | _bit_types(hugetlb=0x800))
    v6_10 = replace(
        v6_9,
        name="6.10",
        flags=_numbers(_NEW_610),
        types=v6_9.types | _bit_types(slab=0x1000),
    )
    v6_11 = replace(
        v6_10,
        name="6.11",
        types=_bit_types(
            buddy=0x40000000,
            offline=0x20000000,
            table=0x10000000,
            guard=0x08000000,
            hugetlb=0x04000000,
            slab=0x02000000,
        ),
    )
    v6_12 = replace(
        v6_11,
        name="6.12",
        flags=_numbers(_NEW_612),
        types=_byte_types(
            buddy=0xF0,
            offline=0xF1,
            table=0xF2,
            guard=0xF3,
            hugetlb=0xF4,
            slab=0xF5,
            zsmalloc=0xF6,
            unaccepted=0xF7,
        ),
    )
    v6_16 = replace(
        v6_12,
        name="6.16",
        flags=_numbers(_NEW_614),
        types=v6_12.types | _byte_types(large_kmalloc=0xF8),
        exported_types=(*v6_12.exported_types, "unaccepted"),
    )
    v7_1 = replace(v6_16, name="7.1", compound_head_name="compound_info", masked_tails=True)
    every = [old, v5_10, v6_1, v6_3, v6_6, v6_9, v6_10, v6_11, v6_12, v6_16, v7_1]
    return {each.name: each for each in every}


GENERATIONS = _generations()
"""By the kernel that brought the layout: 4.19 5.10 6.1 6.3 6.6 6.9 6.10 6.11 6.12 6.16 7.1."""


class PageStructures:
    """The memmap of a machine, kept by section; see the module for an example.

    ``wrap_pages`` makes one block of structures stand for all: page frames are taken modulo that number.
    """

    def __init__(
        self,
        layout: PageLayout,
        *,
        section_pages: int = 1 << 15,
        memmap_address: int = 0xFFFFEA0000000000,
        wrap_pages: int = 0,
    ) -> None:
        self.layout = layout
        self.section_pages = section_pages
        self.memmap_address = memmap_address
        self.wrap_pages = wrap_pages
        self.sections: dict[int, Array] = {}
        """By section number: the structures that were described."""
        offsets = layout.offsets
        names = ["flags", "compound_head", "mapping", "private", "_mapcount", "_refcount", "dtor", "order"]
        self.dtype = np.dtype(
            {
                "names": names,
                "formats": ["<u8", "<u8", "<u8", "<u8", "<i4", "<i4", "u1", "u1"],
                "offsets": [
                    *(offsets[name] for name in names[:6]),
                    layout.DTOR_OFFSET,
                    layout.ORDER_OFFSET,
                ],
                "itemsize": layout.struct_page_bytes,
            }
        )

    # Fields

    def views(self, pfn: int, count: int = 1) -> Iterator[Array]:
        """The structures of these frames as writable numpy records, one array for each section."""
        while count > 0:
            section, start = divmod(pfn % self.wrap_pages if self.wrap_pages else pfn, self.section_pages)
            if section not in self.sections:
                self.sections[section] = np.zeros(self.section_pages, self.dtype)
            part = min(count, self.section_pages - start)
            yield self.sections[section][start : start + part]
            pfn += part
            count -= part

    def set(self, pfn: int, count: int = 1, **fields: int) -> None:
        """Give these frames these fields (flags, compound_head, mapping, private, _mapcount, _refcount, dtor,
        order), and leave the others."""
        for view in self.views(pfn, count):
            for name, value in fields.items():
                view[name] = value

    def get(self, pfn: int, name: str) -> int:
        """One field of one frame."""
        [view] = self.views(pfn)
        return int(view[name][0])

    def set_flags(self, pfn: int, *names: str, count: int = 1) -> None:
        """Add flags to what is there."""
        for view in self.views(pfn, count):
            view["flags"] |= self.layout.mask(*names)

    def bytes(self, pfn: int, count: int = 1) -> bytes:
        """The memory of these structures."""
        return b"".join(view.tobytes() for view in self.views(pfn, count))

    def address(self, pfn: int) -> int:
        """Kernel virtual address of a frame's struct page."""
        return self.memmap_address + pfn * self.layout.struct_page_bytes

    # What a page is used for

    def kernel(self, pfn: int, count: int = 1) -> None:
        """In use by the kernel: nothing says that it may be left out."""
        for view in self.views(pfn, count):
            view[:] = np.zeros(1, self.dtype)
        self.set(pfn, count, flags=ZONE_AND_NODE, _mapcount=-1, _refcount=1)

    def reserved(self, pfn: int, count: int = 1) -> None:
        """PG_reserved, as memory that the firmware keeps."""
        self.kernel(pfn, count)
        self.set_flags(pfn, "reserved", count=count)

    def page_table(self, pfn: int) -> None:
        """Page type table."""
        self.kernel(pfn)
        self.set(pfn, _mapcount=self.layout.types["table"])

    def buddy(self, pfn: int, order: int = 0) -> None:
        """The head of a free block of 2^order frames; the others of the block say nothing of themselves."""
        self.kernel(pfn, 1 << order)
        self.set(pfn, 1 << order, _refcount=0)
        self.set(pfn, private=order, _mapcount=self.layout.types["buddy"])

    def unaccepted(self, pfn: int) -> None:
        """A block of the highest order that was never accepted from the hypervisor (6.12 and later)."""
        self.kernel(pfn, 1 << (self.layout.free_area_orders - 1))
        self.set(pfn, _mapcount=self.layout.types["unaccepted"])

    def anon(self, pfn: int, order: int = 0, *, ksm: bool = False, swapcache: bool = False) -> None:
        """User memory."""
        self.compound(pfn, order)
        self.set_flags(pfn, "lru", "up_to_date", "swapbacked")
        if swapcache:
            self.set_flags(pfn, "swapcache")
        self.set(pfn, mapping=0xFFFF888012345600 | (3 if ksm else 1), _mapcount=0, _refcount=2)

    def thp(self, pfn: int, order: int = 9) -> None:
        """A transparent huge page of user memory."""
        self.anon(pfn, order)
        self.set(pfn + 1, dtor=3 if self.layout.hugetlb == "dtor" else 0)

    def hugetlb(self, pfn: int, order: int = 9, *, used: bool = True) -> None:
        """A page of hugetlbfs, or of its pool."""
        self.compound(pfn, order)
        if self.layout.hugetlb == "dtor":
            self.set(pfn + 1, dtor=2)
        elif self.layout.hugetlb == "flag":
            self.set_flags(pfn + 1, "active")
        if used:
            self.set(pfn, mapping=0xFFFF888012345600, private=0xFFFF888054321000)
        if self.layout.hugetlb == "type":
            self.set(pfn, _mapcount=self.layout.types["hugetlb"])

    def cache(self, pfn: int, order: int = 0, *, private: bool = False) -> None:
        """Page cache; ``private`` with buffers of a file system."""
        self.compound(pfn, order)
        self.set_flags(pfn, "lru", "up_to_date", "referenced")
        self.set(pfn, mapping=0xFFFF888023456700, _refcount=2)
        if private:
            self.set_flags(pfn, "private")
            self.set(pfn, private=0xFFFF888034567800)

    def swapcache(self, pfn: int, *, anon: bool = True) -> None:
        """In the swap cache, off the LRU; ``anon=False`` is shmem on its way out."""
        self.kernel(pfn)
        self.set_flags(pfn, "up_to_date", "swapbacked", "swapcache")
        self.set(pfn, mapping=0xFFFF888012345601 if anon else 0, private=0x1234, _refcount=2)

    def slab(self, pfn: int, order: int = 0) -> None:
        """A slab; where the kernel lets the low bit of mapping be set, it is set."""
        self.compound(pfn, order)
        if "slab" in self.layout.flags:
            self.set_flags(pfn, "slab")
        else:
            self.set(pfn, _mapcount=self.layout.types["slab"])
        if self.layout.slab_in_mapping:
            self.set(pfn, mapping=0x0015001500150015)

    def large_kmalloc(self, pfn: int, order: int) -> None:
        """kmalloc of more than two pages; a type of its own from 6.15 on."""
        self.compound(pfn, order)
        if "large_kmalloc" in self.layout.types:
            # The low bytes hold the order there.
            self.set(pfn, _mapcount=self.layout.types["large_kmalloc"] | order)

    def offline(self, pfn: int, count: int = 1) -> None:
        """Ballooned or unplugged by the hypervisor (5.1 and later)."""
        self.kernel(pfn, count)
        self.set(pfn, count, _mapcount=self.layout.types["offline"])

    def hwpoison(self, pfn: int) -> None:
        """The memory of this frame is broken; whatever else it is stays so."""
        self.set_flags(pfn, "hwpoison")

    def compound(self, pfn: int, order: int) -> None:
        """Head and tails of a compound page of 2^order frames, for the kernel's own use as yet."""
        count = 1 << order
        self.kernel(pfn, count)
        if order == 0:
            return
        self.set_flags(pfn, "head")
        if self.layout.masked_tails:
            head = ~(count * self.layout.struct_page_bytes - 1) & (1 << 64) - 1
        else:
            head = self.address(pfn)
        self.set(pfn + 1, count - 1, compound_head=head | 1, _refcount=0)
        if self.layout.compound == "flags":
            self.set(pfn + 1, flags=ZONE_AND_NODE | order)
        else:
            self.set(pfn + 1, dtor=1, order=order)
