# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dump folders as a capture boot leaves them, below a MachineRoot. Written as JSON, not by the package."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.builders.machine_root import BOOT_ID, RELEASE, MachineRoot

TARGET = "/var/crash"
FALLBACK = "/var/lib/kdump-service/crash"
FIRST_CRASH = 1_795_406_400  # 2026-11-23T04:00:00Z


def utc(unix_sec: float) -> str:
    """As records write times."""
    return datetime.fromtimestamp(unix_sec, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def name_of(number: int) -> str:
    """Of the crash that happened this many hours after the first."""
    moment = utc(FIRST_CRASH + 3600 * number)
    return f"{moment.replace('-', '').replace(':', '')}-testhost"


def document(number: int, **changes: object) -> dict[str, object]:
    """The record of a crash, as JSON has it."""
    moment = FIRST_CRASH + 3600 * number
    return {
        "name": name_of(number),
        "state": "complete",
        "schema": 1,
        "crash_time": utc(moment),
        "saved_time": utc(moment + 8),
        "seconds_to_saved": 8.0,
        "host": "testhost",
        "boot_id": f"{number:032x}",
        "kernel_release": RELEASE,
        "panic_message": "Kernel panic - not syncing: made for a test",
        "crash_kind": "panic",
        "signature": "0123456789abcdef",
        "files": [
            {"name": "dmesg.txt", "size_bytes": 10, "stored_bytes": 4096},
            {"name": "vmcore", "size_bytes": 8192, "stored_bytes": 8192},
        ],
        **changes,
    }


def put_dump(machine: MachineRoot, number: int, *, store: str = TARGET, **changes: Any) -> Path:
    """A dump folder with record, log and, unless the state is "failed", an image."""
    name = str(changes.pop("folder", name_of(number)))
    folder = f"{store.lstrip('/')}/{name}"
    content = document(number, **changes)
    machine.write(f"{folder}/record.json", json.dumps(content))
    machine.write(f"{folder}/dmesg.txt", "the log\n")
    if content["state"] != "failed":
        machine.write(f"{folder}/vmcore", f"image {number}".encode().ljust(8192, b"\0"))
    return machine.path / folder


__all__ = ["BOOT_ID", "FALLBACK", "FIRST_CRASH", "TARGET", "document", "name_of", "put_dump", "utc"]
