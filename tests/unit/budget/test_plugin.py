# SPDX-License-Identifier: LGPL-2.1-or-later
"""The suite's plugin of pytest, in runs of pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from tests.budget.declared import in_no_part
from tests.budget.guests import Guests
from tests.budget.ledger import Invocation, read_ledger
from tests.budget.limits import read_budget
from tests.budget.promises import read_promises

REPO = Path(__file__).parents[3]
ONE, OTHER = list(read_budget().parts)[:2]
A_PROMISE = next(iter(read_promises()["promise"]))
HEAD = "import os\nimport pytest\nfrom tests.budget import guests\n"
QUICK = "from tests.budget import plugin\nplugin.calibrate = lambda: 1.5\n"


def run(folder: Path, *arguments: str, ledger: bool = False) -> subprocess.CompletedProcess[str]:
    """Run pytest with the plugin on the files in `folder`; with `ledger`, that is in `folder`/ledger."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = str(REPO)
    if ledger:
        environment["KDUMP_TEST_LEDGER"] = str(folder / "ledger")
        (folder / "conftest.py").write_text(QUICK)
    command = [sys.executable, "-m", "pytest", "-c", str(REPO / "pyproject.toml"), "--rootdir", str(folder)]
    plugins = ["-p", "no:cacheprovider", "-p", "tests.budget.plugin"]
    return subprocess.run(
        [*command, *plugins, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ledger_of(folder: Path) -> Invocation:
    [invocation] = read_ledger(folder / "ledger")
    return invocation


def outcomes(invocation: Invocation) -> dict[str, str]:
    return {name.partition("::")[2]: case.outcome for name, case in invocation.cases.items()}


def test_no_case_takes_more_guests_than_it_declares(tmp_path: Path) -> None:
    (tmp_path / "test_guests.py").write_text(
        HEAD
        + """
def take(boots=0, captures=0, hangs=0, lost=0):
    guests.COUNTED.boots += boots
    guests.COUNTED.captures += captures
    guests.COUNTED.hangs += hangs
    guests.COUNTED.lost += lost

@pytest.fixture(scope="module")
def machine():
    take(boots=1)

@pytest.fixture
def late():
    yield
    take(captures=1)

@pytest.mark.guest(boots=2, captures=1)
def test_just_so(): take(2, 1)
@pytest.mark.guest(boots=2)
def test_fewer(): take(1)
@pytest.mark.guest(boots=1)
def test_hang(): take(boots=2, hangs=1)
@pytest.mark.guest(boots=1)
def test_boots(): take(boots=2)
@pytest.mark.guest(boots=1)
def test_captures(): take(boots=1, captures=1)
def test_undeclared(): take(boots=1)
def test_in_setup(machine): pass
def test_shared_before(machine): pass
def test_in_teardown(late): pass
def test_fails_and_takes():
    take(boots=7)
    assert "of its own"
    assert not "of its own"
def test_for_the_cache():
    with guests.making("disk-0"): take(boots=3)
def test_lost(): take(lost=1)
"""
    )
    done = run(tmp_path, "-p", "no:xdist", ledger=True)
    failed = {"boots", "captures", "undeclared", "in_setup", "in_teardown", "fails_and_takes"}
    passed = {"just_so", "fewer", "hang", "shared_before", "for_the_cache", "lost"}
    invocation = ledger_of(tmp_path)
    assert outcomes(invocation) == {
        **{f"test_{name}": "failed" for name in failed},
        **{f"test_{name}": "passed" for name in passed},
    }
    assert done.returncode == invocation.exit_status == 1
    assert "the case took 2 boots of guests, and declares 1: guest(boots=1)" in done.stdout
    assert "the case took 1 captures of guests, and declares 0: guest(captures=0)" in done.stdout
    assert "the case took 7 boots of guests, and declares 0" in done.stdout
    assert 'assert not "of its own"' in done.stdout
    assert "emulation: 1 hang (reset), 1 machine lost" in done.stdout
    assert [(entry.name, entry.boots) for entry in invocation.made] == [("disk-0", 3)]
    assert invocation.cases["test_guests.py::test_in_setup"].guests == Guests(boots=1)


def test_what_does_not_pass_takes_no_more_either(tmp_path: Path) -> None:
    (tmp_path / "test_guests.py").write_text(
        HEAD
        + """
def take(): guests.COUNTED.boots += 9

@pytest.mark.xfail
def test_expected():
    take()
    assert False
def test_skipped():
    take()
    pytest.skip("so")
@pytest.fixture
def machine(): take()
@pytest.mark.xfail
def test_of_a_fixture(machine): assert False
@pytest.mark.xfail
@pytest.mark.guest(boots=9)
def test_declared():
    take()
    assert False
"""
    )
    done = run(tmp_path, "-p", "no:xdist", ledger=True)
    failed = {"test_expected": "failed", "test_skipped": "failed", "test_of_a_fixture": "failed"}
    assert outcomes(ledger_of(tmp_path)) == {**failed, "test_declared": "skipped"}
    assert done.stdout.count("the case took 9 boots of guests, and declares 0") >= 3


@pytest.mark.parametrize(("room", "lost"), [("unit/arm", True), ("bus", True), ("vm", False)])
def test_part_of_another_room_is_run_by_nobody(room: str, lost: bool) -> None:
    class Item:
        path = REPO / "tests" / room / "test_x.py"

        def get_closest_marker(self, name: str) -> pytest.Mark | None:
            return pytest.mark.part(ONE).mark if name == "part" else None

    assert in_no_part(cast("pytest.Item", Item())) is lost


def test_wrong_marks_are_errors_of_the_collection(tmp_path: Path) -> None:
    (tmp_path / "test_marks.py").write_text(
        HEAD
        + f"""
@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.promise({A_PROMISE!r}, "nonsense"))])
def test_promise(n): pass
@pytest.mark.part("nowhere")
def test_part(): pass
@pytest.mark.part()
def test_no_part(): pass
@pytest.mark.promise()
def test_no_promise(): pass
@pytest.mark.guest(1)
def test_guest(): pass
@pytest.mark.guest(machines=1)
def test_machines(): pass
@pytest.mark.guest(boots=-1)
def test_negative(): assert False
@pytest.mark.guest(seconds=float("nan"))
def test_nan(): assert False
@pytest.mark.guest(boots="2")
def test_text(): pass
@pytest.mark.guest(boots=True)
def test_truth(): pass
@pytest.mark.guest()
def test_nothing(): pass
@pytest.mark.part(["images"])
def test_list(): pass
@pytest.mark.promise(["oops"])
def test_promises(): pass
@pytest.mark.guest(boots=1)
@pytest.mark.guest(boots=2)
def test_twice(): pass
"""
    )
    done = run(tmp_path, "-q")
    assert done.returncode == pytest.ExitCode.INTERRUPTED
    for told in (
        "::test_promise[2]: no promise 'nonsense' in tests/promises.toml",
        "::test_part: no part 'nowhere' in tests/budget/budget.toml",
        "::test_no_part: part() takes one name",
        "::test_no_promise: promise() takes ids",
        "::test_guest: guest() takes boots=, captures= and seconds=",
        "::test_machines: guest() takes boots=, captures= and seconds=",
        "::test_negative: guest() takes boots=, captures= and seconds=, from 0 on: -1 is no number",
        "::test_nan: guest() takes boots=, captures= and seconds=, from 0 on: nan is no number",
        "::test_text: guest() takes boots=, captures= and seconds=, from 0 on: '2' is no number",
        "::test_truth: guest() takes boots=, captures= and seconds=, from 0 on: True is no number",
        "::test_nothing: guest() takes boots=, captures= and seconds=, from 0 on: nothing by name",
        "::test_list: part() takes one name",
        "::test_promises: promise() takes ids",
        "::test_twice: guest() stands there 2 times, and one counts",
    ):
        assert told in done.stdout
    assert "test_promise[1]" not in done.stdout
    # With workers, too.
    assert run(tmp_path, "-q", "-n", "2").returncode not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        ([], {"plain"}),
        (["--part=all"], {"one", "other"}),
        ([f"--part={OTHER}"], {"other"}),
        (["test_parts.py::test_one"], {"one"}),
        (["-k", "one or plain"], {"one", "plain"}),
        ([f"--part={ONE}", "-k", "o"], {"one"}),
    ],
)
def test_parts(tmp_path: Path, arguments: list[str], chosen: set[str]) -> None:
    (tmp_path / "test_parts.py").write_text(
        HEAD
        + f"""
def test_plain(): pass
@pytest.mark.part({ONE!r})
def test_one(): pass
@pytest.mark.part({OTHER!r})
def test_other(): pass
"""
    )
    done = run(tmp_path, "--collect-only", "-q", "-p", "no:xdist", *arguments, ledger=True)
    found = {line.partition("::test_")[2] for line in done.stdout.splitlines() if "::" in line}
    assert found == chosen
    assert not (tmp_path / "ledger").exists()


def test_unknown_part_is_a_wrong_usage(tmp_path: Path) -> None:
    done = run(tmp_path, "--part=nowhere")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "nowhere" in done.stderr


def test_ledger_of_two_workers(tmp_path: Path) -> None:
    """What any of them spends comes to the one file."""
    (tmp_path / "test_work.py").write_text(
        HEAD
        + """
import subprocess, sys, time

@pytest.mark.guest(boots=1, captures=1)
@pytest.mark.parametrize("number", range(6))
def test_guest(number):
    guests.COUNTED.boots += 1
    assert "KDUMP_TEST_LEDGER" not in os.environ

def test_busy():
    end = time.process_time() + 0.3
    while time.process_time() < end: pass

def test_child():
    code = "import time\\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_skipped(): pytest.skip("so")
"""
    )
    done = run(tmp_path, "-n", "2", "--dist", "worksteal", ledger=True)
    assert done.returncode == 0, done.stdout
    invocation = ledger_of(tmp_path)
    assert invocation.guests == Guests(boots=6)
    assert invocation.cases["test_work.py::test_guest[3]"].guests == Guests(boots=1)
    assert len(invocation.cases) == 9
    assert invocation.cases["test_work.py::test_skipped"].outcome == "skipped"
    for busy in ("busy", "child"):
        assert 0.3 <= invocation.cases[f"test_work.py::test_{busy}"].cpu < 10
    assert invocation.cpu > sum(case.cpu for case in invocation.cases.values())
    assert invocation.calibration == 1.5
    assert invocation.wall > 0


def test_worker_that_dies_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_dies.py").write_text(
        HEAD
        + """
def test_fails(): assert False
def test_dies(): os._exit(3)
def test_passes(): pass
"""
    )
    done = run(tmp_path, "-n", "1", "--max-worker-restart", "1", ledger=True)
    invocation = ledger_of(tmp_path)
    assert done.returncode == invocation.exit_status == 1
    assert outcomes(invocation) == {"test_fails": "failed", "test_dies": "failed", "test_passes": "passed"}


def test_interrupted_run_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_stops.py").write_text(
        HEAD
        + """
def test_passes(): pass
def test_stops(): raise KeyboardInterrupt
"""
    )
    done = run(tmp_path, ledger=True)
    invocation = ledger_of(tmp_path)
    assert done.returncode == invocation.exit_status == pytest.ExitCode.INTERRUPTED
    assert outcomes(invocation) == {"test_passes": "passed", "test_stops": ""}


def test_no_ledger_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / "test_passes.py").write_text("def test_passes(): pass\n")
    assert run(tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["test_passes.py"]
