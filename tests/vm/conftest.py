# SPDX-License-Identifier: LGPL-2.1-or-later
"""Fixtures of the cases in virtual machines, and what is told of a case that failed.

A case asks for `machine_factory` (and `open_dump`), and is a few lines long. $KDUMP_TEST_KEEP=1 keeps the
disks, consoles and dumps of all machines; $KDUMP_TEST_SUITE names another Debian release.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Protocol, Unpack

import pytest

from tests.budget import guests

from .boot_disk import BootLoader
from .cache import say, set_reporter
from .debuggers import OpenDump
from .events import GuestDump, MachineLost
from .lab import Lab
from .machine import Machine, MachineOptions
from .snapshot import RestoredMachine, RestoredOptions
from .tree import SUITE

REPO = Path(__file__).parents[2]
PROGRAMS = (
    "qemu-system-x86_64",
    "setpriv",
    "mmdebstrap",
    "mke2fs",
    "debugfs",
    "sfdisk",
    "mkfs.vfat",
    "crash",
    "gdb",
)
CONSOLE_LINES = 60

LAB = pytest.StashKey[Lab]()

OpenDumpOf = Callable[[Machine, GuestDump], OpenDump]


class MachineFactory(Protocol):
    """What a case makes its machines with: `Lab.machine`."""

    def __call__(
        self, *, boot_loader: BootLoader | None = None, **options: Unpack[MachineOptions]
    ) -> Machine: ...


class RestoredFactory(Protocol):
    """What a case makes machines with that were booted before: `Lab.restored`."""

    def __call__(self, **options: Unpack[RestoredOptions]) -> RestoredMachine: ...


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.vm)


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")

    def report(line: str) -> None:
        # Whoever waits for a minute wants to know for what, though pytest keeps output back.
        with capture.global_and_fixture_disabled():
            print(f"[{line}]", file=sys.stderr, flush=True)

    if capture is not None:
        set_reporter(report)


@pytest.fixture(scope="session")
def lab_base() -> Iterator[Lab]:
    """Cache, tree, disk and symbols, which all cases share. Fails at once where machines cannot be made."""
    if os.geteuid() != 0:
        pytest.fail("the cases in tests/vm make root file systems: run them as root", pytrace=False)
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.fail(f"not installed: {', '.join(missing)}; `make setup` installs them", pytrace=False)
    work = Path(tempfile.mkdtemp(prefix="kdump-vm-"))
    yield Lab(REPO, work, suite=os.environ.get("KDUMP_TEST_SUITE", SUITE))
    if not os.environ.get("KDUMP_TEST_KEEP"):
        shutil.rmtree(work, ignore_errors=True)


@pytest.fixture
def lab(lab_base: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The shared lab; after the case its machines are gone, but not one that a whole module shares."""
    request.node.stash[LAB] = lab_base
    shared = list(lab_base.machines)
    yield lab_base
    of_this_case = [machine for machine in lab_base.machines if machine not in shared]
    if os.environ.get("KDUMP_TEST_KEEP"):
        kept = lab_base.work / request.node.name
        kept.mkdir()
        for machine in of_this_case:
            machine.stop()
            machine.work.rename(kept / machine.work.name)
        print(f"kept: {kept}")
    lab_base.clean_up(of_this_case)


@pytest.fixture
def machine_factory(lab: Lab) -> MachineFactory:
    """`with machine_factory(memory_mib=…, crashkernel=…) as machine:`; see `Lab.machine`."""
    return lab.machine


@pytest.fixture
def restored(lab: Lab) -> RestoredFactory:
    """`with restored(files=…) as machine:` is up and armed at once; see `Lab.restored`."""
    return lab.restored


@pytest.fixture
def open_dump(lab: Lab) -> OpenDumpOf:
    """`open_dump(machine, machine.dumps()[0])`, then ask it with `.drgn(comm)`, `.crash(comm)`, `.gdb()`."""
    return lab.open_dump


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and report.failed and call.excinfo is not None:
        lost = call.excinfo.errisinstance(MachineLost)
        # At once, too: whoever stops the run before its end loses the summary.
        say(f"{item.name}: {call.excinfo.typename}: {(str(call.excinfo.value).splitlines() or [''])[0]}")
        if lost:
            guests.COUNTED.lost += 1
            # Its message ends with the console already; a traceback through the harness says nothing.
            report.longrepr = f"machine lost: {call.excinfo.value}"
            report.user_properties.append(("machine", "lost"))
        lab = item.stash.get(LAB, None)
        shared = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, Machine)]
        for number, machine in enumerate([*(lab.machines if lab else ()), *shared]):
            if not lost and machine.boots:
                report.sections.append((f"console of machine {number}", machine.console.tail(CONSOLE_LINES)))
            machine.collect_journal()
            if machine.journal:
                report.sections.append((f"kdump units of machine {number}", machine.journal))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    if ("machine", "lost") in getattr(report, "user_properties", ()) and report.when == "call":
        return "error", "L", "MACHINE LOST"
    return None
