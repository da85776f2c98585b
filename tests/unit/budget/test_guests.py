# SPDX-License-Identifier: LGPL-2.1-or-later
"""Guests are counted, and what they do for the cache is not a case's."""

import subprocess
import sys
from dataclasses import replace

import pytest

from tests.budget import guests
from tests.budget.guests import Guests, making


@pytest.fixture(autouse=True)
def nothing_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters of their own, lest the suite takes them for guests of these cases."""
    monkeypatch.setattr(guests, "COUNTED", Guests())
    monkeypatch.setattr(guests, "MADE", [])


def test_boots_for_the_cache_are_of_the_entry() -> None:
    guests.COUNTED.boots = 1
    with making("reference-1"):
        guests.COUNTED.boots += 2
        guests.COUNTED.hangs += 1
        guests.COUNTED.captures += 1
    assert replace(guests.COUNTED) == Guests(boots=1, hangs=1)
    [entry] = guests.MADE
    assert (entry.name, entry.boots, entry.captures) == ("reference-1", 2, 1)


def test_an_entry_within_an_entry_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 40.0, 45.0])
    monkeypatch.setattr(guests, "processor_seconds", lambda: next(now))
    with making("reference-1"):
        guests.COUNTED.boots += 1
        with making("disk-2"):
            guests.COUNTED.boots += 1
    assert [(entry.name, entry.cpu, entry.boots) for entry in guests.MADE] == [
        ("disk-2", 30, 1),
        ("reference-1", 15, 1),
    ]


def test_an_entry_that_fails_is_told_all_the_same() -> None:
    with pytest.raises(OSError), making("disk-1"):
        guests.COUNTED.boots += 1
        raise OSError
    assert replace(guests.COUNTED) == Guests()
    assert [entry.boots for entry in guests.MADE] == [1]


def test_a_machine_that_runs_counts_once() -> None:
    """While it runs as well as when it has been waited for."""
    burn = (
        "import sys, time\nwhile time.process_time() < 1: pass\nprint('burnt', flush=True)\nsys.stdin.read()"
    )
    before = guests.processor_seconds()
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as machine:
        assert machine.stdout is not None
        assert machine.stdout.readline() == "burnt\n"
        guests.RUNNING.add(machine.pid)
        assert guests.processor_seconds() - before >= 0.9
        machine.communicate()
        guests.RUNNING.discard(machine.pid)
    assert 0.9 <= guests.processor_seconds() - before < 1.9
