# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a page frame is used for, told from its struct page (include/linux/mm_types.h).

The layout and the numbers come from VMCOREINFO alone, whatever the kernel's version. Where a meaning moved,
the newest form is looked for first. The classes and their order are makedumpfile's, so that a level means the
same here: a page belongs to the first class that fits it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdump_service.errors import BadVmcore
from kdump_service.filtering.levels import DumpLevel
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["PageClass", "PageClassifier", "Verdict", "excludes_anything"]

Words = NDArray[np.uint64]
Bools = NDArray[np.bool_]

_MOST_ORDER = 40
"""2^40 pages are more than a machine has: an order that is larger is damage."""
_FREE_AREA_ORDERS = 11
"""MAX_ORDER where VMCOREINFO does not give LENGTH(zone.free_area) (include/linux/mmzone.h)."""


class PageClass(IntEnum):
    """Why a frame is left out. KEPT is 0."""

    KEPT = 0
    FREE = 1
    CACHE = 2
    CACHE_PRIVATE = 3
    USER = 4
    HWPOISON = 5
    """Memory that the hardware reported as broken: never read."""
    OFFLINE = 6
    """Taken from the machine by a balloon driver or memory hotplug: never read."""


class Verdict(NamedTuple):
    """What the struct pages of consecutive frames say, one element a frame."""

    classes: NDArray[np.uint8]
    """PageClass of the frame itself, and of the group of pages that begins with it."""
    orders: NDArray[np.uint8]
    """Logarithm of the length of that group; 0 for a single page."""


class PageClassifier:
    """Reads struct pages of one kernel, for one dump level."""

    def __init__(self, info: VmcoreInfo, level: int, byte_order: str = "<") -> None:
        """Raises BadVmcore if VMCOREINFO lacks what the level needs."""
        self.level = DumpLevel(level)
        self.page_bytes = info.size("page")
        if not 32 <= self.page_bytes <= 512 or self.page_bytes % 8:
            raise BadVmcore(f"VMCOREINFO: SIZE(page)={self.page_bytes} is no size of a struct page")
        self._u64 = np.dtype(byte_order + "u8")
        self._u32 = np.dtype(byte_order + "u4")
        self._flags = self._member(info, "flags", 8)
        self._mapcount = self._member(info, "_mapcount", 4)
        self._mapping = self._member(info, "mapping", 8)
        self._private = self._member(info, "private", 8)
        self._compound_head = self._compound_head_offset(info)
        self._lru = _flag(info, "PG_lru")
        self._private_flag = _flag(info, "PG_private")
        self._swapcache = _flag(info, "PG_swapcache")
        self._swapbacked = _flag(info, "PG_swapbacked", optional=True)
        self._hwpoison = _flag(info, "PG_hwpoison", optional=True)
        self._slab_flag = self._slab_flag_of(info)
        self._slab_type = _page_type(info, "PAGE_SLAB_MAPCOUNT_VALUE")
        self._buddy_type = _page_type(info, "PAGE_BUDDY_MAPCOUNT_VALUE")
        self._offline_type = _page_type(info, "PAGE_OFFLINE_MAPCOUNT_VALUE")
        self._unaccepted_type = _page_type(info, "PAGE_UNACCEPTED_MAPCOUNT_VALUE")
        self._hugetlb_type = _page_type(info, "PAGE_HUGETLB_MAPCOUNT_VALUE")
        head_mask = info.number("PG_head_mask") if info.has("NUMBER(PG_head_mask)") else 0
        if not 0 <= head_mask < 1 << 64:
            raise BadVmcore(f"VMCOREINFO: NUMBER(PG_head_mask)={head_mask} is no mask of page.flags")
        self._head_mask = np.uint64(head_mask)
        self._free_orders = (
            info.length("zone.free_area") if info.has("LENGTH(zone.free_area)") else _FREE_AREA_ORDERS
        )
        if not 0 < self._free_orders <= _MOST_ORDER:
            raise BadVmcore(f"VMCOREINFO: LENGTH(zone.free_area)={self._free_orders} is no number of orders")
        self._read_compound_layout(info)

    def classify(self, struct_pages: NDArray[np.uint8], first_pfn: int) -> Verdict:
        """Judge frames by their struct pages, which stand one after the other in ``struct_pages``.

        The struct page behind the last one is needed for groups that begin with the last frame; groups are
        aligned, so none begins there if the number of frames is even.
        """
        count = len(struct_pages) // self.page_bytes
        flags = self._column(struct_pages, count, self._flags, self._u64)
        mapcount = self._column(struct_pages, count, self._mapcount, self._u32)
        tail = (self._column(struct_pages, count, self._compound_head, self._u64) & np.uint64(1)) != 0
        slab = (mapcount == self._slab_type) if self._slab_type is not None else np.zeros(count, np.bool_)
        if self._slab_flag:
            slab |= (flags & self._slab_flag) != 0
        mapping = self._column(struct_pages, count, self._mapping, self._u64)
        # PAGE_MAPPING_ANON, include/linux/page-flags.h; struct slab has other things there (6.2).
        anon = ((mapping & np.uint64(1)) != 0) & ~slab
        orders, hugetlb = self._groups(struct_pages, count, flags, mapcount, first_pfn)
        classes = np.zeros(count, np.uint8)

        # From the last rule to the first: each overwrites what those behind it said.
        if self._offline_type is not None:
            classes[(mapcount == self._offline_type) & ~slab] = PageClass.OFFLINE
        if self._hwpoison:
            classes[(flags & self._hwpoison) != 0] = PageClass.HWPOISON
        if self.level & DumpLevel.USER:
            classes[anon | hugetlb] = PageClass.USER
        if self.level & (DumpLevel.CACHE | DumpLevel.CACHE_PRIVATE):
            cache = ((flags & self._lru) != 0) & ~anon
            swapped = (flags & self._swapcache) != 0
            if self._swapbacked:
                swapped &= (flags & self._swapbacked) != 0
            cache |= swapped & ~anon
            private = (flags & self._private_flag) != 0
            if self.level & DumpLevel.CACHE_PRIVATE:
                classes[cache & private] = PageClass.CACHE_PRIVATE
            classes[cache & ~private] = PageClass.CACHE
        if self.level & DumpLevel.FREE:
            self._mark_free(struct_pages, count, mapcount, slab, classes, orders)
        classes[tail] = PageClass.KEPT  # goes with its head, or stays
        orders[classes == PageClass.KEPT] = 0
        return Verdict(classes, orders)

    def _mark_free(
        self,
        struct_pages: NDArray[np.uint8],
        count: int,
        mapcount: NDArray[np.uint32],
        slab: Bools,
        classes: NDArray[np.uint8],
        orders: NDArray[np.uint8],
    ) -> None:
        if self._unaccepted_type is not None:
            # Only whole blocks of the largest order are on the list of memory that a guest has not accepted
            # (mm/page_alloc.c, __free_unaccepted).
            unaccepted = mapcount == self._unaccepted_type
            classes[unaccepted] = PageClass.FREE
            orders[unaccepted] = self._free_orders - 1
        if self._buddy_type is not None:
            buddy = np.flatnonzero((mapcount == self._buddy_type) & ~slab)
            order = self._column(struct_pages, count, self._private, self._u64)[buddy]
            plausible = order < self._free_orders
            classes[buddy] = np.where(plausible, PageClass.FREE, PageClass.KEPT)
            orders[buddy] = np.where(plausible, order, 0)

    def _groups(
        self,
        struct_pages: NDArray[np.uint8],
        count: int,
        flags: Words,
        mapcount: NDArray[np.uint32],
        first_pfn: int,
    ) -> tuple[NDArray[np.uint8], Bools]:
        """Orders of compound pages at their heads, and which of these are of hugetlbfs."""
        orders = np.zeros(count, np.uint8)
        hugetlb = np.zeros(count, np.bool_)
        heads = np.flatnonzero((flags & self._head_mask) != 0)
        heads = heads[heads < count - 1]
        if not len(heads):
            return orders, hugetlb
        found = np.zeros(len(heads), np.uint64)
        if self._order_in_flags:
            second = flags[heads + 1]
            found = second & np.uint64(0xFF)
            if self._hugetlb_type is not None:
                hugetlb[heads] = mapcount[heads] == self._hugetlb_type
            else:
                hugetlb[heads] = (second & self._hugetlb_flag) != 0
        else:
            if self._order_offset is not None:
                found = struct_pages[(heads + 1) * self.page_bytes + self._order_offset].astype(np.uint64)
            if self._dtor_offset is not None and self._hugetlb_dtor is not None:
                dtor = struct_pages[(heads + 1) * self.page_bytes + self._dtor_offset]
                hugetlb[heads] = dtor == self._hugetlb_dtor
        pfns = (heads + first_pfn).astype(np.uint64)
        sane = np.minimum(found, np.uint64(63))
        aligned = (pfns & ((np.uint64(1) << sane) - np.uint64(1))) == 0
        orders[heads] = np.where((found <= _MOST_ORDER) & aligned, found, 0)
        return orders, hugetlb

    def _read_compound_layout(self, info: VmcoreInfo) -> None:
        self._order_in_flags = False
        self._hugetlb_flag = np.uint64(0)
        self._order_offset = self._dtor_offset = self._hugetlb_dtor = None
        if self._hugetlb_type is not None:
            # 6.9, d99e3140a4d3 "mm: turn folio_test_hugetlb into a PageType"
            self._order_in_flags = True
        elif info.has("NUMBER(PG_hugetlb)"):
            # 6.6: the order is the low byte of folio._flags_1, PG_hugetlb a flag there (9c5ccf2db04b, "mm:
            # remove HUGETLB_PAGE_DTOR")
            self._order_in_flags = True
            self._hugetlb_flag = _flag(info, "PG_hugetlb")
        else:
            # 6.3 names the members of struct folio, counted from its first page (1c5509be58f6)
            for prefix, base in (("folio._folio_", self.page_bytes), ("page.compound_", 0)):
                if self._order_offset is None and info.has(f"OFFSET({prefix}order)"):
                    self._order_offset = self._within_page(info.offset(f"{prefix}order") - base, 1)
                if self._dtor_offset is None and info.has(f"OFFSET({prefix}dtor)"):
                    self._dtor_offset = self._within_page(info.offset(f"{prefix}dtor") - base, 1)
            if info.has("NUMBER(HUGETLB_PAGE_DTOR)"):
                self._hugetlb_dtor = info.number("HUGETLB_PAGE_DTOR")

    def _compound_head_offset(self, info: VmcoreInfo) -> int:
        # 7.1 renames the member; bit 0 still marks a tail page.
        if info.has("OFFSET(page.compound_info)"):
            return self._member(info, "compound_info", 8)
        return self._member(info, "compound_head", 8)

    @staticmethod
    def _slab_flag_of(info: VmcoreInfo) -> np.uint64:
        # Not exported since 6.10, where slab is a page type (46df8e73a4a3).
        return _flag(info, "PG_slab", optional=True)

    def _member(self, info: VmcoreInfo, name: str, length: int) -> int:
        return self._within_page(info.offset(f"page.{name}"), length)

    def _within_page(self, offset: int, length: int) -> int:
        if not 0 <= offset <= self.page_bytes - length or offset % length:
            raise BadVmcore(f"VMCOREINFO: offset {offset} is not within a struct page of {self.page_bytes}")
        return offset

    def _column(
        self, struct_pages: NDArray[np.uint8], count: int, offset: int, dtype: np.dtype[np.unsignedinteger]
    ) -> NDArray[np.unsignedinteger]:
        return np.ndarray((count,), dtype, struct_pages.data, offset, (self.page_bytes,))


def excludes_anything(info: VmcoreInfo, level: int) -> bool:
    """Whether a level needs a look at struct pages. For offline pages alone it does not, as in makedumpfile:
    at level 0 or 1 these are kept where the kernel has no CONFIG_MEMORY_FAILURE."""
    return bool(level & ~DumpLevel.ZERO) or info.has("NUMBER(PG_hwpoison)")


def _flag(info: VmcoreInfo, name: str, *, optional: bool = False) -> np.uint64:
    """The mask of a page flag; 0 if an optional one is absent. Raises BadVmcore."""
    if optional and not info.has(f"NUMBER({name})"):
        return np.uint64(0)
    bit = info.number(name)
    if not 0 <= bit < 64:
        raise BadVmcore(f"VMCOREINFO: NUMBER({name})={bit} is no bit of page.flags")
    return np.uint64(1 << bit)


def _page_type(info: VmcoreInfo, name: str) -> np.uint32 | None:
    """A value of page._mapcount (page_type since 4.18) that tells what a page is; None if absent."""
    if not info.has(f"NUMBER({name})"):
        return None
    return np.uint32(info.number(name) & 0xFFFFFFFF)
