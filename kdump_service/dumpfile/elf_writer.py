# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write a filtered ELF core, which crash, drgn and gdb open as it is.

Kept frames are stored once, in order of their address, in segments. Where few frames are left out between two
that are kept, the segment goes on and has zeros there, which are holes of the file. The program headers are
those of the source, each cut where a segment ends: p_filesz is what is stored, p_memsz reaches to the next
piece, so that readers give zeros for what was left out. The kernel's text stands in its own mapping and in
the direct one: both have headers, which point at the same bytes. (makedumpfile's -E cuts headers in the same
way, but writes the contents of short gaps, and stores twice what two headers show.)

What crash needs (netdump.c, is_netdump and resize_elf_header): program headers right behind the ELF header,
PT_NOTE first, p_align 0, no p_offset of 0 and the notes before the lowest one; and two PT_LOADs where
something is left out, since it does not look at the p_filesz of a single one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.formats import DumpWriter, Frames, Pass
from kdump_service.dumpfile.page_codec import FILL, EncodedPages, PageKind
from kdump_service.dumpfile.sink import FilePart, Sink
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import PfnBitmap, runs_of
from kdump_service.vmcore import elf
from kdump_service.vmcore.elf import ProgramHeader
from kdump_service.vmcore.memory_image import MemoryImage
from kdump_service.vmcore.virtual_loads import virtual_loads

__all__ = ["ElfFormat", "ElfPlan", "ElfWriter", "batches_of", "encode_raw", "filled_pages", "plan_elf"]

_BRIDGED_PAGES = 256
"""Gaps shorter than this are bridged, as makedumpfile does (PFN_EXCLUDED). A hole costs nothing where files
have holes, and a stream at most so many pages for each segment."""
MOST_HEADERS = 60_000
"""e_phnum has 16 bits, and 0xffff says that the count is elsewhere, which not every reader understands."""
_MOST_ADDRESS = 1 << 56
"""More physical memory than any machine can address."""
_NO_VIRTUAL_ADDRESS = (0, 0xFFFFFFFFFFFFFFFF)
"""In p_vaddr: this memory is not mapped. QEMU writes 0, kexec-tools -1."""
_RWX = 7
"""p_flags of all segments of /proc/vmcore."""
_ZEROS = bytes(1 << 20)

_HeaderRows = NDArray[np.uint64]
"""Rows of p_offset, p_vaddr, p_paddr, p_filesz, p_memsz: those of PT_LOAD."""


class ElfPlan(NamedTuple):
    """Where everything stands in the file."""

    byte_order: str
    machine: int
    page_bytes: int
    notes: bytes
    """The note segment of the source, as it is."""
    gap_pages: int
    """Gaps of so many frames end a segment; shorter ones are bridged."""
    page_count: int
    """Frames of all segments, those in bridged gaps too."""
    loads: _HeaderRows

    @property
    def notes_offset(self) -> int:
        """Beginning of the notes, right behind the program headers."""
        return _notes_offset(len(self.loads))

    @property
    def data_offset(self) -> int:
        """Beginning of the pages."""
        return _data_offset(len(self.loads), len(self.notes), self.page_bytes)

    @property
    def size_bytes(self) -> int:
        """Length of the file."""
        return self.data_offset + self.page_count * self.page_bytes

    def elf_header(self, *, incomplete: bool) -> bytes:
        """The first bytes of the file."""
        encoding = elf.ELFDATA2LSB if self.byte_order == "<" else elf.ELFDATA2MSB
        ident = b"\x7fELF" + bytes([elf.ELFCLASS64, encoding, _EV_CURRENT])
        return struct.pack(
            self.byte_order + elf.EHDR,
            ident,
            elf.ET_CORE,
            self.machine,
            _EV_CURRENT,
            0,
            elf.EHDR_BYTES,
            0,
            elf.ELF_FLAGS_INCOMPLETE if incomplete else 0,
            elf.EHDR_BYTES,
            elf.PHDR_BYTES,
            1 + len(self.loads),
            0,
            0,
            0,
        )

    def head(self, *, incomplete: bool) -> bytes:
        """All that stands before the pages."""
        pack = struct.Struct(self.byte_order + elf.PHDR).pack
        size = len(self.notes)
        parts = [self.elf_header(incomplete=incomplete)]
        parts.append(pack(elf.PT_NOTE, 0, self.notes_offset, 0, 0, size, size, 0))
        parts += [pack(elf.PT_LOAD, _RWX, *row, 0) for row in self.loads.tolist()]
        return (b"".join(parts) + self.notes).ljust(self.data_offset, b"\0")


_EV_CURRENT = 1


def plan_elf(
    kept: PfnBitmap,
    page_bytes: int,
    loads: Sequence[ProgramHeader],
    notes: bytes,
    machine: int,
    byte_order: str = "<",
) -> ElfPlan:
    """Lay out a core with the kept frames of a source that has these loads.

    Every kept frame must lie in one of the loads, as all frames of an ELF core do. Raises BadVmcore if there
    are none, or too many.
    """
    mapped = list(_joined(loads))
    if not mapped:
        raise BadVmcore("names no segments of memory, so that no ELF core can be made of it")
    if len(mapped) > MOST_HEADERS:
        raise BadVmcore(f"{len(mapped)} segments are too many for an ELF core")
    for load in mapped:
        if load.physical_address + load.memory_bytes > _MOST_ADDRESS:
            raise BadVmcore(f"a segment claims physical memory from {load.physical_address:#x} on")
    gap_pages = _BRIDGED_PAGES
    while True:
        segments = _segments(kept, gap_pages, MOST_HEADERS)
        if segments is not None:
            rows = _program_headers(mapped, segments, page_bytes)
            if len(rows) <= MOST_HEADERS:
                break
        if gap_pages > kept.end_pfn:
            raise BadVmcore(f"{len(mapped)} segments are too many for an ELF core")
        gap_pages *= 2
    # Offsets were counted from the first page on.
    rows[:, 0] += np.uint64(_data_offset(len(rows), len(notes), page_bytes))
    return ElfPlan(byte_order, machine, page_bytes, notes, gap_pages, int(segments[:, 1].sum()), rows)


def batches_of(plan: ElfPlan, kept: PfnBitmap) -> Iterator[NDArray[np.int64]]:
    """The pages of the file in its order, as arrays of runs: first frame (FILL for a bridged gap), and number
    of frames."""
    end = -1
    for runs in kept.runs():
        starts = runs[:, 0]
        ends = starts + runs[:, 1]
        before = np.concatenate([[starts[0] if end < 0 else end], ends[:-1]])
        gaps = starts - before
        bridged = (gaps > 0) & (gaps < plan.gap_pages)
        places = np.arange(len(runs)) + np.cumsum(bridged)
        result = np.empty((len(runs) + int(np.count_nonzero(bridged)), 2), np.int64)
        result[places] = runs
        result[places[bridged] - 1, 0] = FILL
        result[places[bridged] - 1, 1] = gaps[bridged]
        yield result
        end = int(ends[-1])


def filled_pages(pages: memoryview, page_bytes: int) -> NDArray[np.bool_]:
    """Which pages are not all zeros."""
    words = np.frombuffer(pages, np.uint64).reshape(-1, page_bytes // 8)
    return np.asarray(np.bitwise_or.reduce(words, axis=1) != 0)


def encode_raw(
    pages: memoryview, page_bytes: int, lost: NDArray[np.bool_], target: memoryview
) -> EncodedPages:
    """Copy what is not zero into ``target``, which is as long as the pages."""
    kinds = np.where(filled_pages(pages, page_bytes), PageKind.RAW, PageKind.ZERO).astype(np.uint8)
    kinds[lost] = PageKind.LOST
    stored = kinds == PageKind.RAW
    count = int(np.count_nonzero(stored))
    result = np.frombuffer(target, np.uint8)[: count * page_bytes].reshape(-1, page_bytes)
    np.compress(stored, np.frombuffer(pages, np.uint8).reshape(-1, page_bytes), axis=0, out=result)
    return EncodedPages(kinds, np.where(stored, np.uint32(page_bytes), np.uint32(0)))


class ElfFormat:
    """An ELF core; see DumpFormat."""

    file_name = "vmcore"
    append_only = True

    @classmethod
    def check(cls, image: MemoryImage) -> None:
        """See DumpFormat. Any machine's."""

    def __init__(self, image: MemoryImage, frames: Frames, page_bytes: int, options: DumpOptions) -> None:
        self._kept = frames.kept
        self.plan = plan_elf(
            frames.kept,
            page_bytes,
            image.loads or virtual_loads(image, frames.existing),
            image.note_segment,
            image.machine,
            image.byte_order,
        )

    @property
    def head_bytes(self) -> int:
        """See DumpFormat."""
        return self.plan.data_offset

    @property
    def most_data_bytes(self) -> int | None:
        """See DumpFormat."""
        return len(self._kept) * self.plan.page_bytes

    def encode(self, pages: memoryview, lost: NDArray[np.bool_], target: memoryview) -> EncodedPages:
        """See DumpFormat."""
        return encode_raw(pages, self.plan.page_bytes, lost, target)

    def writer(self, sink: Sink, *, of_incomplete: bool = False) -> DumpWriter:
        """See DumpFormat."""
        return ElfWriter(sink, self.plan, self._kept, incomplete=of_incomplete)


class ElfWriter:
    """Writes the head at once, and pages as they come, in the order of ``batches_of``.

    Where the sink can rewrite, the file has its full length from the start, and says that it is incomplete
    until it is finished: what is cut off opens, and the pages that are missing read as zeros. Elsewhere, the
    header is final at once, and a file that was cut off is too short for it.
    """

    def __init__(self, sink: Sink, plan: ElfPlan, kept: PfnBitmap, *, incomplete: bool = False) -> None:
        """``incomplete``: what a header that cannot be replaced says, where that is known already."""
        self._sink = sink
        self._kept = kept
        self._plan = plan
        self._end = plan.data_offset
        self._hash = hashlib.sha256()
        self._incomplete = sink.rewritable or incomplete
        """What the header says now."""
        if sink.rewritable:
            sink.set_size(plan.size_bytes)
        sink.write_at(0, plan.head(incomplete=self._incomplete))

    def passes(self, vital: Iterable[PfnBitmap]) -> Iterator[Pass]:
        """See DumpWriter. There is one: the order of pages is that of the segments."""
        yield batches_of(self._plan, self._kept), lambda _, pages, data: self.write(pages, data)

    def write(self, pages: EncodedPages, data: memoryview) -> None:
        """Append pages that ``encode_raw`` made. Pages of zeros and lost ones become holes where the sink can
        have them."""
        page_bytes = self._plan.page_bytes
        start = self._end
        position = 0
        for first, count in runs_of(pages.kinds == PageKind.RAW).tolist():
            self._skip_to(start + first * page_bytes)
            part = data[position : position + count * page_bytes]
            self._sink.write_at(self._end, part)
            self._hash.update(part)
            self._end += len(part)
            position += len(part)
        self._skip_to(start + len(pages.kinds) * page_bytes)

    def finish(self, *, complete: bool) -> None:
        """Write the header for good, if the sink can. Raises VerificationFailed if the file is to be complete
        but has not all of its pages."""
        if complete and self._end != self._plan.size_bytes:
            raise VerificationFailed(f"the file ends at {self._end:#x}, not at {self._plan.size_bytes:#x}")
        if self._sink.rewritable:
            self._incomplete = not complete
            self._sink.write_at(0, self._plan.elf_header(incomplete=self._incomplete))

    def flush(self) -> None:
        """Nothing is kept back."""

    def parts(self) -> list[FilePart]:
        """The integrity manifest: the head, and the pages with holes as the zeros that they read as."""
        head = self._plan.head(incomplete=self._incomplete)
        return [
            FilePart("header", 0, len(head), hashlib.sha256(head).hexdigest()),
            FilePart("pages", len(head), self._end - len(head), self._hash.hexdigest()),
        ]

    def _skip_to(self, end: int) -> None:
        while self._end < end:
            part = memoryview(_ZEROS)[: end - self._end]
            # In a flattened file there could be holes too, but then crash says that it may be truncated
            # (netdump.c, check_dumpfile_size).
            if not self._sink.rewritable:
                self._sink.write_at(self._end, part)
            self._hash.update(part)
            self._end += len(part)


def _joined(loads: Sequence[ProgramHeader]) -> Iterator[ProgramHeader]:
    """The loads without those that are empty; one that goes on where the one before ends is part of that.

    The pieces of a core that was filtered before become what they were cut from.
    """
    current: ProgramHeader | None = None
    for load in loads:
        if not load.memory_bytes:
            continue
        if current is not None:
            length = current.memory_bytes
            if load.physical_address == current.physical_address + length and load.virtual_address == _moved(
                current.virtual_address, length
            ):
                current = ProgramHeader(
                    current.kind,
                    0,
                    current.virtual_address,
                    current.physical_address,
                    0,
                    length + load.memory_bytes,
                )
                continue
            yield current
        current = load
    if current is not None:
        yield current


def _moved(virtual_address: int, distance: int) -> int:
    if virtual_address in _NO_VIRTUAL_ADDRESS:
        return virtual_address
    return (virtual_address + distance) & 0xFFFFFFFFFFFFFFFF


def _segments(kept: PfnBitmap, gap_pages: int, most: int) -> NDArray[np.int64] | None:
    """Rows of first frame and number of frames, with the shorter gaps bridged; None if they are more than
    ``most``."""
    closed: list[NDArray[np.int64]] = []
    count = 0
    last: NDArray[np.int64] = np.empty((0, 2), np.int64)  # may go on in the next chunk
    for runs in kept.runs():
        pieces = np.concatenate([last, np.stack([runs[:, 0], runs[:, 0] + runs[:, 1]], axis=1)])
        breaks = np.flatnonzero(pieces[1:, 0] - pieces[:-1, 1] >= gap_pages)
        segments = np.stack(
            [pieces[np.append(0, breaks + 1), 0], pieces[np.append(breaks, len(pieces) - 1), 1]], axis=1
        )
        closed.append(segments[:-1])
        last = segments[-1:]
        count += len(segments) - 1
        if count > most:
            return None
    result = np.concatenate([*closed, last])
    result[:, 1] -= result[:, 0]
    return result


def _program_headers(
    loads: Sequence[ProgramHeader], segments: NDArray[np.int64], page_bytes: int
) -> _HeaderRows:
    """PT_LOADs for each load, cut where segments end; p_offset counts from the first page.

    Physical addresses decide, to the byte: a load may begin or end within a page.
    """
    starts = segments[:, 0] * page_bytes
    sizes = segments[:, 1] * page_bytes
    ends = starts + sizes
    offsets = np.cumsum(sizes) - sizes
    tables = []
    for load in loads:
        begin, end = load.physical_address, load.physical_address + load.memory_bytes
        first = int(np.searchsorted(ends, begin, side="right"))
        last = int(np.searchsorted(starts, end, side="left"))
        inside = slice(first, max(first, last))
        physical = np.maximum(starts[inside], begin)
        file = np.minimum(ends[inside], end) - physical
        offset = offsets[inside] + physical - starts[inside]
        if not len(physical) or physical[0] > begin:
            # What is left out at the beginning has a header of its own, with nothing in the file.
            physical, file, offset = (
                np.concatenate([[value], array])
                for value, array in ((begin, physical), (0, file), (0, offset))
            )
        memory = np.diff(np.append(physical, end))
        virtual = np.full(len(physical), load.virtual_address, np.uint64)
        if load.virtual_address not in _NO_VIRTUAL_ADDRESS:
            virtual += (physical - begin).astype(np.uint64)
        columns = [column.astype(np.uint64) for column in (offset, virtual, physical, file, memory)]
        tables.append(np.stack(columns, axis=1))
    result = np.concatenate(tables)
    if len(result) == 1 and result[0, 3] < result[0, 4]:
        result = _in_two(result)
    return result


def _in_two(row: _HeaderRows) -> _HeaderRows:
    """A single header with a tail that is left out, and the same as one for what is stored and one for the
    tail; crash does not look at the p_filesz of a single PT_LOAD."""
    stored = row[0, 3]
    # Where nothing is stored at all, the tail is halved.
    size = stored if stored else row[0, 4] // np.uint64(2)
    result = np.concatenate([row, row])
    result[0, 4] = size
    result[1, 2] += size
    if int(row[0, 1]) not in _NO_VIRTUAL_ADDRESS:
        result[1, 1] += size
    result[1, 3] = 0
    result[1, 4] -= size
    return result


def _notes_offset(load_count: int) -> int:
    return elf.EHDR_BYTES + (1 + load_count) * elf.PHDR_BYTES


def _data_offset(load_count: int, note_bytes: int, page_bytes: int) -> int:
    return -(-(_notes_offset(load_count) + note_bytes) // page_bytes) * page_bytes
