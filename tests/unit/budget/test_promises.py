# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each promise is held by a case in `make test`, and told in the README."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.budget.promises import read_promises

REPO = Path(__file__).parents[3]

# A real collection, since marks come from modules, classes and parameters too; without --part it leaves out
# what is not in `make test`. It starts no fixture.
COLLECT = """
import json, pytest

def runs(item):
    # An empty list of parameters makes a case that is skipped by such a mark, too.
    never = any(item.iter_markers("skip"))
    return not never and not any(mark.kwargs.get("run") is False for mark in item.iter_markers("xfail"))

class Held:
    def pytest_collection_finish(self, session):
        marks = [mark for item in session.items if runs(item) for mark in item.iter_markers("promise")]
        print("held:", json.dumps(sorted({name for mark in marks for name in mark.args})))

ROOMS = ["tests/lint", "tests/unit", "tests/fuzz", "tests/bus", "tests/vm"]  # of `make test`
raise SystemExit(pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", *ROOMS], plugins=[Held()]))
"""


def test_each_promise_has_a_case_in_make_test() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], cwd=REPO, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [held] = re.findall("^held: (.*)$", done.stdout, re.MULTILINE)
    declared = {name for section in read_promises().values() for name in section}
    missing = sorted(declared - set(json.loads(held)))
    assert not missing, f"no case in make test holds {', '.join(missing)}"


def test_the_readme_quotes_each_promise() -> None:
    readme = (REPO / "README.md").read_text()
    assert [name for name in read_promises()["promise"] if f"`{name}`" not in readme] == []


def test_ids_are_words_and_have_a_sentence() -> None:
    for sentences in read_promises().values():
        for name, sentence in sentences.items():
            assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)
            assert sentence.endswith("."), name


def test_an_id_of_two_sections_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "promises.toml"
    path.write_text('[promise]\nelf = "One."\n[format]\nelf = "Two."\n')
    with pytest.raises(ValueError, match=r"\[format\] repeats elf"):
        read_promises(path)
