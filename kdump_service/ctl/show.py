# SPDX-License-Identifier: LGPL-2.1-or-later
"""How things look on a terminal. Pure functions from plain values to text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdump_service.quantity import format_bytes, format_seconds

__all__ = ["dumps_table", "status_text"]


def status_text(properties: Mapping[str, Any]) -> str:
    """The state, one fact a line; facts that are not known are left out."""
    rows = [("State", properties.get("State", "unknown"))]
    if properties.get("Reason"):
        rows.append(("Reason", properties["Reason"]))
    if properties.get("Explanation"):
        rows.append(("", properties["Explanation"]))
    reserved = properties.get("ReservedBytes", 0)
    rows.append(("Reserved", format_bytes(reserved) if reserved else "nothing"))
    rows += [
        ("Kernel", properties.get("Kernel", "")),
        ("Image", properties.get("Image", "")),
        ("Command line", properties.get("CommandLine", "")),
    ]
    return "\n".join(f"{label + ':' if label else '':>13} {value}" for label, value in rows if value)


def dumps_table(dumps: Sequence[Mapping[str, Any]]) -> str:
    """One line for each dump, oldest first, as coredumpctl list does it."""
    if not dumps:
        return "No dumps."
    header = ("TIME", "STATE", "SIZE", "SAVED AFTER", "KERNEL", "FOLDER")
    rows = [
        (
            dump.get("CrashTime") or "-",
            dump.get("State", "?"),
            format_bytes(dump.get("StoredBytes", 0)),
            format_seconds(dump.get("SecondsToSaved", 0.0)),
            dump.get("KernelRelease") or "-",
            dump.get("Folder", ""),
        )
        for dump in dumps
    ]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header) - 1)]
    lines = []
    for row in (header, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join((*cells, row[-1])).rstrip())
    return "\n".join(lines)
