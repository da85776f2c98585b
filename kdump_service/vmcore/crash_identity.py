# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which crash it was, from the kernel's log: its kind, where it happened, and a signature.

The log is looked at from its end. A line ``Kernel panic - not syncing: why`` says why, and for many reasons
the report of what was detected comes before it: an oops before ``Fatal exception``, what the watchdog saw
before ``softlockup: hung tasks`` (see crash_kind). With a crash kernel loaded an oops never gets as far as
that line: oops_end() of x86 and die() of arm64 start the crash kernel first. So the last oops counts as well.
How the signature is made is said in crash_signature.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kdump_service.vmcore.crash_kind import REASONS, CrashKind, Reason, is_sanitizer, kind_of_oops
from kdump_service.vmcore.crash_signature import PRINTS_STACK, plain_function, shown, signature
from kdump_service.vmcore.crash_text import Context, CrashText, Line, lines_of, parse_crash_text
from kdump_service.vmcore.log_record import LogRecord

__all__ = ["CrashIdentity", "CrashKind", "identify"]

_MOST_LINES = 1 << 16
"""Of the log's end that are looked at: more than a report with the traces of 500 processors."""


class CrashIdentity(NamedTuple):
    """What the log tells of the crash; empty or None where it does not."""

    kind: CrashKind
    panic_message: str = ""
    """``Kernel panic - not syncing: why``, as it stands; empty if an oops started the crash kernel itself."""
    title: str = ""
    """The line that says what was detected (BUG:, kernel BUG at, Unable to handle, WARNING:, ...), or what
    the panic message says; without addresses and offsets."""
    task: str = ""
    """Name of the task that ran, or that hung."""
    pid: int | None = None
    cpu: int | None = None
    taint: str = ""
    """Letters of Documentation/admin-guide/tainted-kernels.rst, without G."""
    modules: tuple[str, ...] = ()
    """Modules that were loaded, without flags, as the kernel lists them; panic() itself does not."""
    call_trace: tuple[str, ...] = ()
    """Functions of the context that crashed, innermost first, without those of which the kernel was not sure;
    neither what it had interrupted, nor what reported the crash if that ran in an exception or NMI."""
    pc_function: str = ""
    """Where the instruction pointer was, by the registers; empty if they were not printed."""
    hardware_name: str = ""
    signature: str = ""
    """16 hexadecimal digits, see crash_signature; empty if the log does not tell enough."""


def identify(log: Iterable[str | LogRecord]) -> CrashIdentity:
    """Which crash the log ends with. Takes records, or lines with or without times and callers."""
    lines = list(deque(lines_of(log), _MOST_LINES))
    event = _find_event(lines)
    if event is None:
        return CrashIdentity(CrashKind.UNKNOWN)
    text = _read_event(lines, event)
    context = _crashed_context(text, event.kind)
    frames = tuple(frame for frame in context.frames if not PRINTS_STACK.fullmatch(plain_function(frame)))
    kind = event.kind
    # Before 8341f2f222d7, "sysrq: Use panic() to force a crash" (5.0), the request dereferenced NULL.
    if kind is CrashKind.OOPS and frames[:1] == ("sysrq_handle_crash",):
        kind = CrashKind.SYSRQ
    return CrashIdentity(
        kind=kind,
        panic_message="" if event.panic is None else lines[event.panic].text.strip(),
        title=event.title if kind is CrashKind.MACHINE_CHECK else shown(event.title),
        task=text.task,
        pid=text.pid,
        cpu=text.cpu,
        taint=text.taint,
        modules=text.modules,
        call_trace=frames,
        pc_function=context.frames[0] if context.from_registers and context.frames else "",
        hardware_name=text.hardware_name,
        signature=signature(
            kind, event.title, frames, [frame for each in text.contexts for frame in each.frames]
        ),
    )


# --- where in the log it is ---------------------------------------------------------------------------------

_PANIC = re.compile(r"Kernel panic - not syncing: ?(.*)")
_AFTER_OOPS = re.compile(
    r"(?:.*: )?Fatal exception|Aiee, killing interrupt handler|Attempted to kill (?:the idle task|init)"
)
# "Oops: 0002 [#1] SMP", "general protection fault: 0000 [#1]", "Internal error: Oops: 96000045 [#1] SMP"
_DIE = re.compile(r"(?P<what>[A-Za-z][^\[\]]*?): (?:[0-9a-f]{1,16}|sig: \d+) \[#\d+\]")
_TITLED_BEFORE = re.compile(
    r"(?:Internal error: )?Oops(?:: Oops| - BUG| - CFI| - Undefined instruction| - bad mode)?"
    r"|(?:Oops: )?(?:invalid opcode|double fault|stack guard page|kernel stack overflow.*|Bad pagetable)"
    r"|Oops: Kernel access of bad area|Internal error"
)
"""What die() says where the detection has a line of its own; other words are the detection itself."""
_OOPS_TITLE = re.compile(
    r"BUG: (?!KASAN|KFENCE)|kernel BUG at |Unable to handle kernel|CFI failure at |traps: Missing ENDBR"
    r"|(?:traps: )?PANIC: double fault|Bad mode in |Unhandled (?:fault|64-bit)"
)
_MOST_LINES_TO_TITLE = 30
"""arm64 prints 15 lines on the abort and the page tables between the detection and ``Internal error:``."""
_ROUND_SECONDS = 10.0
"""Hung tasks that were reported with shorter gaps were found at once; the first of them counts."""
_REPORT_SECONDS = 600.0
"""A report that is older is not what the panic was for; to print one can take minutes on a serial console."""


class _Event(NamedTuple):
    """A crash that the log tells of."""

    kind: CrashKind
    title: str
    begin: int
    """The line of the title."""
    end: int
    """Behind the last line of its report."""
    panic: int | None = None
    """The line of the panic message."""


def _find_event(lines: Sequence[Line]) -> _Event | None:
    for index in range(len(lines) - 1, -1, -1):
        text = lines[index].text
        if panic := _PANIC.match(text):
            return _panic_event(lines, index, panic[1].strip())
        if _DIE.match(text):
            return _oops_event(lines, index, len(lines))
    return None


def _panic_event(lines: Sequence[Line], panic: int, message: str) -> _Event:
    if _AFTER_OOPS.match(message):
        oops = _oops_before(lines, panic, of_init=message.startswith("Attempted to kill init"))
        if oops:
            return oops
    for reason in REASONS:
        if re.match(reason.message, message):
            begin = _begin_of_report(lines, panic, reason)
            if begin is None:
                begin, title = panic, message
            else:
                title = message if reason.titled_by_message else lines[begin].text
            kind = reason.kind
            if kind is CrashKind.WARNING and is_sanitizer(f"{message} {title}"):
                kind = CrashKind.SANITIZER
            return _Event(kind, title, begin, panic, panic)
    kind = CrashKind.OOPS if _AFTER_OOPS.match(message) else CrashKind.PANIC
    return _Event(kind, message, panic, panic, panic)


def _begin_of_report(lines: Sequence[Line], panic: int, reason: Reason) -> int | None:
    """The line with which it begins; None if there is none."""
    if not reason.start:
        return None
    begin, start = None, re.compile(reason.start)
    for index in range(panic - 1, -1, -1):
        if not start.match(lines[index].text):
            continue
        if begin is None and not _within(_REPORT_SECONDS, lines[index], lines[panic], unknown=True):
            return None
        if begin is not None and not _within(_ROUND_SECONDS, lines[index], lines[begin], unknown=False):
            return begin
        begin = index
        if reason.kind is not CrashKind.HUNG_TASK:
            return begin
    return begin


def _within(seconds: float, earlier: Line, later: Line, *, unknown: bool) -> bool:
    if earlier.seconds is None or later.seconds is None:
        return unknown
    return later.seconds - earlier.seconds <= seconds


def _oops_before(lines: Sequence[Line], panic: int, *, of_init: bool) -> _Event | None:
    """The oops from which the panic followed; if init died, only one in init itself."""
    for index in range(panic - 1, -1, -1):
        if _PANIC.match(lines[index].text):
            return None
        if _DIE.match(lines[index].text):
            event = _oops_event(lines, index, panic)._replace(panic=panic)
            if of_init and _read_event(lines, event._replace(panic=None)).pid != 1:
                return None
            return event
    return None


def _oops_event(lines: Sequence[Line], die: int, end: int) -> _Event:
    match = _DIE.match(lines[die].text)
    what = match["what"].rstrip(": ") if match else ""
    begin, title = die, what.removeprefix("Oops: ").removeprefix("Internal error: ")
    if _TITLED_BEFORE.fullmatch(what):
        for index in range(die - 1, max(-1, die - 1 - _MOST_LINES_TO_TITLE), -1):
            line = lines[index]
            if line.caller != lines[die].caller:
                continue
            if _DIE.match(line.text) or line.text.startswith("---[ end trace"):
                break
            if _OOPS_TITLE.match(line.text):
                begin, title = index, line.text
                break
    return _Event(kind_of_oops(f"{title}\n{what}"), title, begin, end)


# --- what it says there -------------------------------------------------------------------------------------

_OF_SEVERAL_CPUS = {CrashKind.SOFT_LOCKUP, CrashKind.HARD_LOCKUP, CrashKind.RCU_STALL}
_ON_CPU = re.compile(r"(?:on cpu |CPU#)(\d+)")


def _read_event(lines: Sequence[Line], event: _Event) -> CrashText:
    """The report, and where that does not tell something, what panic() printed."""
    if event.kind in _OF_SEVERAL_CPUS:
        report = lines[event.begin : event.end]
        text = parse_crash_text(_of_cpu(report, event.title))
        text.modules = text.modules or parse_crash_text(report).modules
    else:
        text = parse_crash_text(_of_one_caller(lines, event.begin, event.end))
    if event.panic is None:
        return text
    later = parse_crash_text(_of_one_caller(lines, event.panic, len(lines)))
    if not text.contexts and not text.pc_function:
        text.contexts, text.pc_function = later.contexts, later.pc_function
    if text.pid is None:
        text.task, text.pid, text.cpu = later.task, later.pid, later.cpu
    text.taint = text.taint or later.taint
    text.modules = text.modules or later.modules
    text.hardware_name = text.hardware_name or later.hardware_name
    return text


def _of_one_caller(lines: Sequence[Line], begin: int, end: int) -> Sequence[Line]:
    """Without what others printed in between, where the log tells who printed."""
    caller = lines[begin].caller if begin < end else ""
    return [line for line in lines[begin:end] if line.caller == caller] if caller else lines[begin:end]


def _of_cpu(report: Sequence[Line], title: str) -> Sequence[Line]:
    """From where the processor that is stuck is described, if other things are said before that.

    A stall of RCU names it in no fixed form; the trace of RCU's own thread, which waits, may come before it.
    """
    stuck = _ON_CPU.search(title)
    begins = f"CPU: {stuck[1]} " if stuck else "CPU: "
    for index, line in enumerate(report):
        if line.text.startswith(begins):
            return report[index:]
    return report


def _crashed_context(text: CrashText, kind: CrashKind) -> Context:
    """The context that the crash is about, of those that interrupted each other."""
    contexts = [context for context in text.contexts if context.frames]
    if text.pc_function:  # the trace begins where these registers were
        first = contexts[0] if contexts else Context()
        missing = [] if first.frames[:1] == [text.pc_function] else [text.pc_function]
        return Context(missing + first.frames, first.entry, from_registers=True)
    # panic() was called by what an exception or NMI led to: what that interrupted has crashed. An interrupt
    # is a context of its own, unless it is the clock by which the watchdogs look at what they interrupt.
    leads_on = {"exception", "nmi", "interrupt"} if kind in _OF_SEVERAL_CPUS else {"exception", "nmi"}
    for context in contexts[:-1]:
        if context.entry not in leads_on:
            return context
    return contexts[-1] if contexts else Context()
