# SPDX-License-Identifier: LGPL-2.1-or-later
"""Save the crashed kernel's log: the first thing that goes to disk after the record that names the crash."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from kdump_service.errors import TargetFull
from kdump_service.record import LOG_FILE
from kdump_service.targets.contract import Place, StoredFile, Upload, end_upload
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.printk import LogRecord, format_record, read_log
from kdump_service.vmcore.reader import Vmcore

__all__ = ["KernelLogText", "read_kernel_log", "save_kernel_log", "save_newest_lines", "say_log_end"]

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 64 << 10
_LAST_RECORDS = 1 << 14
"""Kept to identify the crash: about 4 MiB at most."""
_MOST_KEPT_BYTES = 2 << 20
"""Of the text, from its end. A log buffer has 128 KiB to 1 MiB in the kernels of distributions
(CONFIG_LOG_BUF_SHIFT); of a larger one the text is made a second time."""
_LEAST_BYTES = 4 << 10
"""With less room than this no file is begun."""
_MOST_SAID_BYTES = 16 << 10
"""A serial console of 9600 baud takes 17 s for them."""
_BEGIN_MARK = "----- end of the crashed kernel's log, which no place took -----"
_END_MARK = "----- that was all -----"


class KernelLogText(NamedTuple):
    """The log as it is to be saved."""

    newest: Sequence[bytes]
    """Its last records as text; all of them if they are not too many."""
    bytes: int
    """Of all text."""
    records: int
    lost_records: int
    """Records that were in the buffer but could not be read."""
    damage: list[str]
    """What was wrong with the buffer as a whole."""
    last_records: Sequence[LogRecord]
    """The end of the log, where the crash is told."""


def read_kernel_log(source: Vmcore, alive: Callable[[], object]) -> KernelLogText:
    """Read all of it; ``alive`` is called now and then. Raises BadVmcore if the core has no log that can be
    found."""
    records = read_log(source.vmcoreinfo, AddressSpace(source), source.byte_order)
    newest: deque[bytes] = deque()
    last: deque[LogRecord] = deque(maxlen=_LAST_RECORDS)
    count = total = kept = 0
    for record in records:
        text = _text_of(record)
        if total // _CHUNK_BYTES != (total + len(text)) // _CHUNK_BYTES:
            alive()
        count += 1
        total += len(text)
        kept += len(text)
        last.append(record)
        newest.append(text)
        while kept > _MOST_KEPT_BYTES:
            kept -= len(newest.popleft())
    return KernelLogText(newest, total, count, records.lost, records.damage, last)


def save_kernel_log(
    text: KernelLogText, source: Vmcore, place: Place, alive: Callable[[], object]
) -> StoredFile:
    """Write the log as text, synced, under its final name only when whole. Nothing is begun where there is no
    room for all of it. Raises TargetFull or TargetUnusable."""
    lines: Iterable[bytes] = text.newest
    if len(text.newest) < text.records:
        lines = map(_text_of, read_log(source.vmcoreinfo, AddressSpace(source), source.byte_order))
    upload = place.create(LOG_FILE, is_log=True)
    whole = False
    try:
        upload.reserve(max(text.bytes, 1))
        _write(upload, lines, alive)
        whole = True
    finally:
        stored = end_upload(upload, LOG_FILE, whole=whole)
    return stored


def save_newest_lines(text: KernelLogText, place: Place) -> tuple[StoredFile, int]:
    """Write as many of the last records as there is room for, into a file that says in name and text that it
    is not all; how many there are is returned, too. Raises TargetFull or TargetUnusable."""
    upload = place.create(LOG_FILE, is_log=True)
    try:
        room = min(sum(map(len, text.newest)), place.room_bytes(is_log=True)) + _LEAST_BYTES
        while True:
            try:
                upload.reserve(room)
                break
            except TargetFull:
                if room < _LEAST_BYTES:
                    raise
                room = room * 3 // 4
        lines: deque[bytes] = deque()
        head = b"[older lines of the log found no room]\n"
        left = room - len(head)
        for line in reversed(text.newest):
            left -= len(line)
            if left < 0:
                break
            lines.appendleft(line)
        _write(upload, [head, *lines], lambda: None)
    finally:
        stored = end_upload(upload, LOG_FILE, whole=False)
    return stored, len(lines)


def say_log_end(text: KernelLogText) -> None:
    """Where no place takes it: print the end of the log to the console and the journal, between marks."""
    lines: deque[bytes] = deque()
    left = _MOST_SAID_BYTES
    for line in reversed(text.newest):
        left -= len(line)
        if left < 0:
            break
        lines.appendleft(line)
    logger.critical("%s", _BEGIN_MARK)
    for line in lines:
        logger.critical("%s", line.decode().rstrip("\n"))
    logger.critical("%s", _END_MARK)


def _write(upload: Upload, lines: Iterable[bytes], alive: Callable[[], object]) -> None:
    written = 0
    for chunk in _chunks(lines):
        upload.write_at(written, chunk)
        written += len(chunk)
        alive()
    upload.set_size(written)  # of what was reserved


def _chunks(lines: Iterable[bytes]) -> Iterator[bytes]:
    pending = bytearray()
    for line in lines:
        pending += line
        if len(pending) >= _CHUNK_BYTES:
            yield bytes(pending)
            pending.clear()
    if pending:
        yield bytes(pending)


def _text_of(record: LogRecord) -> bytes:
    return format_record(record).encode("utf-8", "backslashreplace")
