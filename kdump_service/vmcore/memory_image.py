# SPDX-License-Identifier: LGPL-2.1-or-later
"""What every format of a memory image gives to those who read the crashed kernel's memory."""

from __future__ import annotations

from typing import Protocol

from kdump_service.vmcore.elf import Note, ProgramHeader
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["EM_AARCH64", "EM_X86_64", "MemoryImage"]

EM_X86_64, EM_AARCH64 = 62, 183


class MemoryImage(Protocol):
    """An ELF core, a kdump-compressed file, or what stands for one."""

    @property
    def vmcoreinfo(self) -> VmcoreInfo:
        """What the crashed kernel says of itself."""

    @property
    def byte_order(self) -> str:
        """``<`` or ``>``, as struct takes it."""

    @property
    def machine(self) -> int:
        """e_machine of ELF; 0 if the format does not tell."""

    @property
    def page_bytes(self) -> int:
        """Size of a page frame."""

    @property
    def note_segment(self) -> bytes:
        """The ELF notes as they stand in the image."""

    @property
    def notes(self) -> list[Note]:
        """The same, one by one."""

    @property
    def loads(self) -> list[ProgramHeader]:
        """Segments with their virtual addresses, where the format has them; else empty."""

    def read_physical(self, address: int, length: int) -> bytes:
        """Exactly these bytes. Raises BadVmcore where the image does not have them or cannot be read."""
