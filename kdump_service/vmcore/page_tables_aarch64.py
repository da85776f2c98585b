# SPDX-License-Identifier: LGPL-2.1-or-later
"""How the page tables of an aarch64 kernel are laid out.

Arm ARM D8.3 (VMSAv8-64 translation table format descriptors); arch/arm64/include/asm/pgtable-hwdef.h;
arch/arm64/kernel/vmcore_info.c (crash_core.c before 6.9) for what VMCOREINFO tells. The tables themselves
say where the linear map, the image, modules and the memmap are, so that it does not matter here in which
order a kernel lays them out (the linear map stands first since 5.4), nor what PHYS_OFFSET means in it.
"""

from __future__ import annotations

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.page_tables import HOLE, LEAF, TABLE, TableFormat
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["aarch64_format", "untagged"]

_PAGE_SHIFTS = (12, 14, 16)
_MOST_ADDRESS_BITS = 52
_VALID, _TABLE_OR_PAGE = 1, 3  # bits 1:0; 1 is a block, and nothing at the last level
_TAG_SIGN = 1 << 55  # with TBI the processor ignores bits 63:56; bit 55 selects the kernel's tables


def untagged(address: int) -> int:
    """A kernel pointer without the tag of KASAN (arch/arm64/include/asm/memory.h: __untagged_addr)."""
    return address | 0xFF << 56 if address & _TAG_SIGN else address


def aarch64_format(info: VmcoreInfo, page_bytes: int) -> TableFormat:
    """The tables of an aarch64 kernel. Raises BadVmcore where VMCOREINFO does not tell enough."""
    page_shift = page_bytes.bit_length() - 1
    if page_shift not in _PAGE_SHIFTS or page_bytes != 1 << page_shift:
        raise BadVmcore(f"pages of {page_bytes} bytes, which aarch64 does not have")
    address_bits = _address_bits(info, page_shift)
    if not page_shift < address_bits <= _MOST_ADDRESS_BITS:
        raise BadVmcore(f"VMCOREINFO: kernel addresses of {address_bits} bits, which aarch64 does not have")

    low = (1 << 48) - page_bytes
    high, high_shift = 0, 0
    if page_shift == 16:
        # FEAT_LPA: address bits 51:48 in 15:12, which are zeros where addresses have 48 bits.
        high, high_shift = 0xF000, 36
    elif address_bits == _MOST_ADDRESS_BITS:
        # FEAT_LPA2: 49:48 in place, 51:50 in 9:8, which otherwise tell shareability. With pages of 4 and
        # 16 KiB a kernel has it exactly when it runs with 52 bits of virtual address (352b0395b505, 6.9).
        low |= 3 << 48
        high, high_shift = 0x300, 42

    def decode(entry: int, shift: int) -> tuple[int, int]:
        if not entry & _VALID:
            return HOLE, 0
        physical = entry & low | (entry & high) << high_shift
        page_or_table = entry & _TABLE_OR_PAGE == _TABLE_OR_PAGE
        if shift == page_shift:
            return (LEAF, physical) if page_or_table else (HOLE, 0)
        if page_or_table:
            return TABLE, physical
        return LEAF, physical & -(1 << shift)

    # kimage_voffset since 20a166243328 (4.12).
    image_offset = info.number("kimage_voffset") if info.has("NUMBER(kimage_voffset)") else None
    return TableFormat(page_bytes, address_bits, decode, info.symbol("swapper_pg_dir"), image_offset)


def _address_bits(info: VmcoreInfo, page_shift: int) -> int:
    if page_shift < 16:
        # What the processor can, since bbdbc11804ff (5.9): a kernel that is built for 52 bits takes tables of
        # fewer levels where the processor lacks FEAT_LPA2 (0dd4f60a2c76, 6.9). Written in small letters by
        # the first distributions that had it.
        for name in ("TCR_EL1_T1SZ", "tcr_el1_t1sz"):
            if info.has(f"NUMBER({name})"):
                return 64 - info.number(name)
    # With 64 KiB pages swapper_pg_dir is laid out for VA_BITS, and its end used where the processor lacks
    # FEAT_LVA (c812026c54cf, 5.4).
    return info.number("VA_BITS")
