# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read an ELF core from front to back, in windows, without copying where the kernel allows it.

/proc/vmcore can be mapped since Linux 3.11. Mapping windows of a MiB and more is six times as fast as
read(2), which maps and unmaps every 4 KiB page by itself (measured, see research in CONTRIBUTING.md). One
mapping must stay within one segment: across their borders the kernel answers EAGAIN.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdump_service.errors import BadVmcore
from kdump_service.vmcore import elf
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["PAGE_BYTES", "Vmcore", "Window"]

PAGE_BYTES = mmap.PAGESIZE
"""Page size of the kernel that runs now; mappings and segments are aligned to it."""

_MOST_HEADER_BYTES = 0xFFFF * elf.PHDR_BYTES


@dataclass(frozen=True)
class Window:
    """A piece of the file, at most as large as asked for."""

    offset: int
    length: int
    data: memoryview | None
    """None where these bytes cannot be read."""


class Vmcore:
    """An ELF core that is open for reading. Use as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open and read the headers. Raises OSError, or BadVmcore with the path in front."""
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.size_bytes = os.fstat(self._descriptor).st_size
            self._read_headers()
        except BadVmcore as error:
            os.close(self._descriptor)
            raise BadVmcore(f"{path}: {error}") from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Vmcore:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """Copy out bytes; fewer only at the end of the file. Raises OSError where they cannot be read."""
        parts = []
        while length > 0:
            part = os.pread(self._descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def windows(self, window_bytes: int) -> Iterator[Window]:
        """The whole file in order. The data of a window may be used until the next one is asked for.

        A window that cannot be read comes with ``data=None``, page by page, so that one bad page costs
        no more than itself.
        """
        borders = self._borders()
        for start, end in itertools.pairwise(borders):
            for offset in range(start, end, window_bytes):
                yield from self._window(offset, min(window_bytes, end - offset))

    def _read_headers(self) -> None:
        self.header = elf.parse_header(self.read(0, elf.EHDR_BYTES))
        table_bytes = min(self.header.program_headers_count * elf.PHDR_BYTES, _MOST_HEADER_BYTES)
        if self.header.program_headers_offset > self.size_bytes:
            raise BadVmcore(
                f"program headers at offset {self.header.program_headers_offset:#x} are past the end"
            )
        table = self.read(self.header.program_headers_offset, table_bytes)
        program_headers = elf.parse_program_headers(self.header, table, self.size_bytes)
        self.loads = [each for each in program_headers if each.kind == elf.PT_LOAD]
        self.notes: list[elf.Note] = []
        for each in program_headers:
            if each.kind == elf.PT_NOTE:
                if each.file_bytes > elf.MOST_NOTE_BYTES:
                    raise BadVmcore(
                        f"{each.file_bytes} bytes of notes at offset {each.offset:#x} are too many"
                    )
                self.notes += elf.parse_notes(self.header, self.read(each.offset, each.file_bytes))
        contents = [note.content for note in self.notes if note.name == "VMCOREINFO"]
        self.vmcoreinfo = VmcoreInfo(contents[0] if contents else b"")

    def _borders(self) -> list[int]:
        """Where no mapping may reach across: the page borders round each segment, and the file's ends."""
        borders = {0, self.size_bytes}
        for load in self.loads:
            borders.add(load.offset // PAGE_BYTES * PAGE_BYTES)
            borders.add(min(-(-(load.offset + load.file_bytes) // PAGE_BYTES) * PAGE_BYTES, self.size_bytes))
        return sorted(borders)

    def _window(self, offset: int, length: int) -> Iterator[Window]:
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
            data = self.read(offset, length)
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
