# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of a rehearsal: has a unit do it, tells the journal, and keeps what was proven and
measured."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from kdump_service import log
from kdump_service.errors import CannotRehearse, ProgramFailed, error_class
from kdump_service.folders import STATE_FOLDER
from kdump_service.own_state import read_json, write_json
from kdump_service.process import run
from kdump_service.quantity import format_bytes, format_seconds
from kdump_service.record import DumpRecord, DumpState
from kdump_service.rehearse.verdict import RESULT_FILE, Rehearsal
from kdump_service.service.proof import learn_rehearsal

__all__ = ["REHEARSE_UNIT", "measured_by_rehearsals", "rehearse_by_unit", "tell_rehearsal", "values_of"]

logger = logging.getLogger(__name__)

REHEARSE_UNIT = "kdump-rehearse.service"
REHEARSALS_FILE = f"{STATE_FOLDER}/rehearsals.json"
_UNIT_SEC = 1560.0
"""The unit's own limit, and a minute."""
_MOST_RESULT_BYTES = 1 << 20
_MOST_KEPT = 8


def rehearse_by_unit(root: Path) -> Rehearsal:
    """The result, which may be that a capture would fail. Raises CannotRehearse, or what else the unit
    met."""
    path = root / RESULT_FILE
    failure: ProgramFailed | None = None
    try:
        path.unlink(missing_ok=True)
        try:
            run(["systemctl", "start", REHEARSE_UNIT], timeout_sec=_UNIT_SEC)
        except ProgramFailed as error:
            failure = error
        with open(path, encoding="utf-8") as file:
            answer = json.loads(file.read(_MOST_RESULT_BYTES))
        if "error" in answer:
            met = answer["error"]
            raise error_class(str(met["name"]))(str(met["text"]), str(met["hint"]))
        return Rehearsal.from_json(answer["result"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        hint = f"See: journalctl -u {REHEARSE_UNIT}"
        raise CannotRehearse(f"{REHEARSE_UNIT} left no result: {failure or error}", hint) from error


def tell_rehearsal(root: Path, rehearsal: Rehearsal) -> None:
    """Tell the journal, and keep what follows from it."""
    fields: dict[str, str | int | float] = {
        "KDUMP_ARMED_IDENTITY": rehearsal.identity,
        "KDUMP_REHEARSAL_REASON": rehearsal.reason,
        "KDUMP_REHEARSAL_ACCELERATOR": rehearsal.accelerator,
        "KDUMP_RESERVED_BYTES": rehearsal.reserved_bytes,
        "KDUMP_SPARE_BYTES": rehearsal.memory_low_water_kib << 10,
    }
    if rehearsal.passed:
        text = (
            f"The rehearsal saved a whole dump {format_seconds(rehearsal.seconds_to_saved)} after the panic"
            f"{' (emulated)' if rehearsal.accelerator == 'tcg' else ''}; of "
            f"{format_bytes(rehearsal.reserved_bytes)} reserved, "
            f"{format_bytes(rehearsal.memory_low_water_kib << 10)} were to spare"
        )
        log.event(logger, logging.INFO, log.MessageId.REHEARSAL_PASSED, text, **fields)
    else:
        text = f"The rehearsal failed ({rehearsal.reason}): {rehearsal.explanation}"
        log.event(logger, logging.ERROR, log.MessageId.REHEARSAL_FAILED, text, **fields)
    learn_rehearsal(root, rehearsal.identity, rehearsal.time, passed=rehearsal.passed)
    _keep_measure(root, rehearsal)


def values_of(rehearsal: Rehearsal) -> dict[str, str | bool | int | float | list[str]]:
    """The dictionary of the method Rehearse; what is not known is left out."""
    values: dict[str, str | bool | int | float | list[str]] = {
        "Passed": rehearsal.passed,
        "Reason": rehearsal.reason,
        "Explanation": rehearsal.explanation,
        "Remedy": rehearsal.hint,
        "Time": rehearsal.time,
        "Accelerator": rehearsal.accelerator,
        "ReservedBytes": rehearsal.reserved_bytes,
    }
    if rehearsal.memory_low_water_kib:
        values["MemoryBytes"] = rehearsal.memory_total_kib << 10
        values["SpareBytes"] = rehearsal.memory_low_water_kib << 10
        values["StoredBytes"] = rehearsal.stored_bytes
    for key, seconds in (
        ("SecondsToCapture", rehearsal.seconds_to_capture),
        ("SecondsToSaved", rehearsal.seconds_to_saved),
        ("SecondsToReboot", rehearsal.seconds_to_reboot),
    ):
        if seconds:
            values[key] = float(seconds)
    if not rehearsal.passed:
        values["Console"] = rehearsal.console
    return values


def _keep_measure(root: Path, rehearsal: Rehearsal) -> None:
    if not rehearsal.memory_low_water_kib:
        return
    measure = {
        "time": rehearsal.time,
        "release": rehearsal.release,
        "passed": rehearsal.passed,
        "reserved_bytes": rehearsal.reserved_bytes,
        "memory_total_kib": rehearsal.memory_total_kib,
        "memory_low_water_kib": rehearsal.memory_low_water_kib,
    }
    kept = [each for each in read_json(root / REHEARSALS_FILE, list) if each != measure]
    write_json(root / REHEARSALS_FILE, [*kept, measure][-_MOST_KEPT:])


def measured_by_rehearsals(root: Path) -> list[DumpRecord]:
    """As records of captures, with no more in them than whether it was one, the kernel and its memory. The
    small image alone can be rehearsed."""
    try:
        return [
            DumpRecord(
                name="rehearsal",
                state=DumpState.COMPLETE if each.get("passed") is True else DumpState.INCOMPLETE,
                kernel_release=str(each["release"]),
                environment="initramfs",
                memory_total_kib=int(each["memory_total_kib"]),
                memory_available_low_water_kib=int(each["memory_low_water_kib"]),
            )
            for each in read_json(root / REHEARSALS_FILE, list)
        ]
    except (TypeError, KeyError, ValueError) as error:
        logger.warning("%s: ignoring: %r", root / REHEARSALS_FILE, error)
        return []
