# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crashed kernel's log, from the lockless ring buffer of printk (Linux 5.10 and later).

Structures: kernel/printk/printk_ringbuffer.h; the layout comes from VMCOREINFO
(Documentation/admin-guide/kdump/vmcoreinfo.rst). A descriptor ring numbers the records; each descriptor has a
slot in ``infos`` with the same index, and the place of its text in a data ring, as logical positions that
only ever grow. Whatever is damaged costs the record that it belongs to.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.kernel_memory import KernelMemory
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["LogRecord", "format_record", "panic_message", "read_log"]

_STATE_SHIFT = 62  # DESC_FLAGS_SHIFT on 64 bits: the state stands in the two highest bits of state_var
_ID_MASK = (1 << _STATE_SHIFT) - 1  # DESC_ID_MASK
_COMMITTED, _FINALIZED = 1, 2  # enum desc_state: the two states in which a record has text to read
_BLOCK_ID_BYTES = 8  # struct prb_data_block: unsigned long id, then the text
_MOST_COUNT_BITS = 24  # log_buf_len is at most 2 GiB (LOG_BUF_LEN_MAX), with a descriptor for each 32 bytes
_MOST_SIZE_BITS = 31
_INFO_HEAD = "QQHBBI"  # struct printk_info: seq, ts_nsec, text_len, facility, flags:5 and level:3, caller_id

_PANIC = "Kernel panic - not syncing"


@dataclass(frozen=True)
class LogRecord:
    """One record of the log."""

    sequence: int
    timestamp_nsec: int
    """Since boot, by the kernel's local clock."""
    level: int
    """syslog priority: 0 emergency to 7 debug."""
    facility: int
    text: str
    """Without the line's end; may hold several lines."""


def read_log(info: VmcoreInfo, memory: KernelMemory, byte_order: str) -> Iterator[LogRecord]:
    """The records, oldest first. Raises BadVmcore if the ring itself cannot be found or is damaged."""
    ring = memory.unsigned(info.symbol("prb"), 8)
    desc_ring = ring + info.offset("printk_ringbuffer.desc_ring")
    data_ring = ring + info.offset("printk_ringbuffer.text_data_ring")

    def member(base: int, name: str, length: int = 8) -> int:
        return memory.unsigned(base + info.offset(name), length)

    counter = info.offset("atomic_long_t.counter")
    count_bits = member(desc_ring, "prb_desc_ring.count_bits", 4)
    size_bits = member(data_ring, "prb_data_ring.size_bits", 4)
    if not 0 < count_bits <= _MOST_COUNT_BITS or not 0 < size_bits <= _MOST_SIZE_BITS:
        raise BadVmcore(f"the log's ring buffer claims 2^{count_bits} records in 2^{size_bits} bytes")
    head = member(desc_ring + counter, "prb_desc_ring.head_id") & _ID_MASK
    tail = member(desc_ring + counter, "prb_desc_ring.tail_id") & _ID_MASK
    count = min((head - tail & _ID_MASK) + 1, 1 << count_bits)
    reader = _RecordReader(
        info,
        memory,
        byte_order,
        descs=member(desc_ring, "prb_desc_ring.descs"),
        infos=member(desc_ring, "prb_desc_ring.infos"),
        count_bits=count_bits,
        data=member(data_ring, "prb_data_ring.data"),
        size_bytes=1 << size_bits,
    )
    for back in range(count - 1, -1, -1):
        record = reader.read((head - back) & _ID_MASK)
        if record is not None:
            yield record


class _RecordReader:
    """Reads single records by their id."""

    def __init__(
        self,
        info: VmcoreInfo,
        memory: KernelMemory,
        byte_order: str,
        *,
        descs: int,
        infos: int,
        count_bits: int,
        data: int,
        size_bytes: int,
    ) -> None:
        self._memory = memory
        self._byte_order = byte_order
        self._descs, self._infos, self._data = descs, infos, data
        self._slot_mask = (1 << count_bits) - 1
        self._size_bytes = size_bytes
        self._desc_bytes = info.size("prb_desc")
        self._info_bytes = info.size("printk_info")
        self._state = info.offset("prb_desc.state_var") + info.offset("atomic_long_t.counter")
        self._begin = info.offset("prb_desc.text_blk_lpos") + info.offset("prb_data_blk_lpos.begin")
        self._next = info.offset("prb_desc.text_blk_lpos") + info.offset("prb_data_blk_lpos.next")
        self._info_head = info.offset("printk_info.seq")

    def read(self, record_id: int) -> LogRecord | None:
        """The record, or None if its slot holds another one, none that is finished, or cannot be read."""
        slot = record_id & self._slot_mask
        desc = self._descs + slot * self._desc_bytes
        try:
            state_var = self._memory.unsigned(desc + self._state, 8)
            if state_var & _ID_MASK != record_id or state_var >> _STATE_SHIFT not in (_COMMITTED, _FINALIZED):
                return None
            head = self._memory.read(
                self._infos + slot * self._info_bytes + self._info_head, struct.calcsize("<" + _INFO_HEAD)
            )
            sequence, timestamp, text_bytes, facility, flags_level, _ = struct.unpack(
                self._byte_order + _INFO_HEAD, head
            )
            begin = self._memory.unsigned(desc + self._begin, 8)
            end = self._memory.unsigned(desc + self._next, 8)
            text = self._text(record_id, begin, end, text_bytes)
        except BadVmcore:
            return None
        # Bit fields are laid out from the lowest bit on little-endian machines, from the highest on others.
        level = flags_level >> 5 if self._byte_order == "<" else flags_level & 7
        return LogRecord(sequence, timestamp, level, facility, text.decode("utf-8", "backslashreplace"))

    def _text(self, record_id: int, begin: int, end: int, text_bytes: int) -> bytes:
        if begin & 1 or begin == end:  # FAILED_LPOS, NO_LPOS: the record has no text block
            return b""
        start = begin % self._size_bytes
        # A block never wraps: what does not fit before the ring's end stands at its start. One that ends
        # exactly at the end does not wrap (commit 67e1b0052f6b, "printk_ringbuffer: don't needlessly wrap
        # data blocks around", 6.18), hence the last byte is asked, not the one behind it.
        if begin // self._size_bytes != (end - 1) // self._size_bytes:
            start = 0
            room = end % self._size_bytes
        else:
            room = end - begin
        length = min(text_bytes, room - _BLOCK_ID_BYTES)
        if length <= 0:
            return b""
        if self._memory.unsigned(self._data + start, _BLOCK_ID_BYTES) & _ID_MASK != record_id:
            raise BadVmcore(f"the text of log record {record_id} was overwritten")
        return self._memory.read(self._data + start + _BLOCK_ID_BYTES, length)


def format_record(record: LogRecord) -> str:
    """As dmesg prints it: ``[    5.123456] text``, further lines of the text indented as far as the first.

    Control characters are shown as \\xNN, as the kernel does for readers of /dev/kmsg.
    """
    seconds, nanoseconds = divmod(record.timestamp_nsec, 1_000_000_000)
    stamp = f"[{seconds:5d}.{nanoseconds // 1000:06d}] "
    lines = [
        "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)
        for line in record.text.split("\n")
    ]
    return stamp + f"\n{' ' * len(stamp)}".join(lines) + "\n"


def panic_message(record: LogRecord) -> str:
    """The line by which the kernel says why it panicked, if this record is that one; else empty."""
    return record.text.split("\n", 1)[0].strip() if record.text.startswith(_PANIC) else ""
