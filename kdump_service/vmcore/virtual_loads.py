# SPDX-License-Identifier: LGPL-2.1-or-later
"""Virtual addresses of memory, for an ELF core that is made of a format that has none."""

from __future__ import annotations

from collections.abc import Iterator

from kdump_service.errors import BadVmcore
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.elf import PT_LOAD, ProgramHeader
from kdump_service.vmcore.memory_image import MemoryImage

__all__ = ["kernel_mapping", "virtual_loads"]

_MOST_KERNEL_IMAGE_BYTES = 1 << 30  # KERNEL_IMAGE_SIZE of x86_64 with KASLR, the largest there is
_KERNEL_ALIGNMENT = 2 << 20  # CONFIG_PHYSICAL_ALIGN, MIN_KIMG_ALIGN


def virtual_loads(image: MemoryImage, existing: PfnBitmap) -> list[ProgramHeader]:
    """Segments as /proc/vmcore has them: the kernel's own mapping, as far as the page tables show it, and the
    direct mapping of all memory. Raises BadVmcore if the page tables do not tell."""
    space = AddressSpace(image)
    info = image.vmcoreinfo
    # mem_section is an array that was allocated at boot, so its address is one of the direct mapping.
    root = info.symbol("mem_section")
    physical, _ = space.translate(root)
    direct = root - physical
    page_bytes = image.page_bytes
    return [*kernel_mapping(space, info.symbol("_stext")), *_direct_mapping(existing, direct, page_bytes)]


def kernel_mapping(space: AddressSpace, text: int) -> Iterator[ProgramHeader]:
    """The kernel's own image, which holds the address ``text``. Raises BadVmcore if that is not mapped."""
    start = text // _KERNEL_ALIGNMENT * _KERNEL_ALIGNMENT
    physical, length = space.translate(start)
    try:
        while length < _MOST_KERNEL_IMAGE_BYTES:
            following, more = space.translate(start + length)
            if following != physical + length:
                break
            length += more
    except BadVmcore:
        pass  # not mapped: the image ends here
    length = min(length, _MOST_KERNEL_IMAGE_BYTES)
    yield ProgramHeader(PT_LOAD, 0, start, physical, length, length)


def _direct_mapping(existing: PfnBitmap, direct: int, page_bytes: int) -> Iterator[ProgramHeader]:
    start = end = 0
    for runs in existing.runs():
        for first, count in runs.tolist():
            if first != end and end > start:
                yield _direct(start, end, direct, page_bytes)
            if first != end:
                start = first
            end = first + count
    if end > start:
        yield _direct(start, end, direct, page_bytes)


def _direct(start: int, end: int, direct: int, page_bytes: int) -> ProgramHeader:
    physical, length = start * page_bytes, (end - start) * page_bytes
    return ProgramHeader(PT_LOAD, 0, direct + physical, physical, length, length)
