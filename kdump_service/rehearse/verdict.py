# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a rehearsal came to, and why: judged by what was seen of the virtual machine, and by the record it
left."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdump_service.arm.loader import explain
from kdump_service.folders import RUN_FOLDER
from kdump_service.kernel.crashkernel import aligned
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes
from kdump_service.record import DumpRecord, DumpState
from kdump_service.rehearse.armed import Armed
from kdump_service.rehearse.inside import CRASHING, FOUND, LINE, READY, REFUSED
from kdump_service.rehearse.qemu import Boot, Line

__all__ = ["OUT_OF_MEMORY", "RESULT_FILE", "Rehearsal", "Told", "judge", "larger_bytes", "told"]

OUT_OF_MEMORY = "out-of-memory"
RESULT_FILE = f"{RUN_FOLDER}/rehearsal.json"
"""``result``: what :meth:`Rehearsal.to_json` says; or ``error``: name, text and hint."""

_TAIL_LINES = 20

# What the kernel says when memory is short: mm/oom_kill.c, mm/page_alloc.c, init/initramfs.c (when a file
# does not fit); and what errno and Python say.
_SHORT_OF_MEMORY = re.compile(
    r"[Oo]ut of memory|oom-killer|deadlocked on memory|page allocation failure"
    r"|Initramfs unpacking failed: write error|Cannot allocate memory|MemoryError|no memory left"
)
_KINDS: dict[str, tuple[type, ...]] = {"bool": (bool,), "str": (str,), "int": (int,), "float": (int, float)}
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_FRAME = re.compile(r"(\[[ .\d]+\])?\s+(\? )?\S+\+0x[0-9a-f]+/0x[0-9a-f]+")
"""A line of a call trace, of which a panic has many, and which tell an administrator little."""
_CAPTURE_BEGINS = re.compile(r"kdump: Kernel .* crashed at ")


@dataclass(frozen=True)
class Rehearsal:
    """The result. Times are in seconds from the panic on; 0 where it did not come to that."""

    passed: bool
    reason: str = ""
    """A stable word, empty if passed: does-not-start, not-loaded, out-of-memory, no-dump, incomplete,
    damaged, did-not-return."""
    explanation: str = ""
    """A sentence."""
    hint: str = ""
    """What to do, a sentence."""
    time: str = ""
    """When it began, UTC."""
    identity: str = ""
    """Of what was rehearsed; see arm.identity."""
    release: str = ""
    accelerator: str = ""
    """``kvm``, or ``tcg``: emulation, which is ten times as slow."""
    reserved_bytes: int = 0
    seconds_to_capture: float = 0.0
    seconds_to_saved: float = 0.0
    seconds_to_reboot: float = 0.0
    stored_bytes: int = 0
    memory_total_kib: int = 0
    """MemTotal of the capture boot."""
    memory_low_water_kib: int = 0
    """The least that was available: to spare."""
    console: list[str] = field(default_factory=list)
    """The end of what the machine said after the crash; empty if passed."""

    def to_json(self) -> dict[str, Any]:
        """For the answer."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Rehearsal:
        """The opposite. Raises ValueError, TypeError."""
        rehearsal = cls(**document)
        for spec in dataclasses.fields(cls):
            kinds: tuple[type, ...] = _KINDS.get(str(spec.type), (list,))
            if not isinstance(getattr(rehearsal, spec.name), kinds):
                raise ValueError(f"{spec.name} is not of type {spec.type}")
        return rehearsal


@dataclass(frozen=True)
class Told:
    """What the program inside has told in a line."""

    at: float
    what: str
    values: dict[str, Any]


def told(lines: Iterable[Line], what: str) -> Told | None:
    """The first such line; None if there is none."""
    for line in lines:
        place = line.text.find(LINE)
        if place < 0:
            continue
        try:
            document = json.loads(line.text[place + len(LINE) :])
        except ValueError:
            continue  # a message of the kernel in the middle of it
        if isinstance(document, dict) and document.get("what") == what:
            return Told(line.at, what, document)
    return None


def larger_bytes(reserved_bytes: int) -> int:
    """What to reserve where so much was too little: a quarter more, 32 MiB at least, rounded up to 16 MiB."""
    wanted = max(reserved_bytes * 5 // 4, reserved_bytes + (32 << 20))
    return aligned(wanted)


def judge(
    armed: Armed,
    crash: Boot,
    read: Boot | None,
    memory_log: Sequence[str],
    seen: Rehearsal,
    kernel_files: KernelFiles,
) -> Rehearsal:
    """The verdict. ``read``: the boot that looked at the target afterwards; None where there was no crash.
    ``seen``: a result with what is known already.
    """
    crashed = told(crash.lines, CRASHING)
    if crashed is None:
        return _did_not_crash(armed, crash, seen, kernel_files)
    after = [line for line in crash.lines if line.at > crashed.at and LINE not in line.text]
    # The console of the machine that is to crash names the panic; more is only there if the armed line names
    # it, too.
    texts = [line.text for line in after if line.text.strip()]
    spoken = any("Linux version" in text or text.startswith("kdump: ") for text in texts)
    said = [text for text in (texts if spoken or not memory_log else memory_log) if not _FRAME.match(text)]
    found = told(read.lines, FOUND) if read is not None else None
    record, wrong = _record_of(found)
    result = dataclasses.replace(
        seen,
        seconds_to_reboot=round(crash.ended_at - crashed.at, 1) if crash.ended_at is not None else 0.0,
        **_figures(record, crashed, after),
    )

    def failed(reason: str, explanation: str, hint: str = "") -> Rehearsal:
        return dataclasses.replace(
            result, reason=reason, explanation=explanation, hint=hint, console=said[-_TAIL_LINES:]
        )

    problems = [problem.message for problem in record.problems] if record is not None else []
    if record is not None and record.state is DumpState.COMPLETE and not wrong:
        if crash.ended_at is None:
            return failed(
                "did-not-return",
                "The dump was saved, but the capture boot did not come to its end in time",
                "See OnSuccess= in kdump-service.conf(5): halt never does.",
            )
        return dataclasses.replace(result, passed=True)
    # A capture that could say what it failed of knows better than what else is in the log.
    if any(_SHORT_OF_MEMORY.search(text) for text in problems or [*texts, *memory_log]):
        return failed(OUT_OF_MEMORY, *_no_memory(armed))
    if record is not None and record.state is DumpState.COMPLETE:
        return failed("damaged", f"The dump cannot be read back: {wrong}")
    if record is not None:
        why = problems[-1] if problems else "its record does not say why"
        reason = "incomplete" if record.state is DumpState.INCOMPLETE else "no-dump"
        return failed(reason, f"The capture ran, but left no whole dump: {why}")
    if crash.ended_at is None:
        return failed("did-not-return", "The capture boot neither saved a dump nor ended in time", _LOOK)
    panic = next((match[1] for text in reversed(said) if (match := _PANIC.search(text))), "")
    why = f"its kernel panicked: {panic}" if panic and "sysrq triggered" not in panic else wrong
    return failed("no-dump", f"The capture boot left no dump{f': {why}' if why else ''}", _LOOK)


_LOOK = "Its last lines tell more."


def _no_memory(armed: Armed) -> tuple[str, str]:
    more = larger_bytes(armed.reserved_bytes)
    return (
        f"The capture boot ran out of memory: {format_bytes(armed.reserved_bytes)} are too little",
        f"Reserve more: kdumpctl reserve {more >> 20}M",
    )


def _did_not_crash(armed: Armed, crash: Boot, seen: Rehearsal, kernel_files: KernelFiles) -> Rehearsal:
    lines = [line.text for line in crash.lines if line.text.strip() and LINE not in line.text]
    refused = told(crash.lines, REFUSED)
    if refused is not None:
        code = int(refused.values.get("errno") or 0)
        error = explain(OSError(code, os.strerror(code)), armed.request, kernel_files, armed.reserved_bytes)
        return dataclasses.replace(
            seen, reason="not-loaded", explanation=str(error), hint=error.hint, console=lines[-_TAIL_LINES:]
        )
    if crash.complaints:
        lines += crash.complaints.splitlines()
    ready = told(crash.lines, READY)
    what = "crash" if ready else "start"
    when = "in time" if crash.ended_at is None else f"QEMU ended with status {crash.status}"
    return dataclasses.replace(
        seen,
        reason="does-not-start",
        explanation=f"The armed kernel and image do not {what} in a virtual machine ({when}); "
        "nothing is known of a capture",
        hint=f"{_LOOK} kdumpctl test crashes the machine itself.",
        console=lines[-_TAIL_LINES:],
    )


def _record_of(found: Told | None) -> tuple[DumpRecord | None, str]:
    if found is None:
        return None, "what it left cannot be looked at: the machine that was to do it did not start"
    wrong = str(found.values.get("wrong") or "")
    document = found.values.get("record")
    if document is None:
        return None, wrong
    try:
        return DumpRecord.from_document(document), wrong
    except ValueError as error:
        return None, f"its record cannot be read: {error}"


def _figures(record: DumpRecord | None, crashed: Told, after: Sequence[Line]) -> dict[str, Any]:
    began = next((line.at for line in after if _CAPTURE_BEGINS.search(line.text)), None)
    figures: dict[str, Any] = {}
    if began is not None:
        figures["seconds_to_capture"] = round(began - crashed.at, 1)
    if record is None:
        return figures
    if began is None:
        # By the clock of the virtual machine, which is exact to a second.
        spent = sum(record.stage_seconds.values())
        seconds = max(record.seconds_to_saved - spent, record.capture_uptime_seconds)
        figures["seconds_to_capture"] = round(seconds, 1)
    return figures | {
        "seconds_to_saved": record.seconds_to_saved,
        "stored_bytes": record.stored_bytes,
        "memory_total_kib": record.memory_total_kib,
        "memory_low_water_kib": record.memory_available_low_water_kib,
    }
