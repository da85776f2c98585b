# SPDX-License-Identifier: LGPL-2.1-or-later
"""What has carried a dump, and what a test crash came to."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

from kdump_service.arm.loader import LoadRequest
from kdump_service.arm.plan import plan_load, write_capture_settings
from kdump_service.capture.settings import read_capture_settings
from kdump_service.config import Config
from kdump_service.kernel.files import KernelFiles
from kdump_service.log import MessageId
from kdump_service.record import DumpRecord, DumpState
from kdump_service.service import proof
from kdump_service.service.proof import Proof, announce_test, armed_identity, learn, proof_of, withdraw_test
from kdump_service.store.dumps import scan
from tests.builders.machine_root import BOOT_ID, RELEASE, MachineRoot
from tests.builders.stored_dumps import FALLBACK, FIRST_CRASH, TARGET, put_dump, utc

CRASHED_BOOT = f"{1:032x}"
ANNOUNCED = utc(FIRST_CRASH + 3600 - 3)


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


def _request(machine: MachineRoot, **config: str) -> LoadRequest:
    return plan_load(KernelFiles(machine.path), Config(environment="rootfs", **config)).request  # type: ignore[arg-type]


def _identity(machine: MachineRoot, target: str = TARGET, **config: str) -> str:
    return armed_identity(_request(machine, **config), target, machine.path)


def _count_reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    reads: list[object] = []
    real = hashlib.file_digest

    def counted(file: object, name: str) -> object:
        reads.append(file)
        return real(file, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return reads


def test_identity_is_of_content_command_line_and_target(machine: MachineRoot) -> None:
    first = _identity(machine)
    assert len(first) == 64
    assert _identity(machine) == first
    others = [
        _identity(machine, "/srv/crash"),
        _identity(machine, command_line_append="word"),
    ]
    for name in (f"vmlinuz-{RELEASE}", f"initrd.img-{RELEASE}"):
        content = (machine.path / "boot" / name).read_bytes()
        machine.write(f"boot/{name}", "changed")
        others.append(_identity(machine))
        machine.write(f"boot/{name}", content)  # another time, the same content
        assert _identity(machine) == first
    assert len({first, *others}) == 5


def test_files_are_read_only_when_they_changed(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = _count_reads(monkeypatch)
    first = _identity(machine)
    assert len(reads) == 2
    assert _identity(machine) == first
    assert _identity(machine, "/srv/crash") != first
    assert len(reads) == 2
    machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt")
    assert _identity(machine) != first
    assert len(reads) == 3


def test_memory_of_hashes_stays_small(machine: MachineRoot) -> None:
    for number in range(30):
        machine.write(f"boot/initrd.img-{RELEASE}", f"build {number}")
        _identity(machine)
    assert len(json.loads((machine.path / "var/lib/kdump-service/hashes.json").read_text())) == 8


@pytest.mark.parametrize("text", ["", "{", "{}", "[7]", '[{"path": []}]', '[{"path": "x"}]', "[" * 9999])
def test_damaged_memory_of_hashes_reads_anew(machine: MachineRoot, text: str) -> None:
    first = _identity(machine)
    machine.write("var/lib/kdump-service/hashes.json", text)
    assert _identity(machine) == first


def test_file_that_changed_since_it_was_loaded_proves_nothing(machine: MachineRoot) -> None:
    request = _request(machine)
    machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt meanwhile")
    assert armed_identity(request, TARGET, machine.path) == ""
    (machine.path / f"boot/initrd.img-{RELEASE}").unlink()
    assert armed_identity(request, TARGET, machine.path) == ""


def test_identity_where_nothing_can_be_written(machine: MachineRoot) -> None:
    first = _identity(machine)
    again = machine.path / "again"
    again.mkdir()
    (machine.path / "var/lib/kdump-service").rename(machine.path / "elsewhere")
    machine.write("var/lib/kdump-service", "a file in the way")
    assert _identity(machine) == first


def _record(
    number: int, *, identity: str = "id", test: bool = False, state: DumpState = DumpState.COMPLETE
) -> DumpRecord:
    return DumpRecord(
        str(number), state, crash_time=utc(FIRST_CRASH + number), armed_identity=identity, test=test
    )


@pytest.mark.parametrize(
    ("records", "level", "second"),
    [
        ([], "unproven", None),
        ([_record(1)], "captured", 1),
        ([_record(1), _record(2)], "captured", 2),
        ([_record(1, test=True)], "tested", 1),
        ([_record(1, test=True), _record(2)], "tested", 1),
        ([_record(1), _record(2, test=True), _record(3, test=True)], "tested", 3),
        ([_record(1, identity="other")], "unproven", None),
        ([_record(1, identity="")], "unproven", None),
        ([_record(1, state=DumpState.INCOMPLETE)], "unproven", None),
        ([_record(1, state=DumpState.FAILED, test=True)], "unproven", None),
    ],
)
@pytest.mark.promise("test-proves")
def test_what_records_prove(
    tmp_path: Path, records: list[DumpRecord], level: str, second: int | None
) -> None:
    expected = Proof(level, "" if second is None else utc(FIRST_CRASH + second))
    assert proof_of(tmp_path, "id", records) == expected
    assert proof_of(tmp_path, "", records) == Proof()
    # And the same from memory, when the records are gone.
    for record in records:
        learn(tmp_path, record)
    assert proof_of(tmp_path, "id", []) == expected
    assert proof_of(tmp_path, "id", records) == expected


def test_memory_of_proofs_stays_small(tmp_path: Path) -> None:
    for number in range(100):
        learn(tmp_path, _record(number, identity=str(number)))
    assert proof_of(tmp_path, "99", []).level == "captured"
    assert proof_of(tmp_path, "0", []).level == "unproven"
    assert len(json.loads((tmp_path / proof.PROOFS_FILE).read_text())) <= 32


@pytest.mark.parametrize("text", ["", "[]", '{"id": 7}', '{"id": {"level": "sure", "time": ""}}', "\xff"])
def test_damaged_memory_of_proofs(tmp_path: Path, text: str) -> None:
    path = tmp_path / proof.PROOFS_FILE
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="latin-1")
    assert proof_of(tmp_path, "id", []) == Proof()
    learn(tmp_path, _record(1))
    assert proof_of(tmp_path, "id", []).level == "captured"


def _verdict(machine: MachineRoot, *, unreachable: bool = False) -> proof.Verdict | None:
    return proof.verdict(machine.path, BOOT_ID, scan(machine.path, TARGET), unreachable)


def _told(caplog: pytest.LogCaptureFixture) -> list[MessageId]:
    ids = [
        MessageId(record.journal_fields["MESSAGE_ID"])
        for record in caplog.records
        if hasattr(record, "journal_fields")
    ]
    caplog.clear()
    return ids


def test_no_announcement_no_verdict(machine: MachineRoot) -> None:
    assert _verdict(machine) is None
    announce_test(machine.path, BOOT_ID, "id", ANNOUNCED)
    assert _verdict(machine) is None  # still to come
    withdraw_test(machine.path)
    withdraw_test(machine.path)
    assert not (machine.path / "var/lib/kdump-service/test-crash.json").exists()


@pytest.mark.parametrize("text", ["", "7", "{}", '{"boot_id": 3}', '{"boot_id": "x", "time": 3}'])
def test_damaged_announcement_is_none(machine: MachineRoot, text: str) -> None:
    machine.write("var/lib/kdump-service/test-crash.json", text)
    assert _verdict(machine) is None


@pytest.mark.parametrize(
    ("state", "outcome", "message_id", "level"),
    [
        ("complete", "complete", MessageId.TEST_PASSED, "tested"),
        ("incomplete", "incomplete", MessageId.TEST_FAILED, "failed"),
        ("failed", "failed", MessageId.TEST_FAILED, "failed"),
        (None, "no-record", MessageId.TEST_FAILED, "failed"),
    ],
)
def test_verdict_is_told_once(
    machine: MachineRoot,
    caplog: pytest.LogCaptureFixture,
    state: str | None,
    outcome: str,
    message_id: MessageId,
    level: str,
) -> None:
    caplog.set_level(logging.INFO, "kdump_service")
    learn(machine.path, _record(0))  # captured before: a test that fails outweighs it
    announce_test(machine.path, CRASHED_BOOT, "id", ANNOUNCED)
    if state is not None:
        put_dump(machine, 1, state=state, test=True, armed_identity="id")
        [dump] = scan(machine.path, TARGET)
        learn(machine.path, dump.record)
    found = _verdict(machine)
    assert found is not None
    assert found.outcome == outcome
    proof.tell_verdict(machine.path, found)
    assert _told(caplog) == [message_id]
    assert _verdict(machine) is None
    records = [_record(0), *(dump.record for dump in scan(machine.path, TARGET))]
    assert proof_of(machine.path, "id", records).level == level
    # A crash that is captured later counts again.
    assert proof_of(machine.path, "id", [_record(7200)]).level == (
        "tested" if level == "tested" else "captured"
    )


def test_better_of_two_records_is_what_became_of_it(machine: MachineRoot) -> None:
    announce_test(machine.path, CRASHED_BOOT, "id", ANNOUNCED)
    put_dump(machine, 1, test=True)
    put_dump(machine, 1, store=FALLBACK, folder="beside", state="failed")
    found = _verdict(machine)
    assert found is not None and found.outcome == "complete"


def test_verdict_that_cannot_be_marked_is_told_again(
    machine: MachineRoot, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce_test(machine.path, CRASHED_BOOT, "id", ANNOUNCED)

    def fails(root: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(proof, "withdraw_test", fails)
    found = _verdict(machine)
    assert found is not None
    proof.tell_verdict(machine.path, found)
    assert _verdict(machine) == found
    assert "told again" in caplog.text


# What passes to the capture boot


def test_settings_carry_the_identity(machine: MachineRoot) -> None:
    files = KernelFiles(machine.path)
    write_capture_settings(files, Config(), "identity")
    assert read_capture_settings(machine.path).armed_identity == "identity"
    write_capture_settings(files, Config())
    assert read_capture_settings(machine.path).armed_identity == ""
