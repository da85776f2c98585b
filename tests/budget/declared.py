# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a case says of itself by its marks: its part, its promises, its guests. And the order that follows."""

import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Guest", "guest_of", "in_no_part", "long_first", "part_of", "shared_module", "wrong_marks"]

# Processor seconds under emulation, roughly: they only decide who comes first.
BOOT_SEC = 20
CAPTURE_SEC = 20
TESTS = Path(__file__).parents[1]
ROOM_OF_PARTS = TESTS / "vm"
"""The only one whose cases `make test-all` runs by their part."""


@dataclass(frozen=True)
class Guest:
    """`guest(...)`: the most that a case takes. Where cases of a module share a machine, whichever comes
    first boots it, so each of them says so."""

    boots: int = 0
    captures: int = 0
    seconds: float = 0
    """What else it takes long for; a hint for the order."""

    def __post_init__(self) -> None:
        for count in (self.boots, self.captures):
            if type(count) is not int or count < 0:
                raise ValueError(f"{count!r} is no number of boots or captures")
        if type(self.seconds) not in (int, float) or not 0 <= self.seconds < math.inf:
            raise ValueError(f"{self.seconds!r} is no number of seconds")


def part_of(item: pytest.Item) -> str | None:
    """The part of `make test-all` that the case belongs to; None: it is in `make test`."""
    mark = item.get_closest_marker("part")
    return None if mark is None else mark.args[0]


def guest_of(item: pytest.Item) -> Guest:
    """What the case declares; nothing, where it has no mark."""
    mark = item.get_closest_marker("guest")
    return Guest() if mark is None else Guest(**mark.kwargs)


def wrong_marks(item: pytest.Item, parts: Container[str], promises: Container[str]) -> Iterator[str]:
    """What is wrong with the marks of a case."""
    for mark in item.iter_markers("part"):
        if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str):
            yield "part() takes one name"
        elif mark.args[0] not in parts:
            yield f"no part {mark.args[0]!r} in tests/budget/budget.toml"
    for mark in item.iter_markers("promise"):
        if not mark.args or mark.kwargs or not all(isinstance(name, str) for name in mark.args):
            yield "promise() takes ids"
            continue
        for name in mark.args:
            if name not in promises:
                yield f"no promise {name!r} in tests/promises.toml"
    for mark in item.iter_markers("guest"):
        try:
            Guest(**mark.kwargs)
            wrong = "" if mark.kwargs and not mark.args else "nothing by name"
        except (TypeError, ValueError) as error:
            wrong = str(error)
        if wrong:
            yield f"guest() takes boots=, captures= and seconds=, from 0 on: {wrong}"
    for name in ("part", "guest"):
        own = [mark for mark in item.own_markers if mark.name == name]
        if len(own) > 1:
            yield f"{name}() stands there {len(own)} times, and one counts"


def in_no_part(item: pytest.Item) -> bool:
    """Whether the case says a part, and no part would run it: it is in another room than the machines."""
    folders = item.path.parents
    return item.get_closest_marker("part") is not None and TESTS in folders and ROOM_OF_PARTS not in folders


def shared_module(item: pytest.Item) -> str | None:
    """The module with whose other cases this one shares a machine, by a fixture of its scope."""
    if item.get_closest_marker("guest") is None:
        return None
    fixtures = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009 - of no public name
    if not any(definition.scope == "module" for definitions in fixtures for definition in definitions):
        return None
    return item.nodeid.partition("::")[0]


def long_first(items: Sequence[pytest.Item], workers: int = 1) -> list[pytest.Item]:
    """The order in which so many workers take the cases: long ones first, those with no guest last, and those
    that share a machine one behind the other.

    `--dist worksteal` cuts the list into pieces of as many cases for each worker, lets each work off its own
    from the front, and hands who has none left the rear half of the longest that is left. So the cases with
    guests are dealt as cards are, the next longest to who has the least to do, and each hand is filled up
    with cases without guests to the place where the list will be cut. What lies at the rear, to be stolen or
    the last to be waited for, is short then, and hardly ever of those that share a machine.
    """
    pieces: dict[str, list[pytest.Item]] = {}
    for item in items:
        pieces.setdefault(shared_module(item) or item.nodeid, []).append(item)

    def seconds(piece: list[pytest.Item]) -> float:
        guests = [guest_of(item) for item in piece]
        boots = max(guest.boots for guest in guests)
        return boots * BOOT_SEC + sum(guest.captures * CAPTURE_SEC + guest.seconds for guest in guests)

    hands: list[list[pytest.Item]] = [[] for _ in range(workers)]
    to_do = [0.0] * workers
    for piece in sorted(pieces.values(), key=seconds, reverse=True):  # which is stable
        if seconds(piece) > 0:
            least = to_do.index(min(to_do))
            hands[least] += piece
            to_do[least] += seconds(piece)
    light = [item for piece in pieces.values() if seconds(piece) == 0 for item in piece]
    order: list[pytest.Item] = []
    for number, hand in enumerate(hands):
        order += hand
        # As xdist's scheduler/worksteal.py counts.
        cut = len(items) * (number + 1) // workers
        order, light = order + light[: max(cut - len(order), 0)], light[max(cut - len(order), 0) :]
    return order
