# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from kdump_service.errors import KdumpError, NotReady, ProgramFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.service import deliberate_crash
from kdump_service.service.deliberate_crash import crash_now, start_test_crash
from tests.builders.machine_root import BOOT_ID, MachineRoot

ANNOUNCEMENT = "var/lib/kdump-service/test-crash.json"
TRIGGER = "proc/sysrq-trigger"
KERNEL_LOG = "dev/kmsg"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MachineRoot:
    """A machine with a crash kernel; programs are noted, not run."""
    made = MachineRoot(tmp_path, loaded=True)
    made.write(TRIGGER, "")
    made.write(KERNEL_LOG, "")

    def run(command: list[str], *, timeout_sec: float) -> str:
        made.write("ran", " ".join(command))
        if (tmp_path / "fail").exists():
            raise ProgramFailed(f"{command[0]}: made to fail")
        return ""

    monkeypatch.setattr(deliberate_crash, "run", run)
    return made


def _announce(machine: MachineRoot, boot_id: str = BOOT_ID) -> None:
    machine.write(ANNOUNCEMENT, json.dumps({"boot_id": boot_id, "armed_identity": "", "time": ""}))


def _triggered(machine: MachineRoot) -> str:
    return (machine.path / TRIGGER).read_text()


@pytest.mark.promise("on-request")
def test_crash_now_syncs_and_crashes(machine: MachineRoot) -> None:
    _announce(machine)
    crash_now(machine.path)
    assert (machine.path / "ran").read_text() == "sync"
    assert _triggered(machine) == "c\n"


def test_the_kernel_log_says_before_that_it_was_asked_for(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is in the file when the crash is triggered is what the capture boot finds in memory.
    _announce(machine)
    (machine.path / TRIGGER).unlink()
    os.mkfifo(machine.path / TRIGGER)
    seen: list[str] = []

    def crash() -> None:
        (machine.path / TRIGGER).read_text()
        seen.append((machine.path / KERNEL_LOG).read_text())

    kernel = threading.Thread(target=crash)
    kernel.start()
    crash_now(machine.path)
    kernel.join()
    # printk's form: level 5, which is notice, as any console shows it or not; the words are in man pages.
    assert seen == ["<5>kdump-service: the crash that follows was asked for\n"]


def test_a_kernel_log_that_takes_no_line_does_not_keep_it_from_crashing(machine: MachineRoot) -> None:
    _announce(machine)
    (machine.path / KERNEL_LOG).unlink()
    (machine.path / KERNEL_LOG).mkdir()
    crash_now(machine.path)
    assert _triggered(machine) == "c\n"


def test_disks_that_hang_do_not_keep_it_from_crashing(machine: MachineRoot) -> None:
    _announce(machine)
    machine.write("fail", "")
    crash_now(machine.path)
    assert _triggered(machine) == "c\n"


@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"boot_id": ""}', '{"boot_id": "of another boot"}', "7"]
)
def test_nothing_happens_without_an_announcement_of_this_boot(
    machine: MachineRoot, content: str | None
) -> None:
    if content is not None:
        machine.write(ANNOUNCEMENT, content)
    with pytest.raises(NotReady):
        crash_now(machine.path)
    assert _triggered(machine) == ""
    assert (machine.path / KERNEL_LOG).read_text() == ""


def test_nothing_happens_without_a_crash_kernel(machine: MachineRoot) -> None:
    _announce(machine)
    machine.set_loaded(False)
    with pytest.raises(NotReady, match="not loaded"):
        crash_now(machine.path)
    assert _triggered(machine) == ""


def test_a_crash_that_does_not_come_is_taken_back(machine: MachineRoot) -> None:
    with pytest.raises(KdumpError, match="did not crash"):
        start_test_crash(KernelFiles(machine.path), "abc")
    assert (machine.path / "ran").read_text() == "systemctl start kdump-test-crash.service"
    assert not (machine.path / ANNOUNCEMENT).exists()
    machine.write("fail", "")
    with pytest.raises(ProgramFailed):
        start_test_crash(KernelFiles(machine.path), "abc")
    assert not (machine.path / ANNOUNCEMENT).exists()


def test_it_is_announced_before_anything_starts(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], *, timeout_sec: float) -> str:
        document = json.loads((machine.path / ANNOUNCEMENT).read_text())
        assert (document["boot_id"], document["armed_identity"]) == (BOOT_ID, "abc")
        raise ProgramFailed("seen")

    monkeypatch.setattr(deliberate_crash, "run", run)
    with pytest.raises(ProgramFailed, match="seen"):
        start_test_crash(KernelFiles(machine.path), "abc")


def test_what_cannot_be_announced_is_not_begun(machine: MachineRoot) -> None:
    machine.write("var/lib/kdump-service", "a file in the way")
    with pytest.raises(NotReady, match="cannot be written down"):
        start_test_crash(KernelFiles(machine.path), "abc")
    assert not (machine.path / "ran").exists()
