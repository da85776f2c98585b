# SPDX-License-Identifier: LGPL-2.1-or-later
"""An ELF core as a sequence of LZ4 frames: ``lz4 -d`` gives the core back.

Each batch of pages is one frame of independent blocks with content size and checksums (LZ4 Frame Format,
version 1.6.2), so that frames can be made by several processes, and found without unpacking those before. The
first frame holds the ELF header alone and stands in a slot of fixed size, so that it can be replaced when the
dump is finished and its incomplete flag goes. The slot is filled up with a skippable frame, which holds the
length of the whole core: a file that was cut off is recognised, and what it has can be read.
"""

from __future__ import annotations

import hashlib
import itertools
import struct
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import lz4.frame
import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.elf_writer import ElfFormat, ElfPlan, batches_of, filled_pages
from kdump_service.dumpfile.formats import DumpWriter, Pass
from kdump_service.dumpfile.page_codec import EncodedPages, PageKind, expect_unpacked
from kdump_service.dumpfile.sink import FilePart, Sink
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore import elf
from kdump_service.vmcore.reader import ByteSource

__all__ = ["Lz4ElfFormat", "Lz4ElfWriter", "Lz4File", "encode_lz4_frame"]

_MAGIC = b"\x04\x22\x4d\x18"
_SKIPPABLE_MAGIC = 0x184D2A50  # to 0x184d2a5f
_SKIPPABLE_HEADER = struct.Struct("<II")  # magic, bytes that follow

# FLG byte of a frame's header
_VERSION_MASK, _VERSION_1 = 0xC0, 0x40
_BLOCK_CHECKSUM, _CONTENT_SIZE, _CONTENT_CHECKSUM, _RESERVED, _DICTIONARY_ID = 0x10, 0x08, 0x04, 0x02, 0x01
_FRAME_HEADER_BYTES = 15  # magic, FLG, BD, content size, header checksum
_WORD = struct.Struct("<I")
_UNCOMPRESSED_BLOCK = 0x80000000
_MOST_BLOCK_BYTES = 4 << 20

_MARK = struct.Struct("<16sQ")
"""In the skippable frame of the slot: whose it is, and the length of the core."""
_MARK_NAME = b"kdump-service\0\0\0"
_SLOT_BYTES = 256
"""A frame of 64 bytes takes at most 91; the rest is the skippable frame."""
_HEAD_FRAME_BYTES = 1 << 20

_MOST_FRAME_BYTES = 16 << 20
"""Content of a frame that is unpacked in one piece."""
_MOST_BLOCKS = 4096
"""Of one frame. One of 16 MiB in the smallest blocks that the format knows has 256."""
_MOST_FRAMES = 1 << 24
"""16 TiB in frames of 1 MiB. The index takes 24 bytes for each."""
_CACHE_BYTES = 16 << 20

_ENCODED = itertools.count()
_SAMPLED = 16

_HINT = "Unpack it with lz4 -d first."


def _frame(data: memoryview | bytes, level: int = 0) -> bytes:
    result: bytes = lz4.frame.compress(
        data,
        compression_level=level,
        block_size=lz4.frame.BLOCKSIZE_MAX1MB,
        block_linked=False,
        # Takes 30 % of the time (measured), and sees what the blocks' checksums see; but without it lz4 1.9.4
        # does not find the next frame ("Stream followed by undecodable data").
        content_checksum=True,
        block_checksum=True,
        store_size=True,
    )
    return result


def _unpacked_frame(frame: bytes) -> bytes:
    try:
        content: bytes = lz4.frame.decompress(frame)
    except RuntimeError as error:
        raise BadVmcore(f"a frame is damaged: {error}") from error
    return content


def encode_lz4_frame(
    pages: memoryview, page_bytes: int, lost: NDArray[np.bool_], target: memoryview, level: int = 0
) -> EncodedPages:
    """Put one frame with all of the pages into ``target``, which has room for them and 64 bytes more.

    What a single page takes is not known: the frame's length is spread over those that are not zero. One
    frame in 16 is unpacked from there, and compared. Raises VerificationFailed if it is not the same.
    """
    frame = _frame(pages, level)
    target[: len(frame)] = frame
    if next(_ENCODED) % _SAMPLED == 0:
        expect_unpacked(_unpacked_frame, bytes(target[: len(frame)]), pages)
    kinds = np.where(filled_pages(pages, page_bytes), PageKind.COMPRESSED, PageKind.ZERO).astype(np.uint8)
    kinds[lost] = PageKind.LOST
    bearers = np.flatnonzero(kinds == PageKind.COMPRESSED)
    if not len(bearers):
        bearers = np.arange(len(kinds))
    share, rest = divmod(len(frame), len(bearers))
    sizes = np.zeros(len(kinds), np.uint32)
    sizes[bearers] = share
    sizes[bearers[:rest]] += 1
    return EncodedPages(kinds, sizes)


class Lz4ElfFormat(ElfFormat):
    """An ELF core in LZ4 frames; see DumpFormat."""

    file_name = "vmcore.lz4"

    @property
    def most_data_bytes(self) -> int | None:
        """See DumpFormat. What a frame adds to pages that do not shrink is the library's business."""
        return None

    def encode(self, pages: memoryview, lost: NDArray[np.bool_], target: memoryview) -> EncodedPages:
        """See DumpFormat."""
        return encode_lz4_frame(pages, self.plan.page_bytes, lost, target)

    def writer(self, sink: Sink, *, of_incomplete: bool = False) -> DumpWriter:
        """See DumpFormat."""
        return Lz4ElfWriter(sink, self.plan, self._kept, incomplete=of_incomplete)


class Lz4ElfWriter:
    """Writes the head at once, and frames as they come; see ElfWriter."""

    def __init__(self, sink: Sink, plan: ElfPlan, kept: PfnBitmap, *, incomplete: bool = False) -> None:
        self._sink = sink
        self._kept = kept
        self._plan = plan
        self._page_count = 0
        self._hash = hashlib.sha256()
        self._end = _SLOT_BYTES
        self._write_slot(incomplete=sink.rewritable or incomplete)
        head = memoryview(plan.head(incomplete=False))
        for start in range(elf.EHDR_BYTES, len(head), _HEAD_FRAME_BYTES):
            self._append(_frame(head[start : start + _HEAD_FRAME_BYTES]))

    def passes(self, vital: Iterable[PfnBitmap]) -> Iterator[Pass]:
        """See ElfWriter."""
        yield batches_of(self._plan, self._kept), lambda _, pages, data: self.write(pages, data)

    def write(self, pages: EncodedPages, data: memoryview) -> None:
        """Append a frame that ``encode_lz4_frame`` made. Pages without one are lost, and become zeros."""
        count = len(pages.kinds)
        self._append(data if len(data) else _frame(bytes(count * self._plan.page_bytes)))
        self._page_count += count

    def finish(self, *, complete: bool) -> None:
        """Replace the frame of the header by the final one, if the sink can. Raises VerificationFailed if a
        file that is to be complete has not all of its pages."""
        if complete and self._page_count != self._plan.page_count:
            raise VerificationFailed(
                f"the file has {self._page_count} pages, not {self._plan.page_count} as its header says"
            )
        if self._sink.rewritable:
            self._write_slot(incomplete=not complete)

    def flush(self) -> None:
        """Nothing is kept back."""

    def parts(self) -> list[FilePart]:
        """The integrity manifest: the slot of the header, and all other frames."""
        return [
            FilePart("header", 0, len(self._slot), hashlib.sha256(self._slot).hexdigest()),
            FilePart("frames", _SLOT_BYTES, self._end - _SLOT_BYTES, self._hash.hexdigest()),
        ]

    def _append(self, frame: memoryview | bytes) -> None:
        self._sink.write_at(self._end, frame)
        self._hash.update(frame)
        self._end += len(frame)

    def _write_slot(self, *, incomplete: bool) -> None:
        frame = _frame(self._plan.elf_header(incomplete=incomplete))
        left = _SLOT_BYTES - len(frame) - _SKIPPABLE_HEADER.size
        mark = _MARK.pack(_MARK_NAME, self._plan.size_bytes)
        self._slot = frame + _SKIPPABLE_HEADER.pack(_SKIPPABLE_MAGIC, left) + mark.ljust(left, b"\0")
        self._sink.write_at(0, self._slot)


class Lz4File:
    """The content of a file of LZ4 frames; a ByteSource.

    The frames are found by their headers. Content is unpacked, and its checksums compared, as it is read.
    """

    def __init__(self, file: ByteSource) -> None:
        """Takes the file over once it is indexed. Raises OSError, or BadVmcore for what is no such file, is
        truncated, or cannot be read at random."""
        self._file = file
        # One element for each frame.
        self._content_starts = array("Q")
        self._frame_offsets = array("Q")
        self._frame_sizes = array("Q")
        self._unpacked: OrderedDict[int, bytes] = OrderedDict()
        self._unpacked_bytes = 0
        self.truncated = False
        """Whether the end is missing, which reads raise BadVmcore for."""
        claimed = None
        position = content_end = frames = 0
        while position < file.size_bytes:
            if frames == _MOST_FRAMES:
                raise BadVmcore(f"has more than {_MOST_FRAMES} LZ4 frames")
            frames += 1
            head = file.read(position, _SKIPPABLE_HEADER.size + _MARK.size)
            try:
                if len(head) >= 4 and _WORD.unpack_from(head)[0] & ~0xF == _SKIPPABLE_MAGIC:
                    end = self._skippable_end(position, head)
                    mark = head[_SKIPPABLE_HEADER.size :]
                    if len(mark) == _MARK.size and mark.startswith(_MARK_NAME):
                        claimed = _MARK.unpack(mark)[1]
                else:
                    end, content_bytes = self._frame_end(position, head)
                    if content_bytes:
                        self._content_starts.append(content_end)
                        self._frame_offsets.append(position)
                        self._frame_sizes.append(end - position)
                        content_end += content_bytes
            except _EndsWithin as error:
                if claimed is None:
                    raise BadVmcore(f"ends within the LZ4 frame at offset {position:#x}") from error
                break
            position = end
        self._content_end = content_end
        # What frames say that they hold: one that lies is found out when it is unpacked.
        self.stored_bytes = content_end
        self.size_bytes = content_end if claimed is None else claimed
        """Length of the content, also where the end of it is missing."""
        if self.size_bytes < content_end:
            raise BadVmcore(f"holds {content_end:#x} bytes, though it says {self.size_bytes:#x}")
        self.truncated = self.size_bytes > content_end

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes of the content; fewer only at its end. Raises OSError or BadVmcore."""
        parts = []
        end = min(offset + length, self.size_bytes)
        while offset < end:
            if offset >= self._content_end:
                raise BadVmcore(f"was cut off: of {self.size_bytes:#x} bytes it has {self._content_end:#x}")
            index = bisect_right(self._content_starts, offset) - 1
            content = self._content(index)
            within = offset - self._content_starts[index]
            part = content[within : within + end - offset]
            parts.append(part)
            offset += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Done with it."""
        self._file.close()

    def _content(self, index: int) -> bytes:
        if index in self._unpacked:
            self._unpacked.move_to_end(index)
            return self._unpacked[index]
        content = self._unpack(index)
        while self._unpacked and self._unpacked_bytes + len(content) > _CACHE_BYTES:
            _, oldest = self._unpacked.popitem(last=False)
            self._unpacked_bytes -= len(oldest)
        self._unpacked[index] = content
        self._unpacked_bytes += len(content)
        return content

    def _unpack(self, index: int) -> bytes:
        start, offset = self._content_starts[index], self._frame_offsets[index]
        last = index + 1 == len(self._content_starts)
        size = (self._content_end if last else self._content_starts[index + 1]) - start
        frame = self._file.read(offset, self._frame_sizes[index])
        try:
            content: bytes = lz4.frame.decompress(frame)
        except RuntimeError as error:
            raise BadVmcore(f"the LZ4 frame at offset {offset:#x} is damaged: {error}") from error
        if len(content) != size:
            raise BadVmcore(f"the LZ4 frame at offset {offset:#x} holds {len(content)} bytes, not {size}")
        return content

    def _skippable_end(self, position: int, head: bytes) -> int:
        if len(head) < _SKIPPABLE_HEADER.size:
            raise _EndsWithin
        end: int = position + _SKIPPABLE_HEADER.size + _SKIPPABLE_HEADER.unpack_from(head)[1]
        if end > self._file.size_bytes:
            raise _EndsWithin
        return end

    def _frame_end(self, position: int, head: bytes) -> tuple[int, int]:
        """Where a frame ends, and how many bytes it holds."""
        if head[: len(_MAGIC)] != _MAGIC[: len(head)]:
            raise BadVmcore(f"has {head[:4].hex(' ')} at offset {position:#x}, which begins no LZ4 frame")
        if len(head) < _FRAME_HEADER_BYTES:
            raise _EndsWithin
        flags = head[4]
        if flags & _VERSION_MASK != _VERSION_1 or flags & (_RESERVED | _DICTIONARY_ID):
            raise BadVmcore(f"the LZ4 frame at offset {position:#x} has flags {flags:#x}, which are unknown")
        if not flags & _CONTENT_SIZE:
            raise BadVmcore(f"the LZ4 frame at offset {position:#x} does not say how much it holds", _HINT)
        content_bytes: int = struct.unpack_from("<Q", head, 6)[0]
        if content_bytes > _MOST_FRAME_BYTES:
            raise BadVmcore(
                f"the LZ4 frame at offset {position:#x} holds {content_bytes:#x} bytes, which is too much to "
                "read it at random",
                _HINT,
            )
        checksum_bytes = 4 if flags & _BLOCK_CHECKSUM else 0
        block = position + _FRAME_HEADER_BYTES
        for _ in range(_MOST_BLOCKS):
            word = self._file.read(block, _WORD.size)
            if len(word) < _WORD.size:
                raise _EndsWithin
            block_bytes: int = _WORD.unpack(word)[0] & ~_UNCOMPRESSED_BLOCK
            block += _WORD.size
            if not block_bytes:
                end = block + (4 if flags & _CONTENT_CHECKSUM else 0)
                if end > self._file.size_bytes:
                    raise _EndsWithin
                return end, content_bytes
            if block_bytes > _MOST_BLOCK_BYTES:
                raise BadVmcore(f"an LZ4 block at offset {block:#x} claims {block_bytes:#x} bytes")
            block += block_bytes + checksum_bytes
        raise BadVmcore(f"the LZ4 frame at offset {position:#x} has more than {_MOST_BLOCKS} blocks")


class _EndsWithin(Exception):
    """The file ends within a frame."""
