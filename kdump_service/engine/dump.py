# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make a dump of a memory image: survey, write, verify."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.formats import DumpFormat, DumpWriter, dump_format
from kdump_service.dumpfile.page_codec import FILL, PageKind
from kdump_service.dumpfile.sink import Sink
from kdump_service.engine.page_stream import EncodedBatch, PageStream, batches
from kdump_service.engine.predict import Prediction, predict_data_bytes
from kdump_service.engine.survey import Survey
from kdump_service.engine.vital import vital_parts
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.page_source import PageSource

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


class Dump:
    """A dump that is to be written: what it holds and in what form."""

    def __init__(self, image: MemoryImage, source: PageSource, survey: Survey, options: DumpOptions) -> None:
        """Raises ImportError if the library for the compression is not there, BadVmcore if the image does not
        tell enough for the format."""
        self._image = image
        self._source = source
        self._survey = survey
        self._threads = options.threads
        self.format: DumpFormat = dump_format(options)(image, survey, source.page_bytes, options)
        self.written = WrittenDump()

    def predict_bytes(
        self, advance: Advance = lambda done, total: None, *, room_bytes: int = 0
    ) -> Prediction:
        """How much room the file will take. Where there is enough for pages that do not shrink at all, that
        is the answer, which takes no time; else a sample tells."""
        head, most_data = self.format.head_bytes, self.format.most_data_bytes
        if most_data is not None and head + most_data <= room_bytes:
            return Prediction(head + most_data, head + most_data)
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
            writer = self.format.writer(sink, of_incomplete=of_incomplete)
            try:
                for runs, write in writer.passes(vital_parts(self._image, self._survey.existing, kept)):
                    for encoded in stream.encode(batches(runs, stream.batch_pages)):
                        write(encoded.batch.runs, encoded.pages, encoded.data)
                        _count(self.written, encoded)
                        advance(self.written.pages, total)
            finally:
                self.written.killed_readers = stream.deaths
                self.written.lost.sort()  # early pages came before their turn
                writer.flush()
        return writer

    def _stream(self) -> PageStream:
        return PageStream(self._source, self.format.encode, self._threads)


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
