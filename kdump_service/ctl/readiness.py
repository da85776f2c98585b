# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl status, check and estimate: would a crash now be captured, and what does it take?"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from kdump_service.bus.client import BusDump, Client
from kdump_service.ctl.output import json_text
from kdump_service.ctl.pager import show
from kdump_service.ctl.session import during, on_bus
from kdump_service.ctl.table import Cell, Column, render, terminal_width
from kdump_service.ctl.text import Colour, labelled, paint, printable, use_colour
from kdump_service.ctl.times import ago, local_time
from kdump_service.errors import DumpMissing, KdumpError
from kdump_service.quantity import format_bytes

__all__ = [
    "NOT_ARMED_EXIT_CODE",
    "NOT_CAPTURED_EXIT_CODE",
    "Problem",
    "ask_check",
    "ask_status",
    "captures",
    "check_text",
    "estimate_text",
    "run_check",
    "run_estimate",
    "run_status",
    "status_text",
]

NOT_ARMED_EXIT_CODE = 3
"""As systemctl status for a unit that is not active (LSB: program is not running)."""

NOT_CAPTURED_EXIT_CODE = 4
"""Of check: a crash now would not be captured."""

Problem = Sequence[str]
"""Code, severity, what, remedy; as on the bus."""

_LONGEST_LOAD_SEC = 60.0
"""Loads take some seconds; in emulated machines that share two processors, more than ten were seen."""

_COLOURS = {"fatal": Colour.BAD, "warning": Colour.DOUBTFUL, "note": None}
_STATE_COLOURS = {"armed": Colour.GOOD, "not-armed": Colour.BAD}
_CHECK_COLUMNS = (Column("SEVERITY"), Column("CODE"), Column("WHAT WAS FOUND, AND → WHAT TO DO", wraps=True))

_ESTIMATE_ROWS = (
    ("MemoryBytes", "Memory of this machine"),
    ("ReservedBytes", "Reserved by crashkernel="),
    ("CaptureUsedBytes", "Most that a capture used"),
    ("RecommendedBytes", "Recommended reservation"),
    ("Basis", "Basis of that"),
    ("Contents", "Contents of dumps"),
    ("DumpBytes", "Largest dump, expected"),
    ("TargetFreeBytes", "Room at the target"),
)
_BASES = {"measured": "measured, by captures on record", "images": "the sizes of kernel and image"}


async def ask_status(client: Client) -> tuple[dict[str, Any], BusDump | None]:
    """The properties, and the newest dump if there is one."""
    properties = await client.properties()
    path = properties.get("LastCrash", "/")
    if path in ("", "/"):
        return properties, None
    try:
        return properties, BusDump(path, await client.dump_properties(path))
    except DumpMissing:
        return properties, None
    except KdumpError as error:
        if type(error) is not KdumpError:  # an object that went away is an error of the bus, without a class
            raise
        return properties, None


async def ask_check(client: Client) -> tuple[list[Problem], dict[str, Any]]:
    """What stands in the way of a capture, and the properties. Waits for a crash kernel that is being loaded,
    for a minute at most."""
    deadline = time.monotonic() + _LONGEST_LOAD_SEC
    while True:
        problems = await during(client, client.call("Check"))
        properties = await client.properties()
        state, not_yet = properties.get("State"), any(code == "not-yet-armed" for code, *_ in problems)
        # A load may begin between the two answers, and the kernel drops the old image before it has the new.
        amid_load = state in ("starting", "arming") and (not_yet or not properties.get("Loaded", True))
        loaded_meanwhile = not_yet and state == "armed"
        left = deadline - time.monotonic()
        if left <= 0 or not (amid_load or loaded_meanwhile):
            return problems, properties
        if amid_load:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.next_signal(), left)


def captures(problems: Sequence[Problem], properties: Mapping[str, Any]) -> bool:
    """Whether a crash now would be captured, by what :func:`ask_check` found."""
    return bool(properties.get("Ready")) and all(severity != "fatal" for _, severity, *_ in problems)


def run_status(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""
    properties, last = on_bus(ask_status)
    if arguments.json:
        print(json_text(properties, arguments.json))
    else:
        text = status_text(
            properties, last.properties if last else None, now=time.time(), colour=use_colour()
        )
        show(text, pager=arguments.pager)
    return 0 if properties.get("State") == "armed" else NOT_ARMED_EXIT_CODE


def run_check(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""
    problems, properties = on_bus(ask_check)
    captured = captures(problems, properties)
    if arguments.json:
        keys = ("code", "severity", "what", "remedy")
        listed = [dict(zip(keys, problem, strict=True)) for problem in problems]
        print(json_text({"captured": captured, "state": properties["State"], "problems": listed},
                        arguments.json))  # fmt: skip
    else:
        text = check_text(problems, properties, captured, width=terminal_width(), colour=use_colour())
        show(text, pager=arguments.pager)
    return 0 if captured else NOT_CAPTURED_EXIT_CODE


def run_estimate(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""

    async def estimate(client: Client) -> dict[str, Any]:
        return await during(client, client.call("Estimate"))

    found = on_bus(estimate)
    print(json_text(found, arguments.json) if arguments.json else estimate_text(found))
    return 0


def status_text(
    properties: Mapping[str, Any],
    last: Mapping[str, Any] | None = None,
    *,
    now: float = 0.0,
    colour: bool = False,
) -> str:
    """The state, one fact a line; facts that are not known are left out."""

    def text(key: str) -> str:
        return printable(str(properties.get(key) or ""))

    state = text("State") or "unknown"
    rows = [("State", paint(state, _STATE_COLOURS.get(state), enabled=colour))]
    if "Ready" in properties:
        ready = properties["Ready"]
        words = "yes: a crash now would be captured" if ready else "no: a crash now would not be captured"
        rows.append(("Ready", paint(words, Colour.GOOD if ready else Colour.BAD, enabled=colour)))
    # What is below arming's own: its reason comes first among the problems.
    rows += [("Reason", text("Reason")), ("", text("Explanation"))]
    others = [each for each in properties.get("Problems", []) if each[0] != properties.get("Reason")]
    lines = [_problem_line(each, colour=colour) for each in others]
    rows.append(("Problems", "\n".join([*lines, "what to do: kdumpctl check"] if lines else [])))
    rows += [
        ("Reserved", _reservation(properties)),
        ("Kernel", text("Kernel")),
        ("Image", text("Image")),
        ("Command line", text("CommandLine")),
        ("Proven", _proven(properties, now)),
        ("Last crash", _last_crash(last, now) if last else ""),
        ("Activity", _activity(properties)),
        ("Version", text("Version")),
    ]
    return labelled(rows, least_width=len("Command line"))


def _problem_line(problem: Problem, *, colour: bool) -> str:
    code, severity, what, _ = (printable(each) for each in problem)
    return f"{paint(severity, _COLOURS.get(severity), enabled=colour)}: {code}: {what}"


def _reservation(properties: Mapping[str, Any]) -> str:
    reserved = properties.get("ReservedBytes", 0)
    asked = printable(properties.get("RequestedReservation", ""))
    got = format_bytes(reserved) if reserved else "nothing"
    return f"{got} ({asked})" if asked else got


def _proven(properties: Mapping[str, Any], now: float) -> str:
    level = printable(properties.get("ProvenLevel", ""))
    words = {
        "unproven": "no: this kernel, image and target never carried a dump; try kdumpctl rehearse, or test",
        "failed": "no: a test crash with this kernel, image and target was not captured whole",
        "rehearsed": "a crash in a virtual machine was captured with this kernel, image and target",
        "captured": "a crash was captured with this kernel, image and target",
        "tested": "a test crash was captured with this kernel, image and target",
    }.get(level, level)
    when = properties.get("ProvenTime", "")
    return f"{words}: {_when(when, now)}" if when and level != "unproven" else words


def _last_crash(last: Mapping[str, Any], now: float) -> str:
    facts = [printable(str(last.get(key) or "")) for key in ("Name", "Kind", "State")]
    when = _when(str(last.get("CrashTime") or ""), now)
    return ", ".join(filter(None, (*facts, when)))


def _when(utc: str, now: float) -> str:
    past = ago(utc, now)
    return f"{printable(local_time(utc))} ({past})" if past else printable(local_time(utc))


def _activity(properties: Mapping[str, Any]) -> str:
    activity = printable(properties.get("Activity", ""))
    progress = properties.get("Progress", -1.0)
    return f"{activity}, {int(100 * progress)} %" if activity and progress >= 0 else activity


def check_text(
    problems: Sequence[Problem],
    properties: Mapping[str, Any],
    captured: bool,
    *,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """A table of what is wrong, the worst first, and the verdict."""
    lines = []
    if problems:
        rows = []
        for problem in sorted(problems, key=_rank):
            code, severity, what, remedy = (printable(each) for each in problem)
            told = f"{what}\n→ {remedy}" if remedy else what
            rows.append([Cell(severity, _COLOURS.get(severity)), Cell(code), Cell(told)])
        lines += [render(_CHECK_COLUMNS, rows, width=width, colour=colour), ""]
    severities = [severity for _, severity, *_ in problems]
    counts = [
        f"{severities.count(word)} {word}{'s' if word != 'fatal' and severities.count(word) > 1 else ''}"
        for word in _COLOURS
        if word in severities
    ]
    verdict = "A crash now would be captured" if captured else "A crash now would not be captured"
    why = ", ".join(counts) or ("" if captured else f"the state is {printable(str(properties['State']))}")
    verdict = paint(verdict, Colour.GOOD if captured else Colour.BAD, enabled=colour)
    lines.append(f"{verdict}: {why}." if why else f"{verdict}; nothing is wrong.")
    return "\n".join(lines)


def _rank(problem: Problem) -> int:
    """The worst first; severities that a later version may add come last."""
    severities = list(_COLOURS)
    return severities.index(problem[1]) if problem[1] in severities else len(severities)


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """What is known, a figure a line, then what follows from it."""

    def value(key: str) -> str:
        found = estimate.get(key)
        if isinstance(found, str):
            return printable(_BASES.get(found, found) if key == "Basis" else found)
        return "" if found is None else format_bytes(found)

    text = labelled((label, value(key)) for key, label in _ESTIMATE_ROWS)
    advice = []
    reserved, recommended = estimate.get("ReservedBytes"), estimate.get("RecommendedBytes")
    if reserved is not None and recommended and reserved < recommended:
        advice.append(f"Reserve more: crashkernel={-(-recommended >> 20)}M on the kernel's command line.")
    free, dump = estimate.get("TargetFreeBytes"), estimate.get("DumpBytes")
    if free is not None and dump is not None and free < dump:
        advice.append("The target may have too little room for a dump; less would be saved.")
    return "\n".join((text, *([""] if advice else []), *advice))
