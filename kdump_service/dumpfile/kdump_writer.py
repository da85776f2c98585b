# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a kdump-compressed file, which crash and drgn open as it is.

A file that ends at any point of the writing still opens: the headers that say that it is incomplete and the
bitmaps stand first, and a page's descriptor is written after the page. A descriptor that was never written is
a page that was lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.kdump_format import (
    HEADER_VERSION,
    PAGE_DESCRIPTOR,
    Header,
    Layout,
    SubHeader,
    pack_header,
)
from kdump_service.dumpfile.page_codec import FLAG_INCOMPLETE, EncodedPages, PageCodec, PageKind
from kdump_service.dumpfile.sink import FilePart, Sink
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, running_counts

Descriptors = np.ndarray[tuple[int], np.dtype[np.void]]

__all__ = ["Frames", "Identity", "KdumpWriter"]

_DESCRIPTORS_AT_ONCE = 16384
"""Kept back before they are written: 384 KiB."""


@dataclass(frozen=True)
class Identity:
    """What the headers say of the machine."""

    uts: dict[str, str]
    timestamp: int
    phys_base: int
    cpus: int
    notes: bytes
    """The note segment of /proc/vmcore, as it is."""
    vmcoreinfo: tuple[int, int]
    """Where in the notes the content of VMCOREINFO stands: offset and length; 0, 0 if there is none."""


class Frames(Protocol):
    """Which frames there are, as engine.survey.Survey has them."""

    level: int
    existing: PfnBitmap
    kept: PfnBitmap


@dataclass(frozen=True)
class _EarlyPages:
    """Pages that were written before their turn. Not their descriptors, which are five times as large."""

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
        self._early: deque[_EarlyPages] = deque()
        """Those that were not described in their turn yet, in order."""
        self._pending: list[Descriptors] = []
        self._pending_count = 0
        self._described = 0
        """Descriptors that were written or are pending, from the first on."""
        self._written_descriptors = 0
        self._zero_page_offset = 0
        self._end = layout.data_offset
        self._incomplete = True
        sink.reserve(layout.data_offset)
        if sink.rewritable:
            self._write_head(incomplete=True)
        self._write_bitmap(layout.bitmaps_offset, existing)
        self._write_bitmap(layout.bitmaps_offset + layout.one_bitmap_bytes, kept)

    def write_early(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> None:
        """Write pages before their turn; only before the first call of :meth:`write`, whose calls then leave
        them out. ``runs``: rows of first frame and number of frames."""
        start = self._append_pages(pages, data)
        number_runs = self._number_runs(runs)
        if self._sink.rewritable:
            # So that they are known from now on; they are written once more when it is their turn.
            descriptors = self._descriptors(pages, start)
            done = 0
            for first, count in number_runs.tolist():
                offset = self.layout.descriptors_offset + first * PAGE_DESCRIPTOR.itemsize
                self._sink.write_at(offset, descriptors[done : done + count].tobytes())
                done += count
        self._early.append(_EarlyPages(number_runs, pages, start))

    def write(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> None:
        """Append pages in order of their frames: ``runs`` has rows of first frame and number of frames.

        Raises what the sink raises; everything before is then in the file.
        """
        start = self._append_pages(pages, data)
        number_runs = self._number_runs(runs)
        self._describe(int(number_runs[-1].sum()), _numbers(number_runs), self._descriptors(pages, start))
        if self._pending_count >= _DESCRIPTORS_AT_ONCE:
            self._flush_descriptors()

    def _append_pages(self, pages: EncodedPages, data: memoryview) -> int:
        """Where they begin."""
        if not self._zero_page_offset and (pages.kinds == PageKind.ZERO).any():
            self._zero_page_offset = self._append(memoryview(bytes(self._page_bytes)))
        return self._append(data)

    def _descriptors(self, pages: EncodedPages, start: int) -> Descriptors:
        kinds = pages.kinds
        descriptors = np.zeros(len(kinds), PAGE_DESCRIPTOR)
        sizes = pages.sizes.astype(np.uint64)
        offsets = start + np.cumsum(sizes) - sizes
        stored = sizes > 0
        descriptors["offset"][stored] = offsets[stored]
        descriptors["size"] = pages.sizes
        descriptors["flags"][kinds == PageKind.COMPRESSED] = self._codec.flag
        zero = kinds == PageKind.ZERO
        descriptors["offset"][zero] = self._zero_page_offset
        descriptors["size"][zero] = self._page_bytes
        return descriptors

    def _describe(self, end: int, numbers: NDArray[np.int64], descriptors: Descriptors) -> None:
        """Add the descriptors up to number ``end``: these, and between them those of early pages."""
        block = np.zeros(end - self._described, PAGE_DESCRIPTOR)
        while self._early and self._early[0].first < end:
            early = self._early[0]
            theirs = _numbers(early.number_runs)
            due = (theirs >= self._described) & (theirs < end)
            block[theirs[due] - self._described] = self._descriptors(early.pages, early.start)[due]
            if early.end > end:
                break
            self._early.popleft()
        block[numbers - self._described] = descriptors
        self._pending.append(block)
        self._pending_count += len(block)
        self._described = end

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
        self._write_head(incomplete=self._incomplete)

    def flush(self) -> None:
        """Put all that was given into the sink, so that it can be read back."""
        if self._early:
            none = np.zeros(0, np.int64)
            self._describe(self._early[-1].end, none, np.zeros(0, PAGE_DESCRIPTOR))
        self._flush_descriptors()
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

    def _flush_descriptors(self) -> None:
        if not self._pending:
            return
        data = np.concatenate(self._pending).tobytes()
        self._pending.clear()
        self._pending_count = 0
        offset = self.layout.descriptors_offset + self._written_descriptors
        self._sink.write_at(offset, data)
        self._descriptor_hash.update(data)
        self._written_descriptors += len(data)

    def _head(self, *, incomplete: bool) -> bytes:
        status = self._header.status | (FLAG_INCOMPLETE if incomplete else 0)
        head = pack_header(dataclasses.replace(self._header, status=status), self._sub_header) + self._notes
        return head.ljust(self.layout.bitmaps_offset, b"\0")

    def _write_head(self, *, incomplete: bool) -> None:
        self._sink.write_at(0, self._head(incomplete=incomplete))

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
    return np.concatenate([np.arange(first, first + count) for first, count in runs.tolist()])
