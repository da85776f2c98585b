# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which frames of a machine a dump keeps.

One chunk of frames at a time, each independent of the others, so that chunks can be handed to several
processes. Frames that have no struct page are kept: nobody knows what they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kdump_service.errors import BadVmcore
from kdump_service.filtering.page_classes import PageClass, PageClassifier, Verdict
from kdump_service.pfn import CHUNK_PAGES, BoolArray, fill_range
from kdump_service.vmcore.mem_map import MemMap, MemMapRun
from kdump_service.vmcore.page_source import PageSource

__all__ = ["ChunkVerdict", "PageFilter"]

_CYCLE_PAGES = 1 << 15
"""Frames judged at once: 2 MiB of struct pages, which stay in a processor's cache."""


@dataclass
class ChunkVerdict:
    """What is kept of one chunk."""

    kept: BoolArray
    excluded: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(PageClass), np.int64))
    """Frames left out, by PageClass."""
    group_end: int = 0
    """The frame behind the last group: what lies before it is left out, also in the next chunk."""
    group_class: int = PageClass.KEPT
    """PageClass of that group."""
    judged_pages: int = 0
    """Frames that have a struct page."""
    unreadable_pages: int = 0
    """Frames whose struct pages cannot be read; they are kept."""


class PageFilter:
    """Judges the frames of one memory image."""

    def __init__(self, source: PageSource, mem_map: MemMap, classifier: PageClassifier) -> None:
        self._source = source
        self._mem_map = mem_map
        self._classifier = classifier

    def chunk(self, number: int) -> ChunkVerdict:
        """Judge one chunk."""
        verdict = ChunkVerdict(self._source.present(number).copy())
        if not verdict.kept.any():
            return verdict
        first = number * CHUNK_PAGES
        runs = self._mem_map.runs(first, first + CHUNK_PAGES)
        for pieces in _cycles(runs, self._classifier.page_bytes):
            pages = self._read_struct_pages(pieces, verdict)
            pfn = pieces[0].first_pfn
            judged = self._classifier.classify(pages, pfn)
            verdict.judged_pages += len(judged.classes)
            self._exclude(verdict, first, pfn, judged)
        return verdict

    def _exclude(self, verdict: ChunkVerdict, chunk_pfn: int, first_pfn: int, judged: Verdict) -> None:
        """Leave out what was judged so."""
        start = first_pfn - chunk_pfn
        kept = verdict.kept[start : start + len(judged.classes)]
        candidates = np.flatnonzero((judged.classes != PageClass.KEPT) & kept)
        if verdict.group_end > first_pfn:
            candidates = candidates[candidates >= verdict.group_end - first_pfn]
        if not len(candidates):
            return
        orders = judged.orders[candidates].astype(np.int64)
        ends = candidates + (np.int64(1) << orders)
        misaligned = ((candidates + first_pfn) & ((np.int64(1) << orders) - 1)) != 0
        if misaligned.any():
            outer = _outer_one_by_one(candidates, ends)
        else:
            # Groups are aligned to their length, so one lies wholly within another or beside it: a frame is
            # part of an earlier group exactly if some group before it ends behind it.
            reach = np.maximum.accumulate(ends)
            outer = np.ones(len(candidates), np.bool_)
            outer[1:] = reach[:-1] <= candidates[1:]
        candidates, ends = candidates[outer], ends[outer]
        classes = judged.classes[candidates]
        for page_class in np.unique(classes):
            chosen = classes == page_class
            mask = _covered(candidates[chosen], ends[chosen], len(kept)) & kept
            verdict.excluded[page_class] += np.count_nonzero(mask)
            kept &= ~mask
        last_end = int(ends[-1]) + first_pfn
        if last_end > first_pfn + len(kept):
            # The rest of the group, whose frames may lie in other runs of the memmap.
            before = np.count_nonzero(verdict.kept)
            fill_range(verdict.kept, chunk_pfn // CHUNK_PAGES, first_pfn + len(kept), last_end, False)
            verdict.excluded[classes[-1]] += before - np.count_nonzero(verdict.kept)
        verdict.group_end, verdict.group_class = last_end, int(classes[-1])

    def _read_struct_pages(self, pieces: list[MemMapRun], verdict: ChunkVerdict) -> NDArray[np.uint8]:
        """The struct pages of consecutive frames; those that cannot be read are zeros, which keeps frames."""
        size = self._classifier.page_bytes
        buffer = np.empty(sum(piece.page_count for piece in pieces) * size, np.uint8)
        view = memoryview(buffer.data)
        position = 0
        for piece in pieces:
            length = piece.page_count * size
            self._read_piece(piece.physical_address, view[position : position + length], verdict)
            position += length
        return buffer

    def _read_piece(self, address: int, target: memoryview, verdict: ChunkVerdict) -> None:
        page_bytes = self._source.page_bytes
        first_frame, within = divmod(address, page_bytes)
        frames = -(-(within + len(target)) // page_bytes)
        whole = len(target) == frames * page_bytes
        buffer = target if whole else memoryview(bytearray(frames * page_bytes))
        try:
            self._source.read_pages(first_frame, frames, buffer)
        except (OSError, BadVmcore):
            for frame in range(frames):
                part = buffer[frame * page_bytes : (frame + 1) * page_bytes]
                try:
                    self._source.read_pages(first_frame + frame, 1, part)
                except (OSError, BadVmcore):
                    part[:] = bytes(page_bytes)
                    verdict.unreadable_pages += page_bytes // self._classifier.page_bytes
        if not whole:
            target[:] = buffer[within : within + len(target)]


def _cycles(runs: Iterable[MemMapRun], struct_page_bytes: int) -> Iterator[list[MemMapRun]]:
    """Pieces of the memmap for consecutive frames, together at most so many as are judged at once.

    One piece is the rule. Where the struct pages of huge pages share memory (HugeTLB vmemmap optimisation,
    5.18), or the memmap is mapped by small pages, they are many.
    """
    pieces: list[MemMapRun] = []
    total = 0
    for run in runs:
        for start in range(0, run.page_count, _CYCLE_PAGES):
            count = min(_CYCLE_PAGES, run.page_count - start)
            address = run.physical_address + start * struct_page_bytes
            piece = MemMapRun(run.first_pfn + start, count, address)
            if pieces and (piece.first_pfn != pieces[0].first_pfn + total or total + count > _CYCLE_PAGES):
                yield pieces
                pieces, total = [], 0
            pieces.append(piece)
            total += count
    if pieces:
        yield pieces


def _covered(starts: NDArray[np.int64], ends: NDArray[np.int64], length: int) -> BoolArray:
    """A mask of what ranges that do not overlap cover."""
    steps = np.zeros(length + 1, np.int8)
    # A range may begin where another ends, so steps are added, not assigned. No two begin or end at the same
    # place, and only the last may reach past the length: each list has an index once.
    steps[starts] += 1
    steps[np.minimum(ends, length)] -= 1
    return np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)


def _outer_one_by_one(starts: NDArray[np.int64], ends: NDArray[np.int64]) -> BoolArray:
    """Which ranges are not begun within an earlier one that counts: for groups that are not aligned."""
    outer = np.zeros(len(starts), np.bool_)
    reach = -1
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if start >= reach:
            outer[index] = True
            reach = end
    return outer
