# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads budget.toml."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Budget", "Limit", "read_budget"]

BUDGET = Path(__file__).with_name("budget.toml")


@dataclass(frozen=True)
class Limit:
    """What the tier or a part may take."""

    boots: int
    captures: int
    processor_seconds: float


@dataclass(frozen=True)
class Budget:
    """All of budget.toml."""

    ceiling: float
    reference_seconds: float
    tier: Limit
    tier_seconds_empty_cache: float
    reserved: dict[str, float]
    parts: dict[str, Limit]
    meanings: dict[str, str]
    """What each part is, in a sentence."""


def read_budget(path: Path = BUDGET) -> Budget:
    """The budget that this file says."""
    said = tomllib.loads(path.read_text())

    def limit(table: dict[str, float]) -> Limit:
        return Limit(int(table["boots"]), int(table["captures"]), table["processor_seconds"])

    return Budget(
        ceiling=said["ceiling"],
        reference_seconds=said["calibration"]["reference_seconds"],
        tier=limit(said["tier"]["test"]),
        tier_seconds_empty_cache=said["tier"]["test"]["processor_seconds_empty_cache"],
        reserved=said["reserved"],
        parts={name: limit(table) for name, table in said["part"].items()},
        meanings={name: table["means"] for name, table in said["part"].items()},
    )
