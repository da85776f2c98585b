# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the kernel prints about the context in which it crashes: registers, call trace, modules, machine.

Sources: lib/dump_stack.c (the ``CPU:`` and ``Hardware name:`` lines), kernel/module (``Modules linked in:``),
arch/x86/kernel/dumpstack.c and process_64.c, arch/arm64/kernel/process.c and stacktrace.c,
kernel/hung_task.c, from 4.19 to 7.2. Nothing here decides whether a text is a crash: see crash_identity.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from kdump_service.vmcore.log_record import LogRecord

__all__ = ["Context", "CrashText", "Line", "lines_of", "parse_crash_text"]

# As printk prints it: an optional level, the time, and with CONFIG_PRINTK_CALLER the caller; then one space.
_PREFIX = re.compile(r"(?:<\d+>)?\[ *(\d+\.\d+)\](?:\[ *([TC]\d+)\])? ?")

_COMM = r"CPU: (?P<cpu>\d+) (?:UID: \d+ )?PID: (?P<pid>\d+) Comm: (?P<task>.*?) (?:Kdump: loaded )?"
_TAINT = r"(?:Not tainted|Tainted: (?P<taint>[A-Z ]+?)) +[^A-Z ]"
_CPU = re.compile(_COMM + _TAINT)
# kernel/hung_task.c; its second line has the taint.
_HUNG_TASK = re.compile(r"INFO: task (?P<task>.*):(?P<pid>\d+) (?:is )?blocked ")
_HUNG_TAINT = re.compile(r" +" + _TAINT)
_HARDWARE = re.compile(r"Hardware name: (.+)")
_MODULES = re.compile(r"Modules linked in:(.*)")
_MODULE = re.compile(r"([\w-]+)(?:\([A-Z+-]+\))?$")
_LAST_UNLOADED = re.compile(r"\[last unloaded:.*")

_FUNCTION = r"(?:\[<[0-9a-fx]+>\] *)*(?P<function>[A-Za-z_$][\w.$]*)\+0x[0-9a-f]+/0x[0-9a-f]+"
_FRAME = re.compile(r" *(?:\[<[0-9a-f]+>\] *)?(?P<unsure>\? +)?" + _FUNCTION)
# "RIP: 0010:" is code segment __KERNEL_CS; 0033 is the user's. arm64: "pc : ".
_REGISTERS = re.compile(r" *(?:E?RIP: (?:0010|0008|e030|0060):|pc : )(?: *" + _FUNCTION + r")?")
_USER_REGISTERS = re.compile(r" *RIP: 00(?:33|2b):")
_CALL_TRACE = re.compile(r" *Call [Tt]race: *$")
_MARKER = re.compile(r" *<(?P<end>/?)(?P<name>TASK|IRQ|SOFTIRQ|EOI|NMI|#[A-Z]+|EXCEPTION|ENTRY_TRAMPOLINE)>")
_TRACE_END = re.compile(r"---\[ |Modules linked in:|Kernel panic|CPU: \d+ |={20}|-{20}")
_MOST_FOREIGN_LINES = 20
"""Lines of other processors between those of a trace."""
_MOST_FRAMES = 256
_MOST_CHARACTERS = 2048
"""Of a line: twice what printk stores (PRINTKRB_RECORD_MAX). What is longer is damage."""

# The code by which the processor entered the kernel is the last frame of a context.
_ENTRIES = {
    "nmi": re.compile(r"asm_exc_nmi|end_repeat_nmi|nmi|nmi_restore|repeat_nmi|first_nmi"),
    "interrupt": re.compile(
        r"asm_sysvec_\w+|asm_common_interrupt|common_interrupt|ret_from_intr|apic_timer_interrupt"
        r"|reschedule_interrupt|call_function(_single)?_interrupt|irq_work_interrupt|\w+_callback_vector"
        r"|reboot_interrupt|el1_irq|el1h_64_(irq|fiq)"
    ),
    "exception": re.compile(
        r"asm_exc_\w+|page_fault|async_page_fault|general_protection|invalid_op|divide_error|double_fault"
        r"|int3|debug|stack_segment|coprocessor_error|alignment_check|machine_check"
        r"|el1_(sync|error|dbg|inv)|el1h_64_(sync|error)|__bad_stack"
    ),
}
_ENTRY_OF_MARK = {"NMI": "nmi", "IRQ": "interrupt", "SOFTIRQ": "interrupt", "EOI": "interrupt"}


class Line(NamedTuple):
    """One line of the log, without what printk puts in front."""

    text: str
    caller: str = ""
    """``T123`` or ``C2``, empty if unknown."""
    seconds: float | None = None
    """Since boot; None if unknown."""


@dataclass
class Context:
    """A piece of a call trace that one task, interrupt or exception ran."""

    frames: list[str] = field(default_factory=list)
    """Functions, innermost first; those of which the unwinder was not sure ('?') are left out."""
    entry: str = ""
    """How it interrupted the next context: ``nmi``, ``interrupt`` or ``exception``; empty if it did not."""
    from_registers: bool = False
    """The first frame is where the processor was, as its registers say."""


@dataclass
class CrashText:
    """What a text tells; empty or None where it does not."""

    task: str = ""
    pid: int | None = None
    cpu: int | None = None
    taint: str = ""
    """The letters, without G, which says that nothing is tainted by a proprietary module."""
    hardware_name: str = ""
    modules: tuple[str, ...] = ()
    pc_function: str = ""
    """By the registers that were printed before the call trace."""
    contexts: list[Context] = field(default_factory=list)
    """Of the first call trace."""


def lines_of(log: Iterable[str | LogRecord]) -> Iterator[Line]:
    """Records or lines of text, with or without what printk puts in front, one line at a time.

    Records that came through /dev/kmsg are left out: the kernel marks them with another facility than its
    own, so that no program can pretend that the kernel crashed. In plain text that cannot be seen.
    """
    caller, seconds = "", None
    for item in log:
        if isinstance(item, LogRecord):
            if item.facility == 0:
                for text in item.text.split("\n"):
                    yield Line(text[:_MOST_CHARACTERS], item.caller_id, item.timestamp_nsec / 1e9)
            continue
        for text in item.rstrip("\n").split("\n"):
            stamp = _PREFIX.match(text)
            if stamp:
                caller, seconds = stamp[2] or "", float(stamp[1])
            begin = stamp.end() if stamp else 0
            yield Line(text[begin : begin + _MOST_CHARACTERS], caller, seconds)


def parse_crash_text(lines: Sequence[Line]) -> CrashText:
    """What the lines tell; of several call traces the first counts."""
    result = CrashText()
    in_trace, traces, foreign = False, 0, 0
    in_modules = False
    for line in lines:
        text = line.text
        if in_modules:
            more = _module_names(text)
            in_modules = bool(more)
            result.modules += more
        if in_trace:
            known = _parse_trace_line(text, result.contexts)
            foreign = 0 if known else foreign + 1
            in_trace = known is not False and foreign < _MOST_FOREIGN_LINES
        if not in_trace and _CALL_TRACE.match(text):
            traces += 1
            in_trace, foreign = traces == 1, 0
        elif traces == 0 and not result.pc_function and (match := _REGISTERS.match(text)):
            result.pc_function = match["function"] or ""
        elif not result.modules and (match := _MODULES.match(text)):
            result.modules = _module_names(match[1])
            in_modules = True
        else:
            _parse_fact(text, result)
    return result


def _parse_fact(text: str, result: CrashText) -> None:
    match = _CPU.search(text)
    if match and result.cpu is None:
        result.cpu = int(match["cpu"])
        if result.pid is None:  # else it is of a hung task, and the CPU line is khungtaskd's
            result.task, result.pid = match["task"], int(match["pid"])
        result.taint = result.taint or _letters(match["taint"])
    elif result.pid is None and (match := _HUNG_TASK.match(text)):
        result.task, result.pid = match["task"], int(match["pid"])
    elif not result.taint and (match := _HUNG_TAINT.match(text)):
        result.taint = _letters(match["taint"])
    elif not result.hardware_name and (match := _HARDWARE.match(text)):
        result.hardware_name = match[1].strip()


def _parse_trace_line(text: str, contexts: list[Context]) -> bool | None:
    """Whether the line belongs to the trace: None if it does not, False if the trace is over."""
    if not contexts:
        contexts.append(Context())
    context = contexts[-1]
    if registers := _REGISTERS.match(text):
        if context.frames:  # they are of what this context interrupted, whose entry was not recognised
            context.entry = context.entry or "exception"
            contexts.append(context := Context())
        context.from_registers = True
        context.frames += [registers["function"]] if registers["function"] else []
        return True
    if _USER_REGISTERS.match(text) or _CALL_TRACE.match(text) or _TRACE_END.match(text):
        return False
    if frame := _FRAME.match(text):
        if not frame["unsure"]:
            _add_frame(frame["function"], contexts)
        return True
    if marker := _MARKER.match(text):
        # The registers that an NMI or exception interrupted are printed before the mark that ends it.
        just_begun = context.from_registers and len(context.frames) <= 1
        if marker["end"] and marker["name"] != "TASK" and context.frames and not just_begun:
            context.entry = _ENTRY_OF_MARK.get(marker["name"], "exception")
            contexts.append(Context())
        return True
    return None


def _add_frame(function: str, contexts: list[Context]) -> None:
    if sum(len(context.frames) for context in contexts) >= _MOST_FRAMES:
        return
    contexts[-1].frames.append(function)
    for entry, pattern in _ENTRIES.items():
        if pattern.fullmatch(function):
            contexts[-1].entry = entry
            contexts.append(Context())
            return


def _module_names(text: str) -> tuple[str, ...]:
    """The names in a line of ``Modules linked in:``, or in one that continues it; empty if it is none."""
    words = _LAST_UNLOADED.sub("", text).split()
    matches = [_MODULE.match(word) for word in words]
    if not text.startswith(" ") or not all(matches):
        return ()
    return tuple(match[1] for match in matches if match)


def _letters(taint: str | None) -> str:
    return (taint or "").replace(" ", "").replace("G", "", 1)
