# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a run took is held against the budget; and that the budget keeps below its ceiling."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.budget.__main__ import main
from tests.budget.calibration import calibrate
from tests.budget.guests import Guests, Made
from tests.budget.judge import judge, report
from tests.budget.ledger import Case, Invocation, write
from tests.budget.limits import BUDGET as BUDGET_FILE
from tests.budget.limits import BadBudget, Budget, Limit, read_budget

BUDGET = Budget(
    ceiling=3600,
    reference_seconds=2.0,
    tier=Limit(boots=10, captures=4, processor_seconds=100),
    tier_seconds_empty_cache=300,
    reserved={},
    parts={"odd": Limit(boots=1, captures=1, processor_seconds=50)},
    meanings={"odd": "What is odd."},
)


def a_run(cpu: float = 100, part: str | None = None, **guests: int) -> Invocation:
    """Return an invocation of two cases on the machine that the reference seconds are of."""
    taken = Guests(**{"boots": 10, "captures": 4, **guests})
    cases = {"test_a.py::test_x": Case(cpu / 2, "passed", taken), "test_a.py::test_y": Case(1, "passed")}
    rooms = "tests/unit tests/vm"
    return Invocation(what=rooms, part=part, calibration=2.0, wall=60, cpu=cpu, cases=cases)


def tree(cpu: float) -> Made:
    return Made("tree-0123", wall=60, cpu=cpu, boots=1, captures=0)


@pytest.mark.parametrize(
    ("run", "errors", "notes"),
    [
        (a_run(), [], ["100 scaled processor seconds, and the budget has 100"]),
        (a_run(boots=11), ["11 boots of guests, and the budget has 10"], ["100 scaled"]),
        (a_run(captures=5), ["5 captures of guests, and the budget has 4"], ["100 scaled"]),
        (a_run(boots=11, hangs=1), [], ["100 scaled"]),
        (a_run(boots=9), [], ["9 boots of guests; the budget of 10 could be lowered", "100 scaled"]),
        (a_run(cpu=150), [], ["150 scaled"]),
        (a_run(cpu=151), ["151 scaled processor seconds, and the budget has 100: more than 1.5"], []),
        # A machine that is half as fast.
        (replace(a_run(cpu=290), calibration=4.0), [], ["145 scaled"]),
        (replace(a_run(cpu=310), calibration=4.0), ["155 scaled"], []),
        (replace(a_run(cpu=440), made=[tree(300)]), [], ["empty cache: 440 scaled"]),
        (
            replace(a_run(cpu=451), made=[tree(300)]),
            ["451 scaled processor seconds, and the budget has 300"],
            [],
        ),
        (replace(a_run(), exit_status=2), ["pytest ended with status 2"], ["100 scaled"]),
        (replace(a_run(), exit_status=1), ["pytest ended with status 1"], ["100 scaled"]),
        (replace(a_run(), what="tests/unit"), ["nothing was run in tests/vm"], ["100 scaled"]),
    ],
)
def test_tier(run: Invocation, errors: list[str], notes: list[str]) -> None:
    verdict = judge([run], None, BUDGET)
    for told, expected in ((verdict.errors, errors), (verdict.notes, notes)):
        assert len(told) == len(expected), told
        assert all(part in sentence for part, sentence in zip(expected, told, strict=True)), told


def test_invocations_of_a_run_add_up() -> None:
    verdict = judge([a_run(cpu=80, boots=6, captures=4), a_run(cpu=80, boots=5, captures=0)], None, BUDGET)
    assert [error.partition(": ")[2] for error in verdict.errors] == [
        "11 boots of guests, and the budget has 10",
        "160 scaled processor seconds, and the budget has 100: more than 1.5 times as much",
    ]


def test_a_part_is_judged_without_what_is_made_for_the_cache() -> None:
    run = replace(a_run(cpu=375, part="odd", boots=1, captures=1), made=[tree(300)])
    assert judge([run], "odd", BUDGET).errors == []
    assert judge([replace(run, cpu=376)], "odd", BUDGET).errors != []
    assert judge([replace(run, made=[])], "odd", BUDGET).errors != []


def test_the_report() -> None:
    lines = list(report([replace(a_run(hangs=1, lost=2, restored=3), made=[tree(20)])], BUDGET))
    assert lines[0].startswith(
        "tests/unit tests/vm: 60 s; 100 processor seconds, 100 scaled, 49 of them in no case; 2 passed"
    )
    assert lines[1].startswith(
        "guests: 10 boots, 4 captures, 3 restored; emulation: 1 hung (reset), 2 machines"
    )
    assert lines[2] == "made for the cache: tree-0123, 60 s, 20 processor seconds, 1 boots, 0 captures"
    assert [line.split() for line in lines[-2:]] == [
        ["50.0", "test_a.py::test_x"],
        ["1.0", "test_a.py::test_y"],
    ]


def test_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exit code and what it reads: the tier's invocations are not those of a part."""
    monkeypatch.setattr("tests.budget.__main__.read_budget", lambda: BUDGET)
    write(tmp_path, a_run())
    write(tmp_path, a_run(part="odd", boots=2))
    assert main([str(tmp_path), "--tier", "test"]) == 0
    assert "10 boots" in capsys.readouterr().out
    assert main([str(tmp_path), "--part", "odd"]) == 1
    assert "part odd: 2 boots of guests, and the budget has 1" in capsys.readouterr().err


def test_a_ledger_that_says_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none"), "--tier", "test"]) == 1
    assert "no invocation of pytest has written here" in capsys.readouterr().err
    write(tmp_path, a_run(part="odd"))
    assert main([str(tmp_path), "--tier", "test"]) == 1
    assert "no invocation of make test is in the ledger" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"cases": {}, "made": [], "what": "tests"}'])
def test_a_broken_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    write(tmp_path, a_run())
    (tmp_path / "broken.json").write_text(damage)
    assert main([str(tmp_path), "--tier", "test"]) == 1
    assert f"{tmp_path / 'broken.json'}: this is no ledger" in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [
        {"calibration": 0},
        {"calibration": -1},
        {"calibration": "x"},
        {"cpu": None},
        {"cpu": math.nan},
        {"cpu": -5000},
        {"what": 3},
        {"cases": {"a": {"cpu": "1", "outcome": "passed", "guests": {}}}},
        {"cases": {"a": {"cpu": 1, "outcome": 3, "guests": {}}}},
        {"cases": {"a": {"cpu": 1, "outcome": "passed", "guests": {"boots": -3}}}},
        {"cases": {"a": {"cpu": 1, "outcome": "passed", "guests": {"boots": "5"}}}},
        {"made": [{"name": 3, "wall": 1, "cpu": 1, "boots": 0, "captures": 0}]},
        {"made": [{"name": "tree", "wall": "x", "cpu": 1, "boots": 0, "captures": 0}]},
    ],
    ids=str,
)
def test_values_that_no_run_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: dict[str, object]
) -> None:
    write(tmp_path, a_run())
    [path] = tmp_path.iterdir()
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    assert main([str(tmp_path), "--tier", "test"]) == 1
    assert f"{path}: this is no ledger" in capsys.readouterr().err


def test_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("folder.json", "link.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).mkdir() if name == "folder.json" else (folder / name).symlink_to("nowhere")
        assert main([str(folder), "--tier", "test"]) == 1
        assert f"{folder / name}: this is no ledger" in capsys.readouterr().err


GOOD = BUDGET_FILE.read_text()


@pytest.mark.parametrize(
    ("line", "other", "told"),
    [
        (
            "reference_seconds = 0.40",
            "reference_seconds = 0",
            "[calibration] reference_seconds = 0 cannot be",
        ),
        ("reference_seconds = 0.40", "reference_seconds = -1", "reference_seconds = -1 cannot be"),
        ("reference_seconds = 0.40", "", "lacks, or does not know: reference_seconds"),
        ("\nspeed = ", "\nspeed = -", "[reserved] speed = -"),
        ("boots = 5\n", 'boots = "5"\n', "[tier.test] boots = '5' cannot be"),
        ("boots = 5\n", "boots = 5.9\n", "[tier.test] boots = 5.9 cannot be"),
        ("boots = 5\n", "boots = 5\ncaptuers = 3\n", "captuers"),
        ("[part.images]", "[part.all]", "[part.all] is no name of a part"),
        ("[part.images]", '[part."odd name"]', "is no name of a part"),
        ("ceiling = 3600", "", "ceiling"),
        ("[reserved]", "[reversed]", "reserved"),
        ("[reserved]", "[reserved", "budget.toml"),
    ],
)
def test_a_budget_that_cannot_be(tmp_path: Path, line: str, other: str, told: str) -> None:
    assert line in GOOD
    path = tmp_path / "budget.toml"
    path.write_text(GOOD.replace(line, other, 1))
    with pytest.raises(BadBudget) as caught:
        read_budget(path)
    assert str(caught.value).startswith(str(path))
    assert told in str(caught.value)


def test_a_case_without_its_guests_is_broken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, a_run())
    [path] = tmp_path.iterdir()
    said = json.loads(path.read_text())
    del said["cases"]["test_a.py::test_x"]["guests"]
    path.write_text(json.dumps(said))
    assert main([str(tmp_path), "--tier", "test"]) == 1
    assert "this is no ledger" in capsys.readouterr().err


def test_the_calibration_takes_a_measurable_time() -> None:
    assert calibrate() > 0.1


def test_the_budget_keeps_below_its_ceiling() -> None:
    budget = read_budget()
    assert budget.tier.processor_seconds <= budget.tier_seconds_empty_cache
    assert budget.tier_seconds_empty_cache + sum(budget.reserved.values()) <= budget.ceiling


def test_each_part_is_told_in_a_sentence() -> None:
    assert all(meaning.endswith(".") for meaning in read_budget().meanings.values())
