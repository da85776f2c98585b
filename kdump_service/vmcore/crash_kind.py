# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kinds of crashes, and the messages of the kernel by which they are known.

Sources: the callers of panic(), from 4.19 to 7.2: kernel/panic.c, kernel/watchdog.c, kernel/watchdog_perf.c
(watchdog_hld.c before 6.5), kernel/hung_task.c, kernel/rcu/tree_stall.h, mm/oom_kill.c, lib/bug.c,
drivers/tty/sysrq.c, init/do_mounts.c, arch/x86/kernel/dumpstack.c, traps.c, nmi.c, cpu/mce/core.c,
arch/x86/mm/fault.c, arch/arm64/kernel/traps.c, arch/arm64/mm/fault.c, drivers/acpi/apei/ghes.c.
"""

from __future__ import annotations

import enum
import re
from typing import NamedTuple

__all__ = ["REASONS", "CrashKind", "Reason", "is_sanitizer", "kind_of_oops"]


class CrashKind(enum.StrEnum):
    """Stable words; there may be more of them one day."""

    OOPS = "oops"
    """The kernel accessed memory that it must not, or executed what it cannot."""
    BUG = "bug"
    """The kernel found itself in a state that must not be: BUG()."""
    WARNING = "warning"
    """As BUG, but survivable; it died because of panic_on_warn."""
    SANITIZER = "sanitizer"
    """A report of KASAN, KMSAN, KCSAN, KFENCE or UBSAN."""
    SOFT_LOCKUP = "soft-lockup"
    """A processor ran in the kernel for too long without letting tasks run."""
    HARD_LOCKUP = "hard-lockup"
    """A processor took no interrupts for too long: the NMI watchdog."""
    RCU_STALL = "rcu-stall"
    HUNG_TASK = "hung-task"
    """A task waited uninterruptibly for too long."""
    OUT_OF_MEMORY = "out-of-memory"
    SYSRQ = "sysrq"
    """Somebody asked for it."""
    NMI = "nmi"
    """A non-maskable interrupt from outside: a button, a management controller, a hypervisor."""
    MACHINE_CHECK = "machine-check"
    """The processor reported an error of the hardware."""
    HARDWARE_ERROR = "hardware-error"
    """Firmware or a bus did: APEI, SError."""
    DOUBLE_FAULT = "double-fault"
    STACK_OVERFLOW = "stack-overflow"
    """The calls of a task needed more than its stack."""
    STACK_CORRUPTION = "stack-corruption"
    """A function wrote over the end of its own frame."""
    INIT_DIED = "init-died"
    """Process 1 ended."""
    NO_ROOT = "no-root"
    """No root file system, or no program to start from it."""
    WATCHDOG = "watchdog"
    """A watchdog timer that user space should have kept from expiring."""
    PANIC = "panic"
    """Any other call of panic()."""
    UNKNOWN = "unknown"
    """The log tells of no crash."""


class Reason(NamedTuple):
    """What a panic message says, and how the report begins that was printed before it: expressions that match
    at their beginnings."""

    message: str
    kind: CrashKind
    start: str
    """Empty: panic() itself is the report."""
    titled_by_message: bool
    """The message says more than the first line of the report does."""


def _reason(kind: CrashKind, message: str, start: str = "", *, titled_by_message: bool = False) -> Reason:
    return Reason(message, kind, start, titled_by_message)


REASONS = (
    _reason(
        CrashKind.SYSRQ,
        r"sysrq triggered crash",
        r"sysrq: (?:SysRq : )?Trigger a crash",
        titled_by_message=True,
    ),
    _reason(
        CrashKind.SOFT_LOCKUP,
        r"softlockup: hung tasks",
        r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#",
    ),
    _reason(
        CrashKind.HARD_LOCKUP,
        r"Hard LOCKUP",
        r"(?:NMI )?(?:watchdog: )?(?:Watchdog|CPU\d+: Watchdog) detected hard LOCKUP",
    ),
    _reason(
        CrashKind.HUNG_TASK,
        r"hung_task: blocked tasks",
        r"INFO: task .*:\d+ (?:is )?blocked ",
    ),
    _reason(
        CrashKind.RCU_STALL,
        r"RCU Stall",
        r"(?:rcu: )?INFO: \w+ (?:self-)?detected (?:expedited )?stalls? on CPU",
    ),
    _reason(
        CrashKind.OUT_OF_MEMORY,
        r"Out of memory|System is deadlocked on memory",
        r".* invoked oom-killer: ",
        titled_by_message=True,
    ),
    _reason(
        CrashKind.WARNING,
        r"(?:.*: )?panic_on_(?:warn|kmsan) set|kasan\.fault=panic set|scheduling while atomic",
        r"WARNING: |BUG: |UBSAN: |INFO: ",
    ),
    _reason(
        CrashKind.MACHINE_CHECK,
        r".*[Mm]achine check|Timeout: Not all CPUs entered broadcast",
        r"(?:mce: )?\[Hardware Error\]: CPU \d+: Machine Check",
    ),
    _reason(
        CrashKind.HARDWARE_ERROR,
        r"Fatal hardware error|.*SError|.*PCI.* error|.*[Uu]ncorrect",
        r"(?:\{\d+\})?\[Hardware Error\]: Hardware error from|SError Interrupt on CPU",
        titled_by_message=True,
    ),
    _reason(
        CrashKind.NMI,
        r"NMI|An NMI occurred|nmi_panic",
        r"(?:Uhhuh\. )?NMI(?: received for unknown reason|: PCI system error|: IOCK error)",
        titled_by_message=True,
    ),
    _reason(
        CrashKind.STACK_OVERFLOW,
        r"(?:kernel )?stack overflow|corrupted stack end",
        r"Insufficient stack space to handle exception",
    ),
    _reason(CrashKind.DOUBLE_FAULT, r"Machine halted", r"(?:traps: )?PANIC: double fault"),
    _reason(CrashKind.STACK_CORRUPTION, r"stack-protector"),
    _reason(CrashKind.INIT_DIED, r"Attempted to kill init"),
    _reason(
        CrashKind.NO_ROOT, r"VFS: Unable to mount root|No working init found|Requested init |No init found"
    ),
    _reason(CrashKind.WATCHDOG, r"[Ww]atchdog|Software Watchdog|softdog"),
)
"""Searched in this order; none fits: CrashKind.PANIC."""

_SANITIZER = r"\b(?:KASAN|KMSAN|KCSAN|KFENCE|UBSAN|kasan\.fault|panic_on_kmsan)\b"

_KINDS_OF_OOPS = (
    (CrashKind.STACK_OVERFLOW, r"stack guard page|kernel stack overflow"),
    (CrashKind.DOUBLE_FAULT, r"double fault"),
    (CrashKind.HARDWARE_ERROR, r"SError|Bad mode in Error"),
    (CrashKind.BUG, r"kernel BUG at|Oops - BUG"),
)


def is_sanitizer(words: str) -> bool:
    """Whether a report is one of KASAN and its like, which all say so."""
    return re.search(_SANITIZER, words) is not None


def kind_of_oops(words: str) -> CrashKind:
    """By the title and what die() said."""
    for kind, pattern in _KINDS_OF_OOPS:
        if re.search(pattern, words):
            return kind
    return CrashKind.OOPS
