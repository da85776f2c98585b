# SPDX-License-Identifier: LGPL-2.1-or-later
"""The pages without which debuggers open no dump, or do not find what crashed: the kernel's own image, its
page tables, what it allocated early at boot, and what each processor was at.

They are written first, so that a dump which ran out of space opens, and shows of the rest what it has.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from kdump_service.engine.processors import processor_memory
from kdump_service.errors import BadVmcore
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, chunks_of, fill_range
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.virtual_loads import kernel_mapping

__all__ = ["vital_parts"]

_MOST_TABLES = 8192
"""32 MiB with pages of 4 KiB. A kernel that maps its memory by huge pages has some hundreds."""
_EARLY_BYTES = 64 << 20
"""Early allocations are made from the top of each node's memory downwards (memblock, mm/memblock.c); what is
kept of so much below each end is taken for them. With more than 4 GiB that much is struct pages alone."""
_MOST_RANGES = 64


def vital_parts(image: MemoryImage, existing: PfnBitmap, kept: PfnBitmap) -> Iterator[PfnBitmap]:
    """Those of the frames that are kept, in two parts. What the image does not tell is left out.

    The second is looked for when it is asked for: to find symbols takes a while, in which the first can be
    written.
    """
    space = AddressSpace(image)
    first = _kept_of((*_image_and_tables(space), *_tops(existing, _EARLY_BYTES // image.page_bytes)), kept)
    yield first
    yield _kept_of(_processors(space, kept), kept, but=first)


def _kept_of(ranges: Iterable[tuple[int, int]], kept: PfnBitmap, but: PfnBitmap | None = None) -> PfnBitmap:
    by_chunk: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for first, end in ranges:
        for chunk in range(first // CHUNK_PAGES, min(chunks_of(end), kept.chunk_count)):
            by_chunk[chunk].append((first, end))
    result = PfnBitmap(kept.end_pfn)
    for chunk, theirs in by_chunk.items():
        bits = np.zeros(CHUNK_PAGES, np.bool_)
        for first, end in theirs:
            fill_range(bits, chunk, first, end)
        bits &= kept.bits(chunk)
        if but is not None:
            bits &= ~but.bits(chunk)
        result.set_bits(chunk, bits)
    return result


def _image_and_tables(space: AddressSpace) -> Iterator[tuple[int, int]]:
    page_bytes = space.image.page_bytes
    with contextlib.suppress(BadVmcore):  # what was found until then is as good as can be had
        for load in kernel_mapping(space, space.image.vmcoreinfo.symbol("_stext")):
            first = load.physical_address // page_bytes
            yield first, first + load.memory_bytes // page_bytes
        for address in space.page_table_addresses(_MOST_TABLES):
            yield address // page_bytes, address // page_bytes + 1


def _processors(space: AddressSpace, kept: PfnBitmap) -> Iterator[tuple[int, int]]:
    page_bytes = space.image.page_bytes
    for address, length in processor_memory(space, kept):
        with contextlib.suppress(BadVmcore):  # there are no page tables; segments may have the others
            for each in space.mappings(address, length):
                end = each.physical_address + each.length
                yield each.physical_address // page_bytes, -(-end // page_bytes)


def _tops(existing: PfnBitmap, pages: int) -> Iterator[tuple[int, int]]:
    """The upper ends of the longest ranges of memory."""
    joined: list[tuple[int, int]] = []
    for runs in existing.runs():
        for first, count in runs.tolist():
            if joined and joined[-1][1] == first:
                joined[-1] = (joined[-1][0], first + count)
            else:
                joined.append((first, first + count))
    longest = sorted(joined, key=lambda each: each[0] - each[1])[:_MOST_RANGES]
    for first, end in longest:
        yield max(first, end - pages), end
