# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the memory of a whole machine, as /proc/vmcore shows it; imports nothing of the package.

    machine = Machine(generation="6.12")                     # x86_64, 256 MiB from 1 MiB on
    machine.pages.buddy(0x2000, order=10)                    # what pages are used for: see struct_page.py
    machine.pages.anon(0x3000)
    machine.fill(0x3000)                                     # content that a test can recognise
    machine.write_elf(tmp_path / "vmcore")                   # a sparse ELF file, or
    image = machine.image()                                  # in memory, without a file

There is what a dump tool needs: VMCOREINFO (a dict of lines, to be changed at will before the image is
made), a kernel image with KASLR, the root page table and utsname, page tables with the direct mapping of
all memory and the memmap, the mem_section array, struct pages. It lies at the top of the last range of
memory. Page frames from the start of memory up to ``machine.first_kernel_pfn`` are free for the test, which
may rely on 0x1000 to 0xa000 in the default machine. What the machine uses itself is described with
``pages.kernel``. drgn and makedumpfile take the files that ``write_elf`` makes.

Other machines:

    Machine(X86_64(levels=5), memory=[(0x1000, 0x9e000), (1 << 20, 3 << 30), (4 << 30, 2 << 30)])
    Machine(Aarch64(page_bytes=65536, va_bits=52, pa_bits=52), memory=[(1 << 50, 2 << 30)])
    Machine(memory=[(1 << 20, 1 << 40)], shared_memmap=True)   # 1 TiB: one 2 MiB block of structures for all
                                                               # sections; machine.pages.set(pfn % 32768, ...)
    Machine(scattered=True)                                    # leaves of the memmap physically apart
    Machine(memmap_leaf_bytes=4096)                            # as after memory hot-plug
    Machine(vmemmap=False)                                     # plain SPARSEMEM: memmap in the direct mapping
    Machine(extreme=False)                                     # SPARSEMEM_STATIC: a flat array of sections

Holes and damage: ``unmap_memmap``, ``remap_memmap`` (HugeTLB vmemmap optimisation), ``set_section``,
``section_flags``, ``image(missing=...)``.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.builders.kernel_page_tables import X86_64, Aarch64, KernelPageTables
from tests.builders.struct_page import GENERATIONS, PageLayout, PageStructures

__all__ = ["X86_64", "Aarch64", "Load", "Machine", "MachineImage", "Missing", "SparseMemory"]

ALL_ONES = (1 << 64) - 1
START_KERNEL_MAP = 0xFFFFFFFF80000000  # arch/x86/include/asm/page_64_types.h: __START_KERNEL_map
IMAGE_BYTES = 2 << 20
_CHUNK = 4096


class Missing(LookupError):
    """The machine, or the image made of it, does not have this memory."""


class SparseMemory:
    """Physical memory of which only written pages take room; the rest reads as zeros."""

    def __init__(self) -> None:
        self.chunks: dict[int, bytearray] = {}

    def write(self, physical: int, content: bytes) -> None:
        """Put bytes anywhere."""
        done = 0
        while done < len(content):
            number, start = divmod(physical + done, _CHUNK)
            part = content[done : done + _CHUNK - start]
            self.chunks.setdefault(number, bytearray(_CHUNK))[start : start + len(part)] = part
            done += len(part)

    def read(self, physical: int, length: int) -> bytes:
        """Get bytes from anywhere."""
        parts = []
        while length > 0:
            number, start = divmod(physical, _CHUNK)
            part = min(length, _CHUNK - start)
            chunk = self.chunks.get(number)
            parts.append(bytes(part) if chunk is None else bytes(chunk[start : start + part]))
            physical += part
            length -= part
        return b"".join(parts)


@dataclass(frozen=True)
class Load:
    """One PT_LOAD."""

    virtual: int
    physical: int
    length: int
    offset: int
    """In the file that ``write_elf`` makes."""


@dataclass
class MachineImage:
    """The machine as an image in memory; ``reads`` counts what was asked of it."""

    vmcoreinfo_text: bytes
    machine: int
    page_bytes: int
    loads: list[Load]
    ranges: list[tuple[int, int]]
    memory: SparseMemory
    note_segment: bytes
    missing: Collection[int] = ()
    """Page frames that the image does not have."""
    byte_order: str = "<"
    reads: list[tuple[int, int]] = field(default_factory=list)
    """(address, length) of each read_physical."""

    def read_physical(self, address: int, length: int) -> bytes:
        """Exactly these bytes. Raises Missing."""
        self.reads.append((address, length))
        if not any(start <= address and address + length <= start + size for start, size in self.ranges):
            raise Missing(f"no memory at {address:#x}, {length} bytes")
        if self.missing:
            for pfn in range(address // self.page_bytes, -(-(address + length) // self.page_bytes)):
                if pfn in self.missing:
                    raise Missing(f"page frame {pfn:#x} is not in the image")
        return self.memory.read(address, length)


class Machine:
    """A machine whose kernel has died; the module tells how to use it.

    ``memory``             (start, bytes) of each range of RAM
    ``generation``         layout of struct page: a key of struct_page.GENERATIONS, or a PageLayout
    ``kaslr_bytes``        how far the kernel image is moved, virtually
    ``page_offset``        x86_64: base of the direct mapping; 0 is the kernel's default
    ``vmemmap_base``       x86_64: base of the memmap; 0 is the kernel's default
    ``vmemmap``            False: plain SPARSEMEM, the memmap of each section in the direct mapping
    ``memmap_leaf_bytes``  largest leaf of the memmap's mapping; 0 is what the kernel takes
    ``scattered``          each leaf of the memmap elsewhere in memory
    ``shared_memmap``      one section's structures stand for all sections
    ``direct_leaf_bytes``  largest leaf of the direct mapping
    ``extreme``            SPARSEMEM_EXTREME, else a flat array
    ``section_size_bits``  0: the architecture's own
    ``max_physmem_bits``   0: the architecture's own
    ``section_flags``      low bits of section_mem_map of present sections
    """

    def __init__(
        self,
        architecture: X86_64 | Aarch64 | None = None,
        *,
        memory: Sequence[tuple[int, int]] = ((1 << 20, 255 << 20),),
        generation: str | PageLayout = "6.1",
        kaslr_bytes: int = 0x1C600000,
        page_offset: int = 0,
        vmemmap_base: int = 0,
        vmemmap: bool = True,
        memmap_leaf_bytes: int = 0,
        scattered: bool = False,
        shared_memmap: bool = False,
        direct_leaf_bytes: int = 1 << 30,
        extreme: bool = True,
        mem_section_bytes: int = 16,
        section_size_bits: int = 0,
        max_physmem_bits: int = 0,
        section_flags: int = 0b001111,
    ) -> None:
        self.architecture = arch = architecture or X86_64()
        self.layout = generation if isinstance(generation, PageLayout) else GENERATIONS[generation]
        self.ranges = sorted(memory)
        self.page_bytes = arch.page_bytes
        self.page_shift = arch.page_bytes.bit_length() - 1
        self.section_flags = section_flags
        self.extreme = extreme
        self.mem_section_bytes = mem_section_bytes
        self.memory = SparseMemory()
        self.memmap_blocks: dict[int, list[tuple[int, int]]] = {}
        """By section: (physical address, bytes) of each piece of its memmap, in order."""
        self.stack_pointers = [0]
        """Of each processor."""
        self._vmemmap = vmemmap
        self._shared = shared_memmap
        self._top = sum(self.ranges[-1]) // self.page_bytes * self.page_bytes
        self._choose_addresses(kaslr_bytes, page_offset, vmemmap_base)
        self._choose_sections(section_size_bits, max_physmem_bits)

        self.image_physical = self.allocate(IMAGE_BYTES, IMAGE_BYTES)
        self.root_physical = self.image_physical + 0x10000
        self.tables = KernelPageTables(
            arch, self.memory, self.root_physical, lambda: self.allocate(self.page_bytes)
        )
        self.tables.map(self.image_virtual, self.image_physical, IMAGE_BYTES)
        for start, length in self.ranges:
            first = -(-start // self.page_bytes) * self.page_bytes
            end = (start + length) // self.page_bytes * self.page_bytes
            self.tables.map(self.direct(first), first, end - first, direct_leaf_bytes)
        self.pages = PageStructures(
            self.layout,
            section_pages=self.section_pages,
            memmap_address=self.vmemmap_start,
            wrap_pages=self.section_pages if shared_memmap else 0,
        )
        self._place_memmap(
            memmap_leaf_bytes or (2 << 20 if self.page_bytes == 4096 else arch.page_bytes), scattered
        )
        self.vmcoreinfo: dict[str, str] = self._vmcoreinfo()
        self._place_sections()
        self._place_data()
        if not shared_memmap:
            self.pages.kernel(
                self.first_kernel_pfn, sum(self.ranges[-1]) // self.page_bytes - self.first_kernel_pfn
            )

    # Where things are

    @property
    def first_kernel_pfn(self) -> int:
        """The lowest page frame that the machine took for itself."""
        return self._top // self.page_bytes

    def direct(self, physical: int) -> int:
        """Address of the direct mapping."""
        return physical + self._direct_offset & ALL_ONES

    def symbol_address(self, offset: int) -> int:
        """Address at an offset within the kernel image."""
        return self.image_virtual + offset

    def memmap_physical(self, pfn: int) -> int:
        """Physical address of a frame's struct page, as the machine was made."""
        section, index = divmod(pfn, self.section_pages)
        at = index * self.layout.struct_page_bytes
        for physical, length in self.memmap_blocks[section]:
            if at < length:
                return physical + at
            at -= length
        raise AssertionError("a section's blocks hold its memmap")

    def allocate(self, length: int, alignment: int = 0) -> int:
        """Physical memory, downwards from the top of the last range."""
        alignment = alignment or self.page_bytes
        self._top = (self._top - length) // alignment * alignment
        assert self._top >= self.ranges[-1][0], "the last range of memory is too small"
        return self._top

    # Change it

    def write(self, physical: int, content: bytes) -> None:
        """Put content into memory."""
        self.memory.write(physical, content)

    def fill(self, pfn: int, count: int = 1) -> None:
        """Give page frames content that names them: ``content_of``."""
        for each in range(pfn, pfn + count):
            self.memory.write(each * self.page_bytes, self.content_of(each))

    def content_of(self, pfn: int) -> bytes:
        """What ``fill`` writes: the frame's number and words that differ from it."""
        words = np.arange(self.page_bytes // 8, dtype="<u8") + np.uint64(pfn * 0x9E3779B97F4A7C15 & ALL_ONES)
        words[0] = pfn
        return words.tobytes()

    def unmap_memmap(self, pfn: int, shift: int = 0) -> None:
        """Clear the page table entry that maps the frame's struct page (default: at the last level)."""
        self.tables.unmap(self.pages.address(pfn), shift or self.page_shift)

    def remap_memmap(self, pfn: int, physical: int) -> None:
        """Let the page of the memmap with this frame's struct page lie elsewhere (needs leaves of a page)."""
        address = self.pages.address(pfn) // self.page_bytes * self.page_bytes
        self.tables.map(address, physical, self.page_bytes, self.page_bytes)

    def set_section(self, section: int, section_mem_map: int) -> None:
        """Write a section's entry by hand; 0 is absent."""
        place = self._section_place(section) + self._section_member
        self.memory.write(place, section_mem_map.to_bytes(8, "little"))

    # Make the image

    def loads(self) -> list[Load]:
        """The segments as the kernel makes them: its image, then memory by the direct mapping."""
        align = max(self.page_bytes, 4096)
        offset = 0x10000
        result = []
        pieces = [(self.image_virtual, self.image_physical, IMAGE_BYTES)]
        pieces += [(self.direct(start), start, length) for start, length in self.ranges]
        for virtual, physical, length in pieces:
            result.append(Load(virtual, physical, length, offset + physical % align))
            offset += -(-(physical % align + length) // align) * align
        return result

    def image(self, *, loads: bool = True, missing: Collection[int] = ()) -> MachineImage:
        """The image in memory; without loads as a format that tells no virtual addresses."""
        self._store_structures()
        return MachineImage(
            self.vmcoreinfo_text(),
            self.architecture.e_machine,
            self.page_bytes,
            self.loads() if loads else [],
            list(self.ranges),
            self.memory,
            self.notes(),
            missing,
        )

    def write_elf(self, path: Path) -> Path:
        """A sparse ELF file with the layout of /proc/vmcore."""
        self._store_structures()
        loads = self.loads()
        notes = self.notes()
        ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
        head = struct.pack(
            "<16sHHIQQQIHHHHHH",
            ident, 4, self.architecture.e_machine, 1, 0, 64, 0, 0, 64, 56, 1 + len(loads), 0, 0, 0,
        )  # fmt: skip
        head += struct.pack("<IIQQQQQQ", 4, 0, 4096, 0, 0, len(notes), len(notes), 0)
        for load in loads:
            head += struct.pack(
                "<IIQQQQQQ", 1, 7, load.offset, load.virtual, load.physical, load.length, load.length, 0
            )
        assert len(head) <= 4096
        assert 4096 + len(notes) <= 0x10000
        with path.open("wb") as file:
            file.write(head.ljust(4096, b"\0") + notes)
            file.truncate(loads[-1].offset + loads[-1].length)
            for number in sorted(self.memory.chunks):
                for load in loads:
                    start = max(number * _CHUNK, load.physical)
                    end = min((number + 1) * _CHUNK, load.physical + load.length)
                    if start < end:
                        file.seek(load.offset + start - load.physical)
                        file.write(self.memory.read(start, end - start))
        return path

    def notes(self) -> bytes:
        """A PRSTATUS for each of ``stack_pointers``, else of zeros, and VMCOREINFO."""
        # struct elf_prstatus: the registers begin at 112; rsp is the 20th of x86_64, sp the 32nd of aarch64.
        length, sp = (336, 112 + 19 * 8) if self.architecture.e_machine == 62 else (392, 112 + 31 * 8)
        result = b""
        for pointer in self.stack_pointers:
            status = bytes(sp) + pointer.to_bytes(8, "little") + bytes(length - sp - 8)
            result += _note("CORE", 1, status)
        return result + _note("VMCOREINFO", 0, self.vmcoreinfo_text())

    def vmcoreinfo_text(self) -> bytes:
        """The content of the note."""
        return "".join(f"{key}={value}\n" for key, value in self.vmcoreinfo.items()).encode()

    # How it is made

    def _choose_addresses(self, kaslr_bytes: int, page_offset: int, vmemmap_base: int) -> None:
        arch = self.architecture
        if isinstance(arch, X86_64):
            # Documentation/arch/x86/x86_64/mm.rst
            five = arch.levels == 5
            self._direct_offset = page_offset or (0xFF11000000000000 if five else 0xFFFF888000000000)
            self.vmemmap_start = vmemmap_base or (0xFFD4000000000000 if five else 0xFFFFEA0000000000)
            self.image_virtual = START_KERNEL_MAP + 0x1000000 + kaslr_bytes
            return
        # arch/arm64/include/asm/memory.h: PAGE_OFFSET, KIMAGE_VADDR, VMEMMAP_START; before 5.4 upside down
        start = self.ranges[0][0] >> 30 << 30
        if arch.flipped:
            linear = -(1 << arch.runtime_va_bits)
            self.phys_offset = start + -(1 << arch.va_bits) - linear
            kimage = -(1 << min(arch.va_bits, 48) - 1) + (256 << 20)
            vmemmap = -(1 << arch.va_bits - self.page_shift + 6)
        else:
            linear = -(1 << arch.va_bits - 1)
            self.phys_offset = start
            kimage = -(1 << arch.va_bits) + (128 << 20)
            vmemmap = linear - (1 << arch.va_bits - 1 - self.page_shift + 6)
        self._direct_offset = linear - start
        self.image_virtual = kimage + kaslr_bytes // IMAGE_BYTES * IMAGE_BYTES & ALL_ONES
        first_pfn = self.phys_offset >> self.page_shift
        self.vmemmap_start = vmemmap - first_pfn * self.layout.struct_page_bytes & ALL_ONES

    def _choose_sections(self, section_size_bits: int, max_physmem_bits: int) -> None:
        arch = self.architecture
        if isinstance(arch, X86_64):
            self.section_size_bits = section_size_bits or 27
            self.max_physmem_bits = max_physmem_bits or (52 if arch.levels == 5 else 46)
        else:
            self.section_size_bits = section_size_bits or (29 if self.page_shift == 16 else 27)
            self.max_physmem_bits = max_physmem_bits or arch.pa_bits
        self.section_pages = 1 << self.section_size_bits - self.page_shift
        self.sections = sorted(
            {
                section
                for start, length in self.ranges
                for section in range(
                    start >> self.section_size_bits, (start + length - 1 >> self.section_size_bits) + 1
                )
            }
        )

    def _place_memmap(self, leaf_bytes: int, scattered: bool) -> None:
        section_bytes = self.section_pages * self.layout.struct_page_bytes
        assert section_bytes % self.page_bytes == 0
        block_bytes = min(section_bytes, leaf_bytes) if scattered else section_bytes
        blocks: list[tuple[int, int]] = []
        for section in self.sections:
            if not (self._shared and blocks):
                blocks = []
                for at in range(0, section_bytes, block_bytes):
                    length = min(block_bytes, section_bytes - at)
                    blocks.append((self.allocate(length, min(leaf_bytes, 2 << 20)), length))
                if not self._vmemmap and scattered:
                    raise AssertionError("plain SPARSEMEM has each section's memmap in one piece")
            self.memmap_blocks[section] = blocks
            if self._vmemmap:
                virtual = self.pages.address(section * self.section_pages)
                for physical, length in blocks:
                    self.tables.map(virtual, physical, length, leaf_bytes)
                    virtual += length

    def _place_sections(self) -> None:
        count = 1 << self.max_physmem_bits - self.section_size_bits
        self._section_member = 0
        self._roots: dict[int, int] = {}
        if self.extreme:
            self._per_root = self.page_bytes // self.mem_section_bytes
            length = -(-count // self._per_root)
            self.mem_section = self.allocate(length * 8)
        else:
            length = count
            self.mem_section = self.allocate(length * self.mem_section_bytes)
        self.vmcoreinfo["SYMBOL(mem_section)"] = f"{self.direct(self.mem_section):x}"
        self.vmcoreinfo["LENGTH(mem_section)"] = str(length)
        for section in self.sections:
            first = section * self.section_pages
            if self._vmemmap:
                base = self.vmemmap_start
            else:
                physical = self.memmap_blocks[section][0][0]
                base = self.direct(physical) - first * self.layout.struct_page_bytes & ALL_ONES
            self.set_section(section, base | self.section_flags)

    def _section_place(self, section: int) -> int:
        if not self.extreme:
            return self.mem_section + section * self.mem_section_bytes
        root, index = divmod(section, self._per_root)
        if root not in self._roots:
            self._roots[root] = self.allocate(self.page_bytes)
            self.memory.write(
                self.mem_section + 8 * root, self.direct(self._roots[root]).to_bytes(8, "little")
            )
        return self._roots[root] + index * self.mem_section_bytes

    def _place_data(self) -> None:
        """utsname and node_online_map, which makedumpfile looks at."""
        fields = ["Linux", "crashed", self.vmcoreinfo["OSRELEASE"], "#1 SMP", "x86_64", "(none)"]
        if isinstance(self.architecture, Aarch64):
            fields[4] = "aarch64"
        utsname = b"".join(each.encode().ljust(65, b"\0") for each in fields)
        self.memory.write(self.image_physical + 0x40000, utsname)
        self.memory.write(self.image_physical + 0x50000, (1).to_bytes(8, "little"))

    def _vmcoreinfo(self) -> dict[str, str]:
        """As kernel/vmcore_info.c and the architecture's own vmcore_info.c write it."""
        arch = self.architecture
        root = self.symbol_address(self.root_physical - self.image_physical)
        info = {
            "OSRELEASE": f"{self.layout.name}.0-test",
            "PAGESIZE": str(self.page_bytes),
            "SYMBOL(init_uts_ns)": f"{self.symbol_address(0x40000):x}",
            "OFFSET(uts_namespace.name)": "0",
            "SYMBOL(node_online_map)": f"{self.symbol_address(0x50000):x}",
            "SYMBOL(swapper_pg_dir)": f"{root:x}",
            "SYMBOL(_stext)": f"{self.image_virtual:x}",
            "SIZE(mem_section)": str(self.mem_section_bytes),
            "OFFSET(mem_section.section_mem_map)": "0",
            "NUMBER(SECTION_SIZE_BITS)": str(self.section_size_bits),
            "NUMBER(MAX_PHYSMEM_BITS)": str(self.max_physmem_bits),
            "SIZE(pglist_data)": "172032",
            "SIZE(zone)": "1664",
            "SIZE(free_area)": "104",
            "SIZE(list_head)": "16",
            "SIZE(nodemask_t)": "8",
            "OFFSET(pglist_data.node_zones)": "0",
            "OFFSET(pglist_data.nr_zones)": "168896",
            "OFFSET(pglist_data.node_start_pfn)": "168904",
            "OFFSET(pglist_data.node_spanned_pages)": "168920",
            "OFFSET(pglist_data.node_id)": "168928",
            "OFFSET(zone.free_area)": "192",
            "OFFSET(zone.vm_stat)": "1472",
            "OFFSET(zone.spanned_pages)": "120",
            "OFFSET(free_area.free_list)": "0",
            "OFFSET(list_head.next)": "0",
            "OFFSET(list_head.prev)": "8",
            "LENGTH(free_area.free_list)": "6",
            "NUMBER(NR_FREE_PAGES)": "0",
        }
        info |= self.layout.vmcoreinfo()
        if isinstance(arch, X86_64):
            phys_base = self.image_physical - (self.image_virtual - START_KERNEL_MAP)
            info |= {
                "NUMBER(phys_base)": str(phys_base),
                "SYMBOL(init_top_pgt)": f"{root:x}",
                "NUMBER(pgtable_l5_enabled)": str(int(arch.levels == 5)),
                "KERNELOFFSET": f"{self.image_virtual - START_KERNEL_MAP - 0x1000000:x}",
                "NUMBER(KERNEL_IMAGE_SIZE)": str(1 << 30),
                "NUMBER(sme_mask)": str(arch.sme_mask),
            }
        else:
            info |= {
                "NUMBER(VA_BITS)": str(arch.va_bits),
                "NUMBER(kimage_voffset)": f"0x{self.image_virtual - self.image_physical & ALL_ONES:x}",
                "NUMBER(PHYS_OFFSET)": f"0x{self.phys_offset & ALL_ONES:x}",
                "NUMBER(TCR_EL1_T1SZ)": f"0x{64 - arch.runtime_va_bits:x}",
                "KERNELOFFSET": "0",
            }
        info["CRASHTIME"] = "1700000000"
        return info

    def _store_structures(self) -> None:
        """Put the structures that were described into the memory of the memmap."""
        for section, array in self.pages.sections.items():
            content = array.tobytes()
            at = 0
            for physical, length in self.memmap_blocks[section]:
                self.memory.write(physical, content[at : at + length])
                at += length


def _note(name: str, kind: int, content: bytes) -> bytes:
    raw = name.encode() + b"\0"
    head = struct.pack("<III", len(raw), len(content), kind) + raw + bytes(-len(raw) % 4)
    return head + content + bytes(-len(content) % 4)
