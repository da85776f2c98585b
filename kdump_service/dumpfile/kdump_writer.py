# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a kdump-compressed file, which crash and drgn open as it is.

A file that ends at any point of the writing still opens: the headers that say that it is incomplete and the
bitmaps stand first, and a page's descriptor is written after the page. A descriptor that was never written is
a page that was lost.
"""

from __future__ import annotations

import dataclasses
import hashlib
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
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap

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
        self._ranks: tuple[int, NDArray[np.int64]] | None = None
        self._early = (np.zeros(0, np.int64), np.zeros(0, PAGE_DESCRIPTOR))
        """Numbers and descriptors of pages that were written before their turn."""
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
        descriptors = self._append_pages(pages, data)
        numbers = self._numbers(runs)
        if self._sink.rewritable:
            # So that they are known from now on; they are written once more when it is their turn.
            begins = np.flatnonzero(np.diff(numbers, prepend=-2) != 1)
            for begin, end in zip(begins, [*begins[1:], len(numbers)], strict=True):
                offset = self.layout.descriptors_offset + int(numbers[begin]) * PAGE_DESCRIPTOR.itemsize
                self._sink.write_at(offset, descriptors[begin:end].tobytes())
        known, theirs = self._early
        self._early = (np.concatenate([known, numbers]), np.concatenate([theirs, descriptors]))

    def write(self, runs: NDArray[np.int64], pages: EncodedPages, data: memoryview) -> None:
        """Append pages in order of their frames: ``runs`` has rows of first frame and number of frames.

        Raises what the sink raises; everything before is then in the file.
        """
        descriptors = self._append_pages(pages, data)
        numbers = self._numbers(runs)
        self._describe(int(numbers[-1]) + 1, numbers, descriptors)
        if self._pending_count >= _DESCRIPTORS_AT_ONCE:
            self._flush_descriptors()

    def _append_pages(self, pages: EncodedPages, data: memoryview) -> Descriptors:
        kinds = pages.kinds
        if not self._zero_page_offset and (kinds == PageKind.ZERO).any():
            self._zero_page_offset = self._append(memoryview(bytes(self._page_bytes)))
        start = self._append(data)
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
        early, theirs = self._early
        due = slice(*np.searchsorted(early, [self._described, end]))
        block[early[due] - self._described] = theirs[due]
        block[numbers - self._described] = descriptors
        self._pending.append(block)
        self._pending_count += len(block)
        self._described = end

    def _numbers(self, runs: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which descriptor each frame has: its place among the frames that are kept."""
        parts = []
        for first, count in runs.tolist():
            chunk, within = divmod(first, CHUNK_PAGES)
            if self._ranks is None or self._ranks[0] != chunk:
                bits = self._kept.bits(chunk)
                before = int(self._kept.counts()[:chunk].sum())
                self._ranks = (chunk, np.cumsum(bits, dtype=np.int64) - bits + before)
            rank = int(self._ranks[1][within])
            parts.append(np.arange(rank, rank + count))
        return np.concatenate(parts)

    def finish(self, *, complete: bool) -> None:
        """Write what is left, and the headers for good. Without this, the file says that it is incomplete."""
        self.flush()
        self._incomplete = not complete
        self._write_head(incomplete=self._incomplete)

    def flush(self) -> None:
        """Put all that was given into the sink, so that it can be read back."""
        none = np.zeros(0, np.int64)
        if len(self._early[0]) and self._early[0][-1] >= self._described:
            self._describe(int(self._early[0][-1]) + 1, none, np.zeros(0, PAGE_DESCRIPTOR))
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
