# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.log import MessageId
from kdump_service.record import DumpRecord, DumpState
from kdump_service.store import dumps
from kdump_service.store.dumps import Presence, StoredDump
from kdump_service.store.history import catalogue, keep
from kdump_service.store.retention import Candidate, Limits, apply, plan
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import FALLBACK, FIRST_CRASH, TARGET, name_of, put_dump, utc

HOUR = 3600
NOW = FIRST_CRASH + 10 * HOUR


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _candidate(
    number: int,
    size: int = 100,
    *,
    kept: bool = False,
    state: DumpState = DumpState.COMPLETE,
    on_target: bool = True,
    crash_time: str | None = None,
) -> Candidate:
    moment = utc(FIRST_CRASH + HOUR * number) if crash_time is None else crash_time
    record = DumpRecord(name_of(number), state, crash_time=moment)
    return Candidate(StoredDump(Path("/var/crash") / name_of(number), record, kept=kept), size, on_target)


def _planned(candidates: list[Candidate], limits: Limits, free: int | None = None) -> list[tuple[int, str]]:
    return [
        (candidates.index(removal.candidate), removal.limit)
        for removal in plan(candidates, limits, NOW, free)
    ]


FIVE = [_candidate(number) for number in range(5)]


@pytest.mark.parametrize(
    ("limits", "free", "removed"),
    [
        (Limits(), None, []),
        (Limits(), 0, []),
        (Limits(max_dumps=5), None, []),
        (Limits(max_dumps=3), None, [(0, "MaxDumps"), (1, "MaxDumps")]),
        (Limits(max_dumps=1), None, [(n, "MaxDumps") for n in range(4)]),
        (Limits(max_use_bytes=500), None, []),
        (Limits(max_use_bytes=499), None, [(0, "MaxUse")]),
        (Limits(max_use_bytes=1), None, [(n, "MaxUse") for n in range(4)]),
        (Limits(max_age_sec=10 * HOUR), None, []),
        (Limits(max_age_sec=10 * HOUR - 1), None, [(0, "MaxAgeSec")]),
        (Limits(max_age_sec=1), None, [(n, "MaxAgeSec") for n in range(4)]),
        (Limits(keep_free_bytes=1000), 1000, []),
        (Limits(keep_free_bytes=1000), 999, [(0, "KeepFree")]),
        (Limits(keep_free_bytes=1000), 850, [(0, "KeepFree"), (1, "KeepFree")]),
        (Limits(keep_free_bytes=1000), 0, [(n, "KeepFree") for n in range(4)]),
        (Limits(keep_free_bytes=1000), None, []),
        (Limits(max_age_sec=9 * HOUR + 1, max_dumps=3), None, [(0, "MaxAgeSec"), (1, "MaxDumps")]),
    ],
)
def test_plan(limits: Limits, free: int | None, removed: list[tuple[int, str]]) -> None:
    assert _planned(FIVE, limits, free) == removed


def test_kept_ones_are_passed_over_but_take_room() -> None:
    candidates = [_candidate(0, kept=True), _candidate(1), _candidate(2, kept=True), _candidate(3)]
    assert _planned(candidates, Limits(max_dumps=2)) == []
    assert _planned(candidates, Limits(max_dumps=1)) == [(1, "MaxDumps")]
    assert _planned(candidates, Limits(max_age_sec=1)) == [(1, "MaxAgeSec")]
    assert _planned(candidates, Limits(max_use_bytes=399)) == [(1, "MaxUse")]


@pytest.mark.promise("dumps-kept-and-deleted")
def test_newest_whole_dump_stays() -> None:
    failed = [_candidate(number, state=DumpState.FAILED) for number in range(2, 5)]
    candidates = [_candidate(0), _candidate(1), *failed]
    assert _planned(candidates, Limits(max_dumps=1)) == [
        (0, "MaxDumps"),
        (2, "MaxDumps"),
        (3, "MaxDumps"),
    ]


def test_keep_free_is_about_the_target_alone() -> None:
    candidates = [_candidate(0, on_target=False), _candidate(1), _candidate(2), _candidate(3)]
    assert _planned(candidates, Limits(keep_free_bytes=150), 0) == [(1, "KeepFree"), (2, "KeepFree")]


def test_unknown_and_future_times_are_not_old() -> None:
    candidates = [_candidate(0, crash_time=""), _candidate(1, crash_time="2099-01-01T00:00:00Z"), *FIVE[2:]]
    assert _planned(candidates, Limits(max_age_sec=1)) == [(2, "MaxAgeSec"), (3, "MaxAgeSec")]


@given(
    sizes=st.lists(st.tuples(st.integers(0, 1000), st.booleans(), st.booleans()), max_size=12),
    limits=st.builds(
        Limits, st.integers(0, 4000), st.integers(0, 8), st.integers(0, 12 * HOUR), st.integers(0, 2000)
    ),
    free=st.none() | st.integers(0, 3000),
)
def test_plan_keeps_its_promises(
    sizes: list[tuple[int, bool, bool]], limits: Limits, free: int | None
) -> None:
    candidates = [
        _candidate(number, size, kept=kept, state=DumpState.COMPLETE if whole else DumpState.FAILED)
        for number, (size, kept, whole) in enumerate(sizes)
    ]
    removals = [removal.candidate for removal in plan(candidates, limits, NOW, free)]
    assert removals == [each for each in candidates if each in removals]  # oldest first, none twice
    assert not any(each.dump.kept for each in removals)
    assert candidates[-1:] == [each for each in candidates[-1:] if each not in removals]
    left = [each for each in candidates if each not in removals]
    removable = [each for each in left[:-1] if not each.dump.kept]
    whole = [each for each in candidates if each.dump.record.state is DumpState.COMPLETE]
    if [each for each in removable if each not in whole[-1:]]:  # then all limits are held
        used = sum(each.occupied_bytes for each in left)
        assert not limits.max_use_bytes or used <= limits.max_use_bytes
        assert not limits.max_dumps or sum(not each.dump.kept for each in left) <= limits.max_dumps


def _event(caplog: pytest.LogCaptureFixture) -> dict[str, object]:
    [record] = [each for each in caplog.records if hasattr(each, "journal_fields")]
    fields: dict[str, object] = record.journal_fields
    return fields


def test_apply_removes_and_tells(machine: MachineRoot, caplog: pytest.LogCaptureFixture) -> None:
    folders = [put_dump(machine, number) for number in range(5)]
    keep(machine.path, name_of(0), True)
    with caplog.at_level(logging.INFO, "kdump_service"):
        removed = apply(machine.path, TARGET, Limits(max_dumps=2), NOW)
    assert [dump.name for dump in removed] == [name_of(1), name_of(2)]
    assert [folder.exists() for folder in folders] == [True, False, False, True, True]
    presences = [dump.presence for dump in catalogue(machine.path, TARGET)]
    assert presences.count(Presence.MISSING) == 2
    fields = _event(caplog)
    assert fields["MESSAGE_ID"] == MessageId.OLD_DUMPS_REMOVED
    assert fields["KDUMP_REMOVED"] == f"{name_of(1)} {name_of(2)}"
    assert fields["KDUMP_LIMIT"] == "MaxDumps="
    assert isinstance(fields["KDUMP_REMOVED_BYTES"], int) and fields["KDUMP_REMOVED_BYTES"] >= 16384


def test_apply_without_need_does_nothing(machine: MachineRoot, caplog: pytest.LogCaptureFixture) -> None:
    assert apply(machine.path, TARGET, Limits(1 << 40, 10, 1 << 40, 1), NOW) == []
    put_dump(machine, 1)
    put_dump(machine, 2, store=FALLBACK, state="failed")
    assert apply(machine.path, TARGET, Limits(1 << 40, 10, 1 << 40, 1), NOW) == []
    assert not caplog.records


def test_what_the_record_says_of_sizes_is_not_believed(machine: MachineRoot) -> None:
    """A damaged record must not cost the other dumps."""
    put_dump(machine, 1)
    put_dump(machine, 2, files=[{"name": "vmcore", "size_bytes": 1 << 60, "stored_bytes": (1 << 63) - 1}])
    put_dump(machine, 3)
    assert apply(machine.path, TARGET, Limits(max_use_bytes=1 << 30), NOW) == []


def test_keep_free(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        put_dump(machine, number)
    status = os.statvfs(machine.path)
    free = status.f_bavail * status.f_frsize
    assert apply(machine.path, TARGET, Limits(keep_free_bytes=free // 2), NOW) == []
    removed = apply(machine.path, TARGET, Limits(keep_free_bytes=free * 2), NOW)
    assert [dump.name for dump in removed] == [name_of(0), name_of(1)]


def test_what_cannot_be_removed_does_not_hold_up_the_rest(
    machine: MachineRoot, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        put_dump(machine, number)
    machine.write(f"var/crash/{name_of(1)}/" + "a/" * 50 + "file", "x")
    removed = apply(machine.path, TARGET, Limits(max_dumps=1), NOW)
    assert [dump.name for dump in removed] == [name_of(0), name_of(2)]
    assert f"MaxDumps=: {machine.path}/var/crash/{name_of(1)} cannot be deleted" in caplog.text


def test_target_that_cannot_be_asked_is_left_alone(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = put_dump(machine, 1)
    put_dump(machine, 2)

    def fails(path: object) -> os.statvfs_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", fails)
    assert apply(machine.path, TARGET, Limits(max_dumps=1), NOW) == []
    assert folder.exists()
    assert "Input/output error" in caplog.text


def test_more_dumps_than_are_listed(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MOST_DUMPS", 3)
    for number in range(8):
        put_dump(machine, number)
    assert [dump.name for dump in apply(machine.path, TARGET, Limits(max_dumps=5), NOW)] == [
        name_of(number) for number in range(3)
    ]
