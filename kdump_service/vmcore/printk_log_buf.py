# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record buffer of printk before the lockless ring (Linux 3.5 to 5.9).

Source: kernel/printk/printk.c of those versions (struct printk_log, log_store, log_next; replaced by
896fbe20b4e2, "printk: use the lockless ringbuffer", 5.10). Records of different length lie one behind the
other in ``log_buf``: a header, the text, the dictionary, up to LOG_ALIGN - 1 bytes of padding. A header
whose ``len`` is 0 says that the next record is at the start. The sequence numbers are not in VMCOREINFO, so
records are counted from the oldest that is kept.

The length of a record follows from those of its parts, by which a damaged one is recognised, and the next
good one found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.log_record import LogMemory, LogRecord, caller_text
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["PrintkLogBuf"]

_ALIGN = 4  # LOG_ALIGN where CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS is set (x86, arm64); elsewhere 8
_MOST_PADDING = 7
_MOST_RECORD_BYTES = 2048  # LOG_LINE_MAX (992) of text, and the 128 of create_syslog_header()
_LEAST_BYTES, _MOST_BYTES = 1 << 12, 1 << 31  # CONFIG_LOG_BUF_SHIFT is 12 and more; LOG_BUF_LEN_MAX
_MOST_SEARCHED_BYTES = 64 << 20
_CHUNK_BYTES = 4096
_MOST_STRUCT_BYTES = 256  # of printk_log (16, or 20 with a caller) that is worth believing


class _Header(NamedTuple):
    """struct printk_log, and where it stands."""

    position: int
    timestamp_nsec: int
    record_bytes: int
    """0: the next record is at the start of the buffer."""
    text_bytes: int
    dict_bytes: int
    facility: int
    level: int
    caller_id: str


class PrintkLogBuf:
    """The buffer; ``records()`` reads it. Raises BadVmcore if it cannot be found."""

    def __init__(self, info: VmcoreInfo, memory: LogMemory, byte_order: str) -> None:
        self.lost = 0
        """Damaged places, each of which held at least one record. Grows while records() runs."""
        self.damage: list[str] = []
        """What is wrong with the buffer as a whole."""
        self._memory = memory
        self._byte_order = byte_order
        self._searched_bytes = 0
        self._start = memory.unsigned(info.symbol("log_buf"), 8)
        self._bytes = memory.unsigned(info.symbol("log_buf_len"), 4)
        if not _LEAST_BYTES <= self._bytes <= _MOST_BYTES:
            raise BadVmcore(f"the log's buffer claims {self._bytes} bytes")
        self._first = memory.unsigned(info.symbol("log_first_idx"), 4)
        self._next = memory.unsigned(info.symbol("log_next_idx"), 4)
        self._header_bytes = info.size("printk_log")
        self._ts_nsec = info.offset("printk_log.ts_nsec")
        self._len = info.offset("printk_log.len")
        self._text_len = info.offset("printk_log.text_len")
        # facility (u8) and flags:5, level:3 (one byte) stand behind dict_len; VMCOREINFO does not name them.
        self._dict_len = info.offset("printk_log.dict_len")
        # With CONFIG_PRINTK_CALLER (commit 15ff2069cb7f, 5.1).
        has_caller = info.has("OFFSET(printk_log.caller_id)")
        self._caller_id = info.offset("printk_log.caller_id") if has_caller else None
        members = [(self._ts_nsec, 8), (self._len, 2), (self._text_len, 2), (self._dict_len, 4)]
        members += [(self._caller_id, 4)] if self._caller_id is not None else []
        if self._header_bytes > _MOST_STRUCT_BYTES or any(
            not 0 <= at <= self._header_bytes - length for at, length in members
        ):
            raise BadVmcore(f"VMCOREINFO: members of printk_log lie outside its {self._header_bytes} bytes")

    def records(self) -> Iterator[LogRecord]:
        """Oldest first."""
        first, end = self._first, self._next
        if first == end or not self._leads_to_record(first) or not self._is_index(end):
            first = end = self._oldest()
            self.damage.append("log_first_idx or log_next_idx is damaged; the whole buffer was searched")
            self.lost = self._searched_bytes = 0
        sequence = 0
        for begin, stop in [(first, end)] if first < end else [(first, self._bytes), (0, end)]:
            for header in self._headers(begin, stop):
                try:
                    record = self._record(header, sequence)
                except BadVmcore:
                    self.lost += 1
                    continue
                sequence += 1
                yield record

    def _is_index(self, index: int) -> bool:
        return 0 <= index < self._bytes and index % _ALIGN == 0

    def _leads_to_record(self, index: int) -> bool:
        return self._is_index(index) and self._header(index, self._bytes) is not None

    def _oldest(self) -> int:
        """Where the record begins before which time goes back the furthest: the buffer has wrapped there."""
        oldest, furthest, before = 0, 0, 0
        for header in self._headers(0, self._bytes):
            if before - header.timestamp_nsec > furthest:
                oldest, furthest = header.position, before - header.timestamp_nsec
            before = header.timestamp_nsec
        return oldest

    def _headers(self, begin: int, end: int) -> Iterator[_Header]:
        """The records of a part of the buffer, over what is damaged."""
        index = begin
        while index < end:
            header = self._header(index, end)
            if header is None or (header.record_bytes == 0 and not self._may_wrap(index, end)):
                header = self._search(index, end)
                if header is None:
                    return
            if header.record_bytes == 0:
                return
            yield header
            index = header.position + header.record_bytes

    def _may_wrap(self, index: int, end: int) -> bool:
        """Whether a header without length may say that the rest is at the start: only if little is left."""
        return end == self._bytes and end - index < 2 * _MOST_RECORD_BYTES

    def _header(self, index: int, end: int) -> _Header | None:
        """The header there, if it is one and its record ends by ``end``."""
        if index + self._header_bytes > end:
            return None
        try:
            return self._parse(self._memory.read(self._start + index, self._header_bytes), 0, index, end)
        except BadVmcore:
            return None

    def _parse(self, content: bytes, at: int, index: int, end: int) -> _Header | None:
        order = self._byte_order
        (length,) = struct.unpack_from(order + "H", content, at + self._len)
        (text_bytes,) = struct.unpack_from(order + "H", content, at + self._text_len)
        dict_bytes, facility, flags_level = struct.unpack_from(order + "HBB", content, at + self._dict_len)
        if length == 0:
            if text_bytes or dict_bytes:
                return None
        elif (
            not 0 <= length - self._header_bytes - text_bytes - dict_bytes <= _MOST_PADDING
            or length % _ALIGN
            or index + length > end
        ):
            return None
        caller = ""
        if self._caller_id is not None:
            caller = caller_text(*struct.unpack_from(order + "I", content, at + self._caller_id))
        (timestamp,) = struct.unpack_from(order + "Q", content, at + self._ts_nsec)
        return _Header(
            index,
            timestamp,
            length,
            text_bytes,
            dict_bytes,
            facility,
            # Bit fields begin at the lowest bit on little-endian machines, at the highest on others.
            flags_level >> 5 if order == "<" else flags_level & 7,
            caller,
        )

    def _search(self, index: int, end: int) -> _Header | None:
        """The next good record behind a place that is none: one that another one follows.

        Counts a record as lost, unless all up to ``end`` is zeros: that was never written.
        """
        only_zeros = True
        while index < end and self._searched_bytes < _MOST_SEARCHED_BYTES:
            self._searched_bytes += _CHUNK_BYTES
            chunk_bytes = min(_CHUNK_BYTES, end - index)
            try:
                content = self._memory.read(
                    self._start + index, min(chunk_bytes + self._header_bytes, self._bytes - index)
                )
            except BadVmcore:
                only_zeros = False
                index += _CHUNK_BYTES - (self._start + index) % _CHUNK_BYTES
                continue
            if content.count(0) < len(content):
                only_zeros = False
                for at in range(0, min(chunk_bytes, len(content) - self._header_bytes + 1), _ALIGN):
                    header = self._parse(content, at, index + at, end)
                    if header is not None and header.record_bytes and self._is_followed(header, end):
                        self.lost += 1
                        return header
            index += chunk_bytes
        self.lost += not only_zeros
        return None

    def _is_followed(self, header: _Header, end: int) -> bool:
        behind = header.position + header.record_bytes
        return behind == end or self._header(behind, end) is not None

    def _record(self, header: _Header, sequence: int) -> LogRecord:
        content = self._memory.read(
            self._start + header.position + self._header_bytes, header.text_bytes + header.dict_bytes
        )
        words = content[header.text_bytes :].decode("utf-8", "backslashreplace").split("\0")
        fields = dict(word.split("=", 1) for word in words if "=" in word)
        return LogRecord(
            sequence,
            header.timestamp_nsec,
            header.level,
            header.facility,
            content[: header.text_bytes].decode("utf-8", "backslashreplace"),
            header.caller_id,
            fields.get("SUBSYSTEM", ""),
            fields.get("DEVICE", ""),
        )
