# SPDX-License-Identifier: LGPL-2.1-or-later
"""The first pass over a memory image: which frames are to be kept. No page is read but struct pages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from kdump_service.engine.workers import Death, WorkerPool
from kdump_service.errors import BadVmcore
from kdump_service.filtering.page_classes import PageClass, PageClassifier, excludes_anything
from kdump_service.filtering.page_filter import PageFilter
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, chunks_of, fill_range
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.mem_map import MemMap
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.page_source import PageSource

__all__ = ["Survey", "survey_everything", "survey_pages"]

_CHUNK_BYTES = CHUNK_PAGES // 8
_REPLY = struct.Struct(f"<{len(PageClass)}qqqqq")


@dataclass
class Survey:
    """What a dump of some level has to hold."""

    level: int
    existing: PfnBitmap
    """Frames that the machine had."""
    kept: PfnBitmap
    excluded: dict[str, int] = field(default_factory=dict)
    """Frames left out, by class (``free``, ``cache``, ``cache-private``, ``user``, ``hwpoison``,
    ``offline``)."""
    unreadable_struct_pages: int = 0
    """Frames that are kept because nobody could read what they are used for."""


def survey_everything(source: PageSource, level: int = 0) -> Survey:
    """Keep every frame that the image has, without looking at any struct page."""
    result = Survey(level, PfnBitmap(source.end_pfn), PfnBitmap(source.end_pfn))
    for chunk in range(chunks_of(source.end_pfn)):
        result.existing.set_bits(chunk, source.existing(chunk))
        result.kept.set_bits(chunk, source.present(chunk))
    return result


def survey_pages(
    image: MemoryImage,
    source: PageSource,
    level: int,
    *,
    workers: int,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Survey:
    """Judge all frames at this level. Raises BadVmcore if the image does not tell where its struct pages are.

    ``advance`` is told how many frames are done, and of how many.
    """
    if not excludes_anything(image.vmcoreinfo, level):
        return survey_everything(source, level)
    classifier = PageClassifier(image.vmcoreinfo, level, image.byte_order)
    page_filter = PageFilter(source, MemMap(AddressSpace(image)), classifier)
    result = Survey(level, PfnBitmap(source.end_pfn), PfnBitmap(source.end_pfn))
    excluded = np.zeros(len(PageClass), np.int64)
    group_end = group_class = judged_pages = 0

    def judge(request: bytes, slot: memoryview) -> bytes:
        verdict = page_filter.chunk(int.from_bytes(request, "little"))
        slot[:_CHUNK_BYTES] = np.packbits(verdict.kept, bitorder="little").tobytes()
        return _REPLY.pack(
            *verdict.excluded.tolist(),
            verdict.group_end,
            verdict.group_class,
            verdict.unreadable_pages,
            verdict.judged_pages,
        )

    def requests() -> Iterator[bytes]:
        for chunk in range(result.existing.chunk_count):
            result.existing.set_bits(chunk, source.existing(chunk))
            if source.present(chunk).any():
                yield chunk.to_bytes(8, "little")

    with WorkerPool(judge, workers, _CHUNK_BYTES) as pool:
        for outcome in pool.map(requests()):
            chunk = int.from_bytes(outcome.request, "little")
            if isinstance(outcome.reply, Death):
                # No reader came to its end: whatever the chunk holds is kept.
                bits = source.present(chunk)
                result.unreadable_struct_pages += int(np.count_nonzero(bits))
            else:
                *counts, end, end_class, unreadable, judged = _REPLY.unpack(outcome.reply)
                judged_pages += judged
                packed = np.frombuffer(outcome.slot, np.uint8, _CHUNK_BYTES)
                bits = np.unpackbits(packed, bitorder="little").view(np.bool_)
                excluded += counts
                result.unreadable_struct_pages += unreadable
                if group_end > chunk * CHUNK_PAGES:
                    # A group of pages from before reaches in here.
                    before = np.count_nonzero(bits)
                    fill_range(bits, chunk, chunk * CHUNK_PAGES, group_end, False)
                    excluded[group_class] += before - np.count_nonzero(bits)
                if end > group_end:
                    group_end, group_class = end, end_class
            result.kept.set_bits(chunk, bits)
            advance(min((chunk + 1) * CHUNK_PAGES, source.end_pfn), source.end_pfn)
    if not judged_pages and len(result.kept) and not result.unreadable_struct_pages:
        raise BadVmcore("no frame has a struct page where VMCOREINFO says that they are")
    result.excluded = {
        page_class.name.lower().replace("_", "-"): int(excluded[page_class])
        for page_class in PageClass
        if page_class is not PageClass.KEPT
    }
    return result
