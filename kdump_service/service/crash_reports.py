# SPDX-License-Identifier: LGPL-2.1-or-later
"""Back in production: tell the journal of each crash that it has not been told of.

A crash is told first and put into the history afterwards, which marks it as told. A service that is killed in
between tells the one crash twice; the other way round it would never be told, and nobody looks for what they
have not heard of. Whoever counts entries can tell a repetition by its KDUMP_NAME.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from kdump_service import log
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes, format_seconds, parse_utc
from kdump_service.record import LOG_FILE, DumpRecord, DumpState, Problem
from kdump_service.service import proof
from kdump_service.store import history
from kdump_service.store.capture_journals import adopt_journal
from kdump_service.store.dumps import Presence, StoredDump

__all__ = ["CRASH_LOOP_SEC", "is_crash_loop", "report_crashes"]

logger = logging.getLogger(__name__)

CRASH_LOOP_SEC = 3600
"""The time in which CrashLoopLimit= crashes make a loop."""
_CLOCK_STEP_SEC = 300
"""A crash may seem to lie this far in the future: the machine's clock is set after it boots."""
_TARGET_STAGES = frozenset({"open-target", "open-fallback"})
_TARGET_REASONS = frozenset({"target-unusable", "target-full"})

Fields = dict[str, str | int | float]


def report_crashes(kernel_files: KernelFiles, target: str, crash_loop_limit: int = 0) -> int:
    """Log what happened since the last report; returns how many crashes were new.

    Oldest first, for each new record: the crash, and if it applies that the target failed or that there is no
    whole dump. Then a crash loop, and the verdict of a test crash. ``crash_loop_limit`` of 0 notices no loop.
    """
    root = kernel_files.root
    found = history.look(root, target)
    new = [
        dump for dump in found.dumps if dump.presence is Presence.PRESENT and not history.is_known(root, dump)
    ]
    for dump in new:
        adopt_journal(root, dump.folder, kernel_files.machine_id)
        earlier = [other for other in history.same_bug(found.dumps, dump) if other.name < dump.name]
        _report(dump, earlier, _seconds_to_production(kernel_files, dump) if dump is new[-1] else None)
        _report_target(dump)
        _report_incomplete(dump)
        proof.learn(root, dump.record)
        try:
            history.remember(root, dump)
        except OSError as error:
            logger.warning("%s will be reported again at the next start, ignoring: %s", dump.name, error)
    if new:
        _report_loop(found.dumps, new[-1], crash_loop_limit)
        try:
            history.prune(root, {dump.name for dump in found.dumps if dump.presence is Presence.PRESENT})
        except OSError as error:
            logger.warning("old records stay in the history, ignoring: %s", error)
    verdict = proof.verdict(root, kernel_files.boot_id, found.dumps, bool(found.unreachable))
    if verdict is not None:
        proof.tell_verdict(root, verdict)
    return len(new)


def is_crash_loop(dumps: Sequence[StoredDump], limit: int, now: float) -> bool:
    """Whether the machine crashed ``limit`` times within the hour before ``now`` (seconds since the epoch).

    Crashes that somebody asked for do not count. A ``limit`` of 0 is never reached.
    """
    return 0 < limit <= len(_crashes_within_the_hour(dumps, now))


def _crashes_within_the_hour(dumps: Sequence[StoredDump], now: float) -> list[StoredDump]:
    return [
        dump
        for dump in dumps
        if dump.record.crash_time
        and not dump.record.test
        and -_CLOCK_STEP_SEC <= now - parse_utc(dump.record.crash_time) <= CRASH_LOOP_SEC
    ]


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


def _identifying_fields(dump: StoredDump) -> Fields:
    record = dump.record
    return {
        "KDUMP_NAME": dump.name,
        "KDUMP_STATE": record.state,
        "KDUMP_FOLDER": str(dump.folder),
        "KDUMP_KERNEL_RELEASE": record.kernel_release,
        "KDUMP_BOOT_ID": record.boot_id,
        "KDUMP_CRASH_TIME": record.crash_time,
        "KDUMP_SIGNATURE": record.signature,
    }


def _report(dump: StoredDump, earlier: Sequence[StoredDump], seconds_to_production: float | None) -> None:
    record = dump.record
    fields = _identifying_fields(dump) | {
        "KDUMP_PANIC_MESSAGE": record.panic_message,
        "KDUMP_CRASH_KIND": record.crash_kind,
        "KDUMP_TEST": int(record.test),
        "KDUMP_IMAGE_FILE": str(dump.image or ""),
        "KDUMP_STORED_BYTES": record.stored_bytes,
        "KDUMP_SECONDS_TO_SAVED": record.seconds_to_saved,
        "KDUMP_SAME_BUG": len(earlier),
    }
    text = f"Kernel {record.kernel_release or '(unknown)'} crashed at {record.crash_time or '(unknown time)'}"
    why = record.panic_message or record.crash_title
    text += f" ({why})" if why else ""
    text += ", as was asked for by a test; " if record.test else "; "
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
    if earlier:
        times = [other.record.crash_time or "(unknown time)" for other in earlier]
        fields |= {"KDUMP_SAME_BUG_FIRST": times[0], "KDUMP_SAME_BUG_LAST": times[-1]}
        text += f". The same bug was seen {_times(len(earlier))} before, " + (
            f"first at {times[0]}, last at {times[-1]}" if len(earlier) > 1 else f"at {times[0]}"
        )
    if record.problems:
        text += ". " + "; ".join(f"{problem.stage}: {problem.message}" for problem in record.problems)
    level = logging.WARNING if record.state is DumpState.COMPLETE else logging.ERROR
    log.event(logger, level, log.MessageId.CRASH_RECORDED, text, **fields)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _target_problem(record: DumpRecord) -> Problem | None:
    return next(
        (
            problem
            for problem in record.problems
            if problem.stage in _TARGET_STAGES or problem.reason in _TARGET_REASONS
        ),
        None,
    )


def _report_target(dump: StoredDump) -> None:
    problem = _target_problem(dump.record)
    if problem is None:
        return
    has_log = any(file.name.startswith(LOG_FILE) for file in dump.record.files)
    saved = "the kernel's log and the record are" if has_log else "the record is"
    log.event(
        logger,
        logging.ERROR,
        log.MessageId.TARGET_FAILED,
        f"The target failed when the dump {dump.name} was saved: {problem.message}; {saved} in {dump.folder}",
        **_identifying_fields(dump),
        KDUMP_REASON=problem.reason,
        KDUMP_STAGE=problem.stage,
    )


def _report_incomplete(dump: StoredDump) -> None:
    record = dump.record
    if record.state is DumpState.COMPLETE:
        return
    why = record.problems[-1].message if record.problems else "the record does not say why"
    fields = _identifying_fields(dump) | {"KDUMP_STORED_BYTES": record.stored_bytes}
    if record.state is DumpState.INCOMPLETE:
        message_id = log.MessageId.DUMP_INCOMPLETE
        text = f"The dump {dump.name} can be read up to a point: {why}"
    else:
        message_id = log.MessageId.CAPTURE_FAILED
        text = f"The crash {dump.name} left no dump: {why}"
    log.event(logger, logging.ERROR, message_id, text, **fields)


def _report_loop(dumps: Sequence[StoredDump], newest: StoredDump, limit: int) -> None:
    if not newest.record.crash_time:
        return
    moment = parse_utc(newest.record.crash_time)
    if not is_crash_loop(dumps, limit, moment):
        return
    crashes = _crashes_within_the_hour(dumps, moment)
    same = len({dump.record.signature for dump in crashes if dump.record.signature}) == 1
    log.event(
        logger,
        logging.CRITICAL,
        log.MessageId.CRASH_LOOP,
        f"The kernel crashed {len(crashes)} times within an hour"
        + (", each time with the same bug" if same else ""),
        KDUMP_CRASHES=len(crashes),
        KDUMP_NAME=newest.name,
        KDUMP_SIGNATURE=newest.record.signature,
        KDUMP_KERNEL_RELEASE=newest.record.kernel_release,
    )
