# SPDX-License-Identifier: LGPL-2.1-or-later
"""Time limits that hold. A process that really cannot be killed is in test_readiness, on a dead disk."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kdump_service import process
from kdump_service.errors import ProgramFailed
from kdump_service.process import run
from tests.hang import HANG_SEC


def test_what_is_printed_is_returned() -> None:
    assert run(["printf", "%s\\n", "a b", "c"], timeout_sec=10) == "a b\nc\n"


def test_complaints_of_a_program_that_ends_well_can_be_had() -> None:
    command = ["sh", "-c", "echo 1; echo oops >&2; echo 2"]
    assert run(command, timeout_sec=10) == "1\n2\n"
    assert run(command, timeout_sec=10, complaints_too=True) == "1\n2\noops\n"


def test_failure_says_what_was_typed_and_said() -> None:
    with pytest.raises(ProgramFailed, match=r"sh -c '.*': exit status 3: two / three / four"):
        run(["sh", "-c", "printf 'one\\ntwo\\nthree\\nfour\\n' >&2; exit 3"], timeout_sec=10)
    with pytest.raises(ProgramFailed, match="exit status 1: no message"):
        run(["false"], timeout_sec=10)
    with pytest.raises(ProgramFailed, match="cannot be started: No such file"):
        run(["/no/such/program"], timeout_sec=10)
    with pytest.raises(ProgramFailed, match=r"^it: exit status 1: no message$"):
        run(["false"], timeout_sec=10, name="it")


def test_environment_is_fixed_and_no_input_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "x")
    printed = run(["env"], timeout_sec=10)
    assert "LC_ALL=C.UTF-8" in printed
    assert "SECRET" not in printed
    assert run(["cat"], timeout_sec=10) == ""


def test_time_limit_ends_what_the_program_started_too(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(ProgramFailed, match=r"not finished after 0\.3 s"):
        run(["sh", "-c", f"sleep 60 & echo $! > '{told}'; trap '' TERM; wait"], timeout_sec=0.3)
    assert time.monotonic() - started < HANG_SEC
    assert _is_gone(int(told.read_text()))


def test_one_that_leaves_its_group_is_not_waited_for(tmp_path: Path) -> None:
    """It holds the pipes open, and is nobody's child any more."""
    told = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(ProgramFailed, match="not finished"):
        run(["sh", "-c", f"setsid sleep 60 & echo $! > '{told}'"], timeout_sec=0.3)
    assert time.monotonic() - started < HANG_SEC
    os.kill(int(told.read_text()), signal.SIGKILL)


def test_one_that_does_not_die_is_left_behind_and_looked_for_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named fake at the edge: killing does nothing, as with uninterruptible sleep."""
    started_pids: list[int] = []
    monkeypatch.setattr("os.killpg", lambda pid, _: started_pids.append(pid))
    monkeypatch.setattr(process, "_DEATH_SEC", 0.1)
    with pytest.raises(ProgramFailed, match="not finished"):
        run(["sleep", "61"], timeout_sec=0.1)
    with pytest.raises(ProgramFailed, match="an earlier one hangs in the kernel"):
        run(["sleep", "61"], timeout_sec=0.1)
    assert len(started_pids) == 1
    assert run(["echo", "other"], timeout_sec=10) == "other\n"
    os.kill(started_pids[0], signal.SIGKILL)
    os.waitid(os.P_PID, started_pids[0], os.WEXITED | os.WNOWAIT)
    run(["true"], timeout_sec=10)
    assert process._left_behind == {}


def test_an_interrupt_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    processes: list[subprocess.Popen[str]] = []

    def interrupted(self: subprocess.Popen[str], timeout: float) -> tuple[str, str]:
        processes.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "60"], timeout_sec=60)
    assert processes[0].returncode == -signal.SIGKILL


def _is_gone(pid: int) -> bool:
    """Killed and, at most, waiting for init to take note."""
    deadline = time.monotonic() + HANG_SEC
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False
