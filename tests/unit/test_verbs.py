# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kdump-service offers, it does: each verb has its function, and each of a unit is offered."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from kdump_service.__main__ import VERBS, main

UNITS = Path(__file__).parents[2] / "units"


@pytest.mark.parametrize("name", VERBS)
def test_verb_has_its_function(name: str) -> None:
    module, _, function = VERBS[name].function.partition(":")
    taken = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert len(taken) == (1 if VERBS[name].argument else 0)


# What else runs them: the build of an image, and the removal of the program.
NOT_OF_UNITS = {"capture-trial", "unreserve"}


def test_verbs_are_those_of_the_units() -> None:
    started = {
        verb
        for unit in UNITS.glob("*.service")
        for verb in re.findall(r"^Exec\w+=/usr/bin/kdump-service (\S+)", unit.read_text(), re.MULTILINE)
    }
    assert started | NOT_OF_UNITS == set(VERBS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["arm-early"], "invalid choice: 'arm-early'"),
        ([], "required: verb"),
        (["capture-trial"], "capture-trial needs a FOLDER"),
        (["daemon", "now"], "daemon takes no argument"),
        (["capture", "now"], "capture takes no argument"),
        (["build-image", "6.1.0", "more"], "unrecognized arguments: more"),
    ],
)
def test_bad_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    assert exit_info.value.code == 2
    assert said in capsys.readouterr().err
