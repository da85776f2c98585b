# SPDX-License-Identifier: LGPL-2.1-or-later
"""The headers of an ELF core as /proc/vmcore has them: file header, program headers, notes.

Layouts: elf(5) and the System V ABI, chapter 4, ELF64 class. The kernel writes them in
fs/proc/vmcore.c (merge_note_headers_elf64, process_ptload_program_headers_elf64): ELF header, program
headers right behind it, one PT_NOTE, then PT_LOADs, each beginning on a page of the file.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from kdump_service.errors import BadVmcore

__all__ = [
    "ELF_FLAGS_INCOMPLETE",
    "ELF_FLAGS_OFFSET",
    "NT_PRSTATUS",
    "ElfHeader",
    "Note",
    "ProgramHeader",
    "parse_header",
    "parse_notes",
    "parse_program_headers",
    "with_extended_numbering",
]

# Elf64_Ehdr: e_ident[16], e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags, e_ehsize,
# e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
EHDR = "16sHHIQQQIHHHHHH"
EHDR_BYTES = 64
# Elf64_Phdr: p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
PHDR = "IIQQQQQQ"
PHDR_BYTES = 56
# Elf64_Nhdr: n_namesz, n_descsz, n_type
_NHDR = "III"
NHDR_BYTES = 12
# Elf64_Shdr: sh_name, sh_type, sh_flags, sh_addr, sh_offset, sh_size, sh_link, sh_info, sh_addralign,
# sh_entsize
_SHDR = "IIQQQQIIQQ"
SHDR_BYTES = 64

ELFCLASS64 = 2
ELFDATA2LSB, ELFDATA2MSB = 1, 2
ET_CORE = 4
PT_LOAD, PT_NOTE = 1, 4
NT_PRSTATUS = 1
"""Type of the note, named CORE, that has the registers of one processor."""
PN_XNUM = 0xFFFF
"""In e_phnum: the count is in sh_info of section header 0 (elf(5))."""
MOST_PROGRAM_HEADERS = 1 << 20
"""More segments than any core has that is worth reading: refuse."""

ELF_FLAGS_OFFSET = 48
"""File offset of e_flags, a 32-bit word."""
ELF_FLAGS_INCOMPLETE = 0x1
"""In e_flags of a core: the dump is not whole. makedumpfile's DUMP_ELF_INCOMPLETE, which crash reports."""

MOST_NOTE_BYTES = 1 << 26
"""More notes than a machine with 8192 processors has (each PRSTATUS takes under 1 KiB): refuse."""


class ElfHeader(NamedTuple):
    """What is used of Elf64_Ehdr."""

    byte_order: str
    """``<`` or ``>``, as struct takes it."""
    machine: int
    program_headers_offset: int
    program_headers_count: int
    sections_offset: int
    flags: int


class ProgramHeader(NamedTuple):
    """One Elf64_Phdr of interest; sizes and offsets in bytes."""

    kind: int
    offset: int
    virtual_address: int
    physical_address: int
    file_bytes: int
    memory_bytes: int


class Note(NamedTuple):
    """One entry of a note segment."""

    name: str
    kind: int
    content: bytes


def parse_header(data: bytes) -> ElfHeader:
    """Check and read the file header. Raises BadVmcore."""
    if len(data) < EHDR_BYTES:
        raise BadVmcore(f"ends after {len(data)} bytes, within the ELF header")
    if data[:4] != b"\x7fELF":
        raise BadVmcore(f"begins with {data[:4].hex(' ')}, not with an ELF header")
    if data[4] != ELFCLASS64:
        raise BadVmcore(f"ELF class {data[4]} at offset 4 is not supported, only 2 (64 bits) is")
    if data[5] not in (ELFDATA2LSB, ELFDATA2MSB):
        raise BadVmcore(f"byte order {data[5]} at offset 5 is unknown")
    order = "<" if data[5] == ELFDATA2LSB else ">"
    fields = struct.unpack_from(order + EHDR, data)
    kind, machine, phoff, shoff, flags, phentsize, phnum = (fields[i] for i in (1, 2, 5, 6, 7, 9, 10))
    if kind != ET_CORE:
        raise BadVmcore(f"ELF type {kind} at offset 16 is not a core (4)")
    if phentsize != PHDR_BYTES:
        raise BadVmcore(
            f"program headers of {phentsize} bytes at offset 54 are not supported, only {PHDR_BYTES}"
        )
    if phnum == 0:
        raise BadVmcore("there are no program headers")
    return ElfHeader(order, machine, phoff, phnum, shoff, flags)


def with_extended_numbering(header: ElfHeader, section: bytes) -> ElfHeader:
    """The same header with the number of program headers that section header 0 gives. Raises BadVmcore."""
    if len(section) < SHDR_BYTES:
        raise BadVmcore(f"ends within section header 0 at offset {header.sections_offset:#x}")
    count = struct.unpack(header.byte_order + _SHDR, section)[7]
    if not 0 < count <= MOST_PROGRAM_HEADERS:
        raise BadVmcore(f"{count} program headers, as section header 0 says, are not supported")
    return header._replace(program_headers_count=count)


def parse_program_headers(header: ElfHeader, data: bytes, file_bytes: int) -> list[ProgramHeader]:
    """Read PT_NOTE and PT_LOAD entries from the bytes of the table. Raises BadVmcore.

    Each must lie within a file of ``file_bytes`` bytes; a header alone is never believed.
    """
    result = []
    for index in range(header.program_headers_count):
        position = index * PHDR_BYTES
        if position + PHDR_BYTES > len(data):
            raise BadVmcore(f"ends within program header {index} of {header.program_headers_count}")
        kind, _, offset, vaddr, paddr, filesz, memsz, _ = struct.unpack_from(
            header.byte_order + PHDR, data, position
        )
        if kind not in (PT_LOAD, PT_NOTE):
            continue
        if offset + filesz > file_bytes:
            raise BadVmcore(
                f"program header {index} claims bytes {offset:#x} to {offset + filesz:#x} "
                f"of a file of {file_bytes:#x} bytes"
            )
        result.append(ProgramHeader(kind, offset, vaddr, paddr, filesz, memsz))
    return result


def parse_notes(byte_order: str, data: bytes) -> list[Note]:
    """Read the entries of a note segment; name and content are each padded to 4 bytes.

    Stops at the first entry that does not fit: a damaged note costs itself and those behind it.
    """
    notes = []
    position = 0
    while position + NHDR_BYTES <= len(data):
        name_bytes, content_bytes, kind = struct.unpack_from(byte_order + _NHDR, data, position)
        name_start = position + NHDR_BYTES
        content_start = name_start + (name_bytes + 3) // 4 * 4
        content_end = content_start + content_bytes
        if content_end > len(data):
            break
        if name_bytes:
            name = data[name_start : name_start + name_bytes].rstrip(b"\0").decode("ascii", "replace")
            notes.append(Note(name, kind, data[content_start:content_end]))
        position = content_start + (content_bytes + 3) // 4 * 4
    return notes
