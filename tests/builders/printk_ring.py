# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the memory of a lockless printk ring buffer; imports nothing of the package.

A layout of our own choice, with gaps between the members, said in VMCOREINFO: a reader that takes offsets for
granted fails.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ADDRESS = 0xFFFF888000100000

VMCOREINFO = {
    "SYMBOL(prb)": f"{ADDRESS:x}",
    "OFFSET(printk_ringbuffer.desc_ring)": "8",
    "OFFSET(printk_ringbuffer.text_data_ring)": "64",
    "OFFSET(prb_desc_ring.count_bits)": "0",
    "OFFSET(prb_desc_ring.descs)": "8",
    "OFFSET(prb_desc_ring.infos)": "16",
    "OFFSET(prb_desc_ring.head_id)": "24",
    "OFFSET(prb_desc_ring.tail_id)": "40",
    "SIZE(prb_desc)": "40",
    "OFFSET(prb_desc.state_var)": "8",
    "OFFSET(prb_desc.text_blk_lpos)": "16",
    "OFFSET(prb_data_blk_lpos.begin)": "0",
    "OFFSET(prb_data_blk_lpos.next)": "16",
    "SIZE(printk_info)": "96",
    "OFFSET(printk_info.seq)": "0",
    "OFFSET(prb_data_ring.size_bits)": "0",
    "OFFSET(prb_data_ring.data)": "8",
    "OFFSET(atomic_long_t.counter)": "0",
}

ID_MASK = (1 << 62) - 1
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)


@dataclass
class PrintkRing:
    """A ring that records are printed into as the kernel does; ``bytes()`` of it is its memory at ADDRESS."""

    count_bits: int = 3
    size_bits: int = 10
    first_id: int = ID_MASK - 2  # ids wrap soon
    byte_order: str = "<"
    slots: dict[int, tuple[int, bytes, int, int]] = field(default_factory=dict)
    """By slot: state_var, info, begin, end."""
    printed: int = 0
    lpos: int = 0

    def __post_init__(self) -> None:
        self.data = bytearray(1 << self.size_bits)

    def print(self, text: str, *, state: int = FINALIZED, level: int = 6, exact_end: bool = False) -> None:
        """One record; ``exact_end`` lets its block end exactly at the end of the data ring."""
        raw = text.encode()
        size = 1 << self.size_bits
        block = 8 + (len(raw) + 7) // 8 * 8
        if exact_end:
            self.lpos = (self.lpos // size + 1) * size - block
        begin, end = self.lpos, self.lpos + block
        start = begin % size
        if start + block > size:  # does not fit before the end: stands at the start
            start = 0
            end = (begin // size + 1) * size + block
        self.lpos = end
        record_id = (self.first_id + self.printed) & ID_MASK
        self.data[start : start + 8 + len(raw)] = struct.pack(self.byte_order + "Q", record_id) + raw
        bits = level << 5 if self.byte_order == "<" else level
        info = struct.pack(
            self.byte_order + "QQHBBI",
            self.printed,
            1_500_000_000 + self.printed * 1000,
            len(raw),
            0,
            bits,
            1,
        )
        slot = record_id & ((1 << self.count_bits) - 1)
        self.slots[slot] = (state << 62 | record_id, info, begin, end)
        self.printed += 1

    def __bytes__(self) -> bytes:
        order = self.byte_order
        count = 1 << self.count_bits
        descs, infos = ADDRESS + 4096, ADDRESS + 8192
        data = ADDRESS + 12288
        head = (self.first_id + self.printed - 1) & ID_MASK
        tail = (self.first_id + max(self.printed - count, 0)) & ID_MASK
        memory = bytearray(12288 + len(self.data))
        struct.pack_into(order + "Q", memory, 0, ADDRESS + 256)
        struct.pack_into(order + "IxxxxQQQQQ", memory, 256 + 8, self.count_bits, descs, infos, head, 0, tail)
        struct.pack_into(order + "IxxxxQ", memory, 256 + 64, self.size_bits, data)
        for slot, (state_var, info, begin, end) in self.slots.items():
            struct.pack_into(order + "QQQQ", memory, 4096 + slot * 40 + 8, state_var, begin, 0, end)
            memory[8192 + slot * 96 : 8192 + slot * 96 + len(info)] = info
        memory[12288:] = self.data
        return bytes(memory)
