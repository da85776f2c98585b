# SPDX-License-Identifier: LGPL-2.1-or-later
"""The second pass over a memory image: its pages, read and encoded by several processes, in order.

A batch is some runs of frames, together at most half a MiB of pages. A page that cannot be read, or that
kills who reads it, is lost; the pages round it are not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.page_codec import FILL, EncodedPages, PageKind
from kdump_service.engine.workers import Death, WorkerPool
from kdump_service.errors import BadVmcore, WorkerFailed
from kdump_service.vmcore.page_source import PageSource

__all__ = ["Batch", "EncodedBatch", "Encoder", "PageStream", "batches"]

BATCH_BYTES = 512 << 10
"""Pages of a batch: small enough for a processor's cache, large enough that handing it over is cheap. A MiB
is not faster (measured), and takes 2.5 MiB more for each worker; 256 KiB are slower by a tenth."""
SLOT_SLACK_BYTES = 64 << 10
"""An encoder may need a little more room than its input has."""

_MOST_DEATHS = 64
"""After so many killed readers, pages are not looked for one by one any more; the whole batch is lost."""

_HEAD = struct.Struct("<I")  # bytes of data in the slot


class Batch(NamedTuple):
    """Some frames."""

    runs: NDArray[np.int64]
    """Rows of first frame (or FILL) and number of frames."""

    @property
    def page_count(self) -> int:
        """Frames in all runs."""
        return int(self.runs[:, 1].sum())

    def halves(self) -> tuple[Batch, Batch]:
        """Two batches with the same frames."""
        half = self.page_count // 2
        first: list[tuple[int, int]] = []
        second: list[tuple[int, int]] = []
        for start, count in self.runs.tolist():
            take = min(count, half)
            half -= take
            if take:
                first.append((start, take))
            if count > take:
                second.append((start if start == FILL else start + take, count - take))
        return Batch(np.array(first, np.int64)), Batch(np.array(second, np.int64))


class EncodedBatch(NamedTuple):
    """What became of a batch."""

    batch: Batch
    pages: EncodedPages
    data: memoryview
    """May be used until the next batch is asked for."""


Encoder = Callable[[memoryview, NDArray[np.bool_], memoryview], EncodedPages]
"""Encodes pages as DumpFormat.encode does."""


def batches(runs: Iterable[NDArray[np.int64]], most_pages: int) -> Iterator[Batch]:
    """Cut runs, which come in arrays, into batches of so many pages."""
    for array in runs:
        ends = np.cumsum(array[:, 1])
        total = int(ends[-1]) if len(ends) else 0
        for first in range(0, total, most_pages):
            last = min(first + most_pages, total)
            begin = int(np.searchsorted(ends, first, side="right"))
            end = int(np.searchsorted(ends, last, side="left")) + 1
            part = array[begin:end].copy()
            skipped = first - int(ends[begin] - array[begin, 1])
            part[-1, 1] -= int(ends[end - 1]) - last
            part[0, 1] -= skipped
            if part[0, 0] != FILL:
                part[0, 0] += skipped
            yield Batch(part)


class PageStream:
    """Reads and encodes. Use as a context manager: within, the processes live."""

    def __init__(self, source: PageSource, encoder: Encoder, workers: int) -> None:
        self._source = source
        self._encoder = encoder
        self.batch_pages = max(BATCH_BYTES // source.page_bytes, 1)
        self._buffer: memoryview | None = None
        self._pool = WorkerPool(self._encode, workers, BATCH_BYTES + SLOT_SLACK_BYTES)
        self.deaths = 0
        """How often a process was killed by what it read."""

    def __enter__(self) -> PageStream:
        self._pool.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.__exit__(*exception)  # type: ignore[arg-type]

    def encode(self, work: Iterable[Batch]) -> Iterator[EncodedBatch]:
        """Encode batches, which come back in order; one that killed its reader comes back in pieces."""
        for result in self._pool.map(batch.runs.tobytes() for batch in work):
            batch = Batch(np.frombuffer(result.request, np.int64).reshape(-1, 2))
            if isinstance(result.reply, Death):
                yield from self._retry(batch, result.slot, result.reply)
            else:
                yield self._decoded(batch, result.reply, result.slot)

    def _retry(self, batch: Batch, slot: memoryview, death: Death) -> Iterator[EncodedBatch]:
        """Find the pages that kill: halve the batch until they stand alone. Where it is not they, half a
        batch may do what a whole one could not. Raises WorkerFailed if not even a page can be done."""
        self.deaths += 1
        alone = batch.page_count == 1 or self.deaths > _MOST_DEATHS
        if alone and not death.poisoned:
            raise WorkerFailed(f"a process that compresses pages {death}, and so did its successors")
        if alone:
            starts, counts = batch.runs.T
            lost = np.repeat(np.where(starts == FILL, PageKind.ZERO, PageKind.LOST), counts).astype(np.uint8)
            yield EncodedBatch(batch, EncodedPages(lost, np.zeros(len(lost), np.uint32)), slot[:0])
            return
        for half in batch.halves():
            reply = self._pool.alone(half.runs.tobytes(), slot)
            if isinstance(reply, Death):
                yield from self._retry(half, slot, reply)
            else:
                yield self._decoded(half, reply, slot)

    @staticmethod
    def _decoded(batch: Batch, reply: bytes, slot: memoryview) -> EncodedBatch:
        count = batch.page_count
        (length,) = _HEAD.unpack_from(reply)
        kinds = np.frombuffer(reply, np.uint8, count, _HEAD.size)
        sizes = np.frombuffer(reply, np.uint32, count, _HEAD.size + count)
        return EncodedBatch(batch, EncodedPages(kinds, sizes), slot[:length])

    # In the processes

    def _encode(self, request: bytes, slot: memoryview) -> bytes:
        runs = np.frombuffer(request, np.int64).reshape(-1, 2).tolist()
        page_bytes = self._source.page_bytes
        count = sum(run[1] for run in runs)
        if self._buffer is None:
            self._buffer = memoryview(bytearray(self.batch_pages * page_bytes))
        pages = self._buffer[: count * page_bytes]
        lost = np.zeros(count, np.bool_)
        position = 0
        for pfn, length in runs:
            part = pages[position * page_bytes : (position + length) * page_bytes]
            if pfn == FILL:
                part[:] = bytes(len(part))
            else:
                self._read(pfn, length, part, lost[position : position + length])
            position += length
        encoded = self._encoder(pages, lost, slot)
        return _HEAD.pack(int(encoded.sizes.sum())) + encoded.kinds.tobytes() + encoded.sizes.tobytes()

    def _read(self, pfn: int, count: int, target: memoryview, lost: NDArray[np.bool_]) -> None:
        try:
            self._source.read_pages(pfn, count, target)
        except (OSError, BadVmcore):
            page_bytes = self._source.page_bytes
            for index in range(count):
                page = target[index * page_bytes : (index + 1) * page_bytes]
                try:
                    self._source.read_pages(pfn + index, 1, page)
                except (OSError, BadVmcore):
                    page[:] = bytes(page_bytes)
                    lost[index] = True
