# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read an ELF core, by mapping it where that is faster.

/proc/vmcore can be mapped since Linux 3.11. Mapping windows of a MiB and more is six times as fast as
read(2), which maps and unmaps every 4 KiB page by itself (measured in a capture kernel). One mapping must
stay within one segment: across their borders the kernel answers EAGAIN. A file on a disk is read with
pread(2), which copies from the page cache without a page fault for each 4 KiB.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import stat
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from kdump_service.errors import BadVmcore
from kdump_service.vmcore import elf
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = [
    "PAGE_BYTES",
    "ByteSource",
    "Extent",
    "Guard",
    "PlainFile",
    "Step",
    "Vmcore",
    "Window",
    "closed_on_error",
]

PAGE_BYTES = mmap.PAGESIZE
"""Page size of the kernel that runs now; mappings and segments are aligned to it."""

_MOST_HEADER_BYTES = elf.MOST_PROGRAM_HEADERS * elf.PHDR_BYTES
_WINDOW_BYTES = 4 << 20
"""Mapped at once; costs 8 KiB of page tables. Larger windows are hardly faster (measured)."""


class ByteSource(Protocol):
    """A file, or what is unpacked from one."""

    @property
    def size_bytes(self) -> int:
        """Length."""

    @property
    def stored_bytes(self) -> int:
        """What of the content is there at most: a length that is only claimed may be any."""

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes; fewer only at the end. Raises OSError or BadVmcore where they cannot be read."""

    def close(self) -> None:
        """Done with it."""


@contextlib.contextmanager
def closed_on_error(path: Path, file: ByteSource) -> Iterator[None]:
    """Close the file if its headers cannot be used; a BadVmcore gets the path in front."""
    try:
        yield
    except BadVmcore as error:
        file.close()
        raise BadVmcore(f"{path}: {error}") from error
    except BaseException:
        file.close()
        raise


class PlainFile:
    """A file of the file system."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """Raises OSError, as all that reads; it names the file.

        ``descriptor``: the file is open already, and stays so; ``path`` is only its name. Who may read a
        descriptor need not have the right to open the file.
        """
        self._path = path
        if descriptor is None:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self.descriptor = os.dup(descriptor)
        try:
            status = os.fstat(self.descriptor)
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            self.size_bytes = self.stored_bytes = status.st_size
            # A pseudo file system such as /proc says that it has no blocks.
            self.is_pseudo = os.fstatvfs(self.descriptor).f_blocks == 0
        except BaseException:
            os.close(self.descriptor)
            raise

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes; fewer only at the end of the file. Raises OSError where they cannot be read."""
        parts = []
        while length > 0:
            try:
                part = os.pread(self.descriptor, length, offset)
            except OSError as error:
                error.filename = str(self._path)
                raise
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close it."""
        os.close(self.descriptor)


class Step(NamedTuple):
    """A part of what is to be read."""

    offset: int
    length: int
    readable: bool
    """False where nobody must touch it."""


class Guard(Protocol):
    """Who is asked before memory is touched."""

    def steps(self, offset: int, length: int) -> Iterator[Step]:
        """The range in parts. Each has been read when the next one is asked for."""


class Window(NamedTuple):
    """A piece of the file, at most as large as asked for."""

    offset: int
    length: int
    data: memoryview | None
    """None where these bytes cannot be read."""


class Extent(NamedTuple):
    """Physical memory that stands in one piece in the file.

    Segments may overlap: the kernel's own text stands in the direct mapping too. They then show the same
    memory, and the first in order of address is taken; extents do not overlap.
    """

    start: int
    end: int
    offset: int


def _extents(loads: list[elf.ProgramHeader]) -> Iterator[Extent]:
    covered = 0
    for load in sorted(loads, key=lambda load: load.physical_address):
        start, end = load.physical_address, load.physical_address + load.file_bytes
        first = max(start, covered)
        if first < end:
            yield Extent(first, end, load.offset + first - start)
            covered = end


class Vmcore:
    """An ELF core that is open for reading, a MemoryImage. Use as a context manager."""

    def __init__(self, path: Path, file: ByteSource | None = None, guard: Guard | None = None) -> None:
        """Open and read the headers. Raises OSError, or BadVmcore with the path in front.

        ``file`` is where the bytes come from if not from the file at ``path`` itself; it is closed with this.
        ``guard`` is asked before each reading.
        """
        self.path = path
        self._guard = guard
        self._file = file or PlainFile(path)
        self._descriptor = self._file.descriptor if isinstance(self._file, PlainFile) else None
        self._mapped = isinstance(self._file, PlainFile) and self._file.is_pseudo
        self._view: memoryview | None = None
        self._view_offset = 0
        self.size_bytes = self._file.size_bytes
        with closed_on_error(path, self._file):
            self._read_headers()

    def __enter__(self) -> Vmcore:
        return self

    def __exit__(self, *exception: object) -> None:
        self._drop_view()
        self._file.close()

    @property
    def byte_order(self) -> str:
        """``<`` or ``>``."""
        return self.header.byte_order

    @property
    def machine(self) -> int:
        """e_machine."""
        return self.header.machine

    @property
    def page_bytes(self) -> int:
        """PAGESIZE of VMCOREINFO, which is the crashed kernel's; 4096 if it does not say."""
        return self.vmcoreinfo.page_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes of the file; fewer only at its end. Raises OSError where they cannot be read."""
        if self._guard is None:
            return self._file.read(offset, length)
        return b"".join(self._file.read(*part) for part in self._readable(self._guard, offset, length))

    def read_into(self, offset: int, target: memoryview) -> None:
        """Fill ``target`` from the file. Raises OSError, or BadVmcore if the file ends before."""
        if self._guard is None:
            self._read_into(offset, target)
            return
        for start, length in self._readable(self._guard, offset, len(target)):
            self._read_into(start, target[start - offset : start - offset + length])

    def _readable(self, guard: Guard, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Offset and length of the parts. Raises OSError at one that must not be touched."""
        for step in guard.steps(offset, length):
            if not step.readable:
                raise OSError(errno.EIO, "kills whoever reads it", str(self.path))
            yield step.offset, step.length

    def _read_into(self, offset: int, target: memoryview) -> None:
        if self._descriptor is None:
            data = self._file.read(offset, len(target))
            if len(data) < len(target):
                raise BadVmcore(f"ends before offset {offset + len(target):#x}")
            target[:] = data
            return
        done = 0
        if self._mapped:
            done = self._copy_from_mapping(offset, target)
        while done < len(target):
            count = os.preadv(self._descriptor, [target[done:]], offset + done)
            if not count:
                raise BadVmcore(f"ends before offset {offset + len(target):#x}")
            done += count

    def read_physical(self, address: int, length: int) -> bytes:
        """Bytes of the crashed machine's memory. Raises BadVmcore where the core does not have them."""
        parts = []
        while length > 0:
            index = bisect_right(self._extent_starts, address) - 1
            if index < 0 or address >= self.extents[index].end:
                raise BadVmcore(f"physical address {address:#x} is in no segment of the core")
            extent = self.extents[index]
            take = min(length, extent.end - address)
            try:
                part = self.read(extent.offset + address - extent.start, take)
            except OSError as error:
                raise BadVmcore(f"physical address {address:#x} cannot be read: {error.strerror}") from error
            if len(part) < take:
                raise BadVmcore(f"ends within the segment of physical address {address:#x}")
            parts.append(part)
            address += take
            length -= take
        return b"".join(parts) if len(parts) != 1 else parts[0]

    def _copy_from_mapping(self, offset: int, target: memoryview) -> int:
        """Fill the target's beginning from mapped windows; how many bytes that was."""
        done = 0
        while done < len(target):
            position = offset + done
            view = self._view
            if view is None or not 0 <= position - self._view_offset < len(view):
                view = self._map_round(position)
                if view is None:
                    break
            part = view[position - self._view_offset :][: len(target) - done]
            target[done : done + len(part)] = part
            done += len(part)
        return done

    def _map_round(self, offset: int) -> memoryview | None:
        """Map a window that holds ``offset``; None if the kernel refuses."""
        self._drop_view()
        index = bisect_right(self._borders, offset) - 1
        first = max(self._borders[index], offset // _WINDOW_BYTES * _WINDOW_BYTES)
        end = min(self._borders[index + 1], (offset // _WINDOW_BYTES + 1) * _WINDOW_BYTES)
        assert self._descriptor is not None
        try:
            mapping = mmap.mmap(self._descriptor, end - first, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=first)
        except (OSError, ValueError):
            return None
        self._view, self._view_offset = memoryview(mapping), first
        return self._view

    def _drop_view(self) -> None:
        if self._view is not None:
            mapping = self._view.obj
            assert isinstance(mapping, mmap.mmap)
            # After an error its traceback may still hold pieces of the view; the mapping then goes with them.
            with contextlib.suppress(BufferError):
                self._view.release()
                mapping.close()
            self._view = None

    def windows(self, window_bytes: int = _WINDOW_BYTES) -> Iterator[Window]:
        """The whole file in order. The data of a window may be used until the next one is asked for.

        A window that cannot be read comes with ``data=None``, page by page, so that one bad page costs
        no more than itself.
        """
        for start, end in itertools.pairwise(self._borders):
            for offset in range(start, end, window_bytes):
                yield from self._window(offset, min(window_bytes, end - offset))

    def _read_headers(self) -> None:
        self.header = elf.parse_header(self.read(0, elf.EHDR_BYTES))
        if self.header.program_headers_count == elf.PN_XNUM:
            section = self.read(self.header.sections_offset, elf.SHDR_BYTES)
            self.header = elf.with_extended_numbering(self.header, section)
        if self.header.program_headers_offset > self.size_bytes:
            raise BadVmcore(
                f"program headers at offset {self.header.program_headers_offset:#x} are past the end"
            )
        table_bytes = min(self.header.program_headers_count * elf.PHDR_BYTES, _MOST_HEADER_BYTES)
        table = self.read(self.header.program_headers_offset, table_bytes)
        program_headers = elf.parse_program_headers(self.header, table, self.size_bytes)
        self.loads = [each for each in program_headers if each.kind == elf.PT_LOAD]
        self.note_segment = b""
        for each in program_headers:
            if each.kind == elf.PT_NOTE:
                if each.file_bytes > elf.MOST_NOTE_BYTES:
                    raise BadVmcore(
                        f"{each.file_bytes} bytes of notes at offset {each.offset:#x} are too many"
                    )
                self.note_segment += self.read(each.offset, each.file_bytes)
        self.notes = elf.parse_notes(self.header.byte_order, self.note_segment)
        contents = [note.content for note in self.notes if note.name == "VMCOREINFO"]
        self.vmcoreinfo = VmcoreInfo(contents[0] if contents else b"")
        self.extents = list(_extents(self.loads))
        """In order; see Extent."""
        self._extent_starts = [extent.start for extent in self.extents]
        self._borders = self._mapping_borders()

    def _mapping_borders(self) -> list[int]:
        """Where no mapping may reach across: the page borders round each segment, and the file's ends."""
        borders = {0, self.size_bytes}
        for load in self.loads:
            borders.add(load.offset // PAGE_BYTES * PAGE_BYTES)
            borders.add(min(-(-(load.offset + load.file_bytes) // PAGE_BYTES) * PAGE_BYTES, self.size_bytes))
        return sorted(borders)

    def _window(self, offset: int, length: int) -> Iterator[Window]:
        if self._guard is None:
            yield from self._unguarded_window(offset, length)
            return
        for step in self._guard.steps(offset, length):
            if step.readable:
                yield from self._unguarded_window(step.offset, step.length)
            else:
                yield Window(step.offset, step.length, None)

    def _unguarded_window(self, offset: int, length: int) -> Iterator[Window]:
        if self._descriptor is None:
            yield from self._window_by_read(offset, length)
            return
        try:
            mapping = mmap.mmap(self._descriptor, length, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=offset)
        except (OSError, ValueError):
            # Headers cannot be mapped together with segments, and old kernels map no fractional page:
            # what mmap refuses, read may still give.
            yield from self._window_by_read(offset, length)
            return
        view = memoryview(mapping)
        try:
            yield Window(offset, length, view)
        finally:
            # After an error its traceback may still hold pieces of the view; the mapping then goes with them.
            with contextlib.suppress(BufferError):
                view.release()
                mapping.close()

    def _window_by_read(self, offset: int, length: int) -> Iterator[Window]:
        try:
            data = self._file.read(offset, length)
        except OSError:
            if length <= PAGE_BYTES:
                yield Window(offset, length, None)
                return
            for page in range(offset, offset + length, PAGE_BYTES):
                yield from self._window_by_read(page, min(PAGE_BYTES, offset + length - page))
            return
        if data:
            yield Window(offset, len(data), memoryview(data))
        if len(data) < length:
            yield Window(offset + len(data), length - len(data), None)
