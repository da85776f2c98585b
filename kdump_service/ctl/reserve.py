# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl reserve: show what would change in the boot loader's configuration, ask, and have it done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from kdump_service.bus.client import Client
from kdump_service.ctl.output import json_text
from kdump_service.ctl.session import during, on_bus
from kdump_service.ctl.text import Colour, paint, printable, use_colour
from kdump_service.errors import InvalidArgument

__all__ = ["UNKNOWN_BOOT_LOADER_EXIT_CODE", "plan_text", "run"]

UNKNOWN_BOOT_LOADER_EXIT_CODE = 5
"""Nothing was changed; what to add where was printed."""

_LINE_COLOURS = {"+": Colour.GOOD, "-": Colour.BAD, "@": Colour.FAINT}


def run(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError: InvalidArgument if it was not confirmed ..."""
    options: dict[str, bool | str] = {}
    if arguments.revert:
        options["revert"] = True
    if arguments.cma is not None:
        options["cma"] = arguments.cma
    size = arguments.size or ("" if arguments.revert else "auto")

    async def ask(client: Client, dry_run: bool) -> dict[str, Any]:
        wanted = {**options, "dry-run": True} if dry_run else options
        return await during(client, client.reserve(size, wanted))

    plan = on_bus(lambda client: ask(client, True), asks=True)
    known = bool(plan.get("BootLoader"))
    if arguments.dry_run or not known or not plan.get("Files"):
        _print(plan, arguments)
        return 0 if known else UNKNOWN_BOOT_LOADER_EXIT_CODE
    if not arguments.json:
        _print(plan, arguments)
        sys.stdout.flush()
    if not arguments.yes and not arguments.json:
        _confirm()
    done = on_bus(lambda client: ask(client, False), asks=True)
    if arguments.json:
        _print(done, arguments)
        return 0
    doubts = [note for note in done.get("Notes", []) if note not in plan.get("Notes", [])]
    print("\n".join(["", *map(printable, doubts), _done_text(arguments.revert)]))
    return 0


def _print(plan: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print(json_text(plan, arguments.json))
    else:
        print(plan_text(plan, colour=use_colour()))


def _done_text(revert: bool) -> str:
    if revert:
        return "Done: it is as it was before. It counts from the next boot on: reboot when it suits."
    return "Done. It counts from the next boot on: reboot when it suits. Then see: kdumpctl status"


def plan_text(plan: Mapping[str, Any], *, colour: bool = False) -> str:
    """The change as diff -u prints it, the commands, and what there is to say."""
    paragraphs = []
    diff = str(plan.get("Diff", ""))
    if diff:
        lines = [printable(line, keep="\t") for line in diff.rstrip("\n").split("\n")]
        paragraphs.append(
            "\n".join(paint(line, _LINE_COLOURS.get(line[:1]), enabled=colour) for line in lines)
        )
    elif plan.get("BootLoader") and plan.get("Files"):
        paragraphs.append("No file has to change; programs that failed before are run again.")
    elif plan.get("BootLoader"):
        paragraphs.append("Nothing has to change: every command line is as it is to be.")
    else:
        paragraphs.append("No boot loader was found that kdump-service knows; nothing is changed.")
    commands = [printable(str(each)) for each in plan.get("Commands", [])]
    if commands:
        paragraphs.append("\n".join(["Then run:", *(f"    {each}" for each in commands)]))
    notes = [printable(str(each)) for each in plan.get("Notes", [])]
    if notes:
        paragraphs.append("\n".join(notes))
    return "\n\n".join(paragraphs)


def _confirm() -> None:
    """Ask if somebody is there; a script means what it says."""
    if sys.stdin is None or not sys.stdin.isatty() or not sys.stdout.isatty():
        return
    print("\nMake this change? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise InvalidArgument("nothing was changed")
