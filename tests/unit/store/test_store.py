# SPDX-License-Identifier: LGPL-2.1-or-later
"""What counts as a dump, and what does not: hostile, damaged and foreign things below the target."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.folders import FALLBACK_FOLDER
from kdump_service.quantity import parse_utc
from kdump_service.record import DumpRecord, DumpState
from kdump_service.store import dumps as store_dumps
from kdump_service.store.dumps import Presence, scan, survey
from kdump_service.store.own_files import within
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import TARGET, document, name_of, put_dump
from tests.hang import wait_until

NOBODY = 65534


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _dump(
    machine: MachineRoot, name: str, state: DumpState = DumpState.COMPLETE, store: str = TARGET
) -> Path:
    record = DumpRecord(name=name, state=state)
    return machine.write(f"{store.lstrip('/')}/{name}/record.json", record.to_json()).parent


def _names(machine: MachineRoot, target: str = TARGET) -> list[str]:
    return [dump.name for dump in scan(machine.path, target)]


def test_oldest_first_from_both_places(machine: MachineRoot) -> None:
    _dump(machine, "2026-b")
    _dump(machine, "2026-c")
    _dump(machine, "2026-a", DumpState.FAILED, FALLBACK_FOLDER)
    assert _names(machine) == ["2026-a", "2026-b", "2026-c"]
    assert {dump.presence for dump in scan(machine.path, TARGET)} == {Presence.PRESENT}


def test_no_store_is_no_error(machine: MachineRoot) -> None:
    found = survey(machine.path, TARGET)
    assert (found.dumps, found.unreachable) == ([], frozenset())


def test_no_name_twice(machine: MachineRoot) -> None:
    _dump(machine, "same")
    _dump(machine, "same", DumpState.FAILED, FALLBACK_FOLDER)
    [dump] = scan(machine.path, TARGET)
    assert dump.record.state is DumpState.COMPLETE
    assert _names(machine, "/" + FALLBACK_FOLDER) == ["same"]


def test_what_is_no_dump_is_passed_over(machine: MachineRoot) -> None:
    _dump(machine, "good")
    machine.write("var/crash/_usr_bin_program.0.crash", "apport's")
    machine.write("var/crash/empty/readme", "")
    machine.write("var/crash/torn/record.json", '{"schema": 1, "na')
    machine.write("var/crash/binary/record.json", b"\xff\xfe")
    machine.write("var/crash/deep/record.json", "[" * 500_000)
    machine.write("var/crash/huge/record.json", json.dumps(document(0, host="h" * (1 << 20))))
    (machine.path / "var/crash/folder/record.json").mkdir(parents=True)
    os.mkfifo(machine.write("var/crash/fifo/x", "").with_name("record.json"))
    elsewhere = machine.write("elsewhere/record.json", DumpRecord(name="x").to_json()).parent
    (machine.path / "var/crash/link").symlink_to(elsewhere)
    linked = machine.write("var/crash/linked-record/x", "").with_name("record.json")
    linked.symlink_to(elsewhere / "record.json")
    assert _names(machine) == ["good"]


@pytest.mark.parametrize("name", [".hidden", "a b", "a\nb", "-rf", "\udcff\udcfe", "x" * 230, "ä", "a;b"])
def test_strange_names_are_no_dumps(machine: MachineRoot, name: str) -> None:
    _dump(machine, name)
    assert _names(machine) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds_to_saved": float("nan")},
        {"seconds_to_saved": float("inf")},
        {"seconds_to_saved": -1},
        {"vmcore_bytes": 1 << 63},
        {"vmcore_bytes": -1},
        {"crash_cpu": 1 << 31},
        {"dump_level": "31"},
        {"test": "yes"},
        {"test": 1},
        {"call_trace": ["a", 7]},
        {"call_trace": {"a": 7}},
        {"call_trace": [["a"]]},
        {"excluded_pages": {"free": -1}},
        {"excluded_pages": {"free": "many"}},
        {"excluded_pages": []},
        {"files": [{"name": "vmcore", "size_bytes": 1 << 64, "stored_bytes": 0}]},
        {"files": ["vmcore"]},
        {"problems": [{"stage": "a", "reason": 3, "message": "c"}]},
        {"problems": [{}]},
        {"schema": True, "state": "odd"},
        {"name": ""},
        {"signature": None},
    ],
)
def test_values_that_bus_and_journal_cannot_carry_are_refused(
    machine: MachineRoot, changes: dict[str, Any]
) -> None:
    put_dump(machine, 1, **changes)
    put_dump(machine, 2)
    assert _names(machine) == [name_of(2)]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


@given(field=st.sampled_from([each.name for each in dataclasses.fields(DumpRecord)]), value=_JSON)
def test_a_record_is_refused_or_fit_for_bus_and_journal(field: str, value: object) -> None:
    try:
        record = DumpRecord.from_json(json.dumps(document(1) | {field: value}))
    except ValueError:
        return
    for leaf in _leaves(dataclasses.asdict(record)):
        if isinstance(leaf, str):
            assert leaf.isprintable()
            leaf.encode()
        elif isinstance(leaf, int | float):
            assert 0 <= leaf < 1 << 63
        else:
            assert leaf is None
    for moment in (record.crash_time, record.saved_time):
        assert not moment or parse_utc(moment)
    assert 0 <= record.stored_bytes < 1 << 63
    assert DumpRecord.from_json(record.to_json()) == record


def test_texts_are_made_fit_to_print(machine: MachineRoot) -> None:
    hostile = "a\0b\x1b[31mc\ud800d\u202ee\nf"
    put_dump(machine, 1, panic_message=hostile, crash_task="t" * 100_000, crash_time="yesterday")
    [dump] = scan(machine.path, TARGET)
    assert dump.record.panic_message == "a\ufffdb\ufffd[31mc\ufffdd\ufffde f"
    assert len(dump.record.crash_task) == 8192
    assert dump.record.crash_time == ""
    dump.record.to_json().encode()


def test_image_is_a_plain_name_of_ours(machine: MachineRoot) -> None:
    names = ["../vmcore", "/etc/shadow", "vmcore/../../x", "vmcore\n", "dmesg.txt", "vmcore.lz4", "vmcore"]
    files = [{"name": name, "size_bytes": 1, "stored_bytes": 1} for name in names]
    folder = put_dump(machine, 1, files=files)
    [dump] = scan(machine.path, TARGET)
    assert dump.image == folder / "vmcore.lz4"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away, which takes root")
def test_what_others_made_is_no_dump(machine: MachineRoot) -> None:
    os.chown(_dump(machine, "planted"), NOBODY, NOBODY)
    os.chown(_dump(machine, "planted-record") / "record.json", NOBODY, NOBODY)
    _dump(machine, "open-to-all").chmod(0o777)
    (_dump(machine, "record-open-to-all") / "record.json").chmod(0o666)
    folder = _dump(machine, "open-to-a-group")
    os.chown(folder, 0, NOBODY)
    folder.chmod(0o770)
    assert _names(machine) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="gives folders away, which takes root")
def test_thousands_of_others_do_not_hide_ours(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_dumps, "MOST_DUMPS", 10)
    for number in range(20):
        put_dump(machine, number)
    for number in range(2000):
        folder = machine.path / "var/crash" / f"z{number}"
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
    assert _names(machine) == [name_of(number) for number in range(10, 20)]


def test_cut_off_capture_is_judged_by_its_files(machine: MachineRoot) -> None:
    folder = _dump(machine, "with-image", DumpState.CAPTURING)
    with open(folder / "vmcore.incomplete", "wb") as file:
        file.write(bytes(5000))
        file.truncate(1 << 30)
    (folder / "vmcore.link").symlink_to("/etc/passwd")
    _dump(machine, "without", DumpState.CAPTURING)
    with_image, without = scan(machine.path, TARGET)
    assert with_image.record.state is DumpState.INCOMPLETE
    assert with_image.image == folder / "vmcore.incomplete"
    [image] = with_image.record.files
    assert (image.size_bytes, image.stored_bytes < 1 << 20) == (1 << 30, True)
    assert (without.record.state, without.image) == (DumpState.FAILED, None)


def test_target_that_cannot_be_listed_is_unreachable(machine: MachineRoot) -> None:
    machine.write("var/crash", "a file in its place")
    _dump(machine, "here", DumpState.FAILED, FALLBACK_FOLDER)
    found = survey(machine.path, TARGET)
    assert found.unreachable == {machine.path / "var/crash"}
    assert [dump.name for dump in found.dumps] == ["here"]


def test_target_that_does_not_answer_is_left_after_a_while(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    _dump(machine, "away")
    _dump(machine, "here", DumpState.FAILED, FALLBACK_FOLDER)
    answers = threading.Event()
    asked: list[Path] = []
    listed = store_dumps._dumps_of

    def hangs(place: Path, most: int) -> list[store_dumps.StoredDump]:
        if place == machine.path / "var/crash":
            asked.append(place)
            answers.wait()
        return listed(place, most)

    monkeypatch.setattr(store_dumps, "_dumps_of", hangs)
    monkeypatch.setattr(store_dumps, "PATIENCE_SEC", 0.05)
    for _ in range(3):
        found = survey(machine.path, TARGET)
        assert [dump.name for dump in found.dumps] == ["here"]
        assert len(found.unreachable) == 1
    assert len(asked) == 1  # no second one is sent after one that hangs
    answers.set()
    wait_until(lambda: not survey(machine.path, TARGET).unreachable)
    assert _names(machine) == ["away", "here"]


def test_failures_of_an_act_with_a_limit_are_its_own(tmp_path: Path) -> None:
    def fails() -> None:
        raise FileNotFoundError("gone")

    with pytest.raises(FileNotFoundError, match="gone"):
        within(5, tmp_path, fails)
    assert within(5, tmp_path, lambda: 7) == 7
