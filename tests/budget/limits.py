# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads budget.toml."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["BadBudget", "Budget", "Limit", "read_budget"]

BUDGET = Path(__file__).with_name("budget.toml")


class BadBudget(Exception):
    """The file, the table and the key that cannot be used."""


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
    """The budget that this file says. Raises BadBudget."""
    try:
        said = tomllib.loads(path.read_text())
    except ValueError as error:
        raise BadBudget(f"{path}: {error}") from error
    tables = {
        "": ("ceiling", "calibration", "tier", "reserved", "part"),
        "calibration": ("reference_seconds",),
        "tier": ("test",),
        "tier.test": ("boots", "captures", "processor_seconds", "processor_seconds_empty_cache"),
    }
    for name in said.get("part", {}):
        if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name) or name == "all":
            raise BadBudget(f"{path}: [part.{name}] is no name of a part")
        tables[f"part.{name}"] = ("means", "boots", "captures", "processor_seconds")
    for name, keys in tables.items():
        table = _table(said, name, path)
        if wrong := set(keys) ^ table.keys():
            raise BadBudget(f"{path}: [{name}] lacks, or does not know: {', '.join(sorted(wrong))}")
        for key in keys:
            _check(table[key], f"{path}: [{name}] {key}", key)
    for key, value in said["reserved"].items():
        _check(value, f"{path}: [reserved] {key}", "processor_seconds")

    def limit(table: dict[str, Any]) -> Limit:
        return Limit(table["boots"], table["captures"], table["processor_seconds"])

    return Budget(
        ceiling=said["ceiling"],
        reference_seconds=said["calibration"]["reference_seconds"],
        tier=limit(said["tier"]["test"]),
        tier_seconds_empty_cache=said["tier"]["test"]["processor_seconds_empty_cache"],
        reserved=said["reserved"],
        parts={name: limit(table) for name, table in said["part"].items()},
        meanings={name: table["means"] for name, table in said["part"].items()},
    )


def _table(said: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    table: Any = said
    for word in filter(None, name.split(".")):
        table = table.get(word) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise BadBudget(f"{path}: there is no table [{name}]")
    return table


def _check(value: object, where: str, key: str) -> None:
    """Raises BadBudget for a value that its key does not take."""
    if key in ("boots", "captures"):
        good = type(value) is int and value >= 0
    elif key == "means":
        good = isinstance(value, str)
    elif key in ("calibration", "tier", "reserved", "part", "test"):
        good = isinstance(value, dict)
    else:
        good = isinstance(value, int | float) and type(value) is not bool and 0 <= value < 1e6
    if key in ("reference_seconds", "processor_seconds") and value == 0 and "[reserved]" not in where:
        good = False
    if not good:
        raise BadBudget(f"{where} = {value!r} cannot be")
