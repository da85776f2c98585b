# SPDX-License-Identifier: LGPL-2.1-or-later
"""The layout of kdump-compressed files, header version 6 on 64-bit machines.

Source: diskdump_mod.h and IMPLEMENTATION of makedumpfile. In order, counted in blocks, which are as long as a
page of the crashed kernel: header; sub header with the ELF notes behind it; bitmap 1 (frames that the machine
had) and bitmap 2 (frames that the file has); page descriptors, one for each frame of bitmap 2 in order; then
the pages.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np

from kdump_service.errors import BadVmcore

__all__ = [
    "PAGE_DESCRIPTOR",
    "SIGNATURE",
    "STATUS",
    "STATUS_OFFSET",
    "Header",
    "Layout",
    "SubHeader",
    "pack_header",
    "parse_header",
]

SIGNATURE = b"KDUMP   "
HEADER_VERSION = 6
UTS_NAMES = ("sysname", "nodename", "release", "version", "machine", "domainname")
UTS_NAME_BYTES = 65  # __NEW_UTS_LEN + 1, include/uapi/linux/utsname.h

# struct disk_dump_header: signature, header_version, utsname, padding, timestamp (struct timeval), status,
# block_size, sub_hdr_size, bitmap_blocks, max_mapnr, total_ram_blocks, device_blocks, written_blocks,
# current_cpu, nr_cpus
_HEADER = "8si390s6xqqIiiIIIIIIi"
HEADER_BYTES = struct.calcsize("<" + _HEADER)
STATUS = struct.Struct("<I")
STATUS_OFFSET = struct.calcsize("<8si390s6xqq")
"""Where the status stands, which says whether the file is whole."""
# struct kdump_sub_header: phys_base, dump_level, split, start_pfn, end_pfn, offset_vmcoreinfo,
# size_vmcoreinfo, offset_note, size_note, offset_eraseinfo, size_eraseinfo, start_pfn_64, end_pfn_64,
# max_mapnr_64
_SUB_HEADER = "QiiQQQQQQQQQQQ"
SUB_HEADER_BYTES = struct.calcsize("<" + _SUB_HEADER)

PAGE_DESCRIPTOR = np.dtype([("offset", "<u8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
"""struct page_desc; offset 0 means that the page was lost."""

_MOST_NOTE_BYTES = 1 << 26


class Header(NamedTuple):
    """What is used of struct disk_dump_header."""

    version: int
    uts: dict[str, str]
    timestamp: int
    """Seconds since the epoch."""
    status: int
    block_bytes: int
    sub_header_blocks: int
    bitmap_blocks: int
    """Of both bitmaps together."""
    max_mapnr: int
    cpus: int
    byte_order: str = "<"


class SubHeader(NamedTuple):
    """What is used of struct kdump_sub_header."""

    phys_base: int
    dump_level: int
    split: bool
    vmcoreinfo_offset: int
    vmcoreinfo_bytes: int
    note_offset: int
    note_bytes: int
    max_mapnr: int


class Layout(NamedTuple):
    """Where the parts of a file stand, in bytes."""

    block_bytes: int
    note_bytes: int
    max_mapnr: int
    page_count: int
    """Frames in bitmap 2."""

    @property
    def sub_header_blocks(self) -> int:
        """Blocks of the sub header and the notes."""
        return -(-(SUB_HEADER_BYTES + self.note_bytes) // self.block_bytes)

    @property
    def one_bitmap_bytes(self) -> int:
        """Length of each bitmap, in whole blocks."""
        return -(-self.max_mapnr // (8 * self.block_bytes)) * self.block_bytes

    @property
    def bitmaps_offset(self) -> int:
        """Beginning of bitmap 1; bitmap 2 follows."""
        return (1 + self.sub_header_blocks) * self.block_bytes

    @property
    def descriptors_offset(self) -> int:
        """Beginning of the descriptors."""
        return self.bitmaps_offset + 2 * self.one_bitmap_bytes

    @property
    def data_offset(self) -> int:
        """Beginning of the pages."""
        return self.descriptors_offset + self.page_count * PAGE_DESCRIPTOR.itemsize


def pack_header(header: Header, sub_header: SubHeader) -> bytes:
    """Header and sub header, without the notes."""
    uts = b"".join(
        header.uts.get(name, "").encode("utf-8", "replace")[: UTS_NAME_BYTES - 1].ljust(UTS_NAME_BYTES, b"\0")
        for name in UTS_NAMES
    )
    head = struct.pack(
        "<" + _HEADER,
        SIGNATURE,
        HEADER_VERSION,
        uts,
        header.timestamp,
        0,
        header.status,
        header.block_bytes,
        header.sub_header_blocks,
        header.bitmap_blocks,
        min(header.max_mapnr, 0xFFFFFFFF),
        0,
        0,
        0,
        0,
        header.cpus,
    )
    sub = struct.pack(
        "<" + _SUB_HEADER,
        sub_header.phys_base & 0xFFFFFFFFFFFFFFFF,
        sub_header.dump_level,
        0,
        0,
        0,
        sub_header.vmcoreinfo_offset,
        sub_header.vmcoreinfo_bytes,
        sub_header.note_offset,
        sub_header.note_bytes,
        0,
        0,
        0,
        0,
        header.max_mapnr,
    )
    return head.ljust(header.block_bytes, b"\0") + sub


def parse_header(data: bytes) -> Header:
    """The main header. Raises BadVmcore."""
    if data[: len(SIGNATURE)] != SIGNATURE:
        raise BadVmcore(f"begins with {data[:8].hex(' ')}, not with a kdump-compressed header")
    if len(data) < HEADER_BYTES:
        raise BadVmcore(f"ends after {len(data)} bytes, within the header")
    fields = struct.unpack_from("<" + _HEADER, data)
    _, version, uts, seconds, _, status, block_bytes, sub_blocks, bitmap_blocks, max_mapnr, *_, cpus = fields
    if not 1 <= version <= HEADER_VERSION:
        swapped = int.from_bytes(version.to_bytes(4, "little", signed=True), "big")
        if 1 <= swapped <= HEADER_VERSION:
            raise BadVmcore("was written on a big-endian machine, which is not supported")
        raise BadVmcore(f"header version {version} at offset 8 is not supported, only 1 to {HEADER_VERSION}")
    if block_bytes not in (4096, 8192, 16384, 32768, 65536):
        raise BadVmcore(f"block size {block_bytes} at offset 428 is no page size")
    if sub_blocks <= 0 or sub_blocks * block_bytes > _MOST_NOTE_BYTES:
        raise BadVmcore(f"{sub_blocks} blocks of sub header at offset 432 are not plausible")
    names = {
        name: uts[at * UTS_NAME_BYTES : (at + 1) * UTS_NAME_BYTES].split(b"\0")[0].decode("utf-8", "replace")
        for at, name in enumerate(UTS_NAMES)
    }
    return Header(version, names, seconds, status, block_bytes, sub_blocks, bitmap_blocks, max_mapnr, cpus)


def parse_sub_header(header: Header, data: bytes) -> SubHeader:
    """The sub header. Fields that a version does not have yet are 0. Raises BadVmcore."""
    if len(data) < SUB_HEADER_BYTES:
        raise BadVmcore("ends within the sub header")
    fields = struct.unpack_from("<" + _SUB_HEADER, data)
    since = (0, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 6)  # header version that brought the field
    values = [value if header.version >= version else 0 for value, version in zip(fields, since, strict=True)]
    max_mapnr = values[13] or header.max_mapnr
    return SubHeader(
        values[0], values[1], bool(values[2]), values[5], values[6], values[7], values[8], max_mapnr
    )
