# SPDX-License-Identifier: LGPL-2.1-or-later
"""Back in production: tell the journal of each crash that it has not been told of."""

from __future__ import annotations

import logging
import time

from kdump_service import log
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes, format_seconds, parse_utc
from kdump_service.record import DumpState
from kdump_service.store.dumps import StoredDump, mark_reported, scan, unreported

__all__ = ["report_crashes"]

logger = logging.getLogger(__name__)


def report_crashes(kernel_files: KernelFiles, target: str) -> int:
    """Log one structured entry for each new record, oldest first; returns how many there were."""
    dumps = scan(kernel_files.root, target)
    new = unreported(kernel_files.root, dumps)
    newest = new[-1] if new else None
    for dump in new:
        _report(dump, _seconds_to_production(kernel_files, dump) if dump is newest else None)
    if new:
        try:
            mark_reported(kernel_files.root, dumps)
        except OSError as error:
            logger.warning("crashes will be reported again at the next start, ignoring: %s", error)
    return len(new)


def _seconds_to_production(kernel_files: KernelFiles, dump: StoredDump) -> float | None:
    """From the panic until now, if this boot is the one that followed; None if that cannot be said.

    It is that boot if this kernel started within the time that a firmware takes after the capture ended.
    """
    record = dump.record
    if not record.crash_time or not record.saved_time:
        return None
    now = time.time()
    booted = now - kernel_files.uptime_sec()
    longest_firmware_sec = 900
    if not -5 <= booted - parse_utc(record.saved_time) <= longest_firmware_sec:
        return None
    return round(now - parse_utc(record.crash_time), 1)


def _report(dump: StoredDump, seconds_to_production: float | None) -> None:
    record = dump.record
    fields: dict[str, str | int | float] = {
        "KDUMP_NAME": dump.folder.name,
        "KDUMP_STATE": record.state,
        "KDUMP_FOLDER": str(dump.folder),
        "KDUMP_PANIC_MESSAGE": record.panic_message,
        "KDUMP_SIGNATURE": record.signature,
        "KDUMP_KERNEL_RELEASE": record.kernel_release,
        "KDUMP_CRASH_TIME": record.crash_time,
        "KDUMP_BOOT_ID": record.boot_id,
        "KDUMP_STORED_BYTES": record.stored_bytes,
        "KDUMP_SECONDS_TO_SAVED": record.seconds_to_saved,
    }
    text = f"Kernel {record.kernel_release or '(unknown)'} crashed at {record.crash_time or '(unknown time)'}"
    why = record.panic_message or record.crash_title
    text += f" ({why}); " if why else "; "
    match record.state:
        case DumpState.COMPLETE:
            text += (
                f"{format_bytes(record.stored_bytes)} saved in {dump.folder}, "
                f"{format_seconds(record.seconds_to_saved)} after the panic"
            )
        case DumpState.INCOMPLETE:
            text += f"the dump is incomplete: {format_bytes(record.stored_bytes)} in {dump.folder}"
        case _:
            text += f"no dump was saved; record in {dump.folder}"
    if seconds_to_production is not None:
        fields["KDUMP_SECONDS_TO_PRODUCTION"] = seconds_to_production
        text += f"; back in production after {format_seconds(seconds_to_production)}"
    if record.problems:
        text += ". " + "; ".join(f"{problem.stage}: {problem.message}" for problem in record.problems)
    level = logging.WARNING if record.state is DumpState.COMPLETE else logging.ERROR
    log.event(logger, level, log.MessageId.CRASH_RECORDED, text, **fields)
