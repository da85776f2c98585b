# SPDX-License-Identifier: LGPL-2.1-or-later
"""Save the crashed kernel's log: the first thing that goes to disk after the record that names the crash."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kdump_service.record import LOG_FILE
from kdump_service.targets.contract import Place, StoredFile, end_upload
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.printk import LogRecord, format_record, read_log
from kdump_service.vmcore.reader import Vmcore

__all__ = ["LOG_FILE", "SavedLog", "save_kernel_log"]

_CHUNK_BYTES = 64 << 10
_LAST_RECORDS = 1 << 14
"""Kept to identify the crash: about 4 MiB at most."""


class SavedLog(NamedTuple):
    """What became of the log."""

    file: StoredFile
    records: int
    lost_records: int
    """Records that were in the buffer but could not be read."""
    damage: list[str]
    """What was wrong with the buffer as a whole."""
    last_records: Sequence[LogRecord]
    """The end of the log, where the crash is told."""


def save_kernel_log(source: Vmcore, place: Place, alive: Callable[[], object]) -> SavedLog:
    """Write the log as text, synced, under its final name only when whole. ``alive`` is called as it grows.

    KeepFree= does not hold it up: a log is small, and the second promise. Raises BadVmcore if the core has no
    log that can be found, TargetFull or TargetUnusable.
    """
    records = read_log(source.vmcoreinfo, AddressSpace(source), source.byte_order)
    record = next(records, None)  # before the file: a log that cannot be found leaves no empty one
    upload = place.create(LOG_FILE, is_log=True)
    count = 0
    last: deque[LogRecord] = deque(maxlen=_LAST_RECORDS)
    pending = bytearray()
    written = 0
    whole = False
    try:
        while record is not None:
            count += 1
            last.append(record)
            pending += format_record(record).encode("utf-8", "backslashreplace")
            if len(pending) >= _CHUNK_BYTES:
                upload.write_at(written, bytes(pending))
                written += len(pending)
                pending.clear()
                alive()
            record = next(records, None)
        upload.write_at(written, bytes(pending))
        whole = True
    finally:
        saved = end_upload(upload, LOG_FILE, whole=whole)
    return SavedLog(saved, count, records.lost, records.damage, last)
