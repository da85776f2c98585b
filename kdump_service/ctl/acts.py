# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs that change something: arm, disarm, reload, rebuild, delete, keep, test."""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from kdump_service.bus.client import BusDump, Client
from kdump_service.ctl.match import find_each
from kdump_service.ctl.output import notice
from kdump_service.ctl.readiness import ask_check, ask_status, captures, check_text, status_text
from kdump_service.ctl.session import during, on_bus
from kdump_service.ctl.table import terminal_width
from kdump_service.ctl.text import printable, use_colour
from kdump_service.errors import InvalidArgument, NotReady

__all__ = ["run_delete", "run_keep", "run_manager_verb", "run_test"]

_STARTS = ("arm", "rebuild")
"""Verbs that start the service if need be: who disarms or reloads means one that runs."""

_TEST_TEXT = """\
This crashes {host} now, as a bug in the kernel would: programs end without a chance to save, and the
machine is away until the dump is written and it has booted again. File systems are synced before.
After the reboot, kdumpctl status tells the verdict, and kdumpctl list shows the dump.
"""


def run_manager_verb(arguments: argparse.Namespace) -> int:
    """arm, disarm, reload, rebuild; then the state. Raises KdumpError."""
    verb: str = arguments.verb

    async def act(client: Client) -> tuple[dict[str, Any], BusDump | None]:
        await during(client, client.call(verb.capitalize(), start=verb in _STARTS))
        return await ask_status(client)

    properties, last = on_bus(act, asks=True)
    print(status_text(properties, last.properties if last else None, now=time.time(), colour=use_colour()))
    return 0


def run_delete(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""

    async def delete(client: Client) -> None:
        for dump in find_each(await client.dumps(), arguments.match):
            await during(client, client.call_dump(dump, "Delete"))
            was_missing = dump.properties.get("Presence") == "missing"
            print(f"{printable(dump.name)}: {'forgotten' if was_missing else 'deleted'}")

    on_bus(delete, asks=True)
    return 0


def run_keep(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError."""

    async def keep(client: Client) -> None:
        for dump in find_each(await client.dumps(), arguments.match):
            await client.call_dump(dump, "Keep", "b", not arguments.off)
            print(f"{printable(dump.name)}: {'no longer kept' if arguments.off else 'kept'}")

    on_bus(keep, asks=True)
    return 0


def run_test(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError: NotReady, InvalidArgument if it was not confirmed ..."""
    problems, properties = on_bus(ask_check)
    # A test proves what is configured now, not what is about to be replaced.
    ready = properties.get("State") == "armed" and captures(problems, properties)
    if problems or not ready:
        text = check_text(problems, properties, ready, width=terminal_width(), colour=use_colour())
        print(text, end="\n\n")
    if not ready:
        raise NotReady("a crash now would not be captured, so none is made", "See: kdumpctl check")
    host = os.uname().nodename
    print(_TEST_TEXT.format(host=host))
    if not arguments.yes:
        _confirm(host)
    sys.stdout.flush()

    async def crash(client: Client) -> None:
        await client.call("TestCrash")

    on_bus(crash, asks=True)
    notice("the service says that it crashed the machine, and this machine runs on")
    return 1


def _confirm(host: str) -> None:
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidArgument("nobody is there to confirm this", "Give --yes where no terminal is.")
    print(f'Type the name of this machine ({host}), or "crash", to go on: ', end="", flush=True)
    if sys.stdin.readline().strip() not in (host, "crash"):
        raise InvalidArgument("that was neither; nothing was done")
