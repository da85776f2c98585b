# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from kdump_service.config import Config
from kdump_service.errors import DumpMissing
from kdump_service.service.dump_keeper import MOST_OF_SAME_BUG, DumpKeeper
from tests.builders.machine_root import MachineRoot
from tests.builders.stored_dumps import FIRST_CRASH, name_of, put_dump

HOUR = 3600


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    """A machine with three dumps."""
    made = MachineRoot(tmp_path)
    for number in range(3):
        put_dump(made, number, signature="" if number == 1 else "0123456789abcdef")
    return made


def _keeper(machine: MachineRoot) -> DumpKeeper:
    keeper = DumpKeeper(machine.path)
    keeper.refresh("/var/crash")
    return keeper


def test_what_is_known(machine: MachineRoot) -> None:
    keeper = _keeper(machine)
    assert [dump.name for dump in keeper.dumps] == [name_of(number) for number in range(3)]
    assert keeper.newest == name_of(2)
    assert keeper.same_bugs() == {name_of(0): [name_of(2)], name_of(1): [], name_of(2): [name_of(0)]}
    assert DumpKeeper(machine.path).newest == ""


def test_the_same_bug_again_and_again(machine: MachineRoot) -> None:
    for number in range(3, 80):
        put_dump(machine, number)
    same = _keeper(machine).same_bugs()
    assert {len(names) for name, names in same.items() if name != name_of(1)} == {MOST_OF_SAME_BUG}
    assert same[name_of(79)][-1] == name_of(78)
    assert same[name_of(0)][-1] == name_of(79)
    assert all(name not in names for name, names in same.items())


def test_limits_are_those_of_the_configuration(machine: MachineRoot) -> None:
    keeper = _keeper(machine)
    assert keeper.apply_limits(Config(keep_free_bytes=0)) is False
    assert keeper.apply_limits(Config(keep_free_bytes=0, max_dumps=1)) is True
    assert [path.name for path in (machine.path / "var/crash").iterdir()] == [name_of(2)]


def test_when_the_next_dump_gets_too_old(machine: MachineRoot) -> None:
    keeper = _keeper(machine)
    assert keeper.seconds_to_next_expiry(Config()) is None
    config = Config(max_age_sec=10 * HOUR)
    assert keeper.seconds_to_next_expiry(config, FIRST_CRASH + 4 * HOUR) == 6 * HOUR
    assert keeper.seconds_to_next_expiry(config, FIRST_CRASH + 10 * HOUR + 1) == HOUR - 1
    # The newest never goes; what is overdue already was judged a moment ago.
    assert keeper.seconds_to_next_expiry(config, FIRST_CRASH + 11 * HOUR + 1) is None
    keeper.keep(name_of(0), True)
    keeper.refresh("/var/crash")
    assert keeper.seconds_to_next_expiry(config, FIRST_CRASH + 4 * HOUR) == 7 * HOUR


def test_no_such_dump(machine: MachineRoot) -> None:
    keeper = _keeper(machine)
    for act in (
        lambda: keeper.open_file("x", "log"),
        lambda: keeper.delete("x"),
        lambda: keeper.keep("x", True),
    ):
        with pytest.raises(DumpMissing):
            act()
