# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the memory of a lockless printk ring buffer; imports nothing of the package.

A layout of our own choice, with gaps between the members, said in VMCOREINFO: a reader that takes offsets for
granted fails. The ring begins as the kernel's (DESC0_ID, BLK0_LPOS): ids and positions wrap soon.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ADDRESS = 0xFFFF888000100000
RING = 256
"""Offset of struct printk_ringbuffer from ADDRESS, where the pointer to it stands."""
DESCS, INFOS, DATA = 4096, 8192, 12288
DESC_BYTES, INFO_BYTES = 40, 96

VMCOREINFO = {
    "SYMBOL(prb)": f"{ADDRESS:x}",
    "OFFSET(printk_ringbuffer.desc_ring)": "8",
    "OFFSET(printk_ringbuffer.text_data_ring)": "64",
    "OFFSET(prb_desc_ring.count_bits)": "0",
    "OFFSET(prb_desc_ring.descs)": "8",
    "OFFSET(prb_desc_ring.infos)": "16",
    "OFFSET(prb_desc_ring.head_id)": "24",
    "OFFSET(prb_desc_ring.tail_id)": "40",
    "SIZE(prb_desc)": str(DESC_BYTES),
    "OFFSET(prb_desc.state_var)": "8",
    "OFFSET(prb_desc.text_blk_lpos)": "16",
    "OFFSET(prb_data_blk_lpos.begin)": "0",
    "OFFSET(prb_data_blk_lpos.next)": "16",
    "SIZE(printk_info)": str(INFO_BYTES),
    "OFFSET(printk_info.seq)": "0",
    "OFFSET(printk_info.ts_nsec)": "8",
    "OFFSET(printk_info.text_len)": "16",
    "OFFSET(printk_info.caller_id)": "20",
    "OFFSET(printk_info.dev_info)": "28",
    "OFFSET(dev_printk_info.subsystem)": "0",
    "LENGTH(printk_info_subsystem)": "16",
    "OFFSET(dev_printk_info.device)": "20",
    "LENGTH(printk_info_device)": "48",
    "OFFSET(prb_data_ring.size_bits)": "0",
    "OFFSET(prb_data_ring.data)": "8",
    "OFFSET(atomic_long_t.counter)": "0",
}

ID_MASK = (1 << 62) - 1
LPOS_MASK = (1 << 64) - 1
RESERVED, COMMITTED, FINALIZED, REUSABLE = range(4)
FAILED_LPOS, NO_LPOS = 1, 3


@dataclass
class PrintkRing:
    """A ring that records are printed into as the kernel does; ``bytes()`` of it is its memory at ADDRESS."""

    count_bits: int = 3
    size_bits: int = 10
    byte_order: str = "<"
    address: int = ADDRESS
    slots: dict[int, tuple[int, bytes, int, int]] = field(default_factory=dict)
    """By slot: state_var, info, begin, end."""
    printed: int = 0
    head: int | None = None
    """What head_id says, if not the truth."""
    tail: int | None = None

    def __post_init__(self) -> None:
        self.data = bytearray(1 << self.size_bits)
        self.lpos = -(1 << self.size_bits) & LPOS_MASK  # BLK0_LPOS
        count = 1 << self.count_bits
        self.first_id = -count & ID_MASK
        self.slots[count - 1] = (REUSABLE << 62 | self.first_id - 1, b"", FAILED_LPOS, FAILED_LPOS)

    def print(
        self,
        text: str,
        *,
        state: int = FINALIZED,
        level: int = 6,
        facility: int = 0,
        exact_end: bool = False,
        caller_id: int = 1,
        device: tuple[str, str] = ("", ""),
        lpos: int | None = None,
        nsec: int | None = None,
    ) -> int:
        """One record; its slot. ``nsec``: when; without, a little later than the one before.

        ``exact_end`` lets its block end exactly at the end of the data ring; ``lpos`` is FAILED_LPOS or
        NO_LPOS for one without a block.
        """
        raw = text.encode()
        record_id = (self.first_id + self.printed) & ID_MASK
        begin, end = self._store(record_id, raw, exact_end) if lpos is None else (lpos, lpos)
        bits = level << 5 if self.byte_order == "<" else level
        info = struct.pack(
            self.byte_order + "QQHBBIxxxx16sxxxx48s",
            self.printed,
            1_500_000_000 + self.printed * 1000 if nsec is None else nsec,
            len(raw),
            facility,
            bits,
            caller_id,
            *(word.encode() for word in device),
        )
        slot = record_id & ((1 << self.count_bits) - 1)
        self.slots[slot] = (state << 62 | record_id, info, begin, end)
        self.printed += 1
        return slot

    def _store(self, record_id: int, raw: bytes, exact_end: bool) -> tuple[int, int]:
        size = 1 << self.size_bits
        block = 8 + (len(raw) + 7) // 8 * 8
        if exact_end:
            self.lpos = (self.lpos // size + 1) * size - block
        begin, end = self.lpos, self.lpos + block
        start = begin % size
        if start + block > size:  # does not fit before the end: stands at the start
            start = 0
            end = (begin // size + 1) * size + block
        self.lpos = end & LPOS_MASK
        self.data[start : start + 8 + len(raw)] = struct.pack(self.byte_order + "Q", record_id) + raw
        return begin, self.lpos

    def __bytes__(self) -> bytes:
        order = self.byte_order
        count = 1 << self.count_bits
        head = (self.first_id + self.printed - 1) & ID_MASK
        tail = (self.first_id + max(self.printed - count, -1)) & ID_MASK
        descs, infos, data = (self.address + offset for offset in (DESCS, INFOS, DATA))
        memory = bytearray(DATA + len(self.data))
        struct.pack_into(order + "Q", memory, 0, self.address + RING)
        struct.pack_into(
            order + "IxxxxQQQQQ",
            memory,
            RING + 8,
            self.count_bits,
            descs,
            infos,
            head if self.head is None else self.head,
            0,
            tail if self.tail is None else self.tail,
        )
        struct.pack_into(order + "IxxxxQ", memory, RING + 64, self.size_bits, data)
        for slot, (state_var, info, begin, end) in self.slots.items():
            struct.pack_into(order + "QQQQ", memory, DESCS + slot * DESC_BYTES + 8, state_var, begin, 0, end)
            memory[INFOS + slot * INFO_BYTES : INFOS + slot * INFO_BYTES + len(info)] = info
        memory[DATA:] = self.data
        return bytes(memory)
