# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a dump of a memory image: survey, write, verify."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.elf_writer import FILL, ElfWriter, batches_of, encode_raw, plan_elf
from kdump_service.dumpfile.identity import identity_of
from kdump_service.dumpfile.kdump_format import Layout
from kdump_service.dumpfile.kdump_writer import KdumpWriter
from kdump_service.dumpfile.page_codec import EncodedPages, PageKind, encode_pages, page_codec
from kdump_service.dumpfile.sink import DumpWriter, Sink
from kdump_service.engine.page_stream import EncodedBatch, PageStream, batches
from kdump_service.engine.predict import Prediction, predict_data_bytes
from kdump_service.engine.survey import Survey
from kdump_service.engine.vital import other_runs, vital_parts
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.page_source import PageSource
from kdump_service.vmcore.virtual_loads import virtual_loads

if TYPE_CHECKING:
    from kdump_service.dumpfile.lz4_file import Lz4ElfWriter

__all__ = [
    "Dump",
    "WrittenDump",
    "default_threads",
]

Advance = Callable[[int, int], None]
"""Is told how many pages are done, and of how many."""


@dataclass
class WrittenDump:
    """What was written."""

    pages: int = 0
    zero_pages: int = 0
    """Of these, pages of zeros, which take no room of their own."""
    raw_pages: int = 0
    """Pages that did not shrink, and stand as they were."""
    lost_pages: int = 0
    """Pages that could not be read."""
    lost: list[tuple[int, int]] = field(default_factory=list)
    """Runs of them, in order: first frame, number of frames."""
    data_bytes: int = 0
    """What the pages take in the file."""
    killed_readers: int = 0


def default_threads() -> int:
    """As many as there are processors that we may use."""
    return len(os.sched_getaffinity(0))


_Pass = tuple[Iterable[NDArray[np.int64]], Callable[[EncodedBatch], None]]
"""Runs of frames, and what takes their encoded pages."""


class Dump:
    """A dump that is to be written: what it holds and in what form."""

    def __init__(self, image: MemoryImage, source: PageSource, survey: Survey, options: DumpOptions) -> None:
        """Raises ImportError if the library for the compression is not there, BadVmcore if the image does not
        tell enough for the format."""
        self._image = image
        self._source = source
        self._survey = survey
        self._options = options
        self._identity = identity_of(image)
        self._codec = self._plan = None
        if options.format == "elf":
            loads = image.loads or virtual_loads(image, survey.existing)
            self._plan = plan_elf(
                survey.kept,
                source.page_bytes,
                loads,
                image.note_segment,
                image.machine,
                image.byte_order,
            )
            if options.codec == "lz4":
                import lz4.frame  # noqa: F401, PLC0415  (only asked whether it is there)
        else:
            self._codec = page_codec(options.codec, options.compression_level)
        self.written = WrittenDump()

    @property
    def head_bytes(self) -> int:
        """What stands before the pages."""
        if self._plan is not None:
            return self._plan.data_offset
        notes = len(self._identity.notes)
        page_count = len(self._survey.kept)
        return Layout(self._source.page_bytes, notes, self._source.end_pfn, page_count).data_offset

    def predict_bytes(
        self, advance: Advance = lambda done, total: None, *, room_bytes: int = 0
    ) -> Prediction:
        """How much room the file will take. Where there is enough for pages that do not shrink at all, that
        is the answer, which takes no time; else a sample tells."""
        head = self.head_bytes
        # What an LZ4 frame adds to pages that do not shrink is the library's business.
        if self._options.codec != "lz4":
            most = head + len(self._survey.kept) * self._source.page_bytes
            if most <= room_bytes:
                return Prediction(most, most)
        with self._stream() as stream:
            data = predict_data_bytes(stream, self._survey.kept, advance)
        return Prediction(head + data.expected_bytes, head + data.at_most_bytes)

    def write(
        self, sink: Sink, advance: Advance = lambda done, total: None, *, of_incomplete: bool = False
    ) -> DumpWriter:
        """Write all pages that the survey keeps, and keep count in ``written``.

        ``of_incomplete``: the image itself is incomplete; a sink that cannot rewrite is told so at once.

        The caller finishes the file by the writer that is returned, once it has verified it. Raises what the
        sink raises; the file then holds what it took until then.
        """
        kept = self._survey.kept
        total = len(kept)
        with self._stream() as stream:
            writer, passes = self._elf_passes(sink, of_incomplete) if self._plan else self._kdump_passes(sink)
            try:
                for runs, write in passes:
                    for encoded in stream.encode(batches(runs, stream.batch_pages)):
                        write(encoded)
                        _count(self.written, encoded)
                        advance(self.written.pages, total)
            finally:
                self.written.killed_readers = stream.deaths
                self.written.lost.sort()  # early pages came before their turn
                writer.flush()
        return writer

    def _stream(self) -> PageStream:
        return PageStream(self._source, self._encode, self._options.threads)

    def _kdump_passes(self, sink: Sink) -> tuple[DumpWriter, Iterable[_Pass]]:
        assert self._codec is not None
        kept = self._survey.kept
        writer = KdumpWriter(sink, self._identity, self._survey, self._source.page_bytes, self._codec)

        def passes() -> Iterator[_Pass]:
            vital: list[PfnBitmap] = []
            for part in vital_parts(self._image, self._survey.existing, kept):
                vital.append(part)
                yield part.runs(), lambda each: writer.write_early(each.batch.runs, each.pages, each.data)
            yield (
                other_runs(kept, vital),
                lambda each: writer.write(each.batch.runs, each.pages, each.data),
            )

        return writer, passes()

    def _elf_passes(self, sink: Sink, of_incomplete: bool) -> tuple[DumpWriter, Iterable[_Pass]]:
        assert self._plan is not None
        writer: ElfWriter | Lz4ElfWriter
        if self._options.codec == "lz4":
            from kdump_service.dumpfile.lz4_file import Lz4ElfWriter  # noqa: PLC0415  (optional codec)

            writer = Lz4ElfWriter(sink, self._plan, incomplete=of_incomplete)
        else:
            writer = ElfWriter(sink, self._plan, incomplete=of_incomplete)
        runs = batches_of(self._plan, self._survey.kept)
        return writer, [(runs, lambda each: writer.write(each.pages, each.data))]

    def _encode(
        self, pages: memoryview, lost: NDArray[np.bool_], target: memoryview
    ) -> tuple[EncodedPages, int]:
        page_bytes = self._source.page_bytes
        if self._options.codec == "lz4":
            from kdump_service.dumpfile.lz4_file import encode_lz4_frame  # noqa: PLC0415  (optional codec)

            encoded = encode_lz4_frame(pages, page_bytes, lost, target)
        elif self._codec is None:
            encoded = encode_raw(pages, page_bytes, lost, target)
        else:
            encoded = encode_pages(pages, page_bytes, lost, self._codec, target)
        return encoded, int(encoded.sizes.sum())


def _count(written: WrittenDump, encoded: EncodedBatch) -> None:
    kinds = encoded.pages.kinds
    runs = encoded.batch.runs
    counts = np.bincount(kinds, minlength=len(PageKind))
    filled = int(runs[runs[:, 0] == FILL, 1].sum())
    written.pages += len(kinds) - filled
    written.zero_pages += int(counts[PageKind.ZERO]) - filled
    written.raw_pages += int(counts[PageKind.RAW])
    written.data_bytes += len(encoded.data)
    if counts[PageKind.LOST]:
        written.lost_pages += int(counts[PageKind.LOST])
        starts, lengths = runs.T
        pfns = (
            np.repeat(starts, lengths)
            + np.arange(len(kinds))
            - np.repeat(np.cumsum(lengths) - lengths, lengths)
        )
        for pfn in pfns[kinds == PageKind.LOST].tolist():
            if written.lost and sum(written.lost[-1]) == pfn:
                written.lost[-1] = (written.lost[-1][0], written.lost[-1][1] + 1)
            else:
                written.lost.append((pfn, 1))
