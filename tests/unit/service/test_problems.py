# SPDX-License-Identifier: LGPL-2.1-or-later
"""Codes, their classes and their manual page say the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kdump_service.errors import CannotArm, ImageNotBuilt
from kdump_service.service.problems import PROBLEM_CODES, Problem, Severity, found, worst_first

PACKAGE = Path(__file__).parents[3] / "kdump_service"
PAGE = Path(__file__).parents[3] / "packaging/man/kdump-problems.7"


def _entries() -> dict[str, tuple[str, str]]:
    """Severity and text of each entry of the page."""
    parts = re.split(r"^\.It Li (\S+) Pq (\w+)\n", PAGE.read_text(), flags=re.MULTILINE)
    return {
        code: (severity, text.split("\n.It ")[0].split("\n.El")[0])
        for code, severity, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)
    }


def test_each_code_has_an_entry_in_the_manual() -> None:
    assert {code: severity for code, (severity, _) in _entries().items()} == {
        code: kind.severity.value for code, kind in PROBLEM_CODES.items()
    }
    for code, (_, text) in _entries().items():
        assert len(text) > 20, code


def test_each_code_is_a_word_with_a_sentence() -> None:
    for code, kind in PROBLEM_CODES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", code)
        assert re.fullmatch(r"[A-Z].*\.", kind.meaning), code


def _classes(kind: type[CannotArm]) -> Iterator[type[CannotArm]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _classes(each)


def test_each_reason_not_to_be_armed_is_a_code() -> None:
    assert {each.reason for each in _classes(CannotArm)} <= set(PROBLEM_CODES)


def test_what_the_checks_find_are_codes_and_all_codes_are_found() -> None:
    used = set()
    for path in (*(PACKAGE / "service/checks").glob("*.py"), PACKAGE / "service/readiness.py"):
        used |= set(re.findall(r"found\(\s*\"([a-z-]+)\"", path.read_text()))
    # Why the capture boot's environment is not the one that was configured.
    environment = (PACKAGE / "arm/environment.py").read_text()
    remarks = {*re.findall(r"\"(image-[a-z-]+)\"", environment), ImageNotBuilt.reason}
    assert len(remarks) == 5
    of_the_state = {each.reason for each in _classes(CannotArm)} | {"disarmed", "unloaded-by-others"}
    assert used | remarks | of_the_state == set(PROBLEM_CODES)


def test_worst_first_and_once() -> None:
    note = found("sysrq-crash-off", "One.", "Do.")
    fatal = found("target-full", "Two.", "Do.", Severity.FATAL)
    warning = found("target-full", "Three.", "Do.")
    assert worst_first([note, warning, note, fatal]) == [fatal, warning, note]
    assert (warning.severity, note.severity) == (Severity.WARNING, Severity.NOTE)
    assert worst_first([Problem("a", Severity.NOTE, "x", "y"), note])[0].code == "a"
