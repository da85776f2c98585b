# SPDX-License-Identifier: LGPL-2.1-or-later
"""What each processor was at when the machine crashed: the stack that its registers point to, the data that
it has for itself, and the task that it ran.

A debugger begins with these: the processor of panic_cpu, its runqueue, the task in that, the registers in
its crash_notes, the stack. Tasks and stacks are allocated at any time and lie anywhere. Neither registers nor
the stack of panic() need to point to the task (seen in 6.1): the kernel's own symbols lead there.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from kdump_service.errors import BadVmcore
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.elf import NT_PRSTATUS
from kdump_service.vmcore.kallsyms import kernel_symbols
from kdump_service.vmcore.memory_image import EM_AARCH64, EM_X86_64

__all__ = ["processor_memory"]

_MOST_PROCESSORS = 2048
"""More than any machine of one kernel is known to have. Each costs half a millisecond, and 300 KiB."""

# struct elf_prstatus: pr_reg stands behind 112 bytes. The stack pointer is the 20th of struct
# user_regs_struct of x86_64, the 32nd of struct user_pt_regs of aarch64.
_STACK_POINTER_OFFSETS = {EM_X86_64: 112 + 8 * 19, EM_AARCH64: 112 + 8 * 31}

_STACK_BYTES = 16 << 10
"""THREAD_SIZE, to which stacks are aligned, of x86_64 and of aarch64 whose pages are not larger still."""
_TASK_BYTES = 12 << 10
"""struct task_struct has less than 10 KiB in Debian's kernels from 6.1 to 7.2."""
_TASK_HEAD_BYTES = 128
"""In them is its member ``stack``, behind thread_info and state: at 32 on x86_64, at most 56 on aarch64."""
_NOTE_BYTES = 512
"""note_buf_t, whose allocation is aligned so that it does not cross a page."""

_DYNAMIC_BYTES = 64 << 10
"""Behind the variables of the kernel's image, each processor has PERCPU_MODULE_RESERVE (8 KiB) and
PERCPU_DYNAMIC_RESERVE (28 KiB, of which a kernel can have more)."""
_MOST_VARIABLE_BYTES = 512 << 10  # Debian's kernels have 208 to 228 KiB

_CURRENT = ("current_task", "pcpu_hot", "__entry_task")
"""The variable of each processor that points to its task, or begins with that pointer: x86_64, but for 6.2 to
6.14; those; aarch64."""
_SYMBOLS = (
    *("__per_cpu_offset", "__per_cpu_start", "__per_cpu_end", "nr_cpu_ids", "__cpu_present_mask"),
    *("crash_notes", *_CURRENT),
)


def processor_memory(space: AddressSpace, kept: PfnBitmap) -> Iterator[tuple[int, int]]:
    """Virtual addresses and lengths, mapped or not. What the image does not tell is left out.

    Outside of the kernel's own image, no frame is read that is not kept: it may be broken.
    """
    offset = _STACK_POINTER_OFFSETS.get(space.machine)
    notes = [note for note in space.image.notes if note.kind == NT_PRSTATUS and note.name == "CORE"]
    for note in notes[:_MOST_PROCESSORS]:
        if offset is not None and len(note.content) >= offset + 8:
            yield _stack(space, *struct.unpack_from(space.image.byte_order + "Q", note.content, offset))
    with contextlib.suppress(BadVmcore):
        symbols = kernel_symbols(space, _SYMBOLS)
        for number in _present(space, symbols):
            base = space.unsigned(symbols["__per_cpu_offset"] + 8 * number, 8)
            with contextlib.suppress(BadVmcore):  # another's may be sound
                yield from _of_processor(space, kept, symbols, base)


def _present(space: AddressSpace, symbols: dict[str, int]) -> Iterator[int]:
    """Numbers of processors. That may be more than have run: who has is forgotten in a panic of aarch64."""
    if not {"__per_cpu_offset", "nr_cpu_ids", "__cpu_present_mask"} <= symbols.keys():
        return
    count = min(space.unsigned(symbols["nr_cpu_ids"], 4), _MOST_PROCESSORS)
    for first in range(0, count, 64):
        word = space.unsigned(symbols["__cpu_present_mask"] + first // 8, 8)
        yield from (number for number in range(first, min(first + 64, count)) if word >> number - first & 1)


def _of_processor(
    space: AddressSpace, kept: PfnBitmap, symbols: dict[str, int], base: int
) -> Iterator[tuple[int, int]]:
    start, end = symbols.get("__per_cpu_start", 0), symbols.get("__per_cpu_end", 0)
    if 0 < end - start <= _MOST_VARIABLE_BYTES:
        yield _address(base, start), end - start + _DYNAMIC_BYTES
    if "crash_notes" in symbols:
        yield _address(base, space.unsigned(symbols["crash_notes"], 8)), _NOTE_BYTES
    for name in symbols.keys() & _CURRENT:
        for task in _words(space, kept, _address(base, symbols[name]), 8):
            yield task, _TASK_BYTES
            # Its own stack is another one than that of an interrupt, or of a user's program. Whatever is
            # aligned like one passes for it.
            for word in _words(space, kept, task, _TASK_HEAD_BYTES):
                if word and word % _STACK_BYTES == 0:
                    yield _stack(space, word)


def _stack(space: AddressSpace, pointer: int) -> tuple[int, int]:
    length = max(_STACK_BYTES, space.image.page_bytes)
    return pointer // length * length, length


def _address(base: int, offset: int) -> int:
    return base + offset & (1 << 64) - 1


def _words(space: AddressSpace, kept: PfnBitmap, address: int, length: int) -> tuple[int, ...]:
    """What stands there, as far as it is mapped and its frames are kept."""
    data = b""
    for each in space.mappings(address, length):
        last = each.physical_address + each.length - 1
        frames = {each.physical_address // space.image.page_bytes, last // space.image.page_bytes}
        if all(frame in kept for frame in frames):
            data += space.image.read_physical(each.physical_address, each.length)
    return struct.unpack_from(f"{space.image.byte_order}{len(data) // 8}Q", data)
