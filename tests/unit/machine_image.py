# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines of tests.builders.machine_memory as the package's MemoryImage."""

from __future__ import annotations

from collections.abc import Collection

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.elf import PT_LOAD, ProgramHeader, parse_notes
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo
from tests.builders.machine_memory import Machine, Missing

__all__ = ["ImageOfMachine"]


class ImageOfMachine:
    """A MemoryImage without a file."""

    def __init__(self, machine: Machine, *, loads: bool = True, missing: Collection[int] = ()) -> None:
        self.made = machine.image(loads=loads, missing=missing)
        self.vmcoreinfo = VmcoreInfo(self.made.vmcoreinfo_text)
        self.byte_order = self.made.byte_order
        self.machine = self.made.machine
        self.page_bytes = self.made.page_bytes
        self.note_segment = self.made.note_segment
        self.notes = parse_notes(self.byte_order, self.note_segment)
        self.loads = [
            ProgramHeader(PT_LOAD, each.offset, each.virtual, each.physical, each.length, each.length)
            for each in self.made.loads
        ]

    def read_physical(self, address: int, length: int) -> bytes:
        """See MemoryImage."""
        try:
            return self.made.read_physical(address, length)
        except Missing as error:
            raise BadVmcore(str(error)) from error
