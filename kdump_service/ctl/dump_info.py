# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl info and show: all that is known of a crash, for people and for programs."""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from kdump_service.bus.client import BusDump, Client
from kdump_service.ctl.dump_list import chosen, state_word
from kdump_service.ctl.match import find_one
from kdump_service.ctl.output import json_text, key_value_lines
from kdump_service.ctl.pager import show
from kdump_service.ctl.session import on_bus
from kdump_service.ctl.text import Colour, labelled, paint, printable, use_colour
from kdump_service.ctl.times import ago, local_time
from kdump_service.errors import InvalidArgument
from kdump_service.quantity import format_bytes, format_seconds

__all__ = ["info_text", "run_info", "run_show"]

_MOST_DATES = 5
_LABEL_COLUMNS = 12


async def _dumps(client: Client) -> list[BusDump]:
    return await client.dumps()


def run_info(arguments: argparse.Namespace) -> int:
    """kdumpctl info. Raises KdumpError."""
    dumps = on_bus(_dumps)
    found = chosen(dumps, patterns=arguments.match) if arguments.match else [find_one(dumps, None)]
    if arguments.json:
        print(json_text([dump.properties for dump in found], arguments.json))
        return 0
    times: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for dump in dumps:
        times[_signature(dump.properties)][dump.name] = str(dump.properties.get("CrashTime", ""))
    times.pop("", None)  # what has no signature is not known to be the same as anything
    texts = [
        info_text(dump.properties, times[_signature(dump.properties)], now=time.time(), colour=use_colour())
        for dump in found
    ]
    show("\n\n".join(texts), pager=arguments.pager)
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """kdumpctl show. Raises KdumpError."""
    properties = find_one(on_bus(_dumps), arguments.match).properties
    names = [name for words in arguments.property for name in words.split(",")] or list(properties)
    unknown = [name for name in names if name not in properties]
    if unknown:
        raise InvalidArgument(f"a dump has no property {printable(unknown[0])!r}", "See: kdumpctl show")
    if arguments.json:
        print(json_text({name: properties[name] for name in names}, arguments.json))
        return 0
    for name in names:
        for line in key_value_lines(name, properties[name]):
            print(line.removeprefix(f"{name}=") if arguments.value else line)
    return 0


def _signature(properties: Mapping[str, Any]) -> str:
    return str(properties.get("Signature", ""))


def info_text(
    properties: Mapping[str, Any], times: Mapping[str, str], *, now: float, colour: bool = False
) -> str:
    """One dump, a fact a line; what is not known is left out.

    ``times``: CrashTime of the dumps with the same signature by name. SameBug has the newest of them only.
    """
    of = {key: printable(value) if isinstance(value, str) else value for key, value in properties.items()}

    def text(key: str) -> str:
        return str(of.get(key) or "")

    rows = [
        ("Dump", paint(text("Name"), Colour.STRONG, enabled=colour)),
        ("State", _state(of)),
        ("Crashed", _time(text("CrashTime"), now)),
        ("Saved", _saved(of)),
        ("Host", text("Host")),
        ("Boot ID", text("BootID")),
        ("Kernel", f"{text('KernelRelease')} {text('Machine')}".strip()),
        ("Build ID", text("KernelBuildID")),
        ("Hardware", text("HardwareName")),
        ("Panic", paint(text("PanicMessage"), Colour.BAD, enabled=colour)),
        ("Kind", text("Kind")),
        ("Detected", text("Title") if text("Title") != text("PanicMessage") else ""),
        ("Task", _task(of)),
        ("Taint", text("Taint")),
        ("Signature", text("Signature")),
        ("Same bug", _same_bug(properties, times)),
        ("Test", "yes: kdumpctl test asked for this crash" if of.get("Test") else ""),
        ("Image", _image(of)),
        ("Folder", text("Folder")),
        ("Files", "\n".join(map(printable, of.get("Files", [])))),
        ("Problems", "\n".join(map(printable, of.get("Problems", [])))),
        ("Call trace", "\n".join(map(printable, of.get("CallTrace", [])))),
        ("What to do", "\n".join(_what_to_do(of))),
    ]
    return labelled(rows, least_width=_LABEL_COLUMNS)


def _time(utc: str, now: float) -> str:
    past = ago(utc, now)
    return f"{local_time(utc)} ({past})" if past else local_time(utc)


def _state(of: Mapping[str, Any]) -> str:
    words = [str(of.get("State", ""))]
    match of.get("Presence", "present"):
        case "missing":
            words.append("the files are missing: deleted, or the target changed")
        case "unreachable":
            words.append("the files cannot be reached now")
        case "present":
            pass
        case other:
            words.append(str(other))
    if of.get("Kept"):
        words.append("kept")
    return ", ".join(words)


def _saved(of: Mapping[str, Any]) -> str:
    if not of.get("SavedTime"):
        return ""
    took = of.get("SecondsToSaved") or 0.0
    return f"{local_time(of['SavedTime'])}" + (f", {format_seconds(took)} after the panic" if took else "")


def _task(of: Mapping[str, Any]) -> str:
    if not of.get("Task"):
        return ""
    pid, cpu = of.get("Pid", -1), of.get("Cpu", -1)
    where = [f"PID {pid}" if pid >= 0 else "", f"processor {cpu}" if cpu >= 0 else ""]
    told = ", ".join(filter(None, where))
    return f"{of['Task']} ({told})" if told else str(of["Task"])


def _image(of: Mapping[str, Any]) -> str:
    if not of.get("Format"):
        return "none"
    parts = [of["Format"], of.get("Compression", ""), f"level {of.get('DumpLevel', 0)}"]
    if of.get("StoredBytes"):
        parts.append(format_bytes(of["StoredBytes"]))
    return ", ".join(filter(None, parts))


def _same_bug(of: Mapping[str, Any], times: Mapping[str, str]) -> str:
    """How often the bug struck before and after this crash, with dates, the latest first."""
    own = of.get("Name", "")
    here = of.get("CrashTime") or own
    sides: dict[str, list[str]] = {"before": [], "since": []}
    for name, time_of_crash in times.items():
        if name != own:
            when = time_of_crash or name
            sides["before" if when <= here else "since"].append(when)
    lines = []
    for side, found in sides.items():
        if found:
            found.sort(reverse=True)
            dates = ", ".join(printable(local_time(when)) for when in found[:_MOST_DATES])
            more = f" and {len(found) - _MOST_DATES} more" if len(found) > _MOST_DATES else ""
            count = "once" if len(found) == 1 else f"{len(found)} times"
            lines.append(f"{count} {side}: {dates}{more}")
    return "\n".join(lines)


def _what_to_do(of: Mapping[str, Any]) -> list[str]:
    name = of.get("Name", "")
    if of.get("Presence") == "missing":
        return [f"forget it: kdumpctl delete {name}"]
    if state_word(dict(of)) == "unreachable":
        return ["see why the target cannot be reached: kdumpctl check"]
    lines = []
    if of.get("Format"):
        lines.append(f"open it: kdumpctl debug {name}")
    if any(not str(file).startswith("vmcore") for file in of.get("Files", [])):
        lines.append(f"read the kernel's log: kdumpctl log {name}")
    lines.append(f"send it to support: kdumpctl export {name}")
    return lines
