# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrink=yes: how much of the reservation is given back to production, and having it given back.

Never more than was measured: a crash of this very kernel was captured whole, and has left word of the most
memory that it used. Rehearsals, which have none of this machine's devices, can only add to that.
What is given back comes again with the next boot alone, and the kernel takes it back only while nothing is
loaded. The write itself is done by kdump-shrink.service.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from pathlib import Path

from kdump_service import log
from kdump_service.arm.loader import LoadRequest
from kdump_service.atomic_file import write_atomically
from kdump_service.config import Config
from kdump_service.errors import KdumpError, ProgramFailed
from kdump_service.kernel.crashkernel import reservation_of
from kdump_service.kernel.files import KernelFiles
from kdump_service.process import run
from kdump_service.quantity import format_bytes
from kdump_service.record import DumpRecord, DumpState
from kdump_service.service.estimate import (
    environment_of,
    of_the_same_kind,
    reservation_need,
    used_bytes,
)
from kdump_service.service.shrink_unit import LEAST_GAIN_BYTES, REQUEST_FILE, RESULT_FILE, Request
from kdump_service.service.shrunk import note_shrink
from kdump_service.unit_exchange import read_answer

__all__ = ["SHRINK_UNIT", "shrink_by_unit", "sufficient_bytes", "tell_shrink"]

logger = logging.getLogger(__name__)

SHRINK_UNIT = "kdump-shrink.service"
_UNIT_SEC = 25.0
"""The unit's own limit, and a little; nothing is loaded meanwhile."""
_LOADS = 3
"""Unload, load, and load once more where that was refused."""


def sufficient_bytes(
    kernel_files: KernelFiles,
    config: Config,
    records: Sequence[DumpRecord],
    loaded: LoadRequest,
    reserved_bytes: int,
) -> int:
    """To what the reservation is to be shrunk; 0 if it is to stay as it is.

    It stays where no crash was captured whole and measured, where less than LEAST_GAIN_BYTES would come back,
    where the kernel does not allow as many loads as it takes, and where it is not certain in which of two
    areas the memory would be missing.
    """
    # One that was cut off, or that saved the log alone, does not tell what a whole one uses; nor does a
    # rehearsal, whose few drivers are not those of the machine.
    whole = [
        record
        for record in of_the_same_kind(records, kernel_files.release, environment_of(loaded))
        if record.state is DumpState.COMPLETE and (record.pages or config.level is None)
    ]
    if not used_bytes(whole):
        return 0
    loads_left = kernel_files.crash_loads_left
    low_bytes = _low_area_bytes(kernel_files)
    if low_bytes is None or (loads_left is not None and loads_left < _LOADS):
        return 0
    need = reservation_need(kernel_files, config, records, loaded, reserved_bytes)
    left = need.recommended_bytes + low_bytes
    return left if left <= reserved_bytes - LEAST_GAIN_BYTES else 0


def _low_area_bytes(kernel_files: KernelFiles) -> int | None:
    """What stays of the size besides the area that holds the crash kernel; None if that is not known.

    A second area, below 4 GiB, is part of the size since Linux 6.5 (commit 16c6006af4d4), and what is given
    back is the first area's; before, it is not, and stays as it is. As its size stays on top, there is enough
    in both cases.
    """
    areas = kernel_files.crash_areas
    if areas == 1:
        return 0
    low = reservation_of(kernel_files.command_line).low
    if areas == 2 and low is not None:
        return low.size
    # By default it depends on architecture and swiotlb.
    return None


def shrink_by_unit(kernel_files: KernelFiles, size_bytes: int, reserved_bytes: int) -> int:
    """Have the unit do it, while nothing is loaded; the size that is left. Raises KdumpError."""
    root = kernel_files.root
    try:
        note_shrink(kernel_files, reserved_bytes, size_bytes)
        return int(_ask_unit(root, Request(uuid.uuid4().hex, size_bytes))["after_bytes"])
    except OSError as error:
        raise KdumpError(f"{SHRINK_UNIT} cannot be asked: {error.filename}: {error.strerror}") from error


def _ask_unit(root: Path, request: Request) -> dict[str, int]:
    (root / RESULT_FILE).unlink(missing_ok=True)
    write_atomically(root / REQUEST_FILE, request.to_json())
    failure: ProgramFailed | None = None
    try:
        run(["systemctl", "start", SHRINK_UNIT], timeout_sec=_UNIT_SEC)
    except ProgramFailed as error:
        failure = error
    finally:
        (root / REQUEST_FILE).unlink(missing_ok=True)
    return read_answer(root / RESULT_FILE, request.id, SHRINK_UNIT, failure)


def tell_shrink(before_bytes: int, after_bytes: int, wanted_bytes: int) -> None:
    """Tell the journal what came of it."""
    fields = {"KDUMP_RESERVED_BYTES": after_bytes, "KDUMP_GIVEN_BACK_BYTES": before_bytes - after_bytes}
    if after_bytes < wanted_bytes:
        level = logging.ERROR
        text = (
            f"{format_bytes(after_bytes)} are left reserved, where {format_bytes(wanted_bytes)} were to be "
            "left: a reboot brings the rest back"
        )
    else:
        level = logging.INFO
        text = (
            f"{format_bytes(before_bytes - after_bytes)} of memory given back to production until the next "
            f"boot; {format_bytes(after_bytes)} stay reserved, which captures were measured to need"
        )
    log.event(logger, level, log.MessageId.RESERVATION_SHRUNK, text, **fields)
