# SPDX-License-Identifier: LGPL-2.1-or-later
"""Modules of a few lines each: quantities, progress, errors, records, programs, the catalog."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from kdump_service import errors, log
from kdump_service.capture.progress import MemoryGauge, Progress, progress_line
from kdump_service.ctl.parser import make_parser
from kdump_service.kernel.files import KernelFiles
from kdump_service.process import run
from kdump_service.quantity import format_bytes, format_seconds, format_utc, parse_bytes, parse_utc
from kdump_service.record import DumpFile, DumpRecord, DumpState, Problem
from tests.builders.machine_root import MachineRoot

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("17", 17), ("4K", 4096), ("1M", 1 << 20), ("2G", 2 << 30), ("1T", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "1X", "1 G", "-1", "0x10", "\u0661"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_bytes(text)


def test_formats() -> None:
    sizes = [0, 1023, 1024, 1500, 15 << 20, 512 << 20, 1 << 40, 5 << 50]
    assert [format_bytes(size) for size in sizes] == [
        "0 B", "1023 B", "1.00 KiB", "1.46 KiB", "15.0 MiB", "512 MiB", "1.00 TiB", "5120 TiB",
    ]  # fmt: skip
    assert [format_seconds(s) for s in (0.04, 59.9, 60, 3599.4, 3600, 7500)] == [
        "0.0 s", "59.9 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "2 h 5 min",
    ]  # fmt: skip
    assert parse_utc(format_utc(1_795_406_400.9)) == 1_795_406_400


def test_progress_line() -> None:
    assert progress_line("Saving", 1 << 30, 4 << 30, 2.0) == "Saving: 25 % of 4.00 GiB, 512 MiB/s, 6.0 s left"
    assert progress_line("Saving", 0, 0, 0.0) == "Saving: 100 % of 0 B"


def test_progress_feeds_the_watchdog_and_spares_the_console(tmp_path: Path) -> None:
    machine = MachineRoot(tmp_path)
    gauge = MemoryGauge(KernelFiles(tmp_path))
    now = [0.0]
    notified: list[str] = []
    said: list[str] = []
    progress = Progress("Saving", 100, gauge, notified.append, said.append, lambda: now[0])
    machine.write("proc/meminfo", "MemAvailable: 90000 kB\n")
    for tick in range(101):
        now[0] = tick / 10
        progress.advance(tick)
    assert len(notified) == 11
    assert all(text.startswith("WATCHDOG=1\nSTATUS=Saving: ") for text in notified)
    assert len(said) == 2
    assert (gauge.available_at_start_kib, gauge.low_water_kib) == (150000, 90000)


def _error_classes() -> list[type[errors.KdumpError]]:
    classes = [errors.KdumpError]
    for each in classes:
        classes += [other for other in each.__subclasses__() if other.__module__ == errors.__name__]
    return classes


def test_every_error_has_its_own_words() -> None:
    classes = _error_classes()
    for attribute in ("reason", "exit_code"):
        values = [getattr(each, attribute) for each in classes]
        assert len(values) == len(set(values)), attribute
    assert all(errors.error_class(each.dbus_name()) is each for each in classes)
    assert errors.error_class("org.kdump.Kdump1.Error.FromTheFuture") is errors.KdumpError


def test_documented_exit_codes_are_those_of_the_classes() -> None:
    """In the man page, and in the text of ``kdumpctl --help``, where the numbers are exit codes only."""
    page = (REPOSITORY / "packaging/man/kdumpctl.8").read_text()
    in_the_page = [int(code) for code in re.findall(r"^\.It (\d+)$", page, re.MULTILINE)]
    told = re.findall(r"\b(\d+)(?: to (\d+))?\b", make_parser().epilog or "")
    in_the_help = [code for first, last in told for code in range(int(first), int(last or first) + 1)]
    # AlreadyRunning ends a second daemon, and reaches no client.
    of_classes = {each.exit_code for each in _error_classes() if each is not errors.AlreadyRunning}
    expected = sorted({0, 2, 3, 4, 5, 6, 130} | of_classes)
    assert in_the_page == expected
    assert in_the_help == expected


def test_error_text_reads_from_effect_to_cause() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as cause:
            raise errors.TargetUnusable("/var/crash cannot be made") from cause
    except errors.TargetUnusable as error:
        assert errors.describe(error) == "/var/crash cannot be made: [Errno 28] No space left on device"
    assert errors.describe(KeyError("x")) == "KeyError: 'x'"


def test_record_round_trip() -> None:
    record = DumpRecord(
        "n", DumpState.INCOMPLETE, files=[DumpFile("vmcore", 9, 4)], problems=[Problem("a", "b", "c")]
    )
    assert DumpRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"schema": 2, "name": "n", "state": "complete"}', '{"schema": 1, "name": "n"}',
        '{"schema": 1, "name": "n", "state": "odd"}', '{"schema": 1, "name": 3, "state": "failed"}',
        '{"schema": 1, "name": "n", "state": "failed", "files": [{"x": 1}]}',
        '{"schema": 1, "name": "n", "state": "failed", "files": 7}',
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        DumpRecord.from_json(text)


def test_fields_of_a_newer_version_are_passed_over() -> None:
    text = '{"schema": 1, "name": "n", "state": "failed", "colour": "red"}'
    assert DumpRecord.from_json(text) == DumpRecord("n", DumpState.FAILED)


def test_programs_fail_with_their_command() -> None:
    assert run(["echo", "a b"], timeout_sec=5) == "a b\n"
    with pytest.raises(errors.ProgramFailed, match=r"ls '/no where': exit status 2: .*No such file"):
        run(["ls", "/no where"], timeout_sec=5)
    with pytest.raises(errors.ProgramFailed, match=r"not finished after 0\.05 s"):
        run(["tail", "-f", "/dev/null"], timeout_sec=0.05)
    with pytest.raises(errors.ProgramFailed, match="nonexistent-program: cannot be started"):
        run(["nonexistent-program"], timeout_sec=5)


def test_journal_takes_bytes_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file name, or the kernel's command line, may have."""
    sent: list[tuple[str, dict[str, object]]] = []
    handler = log._JournalHandler()
    monkeypatch.setattr(handler, "_send", lambda message, **fields: sent.append((message, fields)))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    log.event(logger, logging.INFO, log.MessageId.ARMED, "a\udcff", KDUMP_KERNEL="b\udcfe", KDUMP_CRASHES=3)
    [(message, fields)] = sent
    assert (message, fields["KDUMP_KERNEL"], fields["KDUMP_CRASHES"]) == ("a\\udcff", "b\\udcfe", 3)
    assert fields["MESSAGE_ID"] == log.MessageId.ARMED


def test_catalog_has_every_message_id() -> None:
    catalog = (REPOSITORY / "units/kdump-service.catalog").read_text()
    assert sorted(re.findall(r"^-- ([0-9a-f]{32})$", catalog, re.MULTILINE)) == sorted(log.MessageId)
    assert max(map(len, catalog.splitlines())) <= 76


def test_man_page_has_every_journal_field() -> None:
    code = "".join(path.read_text() for path in (REPOSITORY / "kdump_service").rglob("*.py"))
    page = (REPOSITORY / "packaging/man/kdump-service.8").read_text()
    fields = r"\bKDUMP_[A-Z_]+[A-Z]\b"
    of_the_environment = {"KDUMP_SERVICE_FILES", "KDUMP_REHEARSAL_ACCELERATOR"}
    assert set(re.findall(fields, page)) == set(re.findall(fields, code)) - of_the_environment
