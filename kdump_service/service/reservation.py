# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's side of ``reserve``: from what a client asks to words that the kernel takes, and to the unit.

The daemon itself can write neither to /boot nor to /etc; ``kdump-reserve.service`` can. What goes there is a
file in /run with validated words, and nothing else of what the client sent.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdump_service.atomic_file import write_atomically
from kdump_service.errors import InvalidArgument, KdumpError, NotReady, ProgramFailed
from kdump_service.kernel.crashkernel import BadCrashkernel, reservation_of, rounded_memory_bytes
from kdump_service.kernel.files import KernelFiles
from kdump_service.process import run
from kdump_service.quantity import format_bytes
from kdump_service.reserve.request import REQUEST_FILE, RESULT_FILE, Request, crashkernel_words
from kdump_service.service.checks.reservation import memory_span_bytes
from kdump_service.unit_exchange import read_answer

__all__ = ["AUTO", "RESERVE_UNIT", "ReserveOptions", "ask_unit", "reserve", "size_notes", "wanted_words"]

RESERVE_UNIT = "kdump-reserve.service"
AUTO = "auto"
"""Stands for the size that the service recommends."""
_UNIT_SEC = 3660.0
"""The unit's own limit, and a minute."""

_CMA_NOTES = (
    "What processes have in the area of CMA at the crash is not in the dump, some movable pages of the "
    "kernel may be missing, too, and a device that still writes there may disturb the capture; the kernel "
    "waits 10 s for that.",
    "A kernel that does not know ,cma reserves the last word only, which holds the crash kernel.",
)


@dataclass(frozen=True)
class ReserveOptions:
    """The options of the method Reserve."""

    dry_run: bool = False
    revert: bool = False
    cma: str | None = None
    """Size of an area of CMA besides; empty: as the fixed one's; None: no such area."""

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> ReserveOptions:
        """Options by their names on the bus. Raises InvalidArgument."""
        kinds = {"dry-run": bool, "revert": bool, "cma": str}
        for name, value in values.items():
            if name not in kinds or not isinstance(value, kinds[name]):
                raise InvalidArgument(f"{name!r} is no option of Reserve, or {value!r} no value for it")
        return cls(**{name.replace("-", "_"): value for name, value in values.items()})  # type: ignore[arg-type]


def wanted_words(
    size: str, options: ReserveOptions, recommended_bytes: int, memory_bytes: tuple[int, int]
) -> tuple[str, ...]:
    """The words to set; none to take back what was set. Raises InvalidArgument, or NotReady where nothing can
    be recommended. ``memory_bytes``: the least and the most that the kernel may take for the size of memory.
    """
    if options.revert:
        if size or options.cma is not None:
            raise InvalidArgument("what is taken back has no size", "Leave it away.")
        return ()
    if size in ("", AUTO):
        if not recommended_bytes:
            raise NotReady("there is nothing yet by which a size could be recommended", "Name one: 256M")
        size = f"{-(-recommended_bytes >> 20)}M"
    words = crashkernel_words(size, options.cma)
    try:
        reservation_of(" ".join(words)).asked_bytes(memory_bytes[1])
    except BadCrashkernel as error:
        raise InvalidArgument(f"the kernel of this machine would reserve nothing: {error}") from error
    return words


def size_notes(words: Sequence[str], memory_bytes: tuple[int, int]) -> list[str]:
    """What there is to say of the words, on a machine of this size."""
    asked = reservation_of(" ".join(words))
    area = asked.main
    if area is None:
        return []
    notes = [f"To be reserved: {area.sentence()}."]
    if area.ranges:
        bytes_here = asked.asked_between(*memory_bytes)
        memory = format_bytes(rounded_memory_bytes(memory_bytes[1]))
        if bytes_here is not None:
            told = format_bytes(bytes_here) if bytes_here else "nothing"
            notes.append(f"On this machine, with {memory}: {told}.")
    elif area.size * 2 > memory_bytes[1]:
        notes.append(f"That is more than half of this machine's {format_bytes(memory_bytes[1])}.")
    if asked.cma is not None:
        notes += [f"To be reserved besides: {asked.cma.sentence()}.", *_CMA_NOTES]
    return notes


def reserve(
    kernel_files: KernelFiles,
    size: str,
    options: ReserveOptions,
    recommended_bytes: int,
    reserved_bytes: int,
) -> dict[str, str | bool | list[str]]:
    """Plan, and unless it is a dry run do it; the dictionary of the method Reserve. Raises KdumpError."""
    memory_bytes = memory_span_bytes(kernel_files, reserved_bytes)
    words = wanted_words(size, options, recommended_bytes, memory_bytes)
    try:
        result = ask_unit(kernel_files.root, words, options.dry_run)
    except OSError as error:
        raise KdumpError(f"{RESERVE_UNIT} cannot be asked: {error.filename}: {error.strerror}") from error
    return {
        "BootLoader": str(result["boot_loader"]),
        "Words": " ".join(words),
        "Files": list(map(str, result["files"])),
        "Diff": str(result["diff"]),
        "Commands": [shlex.join(command) for command in result["commands"]],
        "Notes": [*size_notes(words, memory_bytes), *map(str, result["notes"])],
        "Applied": bool(result["applied"]),
    }


def ask_unit(root: Path, words: Sequence[str], dry_run: bool) -> dict[str, Any]:
    """Have the unit plan and, unless it is a dry run, make the change; returns its result.

    Raises what the unit met: ConfigError, ProgramFailed ...
    """
    request = Request(uuid.uuid4().hex, tuple(words), dry_run)
    (root / RESULT_FILE).unlink(missing_ok=True)
    write_atomically(root / REQUEST_FILE, request.to_json())
    failure: ProgramFailed | None = None
    try:
        run(["systemctl", "start", RESERVE_UNIT], timeout_sec=_UNIT_SEC)
    except ProgramFailed as error:
        failure = error
    finally:
        (root / REQUEST_FILE).unlink(missing_ok=True)
    return read_answer(root / RESULT_FILE, request.id, RESERVE_UNIT, failure)
