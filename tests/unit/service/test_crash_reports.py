# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the journal is told after a crash: each thing once, and what an administrator needs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from kdump_service.kernel.files import KernelFiles
from kdump_service.log import MessageId
from kdump_service.record import DumpRecord
from kdump_service.service import crash_reports
from kdump_service.service.crash_reports import is_crash_loop, report_crashes
from kdump_service.service.proof import announce_test, proof_of
from kdump_service.store import history
from kdump_service.store.dump_folder import delete
from kdump_service.store.dumps import StoredDump, scan
from tests.builders.machine_root import BOOT_ID, RELEASE, MachineRoot
from tests.builders.stored_dumps import FALLBACK, FIRST_CRASH, TARGET, name_of, put_dump, utc

CATALOG = Path(__file__).parents[3] / "units/kdump-service.catalog"
HOUR = 3600


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


class _Journal:
    """What was logged as events."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "kdump_service")
        self._caplog = caplog

    def take(self) -> list[tuple[MessageId, str, dict[str, Any]]]:
        """The events since the last call: id, text, fields."""
        events = [
            (MessageId(record.journal_fields["MESSAGE_ID"]), record.getMessage(), record.journal_fields)
            for record in self._caplog.records
            if hasattr(record, "journal_fields")
        ]
        self._caplog.clear()
        for message_id, _, fields in events:
            _catalog_text(message_id, fields)
        return events

    def ids(self) -> list[MessageId]:
        """Ids of the events since the last call."""
        return [message_id for message_id, _, _ in self.take()]


def _catalog_text(message_id: MessageId, fields: dict[str, Any]) -> str:
    """As journalctl -x shows it. Every field that the entry names must be there."""
    entry = CATALOG.read_text().split(f"-- {message_id.value}\n")[1].split("\n-- ")[0]

    def value(match: re.Match[str]) -> str:
        return str(fields[match[1]])

    return re.sub("@([A-Z_]+)@", value, entry)


@pytest.fixture
def journal(caplog: pytest.LogCaptureFixture) -> _Journal:
    return _Journal(caplog)


def _report(machine: MachineRoot, limit: int = 0) -> int:
    return report_crashes(KernelFiles(machine.path), TARGET, limit)


@pytest.mark.promise("journal-tells")
def test_each_is_reported_once(machine: MachineRoot, journal: _Journal) -> None:
    put_dump(machine, 1)
    assert (_report(machine), _report(machine)) == (1, 0)
    put_dump(machine, 2)
    assert (_report(machine), _report(machine)) == (1, 0)
    assert [fields["KDUMP_NAME"] for _, _, fields in journal.take()] == [name_of(1), name_of(2)]


def test_entry_has_what_is_known(machine: MachineRoot, journal: _Journal) -> None:
    folder = put_dump(machine, 1)
    _report(machine)
    [(message_id, text, fields)] = journal.take()
    assert message_id is MessageId.CRASH_RECORDED
    assert text == (
        f"Kernel {RELEASE} crashed at 2026-11-23T05:00:00Z (Kernel panic - not syncing: made for a test); "
        f"12.0 KiB saved in {folder}, 8.0 s after the panic"
    )
    assert fields == {
        "MESSAGE_ID": message_id.value,
        "KDUMP_NAME": name_of(1),
        "KDUMP_STATE": "complete",
        "KDUMP_FOLDER": str(folder),
        "KDUMP_IMAGE_FILE": str(folder / "vmcore"),
        "KDUMP_KERNEL_RELEASE": RELEASE,
        "KDUMP_BOOT_ID": f"{1:032x}",
        "KDUMP_CRASH_TIME": "2026-11-23T05:00:00Z",
        "KDUMP_SIGNATURE": "0123456789abcdef",
        "KDUMP_PANIC_MESSAGE": "Kernel panic - not syncing: made for a test",
        "KDUMP_CRASH_KIND": "panic",
        "KDUMP_TEST": 0,
        "KDUMP_STORED_BYTES": 12288,
        "KDUMP_SECONDS_TO_SAVED": 8.0,
        "KDUMP_SAME_BUG": 0,
    }


def test_entries_survive_the_dump(machine: MachineRoot, journal: _Journal) -> None:
    folder = put_dump(machine, 1)
    _report(machine)
    shutil.rmtree(folder)
    assert _report(machine) == 0
    assert [str(dump.presence) for dump in history.catalogue(machine.path, TARGET)] == ["missing"]


def test_target_that_was_away_for_a_while_reports_nothing_anew(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    _report(machine)
    place = machine.path / "var/crash"
    place.rename(machine.path / "away")
    machine.write("var/crash", "a file in its place")
    assert _report(machine) == 0
    place.unlink()
    (machine.path / "away").rename(place)
    assert _report(machine) == 0


@pytest.mark.promise("same-bug")
def test_same_bug_is_counted(machine: MachineRoot, journal: _Journal) -> None:
    put_dump(machine, 1)
    put_dump(machine, 2, signature="another", crash_kind="oops")
    shutil.rmtree(put_dump(machine, 3) if _report(machine) else machine.path / "nothing")
    put_dump(machine, 4)
    _report(machine)
    put_dump(machine, 5)
    _report(machine)
    told = {fields["KDUMP_NAME"]: (text, fields) for _, text, fields in journal.take()}
    assert [told[name_of(number)][1]["KDUMP_SAME_BUG"] for number in (1, 2, 4, 5)] == [0, 0, 1, 2]
    text, fields = told[name_of(4)]
    assert text.endswith("The same bug was seen once before, at 2026-11-23T05:00:00Z")
    text, fields = told[name_of(5)]
    assert text.endswith(
        "The same bug was seen 2 times before, first at 2026-11-23T05:00:00Z, last at 2026-11-23T08:00:00Z"
    )
    assert fields["KDUMP_SAME_BUG_FIRST"] == "2026-11-23T05:00:00Z"
    assert fields["KDUMP_SAME_BUG_LAST"] == "2026-11-23T08:00:00Z"
    assert "KDUMP_SAME_BUG_FIRST" not in told[name_of(2)][1]


@pytest.mark.promise("same-bug")
def test_deleted_crash_still_counts_as_the_same_bug(machine: MachineRoot, journal: _Journal) -> None:
    folder = put_dump(machine, 1)
    _report(machine)
    shutil.rmtree(folder)
    put_dump(machine, 2)
    _report(machine)
    assert [fields["KDUMP_SAME_BUG"] for _, _, fields in journal.take()] == [0, 1]


def test_what_comes_later_was_not_seen_before(machine: MachineRoot, journal: _Journal) -> None:
    for number in range(3):
        put_dump(machine, number)
    _report(machine)
    assert [fields["KDUMP_SAME_BUG"] for _, _, fields in journal.take()] == [0, 1, 2]


def test_what_is_proven_stays_so_when_the_crash_is_forgotten(machine: MachineRoot) -> None:
    put_dump(machine, 1, armed_identity="id")
    _report(machine)
    for _ in range(2):
        [dump] = history.catalogue(machine.path, TARGET)
        delete(machine.path, dump)
    assert history.catalogue(machine.path, TARGET) == []
    assert proof_of(machine.path, "id", []).level == "captured"


def test_failed_target(machine: MachineRoot, journal: _Journal) -> None:
    problems = [{"stage": "open-target", "reason": "target-unusable", "message": "/var/crash is not mounted"}]
    files = [{"name": "dmesg.txt", "size_bytes": 1, "stored_bytes": 1}]
    folder = put_dump(machine, 1, store=FALLBACK, state="failed", problems=problems, files=files)
    _report(machine)
    events = journal.take()
    assert [event[0] for event in events] == [
        MessageId.CRASH_RECORDED,
        MessageId.TARGET_FAILED,
        MessageId.CAPTURE_FAILED,
    ]
    _, text, fields = events[1]
    assert "/var/crash is not mounted; the kernel's log and the record are in " + str(folder) in text
    assert (fields["KDUMP_STAGE"], fields["KDUMP_REASON"]) == ("open-target", "target-unusable")
    assert str(folder) in _catalog_text(*events[1][::2])


def test_full_target_and_incomplete_dump(machine: MachineRoot, journal: _Journal) -> None:
    problems = [{"stage": "write-image", "reason": "target-full", "message": "No space left on device"}]
    put_dump(machine, 1, state="incomplete", problems=problems)
    put_dump(machine, 2, state="capturing")
    _report(machine)
    assert journal.ids() == [
        MessageId.CRASH_RECORDED, MessageId.TARGET_FAILED, MessageId.DUMP_INCOMPLETE,
        MessageId.CRASH_RECORDED, MessageId.DUMP_INCOMPLETE,
    ]  # fmt: skip


def test_entry_that_cannot_be_remembered_is_made_all_the_same(machine: MachineRoot) -> None:
    put_dump(machine, 1)
    machine.write("var/lib/kdump-service", "a file in the way")
    assert (_report(machine), _report(machine)) == (1, 1)


def test_killed_in_between_tells_the_rest_and_one_twice(
    machine: MachineRoot, journal: _Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between telling and marking; the next start tells what was not marked, and nothing else."""
    for number in range(3):
        put_dump(machine, number)
    marked = 0
    remember = history.remember

    def killed(root: Path, dump: StoredDump) -> None:
        nonlocal marked
        if marked == 1:
            raise KeyboardInterrupt
        remember(root, dump)
        marked += 1

    monkeypatch.setattr(history, "remember", killed)
    with pytest.raises(KeyboardInterrupt):
        _report(machine)
    monkeypatch.undo()
    journal_names = [fields["KDUMP_NAME"] for _, _, fields in journal.take()]
    assert journal_names == [name_of(0), name_of(1)]
    assert _report(machine) == 2
    assert [fields["KDUMP_NAME"] for _, _, fields in journal.take()] == [name_of(1), name_of(2)]
    assert _report(machine) == 0


def test_back_in_production(machine: MachineRoot, journal: _Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    put_dump(machine, 0)
    put_dump(machine, 1)
    machine.write("proc/uptime", "12.00 20.00\n")
    monkeypatch.setattr(time, "time", lambda: FIRST_CRASH + HOUR + 8.0 + 3.0 + 12.0)
    _report(machine)
    seconds = [fields.get("KDUMP_SECONDS_TO_PRODUCTION") for _, _, fields in journal.take()]
    assert seconds == [None, 23.0]


def _crashes(*minutes: float, test: bool = False) -> list[StoredDump]:
    return [
        StoredDump(
            Path(f"/var/crash/{minute}"),
            DumpRecord(str(minute), crash_time=utc(FIRST_CRASH + 60 * minute), test=test),
        )
        for minute in minutes
    ]


@pytest.mark.parametrize(
    ("minutes", "limit", "now_min", "loop"),
    [
        ([], 0, 0, False),
        ([0, 1, 2], 0, 3, False),
        ([0, 1, 2], 3, 3, True),
        ([0, 1, 2], 3, 60, True),
        ([0, 1, 2], 3, 60.5, False),
        ([0, 1, 2], 4, 3, False),
        ([0, 40, 80], 3, 81, False),
        ([0, 1, 4], 3, 1, True),  # a clock that was set back by less than a boot
        ([0, 1, 9], 3, 1, False),
    ],
)
def test_crash_loop(minutes: list[float], limit: int, now_min: float, loop: bool) -> None:
    assert is_crash_loop(_crashes(*minutes), limit, FIRST_CRASH + 60 * now_min) is loop
    assert not is_crash_loop(_crashes(*minutes, test=True), limit, FIRST_CRASH + 60 * now_min)


def test_crash_loop_is_told_once_for_each_crash_in_it(machine: MachineRoot, journal: _Journal) -> None:
    for minute in range(4):
        moment = FIRST_CRASH + 60 * minute
        put_dump(machine, 0, folder=f"crash-{minute}", crash_time=utc(moment), boot_id=f"{minute:032x}")
        _report(machine, 3)
        _report(machine, 3)
    events = journal.take()
    loops = [(text, fields) for message_id, text, fields in events if message_id is MessageId.CRASH_LOOP]
    assert [fields["KDUMP_CRASHES"] for _, fields in loops] == [3, 4]
    assert loops[0][0] == "The kernel crashed 3 times within an hour, each time with the same bug"
    assert len(events) == 4 + 2


def test_many_old_crashes_are_no_loop(machine: MachineRoot, journal: _Journal) -> None:
    for number in range(6):
        put_dump(machine, 2 * number)
    _report(machine, 2)
    assert MessageId.CRASH_LOOP not in journal.ids()


def test_verdict_comes_with_the_report(machine: MachineRoot, journal: _Journal) -> None:
    announce_test(machine.path, f"{1:032x}", "id", utc(FIRST_CRASH + HOUR - 3))
    put_dump(machine, 1, test=True, armed_identity="id")
    _report(machine)
    _report(machine)
    events = journal.take()
    assert [event[0] for event in events] == [MessageId.CRASH_RECORDED, MessageId.TEST_PASSED]
    assert "as was asked for by a test" in events[0][1]
    assert events[0][2]["KDUMP_TEST"] == 1


def test_verdict_waits_for_a_target_that_is_away(machine: MachineRoot, journal: _Journal) -> None:
    announce_test(machine.path, "e" * 32, "id", utc(FIRST_CRASH))
    machine.write("var/crash", "a file in its place")
    _report(machine)
    assert journal.ids() == []
    (machine.path / "var/crash").unlink()
    _report(machine)
    assert journal.ids() == [MessageId.TEST_FAILED]


def test_history_stays_bounded(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_RECORDS", 3)
    for number in range(6):
        folder = put_dump(machine, number)
        _report(machine)
        shutil.rmtree(folder)
    names = sorted(path.stem for path in (machine.path / history.RECORDS_FOLDER).iterdir())
    assert names == [name_of(3), name_of(4), name_of(5)]


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder away, which takes root")
def test_crash_that_somebody_else_made_up_is_not_told(machine: MachineRoot, journal: _Journal) -> None:
    os.chown(put_dump(machine, 1), 65534, 65534)
    assert _report(machine) == 0
    assert journal.take() == []


def test_hostile_record_does_not_stop_the_service(machine: MachineRoot, journal: _Journal) -> None:
    put_dump(
        machine,
        1,
        panic_message="%s %(x)s {0} \0\ud800",
        crash_time="9999-99-99T99:99:99Z",
        saved_time="\x1b[2J",
        problems=[{"stage": "a\nb", "reason": "", "message": "\udcff" * 10_000}],
        state="failed",
    )
    assert _report(machine, 1) == 1
    for _, text, fields in journal.take():
        "".join([text, *map(str, fields.values())]).encode()


def test_constants() -> None:
    assert crash_reports.CRASH_LOOP_SEC == HOUR
    assert BOOT_ID not in [dump.record.boot_id for dump in scan(Path("/nonexistent"), TARGET)]
