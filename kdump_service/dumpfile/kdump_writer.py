# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a kdump-compressed file, which crash and drgn open as it is.

A file that ends at any point of the writing still opens: the headers that say that it is incomplete and the
bitmaps stand first, and a page's descriptor is written after the page. A descriptor that was never written is
a page that was lost. Where bytes cannot be replaced, all is written once: descriptors of early pages before
the others, and the status in the header, which says whether the file is whole, last.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.formats import DumpWriter, Frames, Pass
from kdump_service.dumpfile.identity import Identity, identity_of
from kdump_service.dumpfile.kdump_format import (
    HEADER_VERSION,
    PAGE_DESCRIPTOR,
    STATUS,
    STATUS_OFFSET,
    Header,
    Layout,
    SubHeader,
    pack_header,
)
from kdump_service.dumpfile.page_codec import (
    FLAG_INCOMPLETE,
    EncodedPages,
    PageCodec,
    PageKind,
    encode_pages,
    page_codec,
)
from kdump_service.dumpfile.sink import FilePart, Sink
from kdump_service.errors import ConfigError
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, running_counts, runs_of
from kdump_service.vmcore.memory_image import MemoryImage

Descriptors = np.ndarray[tuple[int], np.dtype[np.void]]

__all__ = ["KdumpFormat", "KdumpWriter"]

_DESCRIPTORS_AT_ONCE = 16384
"""Kept back before they are written: 384 KiB."""
_DESCRIPTORS_AT_ONCE_APPENDED = 1024
"""The same where there is no room for them that was reserved: what is cut off lacks these."""


class KdumpFormat:
    """A kdump-compressed file; see DumpFormat."""

    file_name = "vmcore"
    append_only = False

    @classmethod
    def check(cls, image: MemoryImage) -> None:
        """See DumpFormat. The headers have the byte order of the machine, and no reader of ours or of others
        knows what to do with another than its own."""
        if image.byte_order != "<":
            raise ConfigError(
                "a kdump-compressed file of a big-endian machine is not supported", "Use --format elf."
            )

    def __init__(self, image: MemoryImage, frames: Frames, page_bytes: int, options: DumpOptions) -> None:
        self.check(image)
        self.codec = page_codec(options.codec, options.compression_level)
        self.identity = identity_of(image)
        self.frames = frames
        self.page_bytes = page_bytes

    @property
    def head_bytes(self) -> int:
        """See DumpFormat."""
        frames, notes = self.frames, len(self.identity.notes)
        return Layout(self.page_bytes, notes, frames.existing.end_pfn, len(frames.kept)).data_offset

    @property
    def most_data_bytes(self) -> int | None:
        """See DumpFormat."""
        return len(self.frames.kept) * self.page_bytes

    def encode(self, pages: memoryview, lost: NDArray[np.bool_], target: memoryview) -> EncodedPages:
        """See DumpFormat."""
        return encode_pages(pages, self.page_bytes, lost, self.codec, target)

    def writer(self, sink: Sink, *, of_incomplete: bool = False) -> DumpWriter:
        """See DumpFormat."""
        return KdumpWriter(sink, self.identity, self.frames, self.page_bytes, self.codec)


class _PlacedPages(NamedTuple):
    """Pages that are in the file. Not their descriptors, which are five times as large, and are made for many
    pages at once: that is five times as fast as batch by batch."""

    number_runs: NDArray[np.int64]
    """Rows of first number and how many."""
    pages: EncodedPages
    start: int
    """Where their data begins in the file."""

    @property
    def first(self) -> int:
        """The lowest number."""
        return int(self.number_runs[0, 0])

    @property
    def end(self) -> int:
        """One more than the highest."""
        return int(self.number_runs[-1].sum())


class KdumpWriter:
    """Writes headers and bitmaps at once, pages as they come, in order of their frames."""

    def __init__(
        self,
        sink: Sink,
        identity: Identity,
        frames: Frames,
        page_bytes: int,
        codec: PageCodec,
    ) -> None:
        existing, kept = frames.existing, frames.kept
        self._sink = sink
        self._codec = codec
        self._page_bytes = page_bytes
        self.layout = Layout(page_bytes, len(identity.notes), existing.end_pfn, len(kept))
        layout = self.layout
        notes_offset = page_bytes + 104  # right behind the sub header
        info_offset, info_bytes = identity.vmcoreinfo
        self._header = Header(
            version=HEADER_VERSION,
            uts=identity.uts,
            timestamp=identity.timestamp,
            status=codec.flag,
            block_bytes=page_bytes,
            sub_header_blocks=layout.sub_header_blocks,
            bitmap_blocks=2 * layout.one_bitmap_bytes // page_bytes,
            max_mapnr=existing.end_pfn,
            cpus=max(identity.cpus, 1),
        )
        self._sub_header = SubHeader(
            phys_base=identity.phys_base,
            dump_level=frames.level,
            split=False,
            vmcoreinfo_offset=notes_offset + info_offset if info_bytes else 0,
            vmcoreinfo_bytes=info_bytes,
            note_offset=notes_offset if identity.notes else 0,
            note_bytes=len(identity.notes),
            max_mapnr=existing.end_pfn,
        )
        self._notes = identity.notes
        self._descriptor_hash = hashlib.sha256()
        self._data_hash = hashlib.sha256()
        self._bitmap_hash = hashlib.sha256()
        self._kept = kept
        self._ranks: tuple[int, int, NDArray[np.uint32]] | None = None
        """Of a chunk: its number, the frames kept before it, and its running counts."""
        self._early: list[tuple[int, int, _PlacedPages]] = []
        """A heap of those whose turn has not come yet: by their first number, and where they begin."""
        self._new_early: list[_PlacedPages] = []
        """Of these, the last ones, of which nothing was described yet."""
        self._begun: list[_PlacedPages] = []
        """Early ones that were described in part."""
        self._pending: list[_PlacedPages] = []
        """Those that came in their turn and were not described yet."""
        self._described = 0
        """Descriptors that were written for good, from the first on."""
        self._at_once = _DESCRIPTORS_AT_ONCE if sink.rewritable else _DESCRIPTORS_AT_ONCE_APPENDED
        self._zero_page_offset = 0
        self._end = layout.data_offset
        self._incomplete = True
        sink.reserve(layout.data_offset)
        head = self._head(incomplete=True)
        if sink.rewritable:
            sink.write_at(0, head)
        else:
            sink.write_at(0, head[:STATUS_OFFSET])
            sink.write_at(STATUS_OFFSET + STATUS.size, head[STATUS_OFFSET + STATUS.size :])
        self._write_bitmap(layout.bitmaps_offset, existing)
        self._write_bitmap(layout.bitmaps_offset + layout.one_bitmap_bytes, kept)

    def passes(self, vital: Iterable[PfnBitmap]) -> Iterator[Pass]:
        """See DumpWriter: the vital parts, and then all else in order of the frames."""
        done: list[PfnBitmap] = []
        for part in vital:
            done.append(part)
            yield part.runs(), self.write_early
        yield _other_runs(self._kept, done), self.write

    def write_early(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> None:
        """Write pages before their turn; only before the first call of :meth:`write`, whose calls then leave
        them out. ``runs``: rows of first frame and number of frames."""
        placed = self._place(runs, pages, data)
        heapq.heappush(self._early, (placed.first, placed.start, placed))
        self._new_early.append(placed)
        if sum(len(each.pages.kinds) for each in self._new_early) >= self._at_once:
            self._describe_early()

    def write(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> None:
        """Append pages in order of their frames: ``runs`` has rows of first frame and number of frames.

        Raises what the sink raises; everything before is then in the file.
        """
        if self._new_early:
            self._describe_early()
        placed = self._place(runs, pages, data)
        self._pending.append(placed)
        if placed.end - self._described >= self._at_once:
            self._describe(placed.end)

    def _place(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> _PlacedPages:
        if not self._zero_page_offset and (pages.kinds == PageKind.ZERO).any():
            self._zero_page_offset = self._append(memoryview(bytes(self._page_bytes)))
        return _PlacedPages(self._number_runs(runs), pages, self._append(data))

    def _descriptors(self, batches: Sequence[_PlacedPages]) -> tuple[NDArray[np.int64], Descriptors]:
        """Of all their pages: number and descriptor."""
        kinds = np.concatenate([batch.pages.kinds for batch in batches])
        sizes = np.concatenate([batch.pages.sizes for batch in batches])
        runs = np.concatenate([batch.number_runs for batch in batches])
        starts = np.array([batch.start for batch in batches], np.int64)
        counts = np.array([len(batch.pages.kinds) for batch in batches], np.int64)
        before = np.cumsum(sizes, dtype=np.int64) - sizes  # bytes of all pages before each
        offsets = before + np.repeat(starts - before[np.cumsum(counts) - counts], counts)
        zero, lost = kinds == PageKind.ZERO, kinds == PageKind.LOST
        offsets[zero], offsets[lost] = self._zero_page_offset, 0
        descriptors = np.zeros(len(kinds), PAGE_DESCRIPTOR)
        descriptors["offset"] = offsets
        descriptors["size"] = np.where(zero, np.uint32(self._page_bytes), sizes)
        descriptors["flags"] = np.where(
            kinds == PageKind.COMPRESSED, np.uint32(self._codec.flag), np.uint32(0)
        )
        return _numbers(runs), descriptors

    def _describe_early(self) -> None:
        """So that they are known from now on; where that can be, they are written once more when it is their
        turn."""
        _, descriptors = self._descriptors(self._new_early)
        done = 0
        for first, count in np.concatenate([placed.number_runs for placed in self._new_early]).tolist():
            self._write_descriptors(first, descriptors[done : done + count])
            done += count
        self._new_early.clear()

    def _write_descriptors(self, first: int, descriptors: Descriptors) -> None:
        offset = self.layout.descriptors_offset + first * PAGE_DESCRIPTOR.itemsize
        self._sink.write_at(offset, descriptors.tobytes())

    def _describe(self, end: int) -> None:
        """Write the descriptors up to number ``end``: of all pages that are pending, and between them those
        of early ones."""
        while self._early and self._early[0][0] < end:
            self._begun.append(heapq.heappop(self._early)[2])
        batches = [*self._begun, *self._pending]
        if not batches:  # of a dump that is cut short
            self._described = end
            return
        block = np.zeros(end - self._described, PAGE_DESCRIPTOR)
        numbers, descriptors = self._descriptors(batches)
        due = (numbers >= self._described) & (numbers < end)
        block[numbers[due] - self._described] = descriptors[due]
        if self._sink.rewritable or not self._begun:
            self._write_descriptors(self._described, block)
        else:
            early = _numbers(np.concatenate([each.number_runs for each in self._begun])) - self._described
            others = np.ones(len(block), np.bool_)
            others[early[(early >= 0) & (early < len(block))]] = False
            for first, count in runs_of(others).tolist():
                self._write_descriptors(self._described + first, block[first : first + count])
        self._descriptor_hash.update(block.tobytes())
        self._described = end
        self._pending.clear()
        self._begun = [early for early in self._begun if early.end > end]

    def _number_runs(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which descriptors runs of frames have: the frames' places among those that are kept."""
        found: list[list[int]] = []
        for first, count in runs.tolist():
            chunk, within = divmod(first, CHUNK_PAGES)
            if self._ranks is None or self._ranks[0] != chunk:
                before = int(self._kept.counts()[:chunk].sum())
                self._ranks = (chunk, before, running_counts(self._kept.bits(chunk)))
            _, before, counts = self._ranks
            rank = before + int(counts[within]) - 1
            if found and sum(found[-1]) == rank:
                found[-1][1] += count
            else:
                found.append([rank, count])
        return np.array(found, np.int64)

    def finish(self, *, complete: bool) -> None:
        """Write what is left, and the headers for good. Without this, the file says that it is incomplete."""
        self.flush()
        self._incomplete = not complete
        head = self._head(incomplete=self._incomplete)
        if self._sink.rewritable:
            self._sink.write_at(0, head)
        else:
            self._sink.write_at(STATUS_OFFSET, head[STATUS_OFFSET : STATUS_OFFSET + STATUS.size])

    def flush(self) -> None:
        """Put all that was given into the sink, so that it can be read back."""
        if self._new_early:
            self._describe_early()
        if self._pending:
            self._describe(max(placed.end for placed in self._pending))
        # Where the dump is cut short, early pages may be far behind: up to there step by step.
        early = [*self._begun, *(early for _, _, early in self._early)]
        end = max((placed.end for placed in early), default=0)
        while self._described < end:
            self._describe(min(self._described + self._at_once, end))
        self._sink.set_size(self._end)

    def parts(self) -> list[FilePart]:
        """The integrity manifest: the file's parts with their SHA-256, computed while they were written."""
        layout = self.layout
        head = self._head(incomplete=self._incomplete)
        bitmaps = layout.bitmaps_offset
        return [
            FilePart("header", 0, len(head), hashlib.sha256(head).hexdigest()),
            FilePart("bitmaps", bitmaps, 2 * layout.one_bitmap_bytes, self._bitmap_hash.hexdigest()),
            FilePart(
                "descriptors",
                layout.descriptors_offset,
                layout.page_count * PAGE_DESCRIPTOR.itemsize,
                self._descriptor_hash.hexdigest(),
            ),
            FilePart(
                "pages", layout.data_offset, self._end - layout.data_offset, self._data_hash.hexdigest()
            ),
        ]

    def _append(self, data: memoryview) -> int:
        start = self._end
        if len(data):
            self._sink.write_at(start, data)
            self._data_hash.update(data)
            self._end += len(data)
        return start

    def _head(self, *, incomplete: bool) -> bytes:
        status = self._header.status | (FLAG_INCOMPLETE if incomplete else 0)
        head = pack_header(self._header._replace(status=status), self._sub_header) + self._notes
        return head.ljust(self.layout.bitmaps_offset, b"\0")

    def _write_bitmap(self, offset: int, bitmap: PfnBitmap) -> None:
        left = self.layout.one_bitmap_bytes
        for chunk in range(bitmap.chunk_count):
            data = bitmap.packed(chunk)[:left]
            self._sink.write_at(offset + chunk * (CHUNK_PAGES // 8), data)
            self._bitmap_hash.update(data)
            left -= len(data)
        padding = bytes(left)
        if padding:
            self._sink.write_at(offset + self.layout.one_bitmap_bytes - left, padding)
            self._bitmap_hash.update(padding)


def _numbers(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Runs of numbers, one by one."""
    firsts, counts = runs.T
    return np.repeat(firsts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _other_runs(kept: PfnBitmap, vital: Sequence[PfnBitmap]) -> Iterator[NDArray[np.int64]]:
    """Runs of the frames that are kept, and in no part of those that are vital."""
    for chunk in range(kept.chunk_count):
        parts = [part for part in vital if part.count(chunk)]
        if kept.count(chunk) > sum(part.count(chunk) for part in parts):
            bits = kept.bits(chunk)
            for part in parts:
                bits = bits & ~part.bits(chunk)
            yield runs_of(bits, chunk * CHUNK_PAGES)
