# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the memory of the record buffer that printk had before 5.10; imports nothing of the package.

Records are stored as log_store() of those kernels does. The header has a gap more than the kernel's, said in
VMCOREINFO: a reader that takes offsets for granted fails.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

ADDRESS = 0xFFFF888000200000
BUFFER = 64
"""Offset of the buffer from ADDRESS, where the variables stand."""
ALIGN = 4

VMCOREINFO = {
    "SYMBOL(log_buf)": f"{ADDRESS:x}",
    "SYMBOL(log_buf_len)": f"{ADDRESS + 8:x}",
    "SYMBOL(log_first_idx)": f"{ADDRESS + 16:x}",
    "SYMBOL(log_next_idx)": f"{ADDRESS + 24:x}",
    "SIZE(printk_log)": "24",
    "OFFSET(printk_log.ts_nsec)": "0",
    "OFFSET(printk_log.len)": "8",
    "OFFSET(printk_log.text_len)": "10",
    "OFFSET(printk_log.dict_len)": "12",
    "OFFSET(printk_log.caller_id)": "20",
}
WITHOUT_CALLER = {key: value for key, value in VMCOREINFO.items() if "caller" not in key}


@dataclass
class PrintkLogBuf:
    """The buffer; ``bytes()`` of it is its memory at ADDRESS."""

    size: int = 4096
    byte_order: str = "<"
    first: int = 0
    next: int = 0
    time: int = 1_500_000_000
    places: list[int] = field(default_factory=list)
    """Where the records that are kept stand, oldest first."""

    def __post_init__(self) -> None:
        self.data = bytearray(self.size)

    def print(
        self, text: str, *, level: int = 6, facility: int = 0, caller_id: int = 1, words: str = ""
    ) -> None:
        """One record; ``words`` is its dictionary."""
        raw, dictionary = text.encode(), words.encode()
        used = 24 + len(raw) + len(dictionary)
        length = used + -used % ALIGN
        while self.places and not self._has_space(length):
            self.places.pop(0)
            self.first = self.places[0] if self.places else self.next
        if self.next + length + 24 > self.size:
            self.data[self.next : self.next + 24] = bytes(24)
            self.next = 0
        bits = level << 5 if self.byte_order == "<" else level
        header = struct.pack(
            self.byte_order + "QHHHBBxxxxI",
            self.time,
            length,
            len(raw),
            len(dictionary),
            facility,
            bits,
            caller_id,
        )
        self.data[self.next : self.next + length] = (header + raw + dictionary).ljust(length, b"\0")
        self.places.append(self.next)
        self.next += length
        self.time += 1000

    def _has_space(self, length: int) -> bool:
        free = self.first - self.next
        if self.next > self.first:
            free = max(self.size - self.next, self.first)
        return free >= length + 24

    def __bytes__(self) -> bytes:
        order = self.byte_order
        head = struct.pack(
            order + "QIxxxxIxxxxI",
            ADDRESS + BUFFER,
            self.size,
            self.first & 0xFFFFFFFF,
            self.next & 0xFFFFFFFF,
        )
        return head.ljust(BUFFER, b"\0") + bytes(self.data)
