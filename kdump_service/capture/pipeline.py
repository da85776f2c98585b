# SPDX-License-Identifier: LGPL-2.1-or-later
"""The whole capture, from top to bottom.

Order: name the crash on the console -> a first record, synced -> the kernel's log -> the image under an
incomplete name -> verify by reading back -> sync and rename -> the final record -> the final action. A
stage that fails is recorded, and the next one that can still serve runs.

Whatever reads /proc/vmcore runs in a child: a page that kills who touches it, a fault of ours, a want of
memory cost that child. What it has found out comes back in the record, which it sends when it has changed.

Nothing here has to succeed for the machine to come back: kdump-capture.service reboots it when this process
ends, however it ends, and ends it when no bytes have moved for WatchdogSec=.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kdump_service import log
from kdump_service.capture.children import Children, End, Report
from kdump_service.capture.image_saver import ImageSaver, open_vmcore
from kdump_service.capture.kernel_log import (
    KernelLogText,
    read_kernel_log,
    save_kernel_log,
    save_newest_lines,
    say_log_end,
)
from kdump_service.capture.own_journal import save_own_journal
from kdump_service.capture.progress import MemoryGauge
from kdump_service.capture.read_guard import ReadGuard
from kdump_service.capture.settings import read_capture_settings
from kdump_service.capture.stages import INTERRUPTED, Interrupted, Stages
from kdump_service.capture_settings import CaptureSettings
from kdump_service.errors import (
    BadVmcore,
    TargetFull,
    TargetUnusable,
    VerificationFailed,
    WorkerFailed,
    describe,
)
from kdump_service.folders import FALLBACK_FOLDER
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes, format_seconds, format_utc, parse_utc
from kdump_service.record import (
    JOURNAL_FILE,
    RECORD_FILE,
    TEST_CRASH_MARK,
    DumpFile,
    DumpRecord,
    DumpState,
)
from kdump_service.targets.contract import Place, Target
from kdump_service.targets.local import LocalTarget
from kdump_service.vmcore.crash_identity import identify
from kdump_service.vmcore.printk import LogRecord
from kdump_service.vmcore.reader import Vmcore

__all__ = ["Capture", "Surroundings"]

logger = logging.getLogger(__name__)

PLAIN_COPY_REFUSED = "plain-copy-refused"
"""The reason of a problem: what is left without the engine is more than was asked for."""
STALLED = "stalled"
"""The reason of a problem: something shows no sign of life, such as a disk that does not answer."""
_WORK_SEC = 40
"""Beyond StallTimeoutSec=: what loading, or a search for symbols, takes on a slow machine without a word."""
_LAST_SEC = 8
"""For what is left to do when the capture was asked to end, or where something did not answer before."""
_KEPT_ROOM = {RECORD_FILE: 32 << 10}
"""For which room is kept. With 200 modules and a call trace of 100 functions a record has 12 KiB."""

_TEST_COMES_WITHIN_NSEC = 30 * 10**9
"""Between the line in the log that announces a test crash and the crash; busy processors print late."""


@dataclass
class Surroundings:
    """What the capture needs of the process that it runs in."""

    kernel_files: KernelFiles
    notify: Callable[[str], object]
    """Takes sd_notify(3) assignments."""
    clock: Callable[[], float] = time.time
    end_of_child: Callable[[], object] = lambda: None
    """Is called in each child that has done its work."""


class _Rung(NamedTuple):
    """One of the places that are tried, one after the other."""

    place: Place
    folder: str
    """What holds it, by its name in production."""


class Capture:
    """One capture; :meth:`run` does it all."""

    def __init__(self, surroundings: Surroundings) -> None:
        self._surroundings = surroundings
        self._kernel_files = surroundings.kernel_files
        self._root = surroundings.kernel_files.root
        self._gauge = MemoryGauge(self._kernel_files)
        self._started = surroundings.clock()
        self._settings: CaptureSettings = read_capture_settings(self._root)
        host = self._settings.host or self._kernel_files.host_name
        self._record = DumpRecord(
            name=_name(format_utc(self._started), host),
            host=host,
            boot_id=self._settings.boot_id,
            armed_identity=self._settings.armed_identity,
            environment=self._settings.environment,
            machine=os.uname().machine,
            armed_uptime_seconds=self._settings.armed_uptime_seconds,
            capture_uptime_seconds=round(self._kernel_files.uptime_sec(), 2),
            memory_total_kib=self._gauge.total_kib,
            memory_available_at_start_kib=self._gauge.available_at_start_kib,
        )
        self._stages = Stages(self._record, self._gauge, surroundings.notify)
        self._guard = ReadGuard()
        self._children = Children(surroundings.notify, self._take_record)
        self._name = self._record.name
        """What the dump is to be called, if the name is not taken."""
        self._rung: _Rung | None = None
        """Where it goes."""
        self._stalls = 0
        """How often something showed no sign of life."""

    @property
    def has_left_behind(self) -> bool:
        """Whether something did not answer, for which an orderly end of this boot would wait."""
        return bool(self._stalls or self._children.left_behind)

    def run(self) -> DumpRecord:
        """Capture, and return what became of it. Failures of stages are in the record, never raised."""
        with self._children:
            for problem in self._settings.problems:
                self._stages.add_problem("settings", "bad-configuration", problem)
            has_vmcore = self._in_child("identify", self._identify) is not False
            self._name_the_crash()
            on_target = self._settle(has_vmcore)
            if has_vmcore and on_target:
                self._save_image()
            self._finish()
        return self._record

    def _settle(self, has_vmcore: bool) -> bool:
        """Find the place where record and log go as a whole, and put them there; whether it is the target.

        Else they go where production looks for what found no target; else the newest lines go where there is
        most room; else to the console.
        """
        opened: list[_Rung] = []  # and they answer
        for stage, open_rung in (("open-target", self._open_target), ("open-fallback", self._open_fallback)):
            stalls = self._stalls
            self._rung = None
            self._rung, has_record = open_rung(stage)
            if self._rung is not None and has_record and self._saved_log(has_vmcore):
                self._discard(opened)
                return stage == "open-target"
            if self._rung is not None and self._stalls == stalls:
                opened.append(self._rung)
        self._rung = None
        if opened:
            rooms = {rung: self._in_child("room", functools.partial(_room_of, rung)) or 0 for rung in opened}
            self._rung = max(opened, key=lambda rung: rooms[rung])
            self._discard([rung for rung in opened if rung is not self._rung])
        if has_vmcore and not self._children.interrupted:
            self._in_child("kernel-log", self._save_newest_lines)
        return False

    def _saved_log(self, has_vmcore: bool) -> bool:
        """Save the log, if there is one to be read; False if the place does not take all of it, or does not
        answer."""
        if not has_vmcore:
            return True
        stalls = self._stalls
        saved = self._in_child("kernel-log", self._save_log)
        if saved is None and self._stalls == stalls:
            # It died, or was asked to end. What made it die need not come again.
            saved = self._in_child("kernel-log", self._save_log)
        return saved is not False and self._stalls == stalls

    def _discard(self, rungs: list[_Rung]) -> None:
        """Leave nothing where not all could be left."""

        def discard() -> None:
            for rung in rungs:
                with self._stages("discard"):
                    rung.place.discard()

        if rungs:
            self._in_child("discard", discard, is_last=True)

    # Children

    def _in_child(self, stage: str, work: Callable[[], Any], *, is_last: bool = False) -> Any:
        """Do a part of the work in a child, which may change the record; what it returned, or None if it came
        to no end, of which the record then tells. ``is_last``: it is done also if the capture was asked to
        end."""

        def in_child(report: Report) -> Any:
            self._stages.become_child(report.notify, lambda: report.record(dataclasses.asdict(self._record)))
            value = work()
            self._stages.changed()
            self._surroundings.end_of_child()
            return value

        silence_sec = self._settings.config.stall_timeout_sec + _WORK_SEC
        if self._children.interrupted or (is_last and self._stalls and self._rung is not None):
            silence_sec = _LAST_SEC
        with self._stages(stage):
            before = dataclasses.asdict(self._record)
            known = len(self._guard.bad)
            while True:
                outcome = self._children.run(
                    in_child,
                    silence_sec=silence_sec,
                    in_grandchildren=self._guard.be_quiet,
                    interrupted_too=is_last,
                )
                if outcome.end is End.DONE:
                    if len(self._guard.bad) > known:
                        self._tell_bad_pages(stage)
                    return outcome.value
                if outcome.end is not End.KILLED or not self._guard.blame(outcome.signal):
                    break
                self._record.take(before)
            if outcome.end is End.SILENT:
                self._stalls += 1
                self._stages.add_problem(stage, STALLED, f"the process that does this {outcome}")
            elif outcome.end is not End.INTERRUPTED:
                self._stages.add_problem(stage, WorkerFailed.reason, f"the process that does this {outcome}")
                if stage not in ("look", "final-record"):
                    self._in_child("look", self._look_at_files)
            elif not any(problem.reason == INTERRUPTED for problem in self._record.problems):
                raise Interrupted
        return None

    def _tell_bad_pages(self, stage: str) -> None:
        bad = self._guard.bad
        message = (
            f"{len(bad)} pages of the crashed kernel's memory kill whoever reads them, the last one found at "
            f"offset {bad[-1]:#x} of /proc/vmcore; they were left out"
        )
        self._stages.add_problem(stage, BadVmcore.reason, message)

    def _take_record(self, document: dict[str, Any]) -> None:
        """What a child tells."""
        self._record.take(document)
        self._gauge.low_water_kib = min(
            self._gauge.low_water_kib, self._record.memory_available_low_water_kib
        )

    def _look_at_files(self) -> None:
        """What became of the files that a child had begun, and did not finish."""
        with self._stages("look"):
            if self._rung is not None:
                files = [
                    file for file in self._rung.place.files() if file.name not in (RECORD_FILE, JOURNAL_FILE)
                ]
                self._record.files = [DumpFile(*file) for file in files]

    def _save_image(self) -> None:
        assert self._rung is not None
        saver = ImageSaver(
            self._kernel_files.vmcore,
            self._guard,
            self._rung.place,
            self._settings.config,
            self._record,
            self._stages,
            small_image=self._settings.small_image,
        )
        wants_copy = self._in_child("image", saver.save)
        if wants_copy is None and self._may_try_again():
            # It may have been too much; what made it die need not come again.
            wants_copy = self._in_child("image", functools.partial(saver.save, threads=1))
        if wants_copy is None:
            wants_copy = self._may_try_again()
        if not wants_copy:
            return
        if self._settings.config.allows_plain_copy:
            self._in_child("plain-copy", saver.save_plain_copy)
        else:
            self._stages.add_problem(
                "plain-copy",
                PLAIN_COPY_REFUSED,
                "the dump engine could not run, and a copy of all memory would hold what Contents="
                f"{self._settings.config.contents} leaves out; PlainCopy=yes allows it",
            )

    def _may_try_again(self) -> bool:
        """Whether the process that saves the image ended before it had begun to write, and we may go on."""
        stopped = self._children.interrupted or self._stalls
        return self._record.state is DumpState.CAPTURING and not stopped

    # Stages

    def _identify(self) -> bool:
        """Find out which kernel crashed, and when; whether there is a memory image at all."""
        with self._stages("identify"), open_vmcore(self._kernel_files.vmcore, self._guard) as source:
            info = source.vmcoreinfo
            if info.crash_time is not None:
                self._record.crash_time = format_utc(info.crash_time)
            self._record.kernel_release = info.release
            self._record.kernel_build_id = info.build_id
            self._record.vmcore_bytes = source.size_bytes
            return True
        return False

    def _name_the_crash(self) -> None:
        record = self._record
        moment = record.crash_time or format_utc(self._started)
        self._name = record.name = _name(moment, record.host)
        log.event(
            logger,
            logging.INFO,
            log.MessageId.CAPTURE_STARTED,
            f"Kernel {record.kernel_release or '(unknown)'} of {record.host} crashed at {moment}; "
            f"saving {format_bytes(record.vmcore_bytes)} of memory to {self._settings.config.target}",
            KDUMP_NAME=record.name,
            KDUMP_KERNEL_RELEASE=record.kernel_release,
            KDUMP_BOOT_ID=record.boot_id,
        )

    def _open_target(self, stage: str) -> tuple[_Rung | None, bool]:
        settings = self._settings
        target = LocalTarget(
            self._root / (settings.target_folder or settings.config.target).lstrip("/"),
            mount_point=_path(settings.target_mount_point),
            keep_free_bytes=settings.config.keep_free_bytes,
            kept_room=_KEPT_ROOM,
        )
        return self._open(stage, target, settings.config.target.rstrip("/"))

    def _open_fallback(self, stage: str) -> tuple[_Rung | None, bool]:
        settings = self._settings
        target = LocalTarget(
            self._root / (settings.fallback_folder or FALLBACK_FOLDER).lstrip("/"),
            mount_point=_path(settings.fallback_mount_point),
            kept_room=_KEPT_ROOM,
        )
        return self._open(stage, target, f"/{FALLBACK_FOLDER}")

    def _open(self, stage: str, target: Target, folder: str) -> tuple[_Rung | None, bool]:
        """Open a place, and write a first record there; whether that was possible, too."""

        def open_and_write() -> list[Any] | None:
            self._rung = None
            with self._stages(stage):
                self._rung = _Rung(target.open(self._name), folder)
            if self._rung is None:
                return None
            with self._stages("first-record"):
                self._rung.place.keep_room()
                self._write_record()
                return [self._rung.place.name, True]
            return [self._rung.place.name, False]

        told = self._in_child(stage, open_and_write, is_last=True)
        return (None, False) if told is None else (_Rung(target.opened(told[0]), folder), bool(told[1]))

    def _save_log(self) -> bool:
        """Identify the crash, and save the log, if it can be read; False if the place does not take all of
        it."""
        assert self._rung is not None
        with self._stages("kernel-log"), open_vmcore(self._kernel_files.vmcore, self._guard) as source:
            text = self._read_log(source)
            try:
                stored = save_kernel_log(text, source, self._rung.place, self._stages.alive)
            except (TargetFull, TargetUnusable, VerificationFailed) as error:
                self._stages.add_problem("kernel-log", error.reason, f"{describe(error)}. {error.hint}")
                return False
            self._record.files.append(DumpFile(*stored))
            self._record.kernel_log_records = text.records
            logger.info("Kernel log saved: %d records", text.records)
            with self._stages("second-record"):
                self._write_record()
                return True
            return False
        return True

    def _save_newest_lines(self) -> None:
        with self._stages("kernel-log"), open_vmcore(self._kernel_files.vmcore, self._guard) as source:
            text = self._read_log(source)
            if self._rung is not None:
                with self._stages("newest-lines"):
                    stored, self._record.kernel_log_records = save_newest_lines(text, self._rung.place)
                    self._record.files.append(DumpFile(*stored))
                    return
            say_log_end(text)

    def _read_log(self, source: Vmcore) -> KernelLogText:
        """Read the log, and tell in the record what it says of the crash."""
        text = read_kernel_log(source, self._stages.alive)
        if not self._record.crash_kind:  # else it was read before, for another place
            for damage in text.damage:
                self._stages.add_problem("kernel-log", BadVmcore.reason, damage)
            if text.lost_records:
                message = f"{text.lost_records} records of the log could not be read"
                self._stages.add_problem("kernel-log", BadVmcore.reason, message)
            self._record.test = _was_asked_for(text.last_records)
            with self._stages("identify-crash"):
                self._identify_crash(text.last_records)
            self._stages.changed()
        return text

    def _identify_crash(self, records: Sequence[LogRecord]) -> None:
        crash = identify(records)
        record = self._record
        record.panic_message, record.crash_kind, record.crash_title = (
            crash.panic_message,
            crash.kind,
            crash.title,
        )
        record.crash_task, record.crash_pid, record.crash_cpu = crash.task, crash.pid, crash.cpu
        record.taint, record.modules, record.call_trace = crash.taint, [*crash.modules], [*crash.call_trace]
        record.hardware_name, record.signature = crash.hardware_name, crash.signature
        logger.info(
            "Crash: %s: %s%s",
            crash.kind,
            crash.title or crash.panic_message or "the log does not tell more",
            f"; in task {crash.task} (pid {crash.pid}, CPU {crash.cpu})" if crash.task else "",
        )

    def _finish(self) -> None:
        record = self._record
        if record.state is DumpState.CAPTURING:
            record.state = DumpState.FAILED
        now = self._surroundings.clock()
        record.saved_time = format_utc(now)
        if record.crash_time:
            record.seconds_to_saved = round(max(now - parse_utc(record.crash_time), 0.0), 1)
        if self._rung is not None and not self._in_child(
            "final-record", self._write_last_record, is_last=True
        ):
            # The target takes nothing any more: production is to learn of the crash all the same.
            self._rung = None
            self._rung, _ = self._open_fallback("open-fallback")
        self._report()
        if self._rung is not None and self._settings.small_image and self._settings.target_folder:
            # A root file system keeps its journal itself.
            save = functools.partial(save_own_journal, self._root, self._rung.place)
            self._in_child("own-journal", save, is_last=True)

    def _write_last_record(self) -> bool:
        assert self._rung is not None
        with self._stages("final-record"):
            self._write_record()
            self._rung.place.release_room()
            return True
        return False

    # Helpers

    def _write_record(self) -> None:
        assert self._rung is not None
        self._record.name = self._rung.place.name
        self._rung.place.put(RECORD_FILE, self._record.to_json().encode())

    def _report(self) -> None:
        record = self._record
        fields: dict[str, str | int | float] = {
            "KDUMP_NAME": record.name,
            "KDUMP_STATE": record.state,
            "KDUMP_PANIC_MESSAGE": record.panic_message,
            "KDUMP_SIGNATURE": record.signature,
            "KDUMP_STORED_BYTES": record.stored_bytes,
            "KDUMP_SECONDS_TO_SAVED": record.seconds_to_saved,
        }
        where = "nowhere" if self._rung is None else f"{self._rung.folder}/{self._rung.place.name}"
        if record.state is DumpState.COMPLETE:
            text = (
                f"Dump saved: {where}, {format_bytes(record.stored_bytes)} for "
                f"{format_bytes(record.vmcore_bytes)} of memory, "
                f"{format_seconds(record.seconds_to_saved)} after the crash"
            )
            log.event(logger, logging.INFO, log.MessageId.DUMP_SAVED, text, **fields)
            return
        why = record.problems[-1].message if record.problems else "no stage said why"
        if record.state is DumpState.INCOMPLETE:
            text = f"Dump incomplete: {where}, {format_bytes(record.stored_bytes)}: {why}"
            log.event(logger, logging.ERROR, log.MessageId.DUMP_INCOMPLETE, text, **fields)
        else:
            text = f"No dump: {why} (record: {where})"
            log.event(logger, logging.ERROR, log.MessageId.CAPTURE_FAILED, text, **fields)


def _room_of(rung: _Rung) -> int:
    try:
        return rung.place.room_bytes(is_log=True)
    except TargetUnusable:
        return 0


def _name(moment: str, host: str) -> str:
    """A folder's name, of a time as format_utc has it and of any text."""
    host = "".join(c if c.isascii() and (c.isalnum() or c in "-.") else "-" for c in host)
    return f"{moment.replace('-', '').replace(':', '')}-{host.strip('.-') or 'localhost'}"


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _was_asked_for(records: Sequence[LogRecord]) -> bool:
    """Whether this is the crash that was announced, and not one of another hour of the same boot."""
    end = records[-1].timestamp_nsec if records else 0
    return any(
        TEST_CRASH_MARK in record.text and end - record.timestamp_nsec <= _TEST_COMES_WITHIN_NSEC
        for record in records
    )
