# SPDX-License-Identifier: LGPL-2.1-or-later
"""What this boot had reserved before the service gave back a part of it. The kernel does not remember."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdump_service.folders import RUN_FOLDER
from kdump_service.kernel.files import KernelFiles
from kdump_service.own_state import read_json, write_json

__all__ = ["SHRUNK_FILE", "Shrunk", "note_shrink", "reserved_at_boot", "shrunk_in_this_boot"]

SHRUNK_FILE = f"{RUN_FOLDER}/shrunk.json"


@dataclass(frozen=True)
class Shrunk:
    """That the service asked for less. Whether it got that, the kernel's own size says."""

    from_bytes: int
    """What there was: a reboot brings it back."""
    to_bytes: int
    """What there was to be left."""


def note_shrink(kernel_files: KernelFiles, from_bytes: int, to_bytes: int) -> None:
    """Before it is done, so that no end of the service comes in between. Several in a boot count as one."""
    shrunk = Shrunk(reserved_at_boot(kernel_files, from_bytes), to_bytes)
    write_json(kernel_files.root / SHRUNK_FILE, {"boot_id": kernel_files.boot_id, **asdict(shrunk)})


def shrunk_in_this_boot(kernel_files: KernelFiles, reserved_bytes: int) -> Shrunk | None:
    """None if nothing was asked for, or nothing came of it: as much is reserved now as there was."""
    said = read_json(kernel_files.root / SHRUNK_FILE, dict)
    from_bytes, to_bytes = said.get("from_bytes"), said.get("to_bytes")
    if said.get("boot_id") != kernel_files.boot_id:
        return None
    if not isinstance(from_bytes, int) or not isinstance(to_bytes, int) or reserved_bytes >= from_bytes:
        return None
    return Shrunk(from_bytes, to_bytes)


def reserved_at_boot(kernel_files: KernelFiles, reserved_bytes: int) -> int:
    """What the kernel reserved when it started, if the service gave back the rest; else what is reserved."""
    shrunk = shrunk_in_this_boot(kernel_files, reserved_bytes)
    return shrunk.from_bytes if shrunk is not None else reserved_bytes
