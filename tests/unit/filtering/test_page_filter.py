# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import contextlib
import functools
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.engine.survey import Survey, survey_pages
from kdump_service.errors import BadVmcore
from kdump_service.filtering.page_classes import PageClass, PageClassifier
from kdump_service.filtering.page_filter import ChunkVerdict, PageFilter
from kdump_service.pfn import CHUNK_PAGES
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.mem_map import MemMap
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo
from tests.builders.machine_memory import Aarch64, Machine
from tests.builders.struct_page import GENERATIONS
from tests.unit.machine_image import ImageOfMachine
from tests.unit.machine_pages import PagesOfMachine, io_error, kills

MIB, GIB = 1 << 20, 1 << 30
SMALL = [(MIB, 31 * MIB)]
"""One section; the test has frames from 0x100 on."""
FIRST = 0x1000
"""Where tests put what they describe, in larger machines."""
CYCLE = 1 << 15
ZERO, CACHE, CACHE_PRIVATE, USER, FREE = 1, 2, 4, 8, 16
EXCLUDED = 31


class Makedumpfile:
    """The scan of makedumpfile.c, __exclude_unnecessary_pages: one struct page after the other, first match
    wins, and a group that is left out is jumped over.

    makedumpfile begins anew at each section. The filter does at each chunk, which shows only where groups are
    not aligned; it then leaves out less.
    """

    def __init__(self, vmcoreinfo: Mapping[str, str], struct_pages: bytes, first_pfn: int = FIRST) -> None:
        self.info = vmcoreinfo
        self.first_pfn = first_pfn
        size = int(vmcoreinfo["SIZE(page)"])
        head = "head" if "OFFSET(page.compound_head)" in vmcoreinfo else "info"
        members = {
            "flags": "u8",
            "_mapcount": "u4",
            "mapping": "u8",
            "private": "u8",
            f"compound_{head}": "u8",
        }
        layout = np.dtype(
            {
                "names": list(members),
                "formats": list(members.values()),
                "offsets": [int(vmcoreinfo[f"OFFSET(page.{name})"]) for name in members],
                "itemsize": size,
            }
        )
        self.pages: list[tuple[int, ...]] = np.frombuffer(struct_pages, layout).tolist()
        self.bytes = [struct_pages[at : at + size] for at in range(0, len(struct_pages), size)]

    def excluded(self, level: int, end_pfn: int = 1 << 40) -> dict[int, str]:
        """The frames that are left out, and their class."""
        result: dict[int, str] = {}
        pfn = self.first_pfn
        while pfn < self.first_pfn + len(self.pages):
            name, count = self._judge(pfn, level)
            if name:
                for each in range(pfn, min(pfn + count, end_pfn)):
                    result.setdefault(each, name)
            pfn = min(pfn + count, (pfn // CHUNK_PAGES + 1) * CHUNK_PAGES)
        return result

    def _judge(self, pfn: int, level: int) -> tuple[str, int]:
        flags, mapcount, mapping, private, compound_head = self.pages[pfn - self.first_pfn]
        if compound_head & 1:
            return "", 1
        slab = self._is(mapcount, "SLAB") or self._has(flags, "PG_slab")
        free_area = int(self.info["LENGTH(zone.free_area)"])
        if level & FREE and self._is(mapcount, "BUDDY") and not slab:
            return ("free", 1 << private) if private < free_area else ("", 1)
        if level & FREE and self._is(mapcount, "UNACCEPTED"):
            return "free", 1 << free_area - 1
        count, hugetlb = self._compound(pfn, flags, mapcount)
        anon = mapping & 1 and not slab
        swapped = self._has(flags, "PG_swapcache") and self._has(flags, "PG_swapbacked")
        cache = (self._has(flags, "PG_lru") or swapped) and not anon
        if level & CACHE and cache and not self._has(flags, "PG_private"):
            return "cache", count
        if level & CACHE_PRIVATE and cache:
            return "cache-private" if self._has(flags, "PG_private") else "cache", count
        if level & USER and (anon or hugetlb):
            return "user", count
        if self._has(flags, "PG_hwpoison"):
            return "hwpoison", count
        if self._is(mapcount, "OFFLINE") and not slab:
            return "offline", count
        return "", 1

    def _compound(self, pfn: int, flags: int, mapcount: int) -> tuple[int, bool]:
        """Pages of the group that begins here, and whether it is of hugetlbfs."""
        following = pfn + 1 - self.first_pfn
        if not flags & int(self.info["NUMBER(PG_head_mask)"]) or following == len(self.pages):
            return 1, False
        if "NUMBER(PAGE_HUGETLB_MAPCOUNT_VALUE)" in self.info:
            order, hugetlb = self.pages[following][0] & 0xFF, self._is(mapcount, "HUGETLB")
        elif "NUMBER(PG_hugetlb)" in self.info:
            order, hugetlb = (
                self.pages[following][0] & 0xFF,
                self._has(self.pages[following][0], "PG_hugetlb"),
            )
        else:
            second = self.bytes[following]
            order = second[self._second_page("order")]
            hugetlb = second[self._second_page("dtor")] == int(self.info["NUMBER(HUGETLB_PAGE_DTOR)"])
        return (1 << order if order < 64 and pfn % (1 << order) == 0 else 1), hugetlb

    def _second_page(self, name: str) -> int:
        if f"OFFSET(page.compound_{name})" in self.info:
            return int(self.info[f"OFFSET(page.compound_{name})"])
        return int(self.info[f"OFFSET(folio._folio_{name})"]) - int(self.info["SIZE(page)"])

    def _has(self, flags: int, name: str) -> bool:
        return f"NUMBER({name})" in self.info and bool(flags >> int(self.info[f"NUMBER({name})"]) & 1)

    def _is(self, mapcount: int, name: str) -> bool:
        value = self.info.get(f"NUMBER(PAGE_{name}_MAPCOUNT_VALUE)")
        return value is not None and mapcount == int(value) % (1 << 32)


def _judge(machine: Machine, level: int, chunk: int = 0, **broken: Any) -> ChunkVerdict:
    """One chunk by the filter, in this process."""
    image = ImageOfMachine(machine)
    source = PagesOfMachine(image, **broken)
    classifier = PageClassifier(image.vmcoreinfo, level)
    return PageFilter(source, MemMap(AddressSpace(image)), classifier).chunk(chunk)


def _survey(machine: Machine, level: int, workers: int = 1, **broken: Any) -> Survey:
    image = ImageOfMachine(machine)
    return survey_pages(image, PagesOfMachine(image, **broken), level, workers=workers)


def _excluded(machine: Machine, level: int, chunk: int = 0, **broken: Any) -> list[int]:
    """The frames of a chunk that the filter leaves out."""
    image = ImageOfMachine(machine)
    present = PagesOfMachine(image, **broken).present(chunk)
    verdict = _judge(machine, level, chunk, **broken)
    assert not (verdict.kept & ~present).any()
    pfns = np.flatnonzero(present & ~verdict.kept) + chunk * CHUNK_PAGES
    assert len(pfns) == verdict.excluded.sum()
    result: list[int] = pfns.tolist()
    return result


def _counts(verdict: ChunkVerdict) -> dict[str, int]:
    return {
        page_class.name.lower().replace("_", "-"): int(count)
        for page_class, count in zip(PageClass, verdict.excluded, strict=True)
        if count
    }


def _put_one_of_each(machine: Machine, pfn: int) -> int:
    """Every class that the generation knows, in groups of several sizes; returns the frame behind them."""
    pages = machine.pages
    types = pages.layout.types
    single: list[Callable[[int], None]] = [
        pages.kernel,
        pages.reserved,
        pages.page_table,
        pages.anon,
        lambda at: pages.anon(at, ksm=True),
        lambda at: pages.anon(at, swapcache=True),
        pages.swapcache,
        lambda at: pages.swapcache(at, anon=False),
        pages.cache,
        lambda at: pages.cache(at, private=True),
        pages.slab,
        pages.buddy,
    ]
    if "offline" in types:
        single.append(pages.offline)
    grouped: list[tuple[Callable[[int], None], int]] = [
        (lambda at: pages.buddy(at, 10), 10),
        (lambda at: pages.buddy(at, 3), 3),
        (lambda at: pages.anon(at, 4), 4),
        (pages.thp, 9),
        (pages.hugetlb, 9),
        (lambda at: pages.hugetlb(at, used=False), 9),
        (lambda at: pages.cache(at, 2), 2),
        (lambda at: pages.cache(at, 5, private=True), 5),
        (lambda at: pages.slab(at, 3), 3),
        (lambda at: pages.large_kmalloc(at, 4), 4),
        (lambda at: pages.compound(at, 2), 2),
    ]
    if "unaccepted" in types:
        grouped.append((pages.unaccepted, 10))
    for put, order in sorted(grouped, key=lambda each: -each[1]):
        put(pfn)
        pfn += 1 << order
    for put in single:
        for poisoned in (False, True):
            put(pfn)
            if poisoned:
                pages.hwpoison(pfn)
            pfn += 1
    for order in (10, 11, 12, 64, (1 << 64) - 1):  # of a free block; there are orders up to 10
        pages.buddy(pfn)
        pages.set(pfn, private=order)
        pfn += 1
    return pfn


@functools.lru_cache(maxsize=1)
def _one_of_each(generation: str) -> tuple[ImageOfMachine, Makedumpfile]:
    machine = Machine(memory=[(MIB, 63 * MIB)], generation=generation)
    end = _put_one_of_each(machine, FIRST)
    for at in (0, 9, 600):  # head, tail, and one within a free block
        machine.pages.hwpoison(FIRST + 0x800 + at)
    model = Makedumpfile(machine.vmcoreinfo, machine.pages.bytes(FIRST, end - FIRST))
    return ImageOfMachine(machine), model


@pytest.mark.parametrize("level", range(0, 32, 2))
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.promise("same-pages")
def test_every_level_of_every_generation(generation: str, level: int) -> None:
    image, model = _one_of_each(generation)
    source = PagesOfMachine(image)
    page_filter = PageFilter(source, MemMap(AddressSpace(image)), PageClassifier(image.vmcoreinfo, level))
    verdict = page_filter.chunk(0)
    expected = model.excluded(level, source.end_pfn)
    assert np.flatnonzero(source.present(0) & ~verdict.kept).tolist() == sorted(expected)
    assert _counts(verdict) == Counter(expected.values())


def test_zeros_are_no_matter_of_struct_pages() -> None:
    machine = Machine()
    _put_one_of_each(machine, FIRST)
    for level in range(0, 32, 6):
        assert _excluded(machine, level) == _excluded(machine, level | ZERO)


@pytest.mark.parametrize(
    ("put", "frames", "bits"),
    [
        ("kernel", 1, 0),
        ("reserved", 1, 0),
        ("page_table", 1, 0),
        ("slab", 1, 0),
        ("buddy", 1, FREE),
        ("buddy 10", 1024, FREE),
        ("unaccepted", 1024, FREE),
        ("cache", 1, CACHE | CACHE_PRIVATE),
        ("cache 4", 16, CACHE | CACHE_PRIVATE),
        ("cache private", 1, CACHE_PRIVATE),
        ("swapcache shmem", 1, CACHE | CACHE_PRIVATE),
        ("swapcache", 1, USER),
        ("anon", 1, USER),
        ("anon 3", 8, USER),
        ("thp", 512, USER),
        ("hugetlb", 512, USER),
        ("hugetlb pool", 512, USER),
    ],
)
def test_which_bits_leave_out_what(put: str, frames: int, bits: int) -> None:
    name, _, rest = put.partition(" ")
    options: dict[str, Any] = {}
    if rest.isdigit():
        options["order"] = int(rest)
    elif rest:
        options |= {"private": {"private": True}, "shmem": {"anon": False}, "pool": {"used": False}}[rest]
    machine = Machine(generation="6.16")
    getattr(machine.pages, name)(FIRST, **options)
    for bit in (CACHE, CACHE_PRIVATE, USER, FREE):
        expected = list(range(FIRST, FIRST + frames)) if bit & bits else []
        assert _excluded(machine, bit) == expected


@pytest.mark.parametrize("name", ["hwpoison", "offline"])
@pytest.mark.parametrize("level", [0, ZERO, CACHE, EXCLUDED])
def test_memory_that_must_not_be_read_goes_at_every_level(name: str, level: int) -> None:
    machine = Machine()
    machine.pages.kernel(FIRST, 2)
    getattr(machine.pages, name)(FIRST)
    assert _excluded(machine, level) == [FIRST]
    survey = _survey(machine, level)
    assert FIRST not in survey.kept
    assert survey.excluded[name] == 1


def test_a_kernel_without_memory_failure() -> None:
    # As makedumpfile: at levels that look at no struct page for anything else, offline pages are kept.
    machine = Machine()
    del machine.vmcoreinfo["NUMBER(PG_hwpoison)"]
    machine.pages.offline(FIRST, 8)
    machine.pages.hwpoison(FIRST + 8)
    for level in (0, ZERO):
        assert FIRST in _survey(machine, level).kept
    assert _excluded(machine, CACHE) == list(range(FIRST, FIRST + 8))


def test_a_broken_huge_page_goes_whole() -> None:
    machine = Machine(generation="6.12")
    machine.pages.compound(0x1000, 9)
    machine.pages.hwpoison(0x1000)
    machine.pages.compound(0x1200, 9)
    machine.pages.hwpoison(0x1207)  # a tail goes with its head only
    assert _excluded(machine, 0) == list(range(0x1000, 0x1200))


@pytest.mark.parametrize("order", [11, 12, 40, 64, 1 << 40])
def test_free_blocks_of_impossible_orders_are_kept(order: int) -> None:
    machine = Machine()
    machine.pages.buddy(FIRST)
    machine.pages.set(FIRST, private=order)
    assert _excluded(machine, EXCLUDED) == []
    machine.pages.hwpoison(FIRST)
    assert _excluded(machine, EXCLUDED) == []


def test_the_number_of_orders_is_the_kernels() -> None:
    machine = Machine(generation=replace(GENERATIONS["6.12"], free_area_orders=14))
    machine.pages.buddy(0x2000, 13)
    assert _excluded(machine, FREE) == list(range(0x2000, 0x4000))


# Groups that reach far


@pytest.mark.parametrize("memmap", ["one piece", "scattered"])
def test_a_huge_page_of_a_gibibyte(memmap: str) -> None:
    options: dict[str, Any] = {"memmap_leaf_bytes": 4096, "scattered": True} if memmap == "scattered" else {}
    machine = Machine(memory=[(MIB, 3 * GIB)], generation="6.12", **options)
    machine.pages.hugetlb(CHUNK_PAGES, order=18)
    machine.pages.anon(2 * CHUNK_PAGES)
    survey = _survey(machine, USER)
    assert survey.excluded["user"] == CHUNK_PAGES + 1
    assert survey.kept.count(1) == 0
    assert CHUNK_PAGES - 1 in survey.kept
    assert 2 * CHUNK_PAGES not in survey.kept
    assert 2 * CHUNK_PAGES + 1 in survey.kept


def test_a_huge_page_that_is_larger_than_a_chunk() -> None:
    machine = Machine(memory=[(0, 2 * GIB + MIB)], generation="6.12")
    machine.pages.hugetlb(0, order=19)
    for workers in (1, 2):
        survey = _survey(machine, USER, workers=workers)
        assert len(survey.kept) == 0x100  # the last MiB
        assert survey.excluded["user"] == 2 * CHUNK_PAGES


@pytest.mark.parametrize("border", [CYCLE, 3 * CYCLE, CHUNK_PAGES])
def test_groups_across_borders(border: int) -> None:
    """Free blocks that are not aligned, as a damaged memmap may show them, with others inside and behind."""
    machine = Machine(memory=[(MIB, (border >> 8) * MIB + 32 * MIB)], generation="6.12")
    first = border - 16
    for pfn, order in ((border - 12, 1), (border - 3, 3), (border + 2, 2), (border + 4, 2), (border + 9, 0)):
        machine.pages.buddy(pfn)
        machine.pages.set(pfn, private=order)
    machine.pages.anon(border + 3)
    machine.pages.anon(border + 8)
    model = Makedumpfile(machine.vmcoreinfo, machine.pages.bytes(first, 64), first)
    for level in (0, USER, FREE, USER | FREE):
        expected = model.excluded(level)
        survey = _survey(machine, level)
        kept = [pfn for pfn in range(first, first + 64) if pfn in survey.kept]
        assert kept == [pfn for pfn in range(first, first + 64) if pfn not in expected]
        assert sum(survey.excluded.values()) == len(expected) == len(survey.existing) - len(survey.kept)


# Memmaps with holes and damage


def test_frames_without_a_struct_page_are_kept() -> None:
    machine = Machine(memory=[(0, 512 * MIB)])
    for section in range(3):
        machine.pages.cache(section * 0x8000 + 0x100)
    machine.set_section(1, 0)
    assert _excluded(machine, EXCLUDED) == [0x100, 0x10100]


def test_a_memmap_with_pages_that_are_not_mapped() -> None:
    machine = Machine(memory=SMALL, memmap_leaf_bytes=4096)
    for pfn in (0x200, 0x23F, 0x240, 0x280):
        machine.pages.cache(pfn)
    machine.unmap_memmap(0x200)
    assert _excluded(machine, EXCLUDED) == [0x240, 0x280]


@pytest.mark.parametrize("within", ["memmap", "hole"])
def test_a_group_covers_frames_without_a_struct_page(within: str) -> None:
    machine = Machine(memmap_leaf_bytes=4096)
    machine.pages.hugetlb(0x1000)
    machine.unmap_memmap(0x1040)
    if within == "hole":
        for pfn in range(0x1080, 0x1200, 64):
            machine.unmap_memmap(pfn)
    assert _excluded(machine, USER) == list(range(0x1000, 0x1200))


def test_struct_pages_that_cannot_be_read() -> None:
    machine = Machine(memory=SMALL)
    machine.pages.cache(0x240)
    for pfn in range(0x280, 0x2C0):
        machine.pages.cache(pfn)
    machine.pages.cache(0x2C0)
    machine.pages.thp(0x400)
    broken = {machine.memmap_physical(pfn) // 4096: io_error for pfn in (0x280, 0x440)}
    assert _excluded(machine, EXCLUDED, faults=broken) == [0x240, 0x2C0, *range(0x400, 0x600)]
    assert _judge(machine, EXCLUDED, faults=broken).unreadable_pages == 128
    assert _survey(machine, EXCLUDED, faults=broken).unreadable_struct_pages == 128


def test_a_struct_page_that_kills_its_reader() -> None:
    machine = Machine(memory=[(MIB, 3 * GIB)])
    for chunk in range(3):
        machine.pages.cache(chunk * CHUNK_PAGES + FIRST)
    broken = {machine.memmap_physical(CHUNK_PAGES + FIRST) // 4096: kills}
    survey = _survey(machine, EXCLUDED, workers=2, faults=broken)
    assert [chunk for chunk in range(3) if chunk * CHUNK_PAGES + FIRST in survey.kept] == [1]
    assert survey.unreadable_struct_pages == CHUNK_PAGES


def test_what_the_image_does_not_have_counts_nowhere() -> None:
    machine = Machine()
    machine.pages.thp(0x1000)
    machine.pages.buddy(0x1200, 9)
    missing = {*range(0x1080, 0x1100), 0x1200}
    assert _excluded(machine, USER, missing=missing) == [
        pfn for pfn in range(0x1000, 0x1200) if pfn not in missing
    ]
    # As makedumpfile: what lies in no segment is not looked at, so its group is not seen.
    assert _excluded(machine, FREE, missing=missing) == []


@pytest.mark.parametrize("shared_page", ["head", "tail"])
@pytest.mark.parametrize("generation", ["6.1", "6.6", "6.12"])
def test_hugetlb_vmemmap_optimisation(generation: str, shared_page: str) -> None:
    # Of the 8 pages with the struct pages of a huge page, one stands for others too: since 5.18 the first, so
    # that there are more heads than there are huge pages (mm/hugetlb_vmemmap.c), before the second.
    machine = Machine(memmap_leaf_bytes=4096, generation=generation)
    machine.pages.hugetlb(0x1000)
    machine.pages.hugetlb(0x1200, used=False)
    machine.pages.hwpoison(0x1200)
    kept_pages = 1 if shared_page == "head" else 2
    struct_pages = b""
    for head in (0x1000, 0x1200):
        shared = head if shared_page == "head" else head + 64
        for pfn in range(head + 64 * kept_pages, head + 512, 64):
            machine.remap_memmap(pfn, machine.memmap_physical(shared))
        struct_pages += machine.pages.bytes(head, 64 * kept_pages)
        struct_pages += machine.pages.bytes(shared, 64) * (8 - kept_pages)
    model = Makedumpfile(machine.vmcoreinfo, struct_pages, 0x1000)
    for level in range(0, 32, 2):
        assert _excluded(machine, level) == sorted(model.excluded(level))
    assert len(model.excluded(USER)) == 1024


@pytest.mark.parametrize(
    "options",
    [
        {"vmemmap": False},
        {"extreme": False},
        {"memmap_leaf_bytes": 4096, "scattered": True},
        {"generation": replace(GENERATIONS["6.12"], struct_page_bytes=56), "memmap_leaf_bytes": 4096},
        {"generation": replace(GENERATIONS["6.12"], struct_page_bytes=80), "memmap_leaf_bytes": 4096},
        {"generation": replace(GENERATIONS["6.12"], struct_page_bytes=128)},
        {"architecture": Aarch64(), "memory": [(GIB, 256 * MIB)]},
        {"architecture": Aarch64(16384, va_bits=47), "memory": [(0, 512 * MIB)]},
        {"architecture": Aarch64(65536, va_bits=52, pa_bits=52), "memory": [(0, GIB)]},
    ],
    ids=" ".join,
)
def test_every_kind_of_memmap(options: dict[str, Any]) -> None:
    machine = Machine(**options)
    first = machine.ranges[0][0] // machine.page_bytes + FIRST
    end = _put_one_of_each(machine, first)
    model = Makedumpfile(machine.vmcoreinfo, machine.pages.bytes(first, end - first), first)
    chunk = first // CHUNK_PAGES
    for level in (0, EXCLUDED):
        assert _excluded(machine, level, chunk) == sorted(model.excluded(level))


def test_a_memmap_that_nobody_wrote_is_not_believed() -> None:
    machine = Machine()
    for section in machine.sections:
        machine.set_section(section, 0)
    with pytest.raises(BadVmcore, match="no frame has a struct page"):
        _survey(machine, EXCLUDED)


# Whatever there may be

NUMBERS = st.integers(0, (1 << 64) - 1) | st.sampled_from([0, 1, (1 << 64) - 1])


@st.composite
def _mixes(draw: st.DrawFn) -> tuple[Machine, int]:
    """A machine with groups of all kinds and sizes side by side, some not aligned, some with damage; and the
    frame behind them."""
    machine = Machine(memory=SMALL, generation=draw(st.sampled_from(sorted(GENERATIONS))))
    pages = machine.pages
    kinds = ["kernel", "buddy", "anon", "thp", "hugetlb", "cache", "slab", "swapcache", "compound"]
    kinds += [name for name in ("offline", "unaccepted") if name in pages.layout.types]
    pfn = 0x200
    while pfn < 0x900 and (pfn == 0x200 or draw(st.integers(0, 15))):
        kind = draw(st.sampled_from(kinds))
        order = draw(st.integers(1 if kind in ("thp", "hugetlb") else 0, 6))
        if not draw(st.booleans()):
            pfn = -(-pfn >> order) << order  # else it may lie askew
        if kind in ("kernel", "offline"):
            getattr(pages, kind)(pfn, 1 << order)
        elif kind in ("swapcache", "unaccepted"):
            getattr(pages, kind)(pfn)
        else:
            getattr(pages, kind)(pfn, order)
        pfn += 1 << order
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0x200, pfn))
        name = draw(
            st.sampled_from(["flags", "compound_head", "mapping", "private", "_mapcount", "hwpoison"])
        )
        if name == "hwpoison":
            pages.hwpoison(at)
        elif name == "_mapcount":
            pages.set(at, _mapcount=draw(st.sampled_from([*pages.layout.types.values(), 0, -1])))
        elif name == "private":
            pages.set(at, private=draw(st.integers(0, 12) | NUMBERS))
        else:
            pages.set(at, **{name: draw(NUMBERS)})
    return machine, pfn


@settings(max_examples=60, derandomize=True)
@given(_mixes(), st.integers(0, EXCLUDED))
def test_random_mixes(mix: tuple[Machine, int], level: int) -> None:
    machine, end = mix
    model = Makedumpfile(machine.vmcoreinfo, machine.pages.bytes(0x200, end + 1 - 0x200), 0x200)
    end_pfn = sum(SMALL[0]) // 4096
    assert _excluded(machine, level) == sorted(model.excluded(level, end_pfn))


@pytest.mark.skipif(not shutil.which("makedumpfile"), reason="makedumpfile is not installed")
@pytest.mark.parametrize("level", [0, 12, 31])
@pytest.mark.promise("same-pages")
def test_as_makedumpfile_itself(tmp_path: Path, level: int) -> None:
    # Debian's 1.7.2 knows 5.10.
    machine = Machine(memory=[(MIB, 63 * MIB)], generation="5.10")
    _put_one_of_each(machine, FIRST)
    dump = tmp_path / "dump"
    core = machine.write_elf(tmp_path / "core")
    subprocess.run(
        ["makedumpfile", "-d", str(level), core, dump], check=True, capture_output=True, timeout=60
    )
    with KdumpFile(dump) as theirs:
        assert np.array_equal(theirs.present(0), _judge(machine, level).kept)


# The description of the layout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SIZE(page)", "0"),
        ("SIZE(page)", "60"),
        ("SIZE(page)", "4096"),
        ("OFFSET(page.flags)", "-8"),
        ("OFFSET(page.flags)", "3"),
        ("OFFSET(page.private)", "64"),
        ("OFFSET(page._mapcount)", "62"),
        ("OFFSET(page.mapping)", ""),
        ("OFFSET(page.compound_dtor)", "64"),
        ("NUMBER(PG_lru)", "64"),
        ("NUMBER(PG_lru)", "-1"),
        ("NUMBER(PG_hwpoison)", "1000000000000"),
        ("NUMBER(PG_head_mask)", "many"),
        ("LENGTH(zone.free_area)", "0"),
        ("LENGTH(zone.free_area)", "1000"),
    ],
)
def test_nonsense_in_vmcoreinfo(key: str, value: str) -> None:
    info = {**Machine().vmcoreinfo, key: value}
    with pytest.raises(BadVmcore):
        PageClassifier(VmcoreInfo("".join(f"{name}={text}\n" for name, text in info.items()).encode()), 31)


@pytest.mark.parametrize("value", [-1, -(1 << 40), 1 << 64, (1 << 70) + 5])
def test_masks_and_types_of_any_size(value: int) -> None:
    for key in ("NUMBER(PG_head_mask)", "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)", "NUMBER(HUGETLB_PAGE_DTOR)"):
        machine = Machine(memory=SMALL)
        machine.vmcoreinfo[key] = str(value)
        with contextlib.suppress(BadVmcore):
            _judge(machine, EXCLUDED)


def test_big_endian_struct_pages() -> None:
    machine = Machine(generation="6.12")
    machine.pages.anon(FIRST, 2)
    machine.pages.cache(FIRST + 4)
    [little] = machine.pages.views(FIRST, 8)
    swapped = np.zeros(8, little.dtype.newbyteorder(">"))
    for name in little.dtype.names or ():
        swapped[name] = little[name]
    classifier = PageClassifier(ImageOfMachine(machine).vmcoreinfo, EXCLUDED, ">")
    verdict = classifier.classify(np.frombuffer(swapped.tobytes(), np.uint8), FIRST)
    assert verdict.classes.tolist() == [PageClass.USER, 0, 0, 0, PageClass.CACHE, 0, 0, 0]
    assert verdict.orders.tolist() == [2, 0, 0, 0, 0, 0, 0, 0]
