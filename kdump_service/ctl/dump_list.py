# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl list: one line for each crash, as coredumpctl list does it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from kdump_service.bus.client import BusDump, Client
from kdump_service.ctl.match import select
from kdump_service.ctl.output import json_text
from kdump_service.ctl.pager import show
from kdump_service.ctl.session import on_bus
from kdump_service.ctl.table import Cell, Column, natural_width, render, terminal_width
from kdump_service.ctl.text import Colour, printable, use_colour
from kdump_service.ctl.times import local_time, parse_time
from kdump_service.errors import ConfigError
from kdump_service.quantity import format_bytes, parse_utc

__all__ = ["chosen", "dumps_table", "run", "state_word"]

_COLUMNS = (
    Column("TIME", least=16),
    Column("STATE"),
    Column("SIZE", right=True),
    Column("KIND", least=8),
    Column("SIGNATURE"),
    Column("KERNEL"),
    Column("NAME"),
)
_OMITTED = ((), ("SIGNATURE",), ("SIGNATURE", "KERNEL"), ("SIGNATURE", "KERNEL", "SIZE"))
"""On narrow terminals: info has it all; the name is what is typed."""
_COLOURS = {
    "complete": Colour.GOOD,
    "incomplete": Colour.DOUBTFUL,
    "failed": Colour.BAD,
    "missing": Colour.FAINT,
    "unreachable": Colour.DOUBTFUL,
}


def run(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""

    async def ask(client: Client) -> list[BusDump]:
        return await client.dumps()

    now = time.time()
    times = {
        name: parse_time(text, now) if (text := getattr(arguments, name)) else None
        for name in ("since", "until")
    }
    dumps = chosen(
        on_bus(ask),
        patterns=arguments.match,
        since=times["since"],
        until=times["until"],
        number=arguments.number,
        newest_first=arguments.reverse,
    )
    if arguments.json:
        print(json_text([dump.properties for dump in dumps], arguments.json))
    elif dumps:
        table = dumps_table(
            [dump.properties for dump in dumps],
            width=terminal_width(),
            legend=arguments.legend,
            colour=use_colour(),
        )
        show(table, pager=arguments.pager)
    elif not arguments.quiet and arguments.legend:
        print("No dumps.")
    return 0


def chosen(
    dumps: Sequence[BusDump],
    *,
    patterns: Sequence[str] = (),
    since: float | None = None,
    until: float | None = None,
    number: int | None = None,
    newest_first: bool = False,
) -> list[BusDump]:
    """The dumps that match, within times in seconds since the epoch; of these the newest ``number``.

    Raises DumpMissing for a pattern that matches nothing, ConfigError for a number below 1.
    """
    if number is not None and number < 1:
        raise ConfigError(f"{number} dumps cannot be shown", "Give -n a number from 1.")
    found = [
        dump
        for dump in select(dumps, patterns)
        if (since is None or _crash_time(dump) >= since) and (until is None or _crash_time(dump) <= until)
    ]
    found = found[-number:] if number else found
    return found[::-1] if newest_first else found


def _crash_time(dump: BusDump) -> float:
    """Seconds since the epoch; where the crash's time is not known, that of the folder's name."""
    for text in (dump.properties.get("CrashTime", ""), _time_of_name(dump.name)):
        try:
            return parse_utc(text)
        except ValueError:
            continue
    return 0.0


def _time_of_name(name: str) -> str:
    stamp = name[:16]  # 20261123T044911Z
    return f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:11]}:{stamp[11:13]}:{stamp[13:]}"


def state_word(properties: dict[str, Any]) -> str:
    """What a list says of the state: that the files are not there outweighs how good they were."""
    presence = properties.get("Presence", "present")
    return str(presence if presence != "present" else properties.get("State", ""))


def dumps_table(
    dumps: Sequence[dict[str, Any]], *, width: int | None = None, legend: bool = True, colour: bool = False
) -> str:
    """One line for each dump; columns that do not fit the width are left out."""
    rows = [_row(dump) for dump in dumps]
    for omitted in _OMITTED:
        kept = [index for index, column in enumerate(_COLUMNS) if column.title not in omitted]
        columns = [_COLUMNS[index] for index in kept]
        cells = [[row[index] for index in kept] for row in rows]
        if width is None or natural_width(columns, cells) <= width:
            break
    return render(columns, cells, width=width, legend=legend, colour=colour)


def _row(dump: dict[str, Any]) -> list[Cell]:
    state = state_word(dump)
    size = dump.get("StoredBytes", 0) if dump.get("Presence", "present") != "missing" else 0
    texts = (
        local_time(dump.get("CrashTime", "")),
        state,
        format_bytes(size) if size else "-",
        dump.get("Kind", ""),
        dump.get("Signature", ""),
        dump.get("KernelRelease", ""),
        dump.get("Name", ""),
    )
    cells = [Cell(printable(text) or "-") for text in texts]
    cells[1] = Cell(cells[1].text, _COLOURS.get(state))
    return cells
