# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl rehearse: what is armed, crashed and captured in a virtual machine; print what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from kdump_service.ctl.output import json_text
from kdump_service.ctl.session import during, on_bus
from kdump_service.ctl.text import Colour, labelled, paint, printable, use_colour
from kdump_service.quantity import format_bytes, format_seconds

__all__ = ["FAILED_EXIT_CODE", "rehearsal_text", "run"]

FAILED_EXIT_CODE = 6
"""There was a rehearsal, and no whole dump came of it."""


def run(arguments: argparse.Namespace) -> int:
    """The verb. Raises KdumpError: CannotRehearse ..."""
    result = on_bus(lambda client: during(client, client.call("Rehearse")), asks=True)
    if arguments.json:
        print(json_text(result, arguments.json))
    else:
        print(rehearsal_text(result, colour=use_colour()))
    return 0 if result.get("Passed") else FAILED_EXIT_CODE


def rehearsal_text(result: Mapping[str, Any], *, colour: bool = False) -> str:
    """The verdict, the figures, and where it failed the last lines of the machine."""
    passed = bool(result.get("Passed"))
    if passed:
        head = "Passed: what is armed has captured a crash in a virtual machine"
    else:
        head = f"Failed: {printable(str(result.get('Explanation', '')))}"
    paragraphs = [paint(head, Colour.GOOD if passed else Colour.BAD, enabled=colour)]
    remedy = printable(str(result.get("Remedy", "")))
    if remedy:
        paragraphs.append(remedy)
    paragraphs.append(
        labelled(
            [
                ("Capture began", _after(result, "SecondsToCapture")),
                ("Dump saved", _after(result, "SecondsToSaved")),
                ("Back in production", _after(result, "SecondsToReboot")),
                ("Dump", _bytes(result, "StoredBytes")),
                ("Reserved", _bytes(result, "ReservedBytes")),
                ("To spare", _bytes(result, "SpareBytes")),
                ("Machine", _machine(str(result.get("Accelerator", "")))),
            ]
        )
    )
    console = [f"    {printable(str(line))}" for line in result.get("Console", [])]
    if console:
        paragraphs.append("\n".join(["Its last lines:", *console]))
    return "\n\n".join(each for each in paragraphs if each)


def _after(result: Mapping[str, Any], key: str) -> str:
    return f"{format_seconds(float(result[key]))} after the panic" if key in result else ""


def _bytes(result: Mapping[str, Any], key: str) -> str:
    return format_bytes(int(result[key])) if result.get(key) else ""


def _machine(accelerator: str) -> str:
    words = {"kvm": "QEMU with KVM", "tcg": "QEMU, emulated: slower than the machine itself by far"}
    return words.get(accelerator, printable(accelerator))
