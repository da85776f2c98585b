# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journals of capture boots: kept beside the dump, taken into the machine's own. The journals are real."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from kdump_service.capture import own_journal
from kdump_service.capture.own_journal import save_own_journal
from kdump_service.errors import ProgramFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.crash_reports import report_crashes
from kdump_service.store.capture_journals import adopt_journal
from kdump_service.targets.local import LocalPlace
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import TARGET, put_dump

MACHINE_ID = "00112233445566778899aabbccddeeff"
CAPTURE_BOOT = "c" * 32
JOURNAL_REMOTE = next(
    path
    for path in map(Path, ("/lib/systemd/systemd-journal-remote", "/usr/lib/systemd/systemd-journal-remote"))
    if path.exists()
)


def _journal(path: Path, *messages: str, boot_id: str = CAPTURE_BOOT) -> bytes:
    """What systemd's own program makes of these messages."""
    entries = "".join(
        f"__REALTIME_TIMESTAMP={1_795_406_400_000_000 + number}\n__MONOTONIC_TIMESTAMP={2_000_000 + number}\n"
        f"_BOOT_ID={boot_id}\n_MACHINE_ID={MACHINE_ID}\nPRIORITY=6\nMESSAGE={message}\n\n"
        for number, message in enumerate(messages)
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [JOURNAL_REMOTE, "--output", path, "-"], input=entries.encode(), capture_output=True, check=True
    )
    return path.read_bytes()


def _read(*arguments: str) -> list[dict[str, str]]:
    done = subprocess.run(
        ["journalctl", "--output=json", "--quiet", *arguments], capture_output=True, text=True, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    """One that keeps its journal on disk."""
    made = MachineRoot(tmp_path / "machine")
    made.write("etc/machine-id", f"{MACHINE_ID}\n")
    (made.path / "var/log/journal" / MACHINE_ID).mkdir()
    return made


@pytest.fixture
def dump(machine: MachineRoot) -> Path:
    folder = put_dump(machine, 1)
    _journal(folder / "capture.journal", "the capture begins", "the capture ends")
    return folder


def _own(machine: MachineRoot) -> list[Path]:
    return sorted((machine.path / "var/log/journal" / MACHINE_ID).iterdir())


def _adopt(machine: MachineRoot, dump: Path) -> bool:
    return adopt_journal(machine.path, dump, KernelFiles(machine.path).machine_id)


def test_it_becomes_a_boot_of_the_machines_journal(machine: MachineRoot, dump: Path) -> None:
    assert _adopt(machine, dump)
    [path] = _own(machine)
    assert path.read_bytes() == (dump / "capture.journal").read_bytes()
    entries = _read("--file", str(path))
    assert [entry["MESSAGE"] for entry in entries] == ["the capture begins", "the capture ends"]
    # And by the folder, as journalctl looks at the machine's own, boot by boot.
    entries = _read("--directory", str(path.parent), f"_BOOT_ID={CAPTURE_BOOT}")
    assert len(entries) == 2
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_its_name_is_that_of_an_archived_journal(machine: MachineRoot, dump: Path) -> None:
    _adopt(machine, dump)
    [path] = _own(machine)
    header = subprocess.run(
        ["journalctl", "--header", "--file", path], capture_output=True, text=True, check=True
    ).stdout
    facts = dict(line.split(": ", 1) for line in header.splitlines() if ": " in line)
    sequence, number, realtime = path.name.removeprefix("system@").removesuffix(".journal").split("-")
    assert sequence == facts["Sequential number ID"]
    assert int(number, 16) == int(facts["Head sequential number"].split()[0])
    assert realtime == facts["Head realtime timestamp"].split("(")[1].rstrip(")").zfill(16)
    # journald counts such files, and removes them in time: so does the program.
    done = subprocess.run(
        ["journalctl", "--directory", path.parent, "--vacuum-files=1", "--vacuum-size=1K"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Deleted archived journal" in done.stderr
    assert _own(machine) == []


def test_once(machine: MachineRoot, dump: Path) -> None:
    assert (_adopt(machine, dump), _adopt(machine, dump)) == (True, False)
    assert len(_own(machine)) == 1


def test_each_capture_is_one_of_its_own(machine: MachineRoot, dump: Path) -> None:
    second = put_dump(machine, 2)
    _journal(second / "capture.journal", "another", boot_id="d" * 32)
    assert _adopt(machine, dump) and _adopt(machine, second)
    assert len(_own(machine)) == 2
    folder = str(machine.path / "var/log/journal" / MACHINE_ID)
    assert {entry["_BOOT_ID"] for entry in _read("--directory", folder)} == {CAPTURE_BOOT, "d" * 32}


@pytest.mark.parametrize("content", [b"", b"LPKSHHRH", b"LPKSHHRH" + bytes(199), b"x" * 4096, b"{}"])
def test_what_is_no_journal_stays_where_it_is(
    machine: MachineRoot, dump: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (dump / "capture.journal").write_bytes(content)
    assert not _adopt(machine, dump)
    assert _own(machine) == []
    assert "is no journal" in caplog.text


def test_links_are_not_followed(machine: MachineRoot, dump: Path, caplog: pytest.LogCaptureFixture) -> None:
    (dump / "capture.journal").rename(machine.path / "secret")
    (dump / "capture.journal").symlink_to(machine.path / "secret")
    assert not _adopt(machine, dump)
    assert _own(machine) == []
    assert "stays in" in caplog.text


def test_machine_without_a_journal_on_disk(machine: MachineRoot, dump: Path) -> None:
    (machine.path / "var/log/journal" / MACHINE_ID).rmdir()
    assert not _adopt(machine, dump)
    assert list((machine.path / "var/log/journal").iterdir()) == []


@pytest.mark.parametrize("machine_id", ["", None])
def test_machine_without_an_id(machine: MachineRoot, dump: Path, machine_id: str | None) -> None:
    if machine_id is None:
        (machine.path / "etc/machine-id").unlink()
    else:
        machine.write("etc/machine-id", machine_id)
    assert not _adopt(machine, dump)


def test_dump_without_a_journal_says_nothing(
    machine: MachineRoot, dump: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (dump / "capture.journal").unlink()
    assert not _adopt(machine, dump)
    assert caplog.text == ""


def test_what_was_left_half_written_is_written_anew(machine: MachineRoot, dump: Path) -> None:
    _adopt(machine, dump)
    [path] = _own(machine)
    path.rename(path.with_name(f".{path.name}.kdump-service"))
    assert _adopt(machine, dump)
    assert _own(machine) == [path]


def test_new_crashes_bring_their_journal(machine: MachineRoot, dump: Path) -> None:
    files = KernelFiles(machine.path)
    assert report_crashes(files, TARGET) == 1
    [path] = _own(machine)
    path.unlink()  # as journald does in time
    assert report_crashes(files, TARGET) == 0
    assert _own(machine) == []


# In the capture boot


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The programs that were run, and not run."""
    commands: list[list[str]] = []

    def run(command: list[str], *, timeout_sec: float) -> str:
        commands.append(command)
        return ""

    monkeypatch.setattr(own_journal, "run", run)
    return commands


def test_own_journal_is_kept_beside_the_dump(tmp_path: Path, synced: list[list[str]]) -> None:
    content = _journal(tmp_path / f"run/log/journal/{MACHINE_ID}/system.journal", "the capture begins")
    folder = tmp_path / "dump"
    folder.mkdir()
    save_own_journal(tmp_path, LocalPlace(folder))
    assert synced == [["journalctl", "--sync"]]
    assert (folder / "capture.journal").read_bytes() == content
    assert stat.S_IMODE((folder / "capture.journal").stat().st_mode) == 0o600
    assert [entry["MESSAGE"] for entry in _read("--file", str(folder / "capture.journal"))] == [
        "the capture begins"
    ]


def test_journald_that_is_still_starting_is_waited_for(tmp_path: Path, synced: list[list[str]]) -> None:
    save_own_journal(tmp_path, LocalPlace(tmp_path))
    assert synced == [["systemctl", "start", "systemd-journald.service"], ["journalctl", "--sync"]]


def test_own_journal_is_written_through_no_link(tmp_path: Path, synced: list[list[str]]) -> None:
    content = _journal(tmp_path / f"run/log/journal/{MACHINE_ID}/system.journal", "the capture begins")
    folder = tmp_path / "dump"
    folder.mkdir()
    (tmp_path / "elsewhere").write_text("precious")
    (folder / "capture.journal").symlink_to(tmp_path / "elsewhere")
    save_own_journal(tmp_path, LocalPlace(folder))
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert (folder / "capture.journal").read_bytes() == content


def test_no_own_journal_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(command: list[str], *, timeout_sec: float) -> str:
        raise ProgramFailed("journalctl: no journald")

    monkeypatch.setattr(own_journal, "run", run)
    save_own_journal(tmp_path, LocalPlace(tmp_path))
    assert not os.path.lexists(tmp_path / "capture.journal")
    assert "no journald" in caplog.text
    save_own_journal(tmp_path, LocalPlace(tmp_path / "gone"))
    assert "is not kept" in caplog.text
