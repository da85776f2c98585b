# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small ELF cores whose pages tell their own numbers, and dumps of them without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.elf_writer import ElfPlan, ElfWriter, batches_of, encode_raw, plan_elf
from kdump_service.dumpfile.kdump_writer import KdumpWriter
from kdump_service.dumpfile.lz4_file import Lz4ElfWriter
from kdump_service.dumpfile.page_codec import FILL, EncodedPages
from kdump_service.dumpfile.sink import Sink
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, chunks_of
from kdump_service.vmcore.page_source import ElfPages, PageSource
from kdump_service.vmcore.reader import Vmcore
from tests.builders.elf_core import PAGE, ElfCore, Segment

__all__ = [
    "DIRECT",
    "TEXT",
    "FileSink",
    "SinkFull",
    "bitmap",
    "page",
    "plan_of",
    "small_core",
    "write_elf",
    "write_pages",
]

DIRECT = 0xFFFF888000000000
TEXT = 0xFFFFFFFF81000000
Encode = Callable[[memoryview, int, NDArray[np.bool_], memoryview], EncodedPages]


def page(pfn: int) -> bytes:
    """The content of a frame; no other holds any 16 bytes of it."""
    return b"frame %09x " % pfn * (PAGE // 16)


def small_core(
    path: Path,
    direct: Iterable[tuple[int, int]],
    text: tuple[int, int] | None = None,
    zero: Collection[int] = (),
    byte_order: str = "<",
) -> Path:
    """Write a core whose memory is some runs (first frame, number), and a second mapping of a part of it."""
    runs = [(first, count, DIRECT + first * PAGE) for first, count in direct]
    if text is not None:
        runs.insert(0, (*text, TEXT))
    segments = [
        Segment(
            first * PAGE,
            b"".join(bytes(PAGE) if pfn in zero else page(pfn) for pfn in range(first, first + count)),
            virtual,
        )
        for first, count, virtual in runs
    ]
    info = {"OSRELEASE": "6.1.0", "PAGESIZE": str(PAGE)}
    path.write_bytes(bytes(ElfCore(segments, info, byte_order=byte_order)))
    return path


def bitmap(pfns: Iterable[int], end_pfn: int) -> PfnBitmap:
    """The set of these frames."""
    wanted = np.fromiter(pfns, np.int64)
    result = PfnBitmap(end_pfn)
    for chunk in range(chunks_of(end_pfn)):
        bits = np.zeros(CHUNK_PAGES, np.bool_)
        bits[wanted[wanted // CHUNK_PAGES == chunk] % CHUNK_PAGES] = True
        result.set_bits(chunk, bits)
    return result


def plan_of(core: Vmcore, pages: Iterable[int]) -> tuple[ElfPlan, PfnBitmap]:
    """The plan for a dump of these frames, and their bitmap."""
    kept = bitmap(pages, ElfPages(core).end_pfn)
    return (
        plan_elf(kept, core.page_bytes, core.loads, core.note_segment, core.machine, core.byte_order),
        kept,
    )


def write_pages(
    writer: KdumpWriter | ElfWriter | Lz4ElfWriter,
    source: PageSource,
    runs: Iterable[NDArray[np.int64]],
    encode: Encode = encode_raw,
    lost: Collection[int] = (),
) -> None:
    """What the engine does with its processes: each array of runs is one batch."""
    for array in runs:
        pfns = np.concatenate(
            [np.full(count, FILL) if first == FILL else first + np.arange(count) for first, count in array]
        )
        pages = bytearray(len(pfns) * PAGE)
        for index, pfn in enumerate(pfns.tolist()):
            if pfn != FILL and pfn not in lost:
                source.read_pages(pfn, 1, memoryview(pages)[index * PAGE : (index + 1) * PAGE])
        target = memoryview(bytearray(len(pages) + 4096))
        encoded = encode(memoryview(pages), PAGE, np.isin(pfns, list(lost)), target)
        data = target[: int(encoded.sizes.sum())]
        if isinstance(writer, KdumpWriter):
            writer.write(array, encoded, data)
        else:
            writer.write(encoded, data)


def write_elf(
    writer: ElfWriter | Lz4ElfWriter,
    core: Vmcore,
    plan: ElfPlan,
    kept: PfnBitmap,
    encode: Encode = encode_raw,
) -> None:
    """Write and finish a dump."""
    write_pages(writer, ElfPages(core), batches_of(plan, kept), encode)
    writer.finish(complete=True)


class SinkFull(Exception):
    """No more is taken."""


class FileSink(Sink):
    """A file; after so many calls it takes nothing more."""

    rewritable = True

    def __init__(self, path: Path, most_calls: int = 1 << 30) -> None:
        self._file = path.open("w+b", buffering=0)
        self._left = most_calls
        self.written: list[tuple[int, int]] = []

    def _call(self) -> None:
        if not self._left:
            raise SinkFull
        self._left -= 1

    def reserve(self, size_bytes: int) -> None:
        """See Sink."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """See Sink."""
        self._call()
        self._file.seek(offset)
        self._file.write(data)
        self.written.append((offset, len(data)))

    def set_size(self, size_bytes: int) -> None:
        """See Sink."""
        self._call()
        self._file.truncate(size_bytes)

    def close(self) -> None:
        """Done with it."""
        self._file.close()
