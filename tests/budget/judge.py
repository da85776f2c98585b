# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells what a run took, and holds it against budget.toml."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .guests import Guests
from .ledger import BrokenLedger, Invocation
from .limits import Budget, Limit

__all__ = ["Verdict", "judge", "of_part", "report"]

DEAREST = 20
TOLERATED = 1.5
"""So many times the seconds that are written are no error: machines and their neighbours differ."""
ROOMS = ("tests/unit", "tests/vm")
"""Of `make test`: without an invocation for each it was none."""


@dataclass(frozen=True)
class Verdict:
    """Sentences; an error is what makes the run fail."""

    errors: list[str]
    notes: list[str]


def of_part(ledger: Sequence[Invocation], part: str | None) -> list[Invocation]:
    """The invocations for this part; None: those of `make test`."""
    chosen = [invocation for invocation in ledger if invocation.part == part]
    if not chosen:
        raise BrokenLedger(f"no invocation of {f'part {part}' if part else 'make test'} is in the ledger")
    return chosen


def _scaled(invocation: Invocation, budget: Budget, *, without_made: bool = False) -> float:
    made = sum(entry.cpu for entry in invocation.made) if without_made else 0
    return (invocation.cpu - made) * budget.reference_seconds / invocation.calibration


def report(invocations: Sequence[Invocation], budget: Budget) -> Iterator[str]:
    """Lines for people."""
    for run in invocations:
        outcomes = Counter(case.outcome or "unfinished" for case in run.cases.values())
        in_cases = sum(case.cpu for case in run.cases.values())
        yield (
            f"{run.what}{f' --part={run.part}' if run.part else ''}: {run.wall:.0f} s;"
            f" {run.cpu:.0f} processor seconds, {_scaled(run, budget):.0f} scaled,"
            f" {run.cpu - in_cases:.0f} of them in no case; "
            + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        )
    guests = _guests(invocations)
    yield (
        f"guests: {guests.boots} boots, {guests.captures} captures, {guests.restored} restored;"
        f" emulation: {guests.hangs} hung (reset), {guests.lost} machines lost"
    )
    for run in invocations:
        for entry in run.made:
            yield (
                f"made for the cache: {entry.name}, {entry.wall:.0f} s, {entry.cpu:.0f} processor seconds,"
                f" {entry.boots} boots, {entry.captures} captures"
            )
    cases = [(case.cpu, name) for run in invocations for name, case in run.cases.items()]
    yield f"the {DEAREST} dearest cases, in processor seconds:"
    for cpu, name in sorted(cases, reverse=True)[:DEAREST]:
        yield f"{cpu:8.1f}  {name}"


def judge(invocations: Sequence[Invocation], part: str | None, budget: Budget) -> Verdict:
    """What is more than budget.toml allows, and what is less."""
    limit, what = _limit(invocations, part, budget)
    errors = [
        f"{run.what}: pytest ended with status {run.exit_status}: what it took says nothing"
        for run in invocations
        if run.exit_status != 0
    ]
    errors += [
        f"make test: nothing was run in {room}"
        for room in ROOMS
        if part is None and not any(room in run.what.split() for run in invocations)
    ]
    notes = []
    guests = _guests(invocations)
    for kind, taken, allowed in (
        ("boots", guests.boots - guests.hangs, limit.boots),
        ("captures", guests.captures, limit.captures),
    ):
        if taken > allowed:
            errors.append(f"{what}: {taken} {kind} of guests, and the budget has {allowed}")
        elif taken < allowed:
            notes.append(f"{what}: {taken} {kind} of guests; the budget of {allowed} could be lowered")
    seconds = sum(_scaled(run, budget, without_made=part is not None) for run in invocations)
    told = f"{what}: {seconds:.0f} scaled processor seconds, and the budget has {limit.processor_seconds:.0f}"
    if seconds > TOLERATED * limit.processor_seconds:
        errors.append(f"{told}: more than {TOLERATED} times as much")
    else:
        notes.append(told)
    return Verdict(errors, notes)


def _guests(invocations: Sequence[Invocation]) -> Guests:
    return sum((run.guests for run in invocations), Guests())


def _limit(invocations: Sequence[Invocation], part: str | None, budget: Budget) -> tuple[Limit, str]:
    if part is not None:
        return budget.parts[part], f"part {part}"
    if any(run.empty_cache for run in invocations):
        limit = replace(budget.tier, processor_seconds=budget.tier_seconds_empty_cache)
        return limit, "make test with an empty cache"
    return budget.tier, "make test with a filled cache"
