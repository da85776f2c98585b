# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cases must not hold something to be quicker than so many seconds of a clock.

What comes of a clock is followed through assignments: what is compared with it and does not come of a clock
itself is a limit. A deadline comes of one, and so does what a share is of; processor time does not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hang import HANG_SEC

TESTS = Path(__file__).parents[1]
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "time", "time_ns", "now", "utcnow"}
TAKEN = re.compile(r"(.*_)?(took|taken|elapsed|waited|lasted|duration|wall)(_m?sec|_ms|_seconds)?|slowest")
"""Names of what somebody else has measured."""
GUARD = "HANG_SEC"


class _Function(ast.NodeVisitor):
    """One scope; functions inside of it see its names."""

    def __init__(self, of_a_clock: set[str]) -> None:
        self.of_a_clock = set(of_a_clock)
        self.found: list[int] = []

    # What comes of a clock

    def is_time(self, node: ast.AST) -> bool:
        match node:
            case ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name)) if name in CLOCKS:
                return True
            case ast.Name(id=name):
                return name in self.of_a_clock or bool(TAKEN.fullmatch(name))
            case ast.Attribute(attr=name) | ast.Call(func=ast.Attribute(attr=name)) if TAKEN.fullmatch(name):
                return True
            case ast.BinOp(left=left, op=ast.Div(), right=right) if self.is_time(right):
                return not self.is_time(left)  # a share
            case ast.Compare() | ast.Lambda():
                return False
        return any(self.is_time(child) for child in ast.iter_child_nodes(node))

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
        values = (
            value.elts
            if isinstance(value, ast.Tuple) and len(value.elts) == len(names)
            else [value] * len(names)
        )
        for name, part in zip(names, values, strict=True):
            if self.is_time(part):
                self.of_a_clock.add(name)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._assign(target, node.value)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._assign(node.target, node.value)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._assign(node.target, node.iter)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._assign(node.target, node.iter)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        inner = _Function(self.of_a_clock)
        for statement in node.body:
            inner.visit(statement)
        self.found += inner.found

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Attribute(attr="append" | "add", value=ast.Name(id=name)), args=[value]):
                if self.is_time(value):
                    self.of_a_clock.add(name)
            case ast.Call(func=ast.Attribute(attr="wait_for"), args=[_, limit]):
                self._guard(limit)
            case ast.Call(func=ast.Attribute(attr="timeout"), args=[limit]):
                self._guard(limit)
        for keyword in node.keywords:
            if keyword.arg == "timeout":
                self._guard(keyword.value)
        self.generic_visit(node)

    def _guard(self, limit: ast.expr) -> None:
        """A limit that is no guard, since machines that are slower than this one would meet it."""
        if (
            isinstance(limit, ast.Constant)
            and isinstance(limit.value, int | float)
            and limit.value < HANG_SEC * 0.6
        ):
            self.found.append(limit.lineno)

    # What is held against it

    def visit_Assert(self, node: ast.Assert) -> None:
        self._hold(node.test, below=True)
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        fails = [ast.unparse(part.func) for part in ast.walk(node) if isinstance(part, ast.Call)]
        if "pytest.fail" in fails or any(isinstance(part, ast.Raise) for part in node.body):
            self._hold(node.test, below=False)
        self.generic_visit(node)

    def _hold(self, test: ast.AST, *, below: bool) -> None:
        """Find the comparisons by which a time has to be below (or else above) what is none."""
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                self._hold(inner, below=not below)
            case ast.Compare(left=left, ops=operators, comparators=others):
                sides = [left, *others]
                for one, operator, other in zip(sides, operators, others, strict=False):
                    self._compare(one, operator, other, below=below)
            case ast.Lambda():
                pass
            case _:
                for generator in getattr(test, "generators", ()):
                    self.visit(generator)
                for child in ast.iter_child_nodes(test):
                    self._hold(child, below=below)

    def _compare(self, one: ast.expr, operator: ast.cmpop, other: ast.expr, *, below: bool) -> None:
        smaller = isinstance(operator, ast.Lt | ast.LtE) if below else isinstance(operator, ast.Gt | ast.GtE)
        greater = isinstance(operator, ast.Gt | ast.GtE) if below else isinstance(operator, ast.Lt | ast.LtE)
        for time, limit, counts in ((one, other, smaller), (other, one, greater)):
            is_guard = any(isinstance(part, ast.Name) and part.id == GUARD for part in ast.walk(limit))
            if counts and self.is_time(time) and not self.is_time(limit) and not is_guard:
                self.found.append(one.lineno)


def _limits(source: str) -> Iterator[int]:
    """The lines that hold something of a clock to be less than what is none."""
    visitor = _Function(set())
    visitor.visit(ast.parse(source))
    yield from sorted(set(visitor.found))


def test_no_case_holds_seconds() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{line}"
        for path in sorted((*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py")))
        for line in _limits(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "assert loop.time() - start < 1",
        "assert time.monotonic() - began <= 0.5",
        "assert time.monotonic() - began < MOST_SEC",
        "assert time.monotonic() - began < 2 * 1.5",
        "assert 1 > monotonic() - began",
        "assert not time.perf_counter() - began > 2",
        "assert done and time.monotonic_ns() - began < 2_000_000",
        "assert datetime.now() - start < timedelta(seconds=2)",
        "start = time.time(); end = time.time(); assert end - start < 2",
        "delta = time.monotonic() - start; assert delta < LIMIT",
        "times = []\ntimes.append(time.monotonic() - start)\nassert max(times) < 2",
        "times = [time.monotonic() - start]\nassert all(each < 2 for each in times)",
        "def f():\n began = time.monotonic()\n def g():\n  assert time.monotonic() - began < 3",
        "if time.monotonic() - start > 2: pytest.fail('late')",
        "if time.monotonic() - start > 2: raise AssertionError",
        "assert self.took < 2",
        "assert result.elapsed_seconds < 2",
        "assert timer.elapsed() < 2",
        "await asyncio.wait_for(reply, 1)",
        "async def f():\n async with asyncio.timeout(1): pass",
        "subprocess.run(command, timeout=1)",
    ],
)
def test_what_is_found(line: str) -> None:
    assert len(list(_limits(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "deadline = time.monotonic() + 5; assert time.monotonic() < deadline",
        "assert time.monotonic() - began < HANG_SEC",
        "assert time.monotonic() - began >= 2",
        "cpu_seconds = time.process_time() - began; assert cpu_seconds < 1",
        "assert daemon.processor_seconds() - before < 1",
        "total = time.monotonic() - began; longest = time.monotonic() - start; assert longest / total < 0.5",
        "ping = loop.time() - one; read = loop.time() - other; assert read < 10 * ping",
        "assert longest <= 80",
        "assert unit_sec <= 120",
        "assert len(seconds) < 5",
        "await asyncio.wait_for(reply, HANG_SEC)",
        "subprocess.run(command, timeout=30)",
        "while time.monotonic() - began < 3: pass",
    ],
)
def test_what_is_not(line: str) -> None:
    assert list(_limits(line)) == []
