# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cases must not assert that something takes fewer seconds of a clock than a number says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "perf_counter", "time"}
TAKEN = re.compile(r"(.*_)?(took|seconds|sec|duration|elapsed|slowest|longest|waited)")


def _is_of_a_clock(node: ast.expr) -> bool:
    return any(
        (isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in CLOCKS)
        or (isinstance(part, ast.Name) and TAKEN.fullmatch(part.id))
        for part in ast.walk(node)
    )


def _limits(source: str) -> Iterator[int]:
    """The lines that assert something of a clock to be less than a number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare):
            sides = [node.test.left, *node.test.comparators]
            pairs = zip(sides, node.test.ops, sides[1:], strict=False)
            if any(
                isinstance(operator, ast.Lt | ast.LtE)
                and isinstance(right, ast.Constant)
                and _is_of_a_clock(left)
                for left, operator, right in pairs
            ):
                yield node.lineno


def test_no_case_asserts_seconds() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted(TESTS.rglob("*.py"))
        for line in _limits(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("assert loop.time() - start < 1", [1]),
        ("assert time.monotonic() - began <= 0.5", [1]),
        ("assert 0 < seconds < 2", [1]),
        ("assert time.monotonic() < deadline", []),
        ("assert time.monotonic() - began < HANG_SEC", []),
        ("assert seconds >= 2", []),
    ],
)
def test_what_is_found(line: str, lines: list[int]) -> None:
    assert list(_limits(line)) == lines
