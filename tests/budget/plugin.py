# SPDX-License-Identifier: LGPL-2.1-or-later
"""The suite's own plugin of pytest: chooses cases by part, checks their marks, and counts what they take.

$KDUMP_TEST_LEDGER names a folder in which each invocation of pytest leaves one file: see ledger.py.
"""

import os
import time
from collections.abc import Generator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from .calibration import calibrate
from .declared import guest_of, in_no_part, long_first, part_of, wrong_marks
from .guests import COUNTED, MADE, Guests, Made, processor_seconds
from .ledger import Case, Invocation, write
from .limits import read_budget
from .promises import read_promises

SPENT = "spent"  # name of the report's property: processor seconds, guests, and what was made
PARTS = read_budget().parts.keys()
PROMISES = frozenset(name for section in read_promises().values() for name in section)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part",
        metavar="NAME",
        choices=["all", *PARTS],
        help="only the cases of this part of `make test-all`, or of all parts; without it, none of them,"
        " but where cases are named (by ::, or -k)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Meter())
    if not hasattr(config, "workerinput"):  # of a worker of xdist
        config.pluginmanager.register(_Bookkeeper(config))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Wrong marks are an error of the collection."""
    report = yield
    wrong = [
        f"{item.nodeid}: {what}"
        for item in report.result or ()
        if isinstance(item, pytest.Item)
        for what in wrong_marks(item, PARTS, PROMISES)
    ]
    if wrong:
        report.outcome = "failed"
        report.longrepr = "\n".join(wrong)
    return report


@pytest.hookimpl(trylast=True)  # after pytest has put cases together that share a parameter
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = config.getoption("part")
    if wanted == "all":
        chosen = [item for item in items if part_of(item) is not None]
    elif wanted is None and (config.getoption("keyword") or any("::" in name for name in config.args)):
        chosen = items  # who names cases gets them
    else:
        chosen = [item for item in items if part_of(item) == wanted]
    kept = set(chosen)
    if lost := [item.nodeid for item in items if in_no_part(item)]:
        raise pytest.UsageError(f"part() is for tests/vm, elsewhere nobody runs the case: {', '.join(lost)}")
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = long_first(chosen, getattr(config, "workerinput", {}).get("workercount", 1))


class _Meter:
    """Puts onto the report of each phase what this process has spent in it."""

    def __init__(self) -> None:
        self._cpu = 0.0
        self._guests = Guests()
        self._made = 0
        self._of_case = Guests()
        self._told = False

    def _begin(self) -> None:
        self._cpu = processor_seconds()
        self._guests = replace(COUNTED)
        self._made = len(MADE)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._begin()
        self._of_case = Guests()
        self._told = False
        return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        guests = COUNTED - self._guests
        made = [asdict(entry) for entry in MADE[self._made :]]
        spent = {"cpu": processor_seconds() - self._cpu, "guests": asdict(guests), "made": made}
        report.user_properties.append((SPENT, spent))
        self._of_case += guests
        # Not with the setup: to fail that would be an error, not a failure.
        if report.when != "setup" and not self._told and (excess := _excess(item, self._of_case)):
            self._told = True
            if report.failed:
                report.sections.append(("guests", excess))
            else:  # also one that was skipped, or is expected to fail: it took them all the same
                report.outcome = "failed"
                report.longrepr = excess
                vars(report).pop("wasxfail", None)
        self._begin()
        return report


def _excess(item: pytest.Item, taken: Guests) -> str:
    """What the case took more than it declares."""
    declared = guest_of(item)
    return "\n".join(
        f"the case took {took} {what} of guests, and declares {said}: guest({what}={said})"
        for what, took, said in (
            ("boots", taken.boots - taken.hangs, declared.boots),
            ("captures", taken.captures, declared.captures),
        )
        if took > said
    )


class _Bookkeeper:
    """Sums up what all reports say: in the process that the user started, whoever ran the cases."""

    def __init__(self, config: pytest.Config) -> None:
        # Not for what a case starts.
        folder = os.environ.pop("KDUMP_TEST_LEDGER", None)
        self._folder = Path(folder) if folder and not config.getoption("collectonly") else None
        before = processor_seconds()
        calibration = calibrate() if self._folder else 0
        self._own_cpu = processor_seconds() - before
        self._start = time.monotonic()
        self._invocation = Invocation(
            what=" ".join(config.args), part=config.getoption("part"), calibration=calibration
        )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        case = self._invocation.cases.setdefault(report.nodeid, Case())
        if report.failed:
            case.outcome = "failed"
        elif report.skipped or report.when == "call":
            case.outcome = case.outcome or report.outcome
        for name, spent in report.user_properties:
            if name == SPENT and isinstance(spent, dict):
                case.cpu += spent["cpu"]
                case.guests += Guests(**spent["guests"])
                self._invocation.made += [Made(**entry) for entry in spent["made"]]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        guests = self._invocation.guests
        if guests.hangs or guests.lost:
            terminalreporter.section("emulation", yellow=True)
            terminalreporter.line(
                f"emulation: {_count(guests.hangs, 'hang')} (reset), {_count(guests.lost, 'machine')} lost"
            )

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Generator[None, None, None]:
        yield
        # By now the workers have ended and been waited for.
        if self._folder:
            self._invocation.exit_status = int(session.exitstatus)
            self._invocation.wall = time.monotonic() - self._start
            self._invocation.cpu = processor_seconds() - self._own_cpu
            write(self._folder, self._invocation)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
