# SPDX-License-Identifier: LGPL-2.1-or-later
"""Cases are put into the order in which workers that steal work are done at the same time."""

from types import SimpleNamespace
from typing import cast

import pytest

from tests.budget.declared import long_first


def case(name: str, *, shares: str = "", **guest: int) -> pytest.Item:
    """Return a case of the module `shares`, whose machine it uses, with what its order depends on."""
    mark = SimpleNamespace(kwargs=guest) if guest or shares else None
    fixture = SimpleNamespace(scope="module" if shares else "function")
    made = SimpleNamespace(
        nodeid=f"{shares or 'test_other.py'}::{name}",
        get_closest_marker=lambda kind: mark if kind == "guest" else None,
        _fixtureinfo=SimpleNamespace(name2fixturedefs={"machine": [fixture]}),
    )
    return cast(pytest.Item, made)


def names(items: list[pytest.Item]) -> str:
    return " ".join(item.nodeid.partition("::")[2] for item in items)


def test_cases_without_guests_stay_as_they_are() -> None:
    items = [case(name) for name in "cab"]
    assert names(long_first(items)) == "c a b"
    assert names(long_first(items, workers=2)) == "c a b"


def test_long_ones_come_first() -> None:
    items = [
        case("l1"),
        case("b", boots=1),
        case("c", boots=2, captures=2),
        case("l2"),
        case("s", seconds=300),
    ]
    assert names(long_first([*items, case("b2", boots=1)])) == "s c b b2 l1 l2"


def test_what_shares_a_machine_stays_together() -> None:
    """And boots it once, however many may be the first."""
    shared = [case(name, shares="test_m.py", boots=1) for name in ("m1", "m2", "m3")]
    items = [shared[0], case("b2", boots=2), shared[1], case("r", seconds=5), shared[2]]
    assert names(long_first(items)) == "b2 m1 m2 m3 r"


@pytest.mark.parametrize(
    ("workers", "hands"),
    [
        (1, ["g5 g4 g3 g2 g1 l1 l2 l3 l4 l5"]),
        (2, ["g5 g2 g1 l1 l2", "g4 g3 l3 l4 l5"]),
        (3, ["g5 l1 l2", "g4 g1 l3", "g3 g2 l4 l5"]),
    ],
)
def test_each_worker_begins_with_a_long_one_and_ends_with_short_ones(workers: int, hands: list[str]) -> None:
    """The list is cut where xdist cuts it."""
    items = [item for n in range(1, 6) for item in (case(f"l{n}"), case(f"g{n}", boots=n))]
    assert names(long_first(items, workers)) == " ".join(hands)
    left, sizes = len(items), []
    for number in range(workers):
        sizes.append(left // (workers - number))
        left -= sizes[-1]
    assert sizes == [len(hand.split()) for hand in hands]


def test_more_guests_than_a_hand_holds() -> None:
    """Nobody is lost where there are too few others to fill up with."""
    items = [case("g9", boots=9), *(case(f"g{n}", boots=1) for n in range(6)), case("l")]
    assert names(long_first(items, 2)) == "g9 l g0 g1 g2 g3 g4 g5"
    assert sorted(names(long_first(items, 5)).split()) == sorted(names(items).split())
