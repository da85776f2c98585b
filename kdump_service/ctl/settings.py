# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl config: show, get, set and reset settings, by what the service says of each."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from kdump_service.bus.client import Client
from kdump_service.ctl.output import json_text, notice
from kdump_service.ctl.pager import show
from kdump_service.ctl.session import during, on_bus
from kdump_service.ctl.table import Cell, Column, render, terminal_width
from kdump_service.ctl.text import Colour, printable, use_colour
from kdump_service.errors import ConfigError
from kdump_service.quantity import parse_bytes, parse_seconds

__all__ = ["find_setting", "format_value", "parse_value", "run", "settings_table"]

Setting = Mapping[str, Any]
"""One dictionary of GetSettings."""

_INTEGER_BITS = {
    "y": (0, 8),
    "n": (1, 16),
    "q": (0, 16),
    "i": (1, 32),
    "u": (0, 32),
    "x": (1, 64),
    "t": (0, 64),
}
"""Whether the D-Bus type has a sign, and its bits (D-Bus Specification, "Basic types")."""
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")
_SIZES = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))
_SPANS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def run(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""
    match arguments.action:
        case "get":
            setting = find_setting(on_bus(_settings), arguments.key)
            if arguments.allowed:
                for word in setting.get("Allowed", []):
                    print(printable(word))
            elif arguments.json:
                print(json_text(setting["Value"], arguments.json))
            else:
                print(format_value(setting, setting["Value"]))
        case "set":
            return _set(arguments.key, " ".join(arguments.value))
        case "reset":
            return _reset(arguments.key)
        case _:
            settings = on_bus(_settings)
            if arguments.json:
                print(json_text(settings, arguments.json))
            else:
                table = settings_table(
                    settings,
                    origin=arguments.origin,
                    legend=arguments.legend,
                    width=terminal_width(),
                    colour=use_colour(),
                )
                show(table, pager=arguments.pager)
    return 0


async def _settings(client: Client) -> list[dict[str, Any]]:
    return await client.settings()


def _set(key: str, text: str) -> int:
    async def change(client: Client) -> Setting:
        setting = find_setting(await client.settings(), key)
        value = parse_value(setting, text)
        await during(client, client.set_setting(setting["Name"], setting["Type"], value))
        return find_setting(await client.settings(), setting["Name"])

    _tell(on_bus(change, asks=True))
    return 0


def _reset(key: str) -> int:
    async def change(client: Client) -> Setting:
        setting = find_setting(await client.settings(), key)
        await during(client, client.reset_setting(setting["Name"]))
        return find_setting(await client.settings(), setting["Name"])

    _tell(on_bus(change, asks=True))
    return 0


def _tell(setting: Setting) -> None:
    source = setting.get("Source") or "the default"
    print(f"{setting['Name']}={format_value(setting, setting['Value'])} ({printable(source)})")
    if setting.get("Waits"):
        notice(f"note: it is put to use later: {printable(setting['Waits'])}")


def find_setting(settings: Sequence[Setting], key: str) -> Setting:
    """The setting of that name, whatever the case of its letters. Raises ConfigError."""
    wanted = key.removesuffix("=").casefold()
    for setting in settings:
        if setting["Name"].casefold() == wanted:
            return setting
    names = [setting["Name"] for setting in settings]
    near = difflib.get_close_matches(key, names, n=1)
    hint = f"Did you mean {near[0]}?" if near else "See: kdumpctl config show"
    raise ConfigError(f"there is no setting {printable(key)}", hint)


def parse_value(setting: Setting, text: str) -> Any:
    """The value for the bus of what somebody typed: ``512M``, ``30d``, ``yes`` ... Raises ConfigError."""
    kind, unit = setting["Type"], setting.get("Unit", "")
    try:
        if kind in _INTEGER_BITS:
            return _parse_integer(kind, unit, text)
        if kind == "b":
            if text.lower() not in (*_YES, *_NO):
                raise ValueError(f"{text!r} is neither yes nor no")
            return text.lower() in _YES
        if kind == "d":
            return float(text)
        if kind == "as":
            return text.split()
        if "\0" in text:
            raise ValueError("it contains a NUL character")
        text.encode()  # the bus carries UTF-8
        return text
    except UnicodeEncodeError:
        raise ConfigError(f"{setting['Name']}=: the value is no text in UTF-8") from None
    except ValueError as error:
        raise ConfigError(f"{setting['Name']}=: {printable(str(error))}") from None


def _parse_integer(kind: str, unit: str, text: str) -> int:
    if unit == "bytes":
        value = parse_bytes(text)
    elif unit == "seconds":
        value = parse_seconds(text)
    else:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    signed, bits = _INTEGER_BITS[kind]
    lowest, highest = (-1 << bits - 1 if signed else 0), (1 << bits - signed) - 1
    if not lowest <= value <= highest:
        raise ValueError(f"{value} is not between {lowest} and {highest}")
    return value


def format_value(setting: Setting, value: Any) -> str:
    """The value as it can be typed, and stands in the file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value > 0:
        match setting.get("Unit"):
            case "bytes":
                for suffix, size in _SIZES:
                    if value % size == 0:
                        return f"{value // size}{suffix}"
            case "seconds":
                parts = []
                for suffix, size in _SPANS:
                    count, value = divmod(value, size)
                    parts += [f"{count}{suffix}"] if count else []
                return " ".join(parts)
    if isinstance(value, list):
        return " ".join(printable(str(each)) for each in value)
    return printable(str(value))


def settings_table(
    settings: Sequence[Setting],
    *,
    origin: bool = False,
    legend: bool = True,
    width: int | None = None,
    colour: bool = False,
) -> str:
    """One line for each setting, in the order of the manual; what differs from its default stands out."""
    waits = any(setting.get("Waits") for setting in settings)
    columns = [Column("SETTING"), Column("VALUE", least=12)]
    columns += [Column("DEFAULT", least=8), Column("ORIGIN", least=12)] if origin else []
    columns += [Column("WAITS FOR", least=12)] if waits else []
    rows = []
    for setting in settings:
        changed = setting["Value"] != setting["Default"]
        value = format_value(setting, setting["Value"])
        row = [Cell(printable(setting["Name"])), Cell(value or "-", Colour.STRONG if changed else None)]
        if origin:
            default = format_value(setting, setting["Default"])
            row += [Cell(default or "-"), Cell(printable(setting.get("Source") or "default"))]
        if waits:
            row.append(Cell(printable(setting.get("Waits") or "-")))
        rows.append(row)
    return render(columns, rows, width=width, legend=legend, colour=colour)
