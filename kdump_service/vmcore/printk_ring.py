# SPDX-License-Identifier: LGPL-2.1-or-later
"""The lockless ring buffer of printk (Linux 5.10 and later).

Structures: kernel/printk/printk_ringbuffer.h (since 896fbe20b4e2, "printk: use the lockless ringbuffer"); the
layout comes from VMCOREINFO (Documentation/admin-guide/kdump/vmcoreinfo.rst). A descriptor ring numbers the
records; each descriptor has a slot in ``infos`` with the same index, and the place of its text in a data
ring, as logical positions that only ever grow. Whatever is damaged costs the record that it belongs to.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.log_record import LogMemory, LogRecord, caller_text
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["PrintkRing"]

_STATE_SHIFT = 62  # DESC_FLAGS_SHIFT on 64 bits: the state stands in the two highest bits of state_var
_ID_MASK = (1 << _STATE_SHIFT) - 1  # DESC_ID_MASK
_COMMITTED, _FINALIZED, _REUSABLE = 1, 2, 3  # enum desc_state; records of the first two have text to read
_NO_LPOS = 3  # both positions of an empty line; FAILED_LPOS, 1, those of a record that found no room
_LPOS_MASK = (1 << 64) - 1  # logical positions are unsigned long
_BLOCK_ID_BYTES = 8  # struct prb_data_block: unsigned long id, then the text
_MOST_SIZE_BITS = 31  # LOG_BUF_LEN_MAX
_MOST_COUNT_BITS = 26  # setup_log_buf(): a descriptor for each 32 bytes (PRB_AVGBITS)
_MOST_STRUCT_BYTES = 4096  # of prb_desc (24) and printk_info (88) that is worth believing
_SAMPLES = 1024
_MOST_UNREADABLE = 1 << 16


class PrintkRing:
    """One ring; ``records()`` reads it. Raises BadVmcore if its head cannot be read or is damaged."""

    def __init__(self, info: VmcoreInfo, memory: LogMemory, byte_order: str, address: int) -> None:
        self.lost = 0
        """Records that have a place in the ring but no text that can be read: damaged, overwritten, or not
        finished when the kernel died. Grows while records() runs."""
        self.damage: list[str] = []
        """What is wrong with the ring as a whole."""
        self._memory = memory
        self._byte_order = byte_order
        self._read_ring(info, address)
        self._read_layout(info)

    def _read_ring(self, info: VmcoreInfo, address: int) -> None:
        memory = self._memory
        desc_ring = address + info.offset("printk_ringbuffer.desc_ring")
        data_ring = address + info.offset("printk_ringbuffer.text_data_ring")
        counter = info.offset("atomic_long_t.counter")
        count_bits = memory.unsigned(desc_ring + info.offset("prb_desc_ring.count_bits"), 4)
        size_bits = memory.unsigned(data_ring + info.offset("prb_data_ring.size_bits"), 4)
        if not 0 < count_bits <= _MOST_COUNT_BITS or not 0 < size_bits <= _MOST_SIZE_BITS:
            raise BadVmcore(f"the log's ring buffer claims 2^{count_bits} records in 2^{size_bits} bytes")
        self._count_bits = count_bits
        self._slot_mask = (1 << count_bits) - 1
        self._size_bytes = 1 << size_bits
        self._descs = memory.unsigned(desc_ring + info.offset("prb_desc_ring.descs"), 8)
        self._infos = memory.unsigned(desc_ring + info.offset("prb_desc_ring.infos"), 8)
        head = memory.unsigned(desc_ring + info.offset("prb_desc_ring.head_id") + counter, 8)
        tail = memory.unsigned(desc_ring + info.offset("prb_desc_ring.tail_id") + counter, 8)
        self._head, self._tail = head & _ID_MASK, tail & _ID_MASK
        self._data = memory.unsigned(data_ring + info.offset("prb_data_ring.data"), 8)

    def _read_layout(self, info: VmcoreInfo) -> None:
        self._desc_bytes = info.size("prb_desc")
        self._state = info.offset("prb_desc.state_var") + info.offset("atomic_long_t.counter")
        self._begin = info.offset("prb_desc.text_blk_lpos") + info.offset("prb_data_blk_lpos.begin")
        self._next = info.offset("prb_desc.text_blk_lpos") + info.offset("prb_data_blk_lpos.next")
        self._info_bytes = info.size("printk_info")
        self._seq = info.offset("printk_info.seq")
        self._ts_nsec = info.offset("printk_info.ts_nsec")
        # facility (u8) and flags:5, level:3 (one byte) stand behind text_len; VMCOREINFO does not name them.
        self._text_len = info.offset("printk_info.text_len")
        self._caller_id = info.offset("printk_info.caller_id")
        self._subsystem = self._device = range(0)
        if info.has("OFFSET(printk_info.dev_info)"):
            dev_info = info.offset("printk_info.dev_info")
            start = dev_info + info.offset("dev_printk_info.subsystem")
            self._subsystem = range(start, start + info.length("printk_info_subsystem"))
            start = dev_info + info.offset("dev_printk_info.device")
            self._device = range(start, start + info.length("printk_info_device"))
        members = [(self._state, 8), (self._begin, 8), (self._next, 8)]
        info_members = [(self._seq, 8), (self._ts_nsec, 8), (self._text_len, 4), (self._caller_id, 4)]
        info_members += [(self._subsystem.stop, 0), (self._device.stop, 0)]
        for what, size, inside in (
            ("prb_desc", self._desc_bytes, members),
            ("printk_info", self._info_bytes, info_members),
        ):
            if size > _MOST_STRUCT_BYTES or any(not 0 <= at <= size - length for at, length in inside):
                raise BadVmcore(f"VMCOREINFO: members of {what} lie outside its {size} bytes")

    def records(self) -> Iterator[LogRecord]:
        """Oldest first."""
        ids: Iterator[int]
        if self._is_consistent():
            ids = ((self._tail + step) & _ID_MASK for step in range((self._head - self._tail & _ID_MASK) + 1))
            for record_id in ids:
                yield from self._read(record_id, self._state_var(record_id))
        else:
            self.damage.append("the log's head_id or tail_id is damaged; all descriptors were searched")
            yield from self._search()

    def _is_consistent(self) -> bool:
        """Whether head and tail are the ids of the descriptors that they lead to.

        desc_reserve() moves head_id on before it writes the new descriptor's state_var, so that the one of
        the lap before may still stand there.
        """
        if (self._head - self._tail & _ID_MASK) > self._slot_mask:
            return False
        at_head, at_tail = (self._state_var(record_id) for record_id in (self._head, self._tail))
        if at_head is None or at_tail is None:
            return False
        heads = {self._head, self._head - self._slot_mask - 1 & _ID_MASK}
        return at_tail & _ID_MASK == self._tail and (at_head & _ID_MASK in heads or at_head == 0)

    def _search(self) -> Iterator[LogRecord]:
        """What all descriptors hold, by id.

        A lap is what an id has above its slot's bits. An intact ring holds ids of one lap and of the one
        before; which these are is what most descriptors say. Three laps are walked, rather than sorting all
        ids: that takes no memory.
        """
        laps: Counter[int] = Counter()
        for slot in range(0, self._slot_mask + 1, max(1, (self._slot_mask + 1) // _SAMPLES)):
            state_var = self._state_var(slot)
            if state_var and state_var & self._slot_mask == slot:
                laps[(state_var & _ID_MASK) >> self._count_bits] += 1
        if not laps:
            raise BadVmcore("the descriptors of the log's ring buffer hold no ids")
        middle = laps.most_common(1)[0][0]
        near = [(middle + step) & (_ID_MASK >> self._count_bits) for step in (-1, 0, 1)]
        unreadable = 0
        for lap in near:
            for slot in range(self._slot_mask + 1):
                state_var = self._state_var(slot)
                if state_var is None:
                    unreadable += 1
                    if unreadable > _MOST_UNREADABLE:
                        self.damage.append("too many descriptors of the log cannot be read; the search ended")
                        return
                record_id = lap << self._count_bits | slot
                if state_var is not None and state_var & _ID_MASK == record_id:
                    yield from self._read(record_id, state_var)
                elif lap == middle and state_var != 0:
                    # Not of this lap: if it is of none of the three it is damaged. 0 was never used.
                    other = None if state_var is None else (state_var & _ID_MASK) >> self._count_bits
                    right_slot = state_var is not None and state_var & self._slot_mask == slot
                    self.lost += not (right_slot and other in near)

    def _state_var(self, record_id: int) -> int | None:
        """state_var of the descriptor in that id's slot; None if it cannot be read."""
        address = self._descs + (record_id & self._slot_mask) * self._desc_bytes + self._state
        try:
            return self._memory.unsigned(address, 8)
        except BadVmcore:
            return None

    def _read(self, record_id: int, state_var: int | None) -> Iterator[LogRecord]:
        """The record, or none: then it is counted as lost if it should be there."""
        if state_var is not None and state_var & _ID_MASK == record_id and state_var >> 62 == _REUSABLE:
            return  # its text made room for newer ones
        if (
            state_var is None
            or state_var & _ID_MASK != record_id
            or state_var >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED)
        ):
            self.lost += 1
            return
        try:
            yield self._record(record_id)
        except BadVmcore:
            self.lost += 1

    def _record(self, record_id: int) -> LogRecord:
        slot = record_id & self._slot_mask
        order = self._byte_order
        desc = self._memory.read(self._descs + slot * self._desc_bytes, self._desc_bytes)
        (begin,) = struct.unpack_from(order + "Q", desc, self._begin)
        (end,) = struct.unpack_from(order + "Q", desc, self._next)
        info = self._memory.read(self._infos + slot * self._info_bytes, self._info_bytes)
        (sequence,) = struct.unpack_from(order + "Q", info, self._seq)
        (timestamp,) = struct.unpack_from(order + "Q", info, self._ts_nsec)
        text_bytes, facility, flags_level = struct.unpack_from(order + "HBB", info, self._text_len)
        (caller_id,) = struct.unpack_from(order + "I", info, self._caller_id)
        return LogRecord(
            sequence,
            timestamp,
            # Bit fields begin at the lowest bit on little-endian machines, at the highest on others.
            flags_level >> 5 if order == "<" else flags_level & 7,
            facility,
            self._text(record_id, begin, end, text_bytes).decode("utf-8", "backslashreplace"),
            caller_text(caller_id),
            _word(info, self._subsystem),
            _word(info, self._device),
        )

    def _text(self, record_id: int, begin: int, end: int, text_bytes: int) -> bytes:
        span = end - begin & _LPOS_MASK
        if begin & 1:
            if begin != _NO_LPOS:
                raise BadVmcore(f"log record {record_id} found no room for its text")
            return b""
        if span == 0:
            return b""
        start = begin % self._size_bytes
        # A block never wraps: what does not fit before the ring's end stands at its start. One that ends
        # exactly at the end does not wrap (commit 67e1b0052f6b, "printk_ringbuffer: don't needlessly wrap
        # data blocks around", 6.18), hence the last byte is asked, not the one behind it.
        if begin // self._size_bytes == (end - 1 & _LPOS_MASK) // self._size_bytes:
            room = span
        else:
            start = 0
            room = end % self._size_bytes
        if span > 2 * self._size_bytes or room < _BLOCK_ID_BYTES:
            raise BadVmcore(f"log record {record_id} claims {span} bytes of text")
        if self._memory.unsigned(self._data + start, _BLOCK_ID_BYTES) & _ID_MASK != record_id:
            raise BadVmcore(f"the text of log record {record_id} was overwritten")
        length = min(text_bytes, room - _BLOCK_ID_BYTES)
        return self._memory.read(self._data + start + _BLOCK_ID_BYTES, length) if length else b""


def _word(info: bytes, where: range) -> str:
    """A string of fixed length, padded with NULs."""
    return info[where.start : where.stop].partition(b"\0")[0].decode("utf-8", "backslashreplace")
