# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write makedumpfile's flattened format; its layout is told in dumpfile/flattened.py.

It goes in one pass to what is only appended to, and no byte of the content is written twice: crash does not
say which of two records it takes. So what says that the dump is whole comes last: the status in its header,
its first bytes, by which readers know its format, and the end record. What was cut off before these bytes is
taken for a whole dump by nobody, nor is what ``makedumpfile -R`` makes of it; our reader gives what it has.
Where the end record alone is missing, drgn and ``makedumpfile -R`` take all of the content, which is there.
"""

from __future__ import annotations

from kdump_service.dumpfile.flattened import END, HEADER_BLOCK, RECORD
from kdump_service.dumpfile.formats import DumpWriter, Frames
from kdump_service.dumpfile.identity import Identity
from kdump_service.dumpfile.kdump_format import SIGNATURE
from kdump_service.dumpfile.kdump_writer import KdumpFormat, KdumpWriter
from kdump_service.dumpfile.page_codec import PageCodec
from kdump_service.dumpfile.sink import Sink

__all__ = ["FlattenedFormat", "FlattenedSink"]


class FlattenedSink:
    """A Sink that writes the flattened format to another, of which it only appends."""

    rewritable = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._end = 0
        self._size_bytes = 0
        self._written_to = 0
        self._first = b""
        self._append(HEADER_BLOCK)

    def reserve(self, size_bytes: int) -> None:
        """See Sink. Here there is no place for bytes that come later."""

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        """Append a record. The first bytes of the content are kept back."""
        view = memoryview(data)
        if offset < len(SIGNATURE) and view:
            if offset or len(view) < len(SIGNATURE):
                raise ValueError(f"the first {len(SIGNATURE)} bytes cannot be written in parts")
            self._first, view, offset = bytes(view[: len(SIGNATURE)]), view[len(SIGNATURE) :], len(SIGNATURE)
        self._append_record(offset, view)

    def set_size(self, size_bytes: int) -> None:
        """See Sink. The length is fixed when this is closed."""
        self._size_bytes = size_bytes

    def close(self) -> None:
        """Write what was kept back, and the end record. The other sink stays as it is."""
        if self._size_bytes > self._written_to:
            # The format has no length: a last byte makes it, and holds what reads behind the last record.
            self._append_record(self._size_bytes - 1, memoryview(b"\0"))
        self._append_record(0, memoryview(self._first))
        self._append(RECORD.pack(*END))

    def _append_record(self, offset: int, data: memoryview) -> None:
        if data:
            self._append(RECORD.pack(offset, len(data)))
            self._append(data)
            self._written_to = max(self._written_to, offset + len(data))

    def _append(self, data: bytes | memoryview) -> None:
        self._sink.write_at(self._end, data)
        self._end += len(data)


class FlattenedFormat(KdumpFormat):
    """A kdump-compressed file, flattened; see DumpFormat."""

    file_name = "vmcore.flat"
    append_only = True

    def writer(self, sink: Sink, *, of_incomplete: bool = False) -> DumpWriter:
        """See DumpFormat."""
        return _FlattenedWriter(FlattenedSink(sink), self.identity, self.frames, self.page_bytes, self.codec)


class _FlattenedWriter(KdumpWriter):
    def __init__(
        self, sink: FlattenedSink, identity: Identity, frames: Frames, page_bytes: int, codec: PageCodec
    ) -> None:
        super().__init__(sink, identity, frames, page_bytes, codec)
        self._flattened = sink

    def finish(self, *, complete: bool) -> None:
        """See DumpWriter."""
        super().finish(complete=complete)
        self._flattened.close()
