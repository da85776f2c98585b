# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read kdump-compressed files: a MemoryImage and a PageSource."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.kdump_format import (
    HEADER_BYTES,
    PAGE_DESCRIPTOR,
    SUB_HEADER_BYTES,
    parse_header,
    parse_sub_header,
)
from kdump_service.dumpfile.page_codec import FLAG_INCOMPLETE, decompressor
from kdump_service.errors import BadVmcore
from kdump_service.pfn import CHUNK_PAGES, BoolArray, chunks_of, running_counts
from kdump_service.vmcore.elf import ProgramHeader, parse_notes
from kdump_service.vmcore.memory_image import EM_AARCH64, EM_X86_64
from kdump_service.vmcore.reader import ByteSource, PlainFile, closed_on_error
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["KdumpFile"]

_CHUNK_BYTES = CHUNK_PAGES // 8
_MACHINES = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}
_MOST_AT_ONCE = 4 << 20
"""Compressed pages are read together if they lie within this many bytes."""


class KdumpFile:
    """A kdump-compressed file that is open for reading. Use as a context manager."""

    byte_order = "<"

    def __init__(self, path: Path, file: ByteSource | None = None) -> None:
        """Open and read the headers. Raises OSError, or BadVmcore with the path in front."""
        self.path = path
        self._file = file or PlainFile(path)
        self._present: tuple[int, BoolArray, NDArray[np.uint32]] | None = None
        """A chunk's number, bits and running counts."""
        self._before: NDArray[np.int64] = np.zeros(1, np.int64)
        """Frames in bitmap 2 before each chunk, and in all."""
        self._decompressors: dict[int, Callable[[bytes], bytes]] = {}
        self.size_bytes = self._file.size_bytes
        with closed_on_error(path, self._file):
            self._read_headers()

    def __enter__(self) -> KdumpFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    @property
    def loads(self) -> list[ProgramHeader]:
        """None: the format has no virtual addresses."""
        return []

    @property
    def machine(self) -> int:
        """e_machine of the machine that the header names; 0 for one that we do not know."""
        return _MACHINES.get(self.header.uts["machine"], 0)

    @property
    def incomplete(self) -> bool:
        """Whether the file says that its writer did not come to the end."""
        return bool(self.header.status & FLAG_INCOMPLETE)

    @property
    def page_count(self) -> int:
        """How many frames the file has."""
        return int(self._before[-1])

    @property
    def data_offset(self) -> int:
        """Where the page descriptors end, and pages begin."""
        return self.descriptors_offset + self.page_count * PAGE_DESCRIPTOR.itemsize

    def existing(self, chunk: int) -> BoolArray:
        """See PageSource: bitmap 1."""
        return self._bits(self._bitmaps_offset, chunk)

    def present(self, chunk: int) -> BoolArray:
        """See PageSource: bitmap 2."""
        if self._present is None or self._present[0] != chunk:
            bits = self._bits(self._bitmaps_offset + self._one_bitmap_bytes, chunk)
            self._present = (chunk, bits, running_counts(bits))
        return self._present[1]

    def descriptors(self, first: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.void]]:
        """Page descriptors by their number. Raises BadVmcore where the file ends."""
        offset = self.descriptors_offset + first * PAGE_DESCRIPTOR.itemsize
        data = self._file.read(offset, count * PAGE_DESCRIPTOR.itemsize)
        if len(data) < count * PAGE_DESCRIPTOR.itemsize:
            raise BadVmcore(f"ends within the page descriptors at offset {offset + len(data):#x}")
        return np.frombuffer(data, PAGE_DESCRIPTOR)

    def read_pages(self, first_pfn: int, count: int, target: memoryview) -> None:
        """See PageSource."""
        done = 0
        while done < count:
            chunk, within = divmod(first_pfn + done, CHUNK_PAGES)
            part = min(count - done, CHUNK_PAGES - within)
            if chunk >= chunks_of(self.end_pfn):
                raise BadVmcore(f"frame {first_pfn + done:#x} is past the end of the machine's memory")
            bits = self.present(chunk)
            if not bits[within : within + part].all():
                missing = first_pfn + done + int(np.argmin(bits[within : within + part]))
                raise BadVmcore(f"frame {missing:#x} is not in the file")
            assert self._present is not None
            first = int(self._before[chunk]) + int(self._present[2][within]) - 1
            view = target[done * self.page_bytes : (done + part) * self.page_bytes]
            self._read_described(first, part, first_pfn + done, view)
            done += part

    def read_physical(self, address: int, length: int) -> bytes:
        """See MemoryImage."""
        first = address // self.page_bytes
        count = -(-(address + length) // self.page_bytes) - first
        buffer = bytearray(count * self.page_bytes)
        try:
            self.read_pages(first, count, memoryview(buffer))
        except OSError as error:
            raise BadVmcore(f"physical address {address:#x} cannot be read: {error.strerror}") from error
        within = address - first * self.page_bytes
        return bytes(buffer[within : within + length])

    def _read_described(self, first: int, count: int, pfn: int, target: memoryview) -> None:
        descriptors = self.descriptors(first, count)
        offsets = descriptors["offset"].tolist()
        sizes = descriptors["size"].tolist()
        flags = descriptors["flags"].tolist()
        block = b""
        block_offset = 0
        for index in range(count):
            offset, size = offsets[index], sizes[index]
            if not offset:
                raise BadVmcore(f"frame {pfn + index:#x} was lost when the file was written")
            if not 0 < size <= self.page_bytes or offset + size > self.size_bytes:
                raise BadVmcore(
                    f"the descriptor of frame {pfn + index:#x} claims {size} bytes at offset {offset:#x}"
                )
            if not block_offset <= offset <= offset + size <= block_offset + len(block):
                block_offset = offset
                end = offset + size
                for other in range(index, count):
                    following = offsets[other] + sizes[other]
                    if offsets[other] >= offset and following - offset <= _MOST_AT_ONCE:
                        end = max(end, following)
                    else:
                        break
                block = self._file.read(offset, end - offset)
                if len(block) < size:
                    raise BadVmcore(f"ends within frame {pfn + index:#x} at offset {offset:#x}")
            start = offset - block_offset
            try:
                page = self._decompressor(flags[index])(block[start : start + size])
            except BadVmcore as error:
                raise BadVmcore(f"frame {pfn + index:#x} at offset {offset:#x}: {error}") from error
            target[index * self.page_bytes : (index + 1) * self.page_bytes] = page

    def _decompressor(self, flag: int) -> Callable[[bytes], bytes]:
        if flag not in self._decompressors:
            self._decompressors[flag] = decompressor(flag, self.page_bytes)
        return self._decompressors[flag]

    def _bits(self, bitmap_offset: int, chunk: int) -> BoolArray:
        packed = np.zeros(_CHUNK_BYTES, np.uint8)
        length = min(_CHUNK_BYTES, self._one_bitmap_bytes - chunk * _CHUNK_BYTES)
        data = self._file.read(bitmap_offset + chunk * _CHUNK_BYTES, length)
        packed[: len(data)] = np.frombuffer(data, np.uint8)
        bits = np.unpackbits(packed, bitorder="little").view(np.bool_)
        bits[max(self.end_pfn - chunk * CHUNK_PAGES, 0) :] = False
        return bits

    def _read_headers(self) -> None:
        head = self._file.read(0, HEADER_BYTES)
        self.header = parse_header(head)
        self.page_bytes = self.header.block_bytes
        sub = self._file.read(self.page_bytes, SUB_HEADER_BYTES)
        self.sub_header = parse_sub_header(self.header, sub)
        if self.sub_header.split:
            raise BadVmcore("is one of several files of a split dump; put them together with makedumpfile")
        self.end_pfn = self.sub_header.max_mapnr
        self.note_segment = self._slice(
            self.sub_header.note_offset, self.sub_header.note_bytes, "the ELF notes"
        )
        self.notes = parse_notes("<", self.note_segment)
        info = self._slice(self.sub_header.vmcoreinfo_offset, self.sub_header.vmcoreinfo_bytes, "VMCOREINFO")
        self.vmcoreinfo = VmcoreInfo(info)
        self._bitmaps_offset = (1 + self.header.sub_header_blocks) * self.page_bytes
        bitmap_bytes = self.header.bitmap_blocks * self.page_bytes
        self._one_bitmap_bytes = bitmap_bytes // 2
        if self._one_bitmap_bytes * 8 < self.end_pfn:
            raise BadVmcore(
                f"{self.header.bitmap_blocks} blocks of bitmaps are too few for {self.end_pfn} frames"
            )
        self.descriptors_offset = self._bitmaps_offset + bitmap_bytes
        # What is read below are bitmaps that are there; those that a header alone claims may be of any size.
        there = min(self.size_bytes, self._file.stored_bytes)
        if self.descriptors_offset > there:
            raise BadVmcore(
                f"ends after {there:#x} bytes, within the bitmaps, which reach to "
                f"{self.descriptors_offset:#x}"
            )
        counts = [
            int(np.count_nonzero(self._bits(self._bitmaps_offset + self._one_bitmap_bytes, chunk)))
            for chunk in range(chunks_of(self.end_pfn))
        ]
        self._before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _slice(self, offset: int, length: int, what: str) -> bytes:
        if not length:
            return b""
        limit = (1 + self.header.sub_header_blocks) * self.page_bytes
        if offset < self.page_bytes or offset + length > limit:
            raise BadVmcore(f"the header places {what} at {offset:#x} to {offset + length:#x}, not behind it")
        return self._file.read(offset, length)
