# SPDX-License-Identifier: LGPL-2.1-or-later
"""Gives a machine of machine_memory processors, each with what a kernel has for it; imports nothing of the
package.

    processors = Processors(machine, 2, pfn=0x1000)   # takes frames from there on: less than 0x400
    processors.each[0].stack                          # frames, of pages that do not follow each other

The kernel's symbols, its own table of them, and PRSTATUS notes are made too. ``way``: see kallsyms.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.builders.kallsyms import Kallsyms
from tests.builders.machine_memory import Machine

__all__ = ["Processor", "Processors"]

VARIABLE_BYTES, DYNAMIC_BYTES = 16 << 10, 64 << 10
TASK_BYTES = 12 << 10
CURRENT = 0x1000
"""Where in a processor's variables the pointer to its task stands."""
# Within the kernel's image.
OFFSETS, NUMBER, NOTES, PRESENT, START, SYMBOLS = 0x60000, 0x68000, 0x68008, 0x69000, 0x70000, 0x80000
VMALLOC = 512 << 20
"""From the image on."""


@dataclass
class Processor:
    """Addresses are virtual, frames are all that belong to the thing."""

    data_address: int
    data: list[int]
    notes: list[int]
    task_address: int
    task: list[int]
    stack_address: int
    stack: list[int]

    @property
    def frames(self) -> set[int]:
        """All together."""
        return {*self.data, *self.notes, *self.task, *self.stack}


class Processors:
    """See the module."""

    def __init__(
        self,
        machine: Machine,
        count: int,
        *,
        pfn: int,
        way: str = "absolute per-cpu",
        current: str = "current_task",
    ) -> None:
        self.machine = machine
        self.each: list[Processor] = []
        start = 0 if way == "absolute per-cpu" else machine.symbol_address(START)
        page = machine.page_bytes
        for number in range(count):
            made = self._processor(pfn, number)
            self.each.append(made)
            offset = made.data_address - start & (1 << 64) - 1
            self.write(OFFSETS + 8 * number, offset, 8)
            machine.write(made.data[0] * page + CURRENT, made.task_address.to_bytes(8, "little"))
        # In a chunk of its own, 0x100 frames behind the first.
        self.write(NOTES, start + 0x100 * page, 8)
        self.write(NUMBER, count, 4)
        self.write(PRESENT, (1 << count) - 1, 8)
        self.symbols = {
            "__per_cpu_start": start,
            current: start + CURRENT,
            "__per_cpu_end": start + VARIABLE_BYTES,
            "_stext": machine.symbol_address(0),
            "__per_cpu_offset": machine.symbol_address(OFFSETS),
            "nr_cpu_ids": machine.symbol_address(NUMBER),
            "crash_notes": machine.symbol_address(NOTES),
            "__cpu_present_mask": machine.symbol_address(PRESENT),
        }
        table = Kallsyms(self.symbols, at=machine.symbol_address(SYMBOLS), way=way)
        machine.write(machine.image_physical + SYMBOLS, table.content)
        machine.vmcoreinfo |= table.vmcoreinfo
        machine.stack_pointers = [each.stack_address + 0x1F28 for each in self.each]

    def write(self, place: int, value: int, length: int) -> None:
        """A number within the kernel's image."""
        self.machine.write(self.machine.image_physical + place, value.to_bytes(length, "little"))

    def _processor(self, pfn: int, number: int) -> Processor:
        machine, page = self.machine, self.machine.page_bytes
        data = pfn + 0x20 * number
        notes = data + 0x100
        data_end = data + -(-(VARIABLE_BYTES + DYNAMIC_BYTES) // page)
        task = (pfn + 0x200 + 0x10 * number) * page + 0x340
        stack_address = machine.image_virtual + VMALLOC + number * (64 << 10)
        stack = [pfn + 0x300 + 0x10 * number + 2 * index for index in range(max((16 << 10) // page, 1))]
        for index, frame in enumerate(stack):
            machine.tables.map(stack_address + index * page, frame * page, page, page)
        member = 32 if machine.architecture.e_machine == 62 else 56
        machine.write(task + member, stack_address.to_bytes(8, "little"))
        return Processor(
            machine.direct(data * page),
            list(range(data, data_end)),
            [notes],
            machine.direct(task),
            list(range(task // page, (task + TASK_BYTES - 1) // page + 1)),
            stack_address,
            stack,
        )
