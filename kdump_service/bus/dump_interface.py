# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kdump.Kdump1.Dump: one crash, and what was saved of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from kdump_service.bus.members import Argument, Interface, Method, Property
from kdump_service.bus.names import ACTION_DELETE_DUMPS, ACTION_READ_DUMPS, DUMP_INTERFACE
from kdump_service.store.dumps import StoredDump

__all__ = ["DumpActs", "dump_interface", "dump_values", "is_same_crash"]

_CHANGING = {"Presence": "s", "SameBug": "as", "Kept": "b"}
_CONSTANT = {
    "Name": "s", "State": "s", "Folder": "s", "CrashTime": "s", "SavedTime": "s", "Host": "s",
    "BootID": "s", "KernelRelease": "s", "KernelBuildID": "s", "Machine": "s", "PanicMessage": "s",
    "Kind": "s", "Title": "s", "Task": "s", "Pid": "x", "Cpu": "i", "Taint": "s", "CallTrace": "as",
    "HardwareName": "s", "Signature": "s", "Test": "b", "Format": "s", "Compression": "s",
    "DumpLevel": "i", "StoredBytes": "t", "SecondsToSaved": "d", "Files": "as", "Problems": "as",
}  # fmt: skip
# One set of rows for all dumps: there may be a thousand.
_PROPERTIES = {
    name: Property(name, signature, constant=name in _CONSTANT)
    for name, signature in (_CONSTANT | _CHANGING).items()
}


class DumpActs(Protocol):
    """What the interface needs of the daemon."""

    async def open_dump(self, name: str, what: str) -> int:
        """A file descriptor. Raises KdumpError."""

    async def delete_dump(self, name: str) -> None:
        """Raises KdumpError."""

    async def keep_dump(self, name: str, kept: bool) -> None:
        """Raises KdumpError."""


def dump_values(dump: StoredDump, same_bug: Sequence[str]) -> dict[str, Any]:
    """All properties, by their names on the bus."""
    record = dump.record
    return {
        "Name": dump.name,
        "State": str(record.state),
        "Folder": str(dump.folder),
        "CrashTime": record.crash_time,
        "SavedTime": record.saved_time,
        "Host": record.host,
        "BootID": record.boot_id,
        "KernelRelease": record.kernel_release,
        "KernelBuildID": record.kernel_build_id,
        "Machine": record.machine,
        "PanicMessage": record.panic_message,
        "Kind": record.crash_kind,
        "Title": record.crash_title,
        "Task": record.crash_task,
        "Pid": -1 if record.crash_pid is None else record.crash_pid,
        "Cpu": -1 if record.crash_cpu is None else record.crash_cpu,
        "Taint": record.taint,
        "CallTrace": record.call_trace,
        "HardwareName": record.hardware_name,
        "Signature": record.signature,
        "Test": record.test,
        "Format": record.format,
        "Compression": record.compression,
        "DumpLevel": record.dump_level,
        "StoredBytes": record.stored_bytes,
        "SecondsToSaved": record.seconds_to_saved,
        "Files": [file.name for file in record.files],
        "Problems": [problem.message for problem in record.problems],
        "Presence": str(dump.presence),
        "SameBug": list(same_bug),
        "Kept": dump.kept,
    }


def is_same_crash(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether nothing differs but what may change."""
    return all(before[name] == after[name] for name in _CONSTANT)


def dump_interface(acts: DumpActs, name: str) -> Interface:
    """The interface of the dump ``name``. Its properties are what is announced."""

    async def open_file(what: str) -> int:
        return await acts.open_dump(name, what)

    async def delete() -> None:
        await acts.delete_dump(name)

    async def keep(kept: bool) -> None:
        await acts.keep_dump(name, kept)

    methods = (
        Method("Open", open_file, ACTION_READ_DUMPS, [Argument("what", "s")], Argument("file", "h")),
        Method("Delete", delete, ACTION_DELETE_DUMPS),
        Method("Keep", keep, ACTION_DELETE_DUMPS, [Argument("kept", "b")]),
    )
    return Interface(DUMP_INTERFACE, _PROPERTIES, {each.name: each for each in methods})
