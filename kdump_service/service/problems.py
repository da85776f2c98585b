# SPDX-License-Identifier: LGPL-2.1-or-later
"""What stands in the way of a good dump: a code, how grave it is, what was found, what to do.

Codes are stable words that programs compare. Each has a row in PROBLEM_CODES and an entry in
kdump-problems(7); a test compares the two. A code that is none of these comes from a newer error class: it is
as grave as the state that it explains.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PROBLEM_CODES", "Problem", "ProblemKind", "Severity", "found", "worst_first"]


class Severity(StrEnum):
    """How grave a problem is. The values are those on the bus."""

    FATAL = "fatal"
    """A crash now would not be captured."""
    WARNING = "warning"
    """It might not be, or in part."""
    NOTE = "note"
    """It would be; but there is something that an administrator should know."""


_RANKS = {Severity.FATAL: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(frozen=True)
class Problem:
    """One problem of this machine, now."""

    code: str
    severity: Severity
    what: str
    """One sentence: what was found, and where."""
    remedy: str
    """One or two sentences in the imperative: what to do, with the command."""


@dataclass(frozen=True)
class ProblemKind:
    """What a code means on any machine."""

    severity: Severity
    """As it is by default: one occurrence may be more or less grave, as the manual says."""
    meaning: str
    """One sentence, without the particulars."""


def _fatal(meaning: str) -> ProblemKind:
    return ProblemKind(Severity.FATAL, meaning)


def _warning(meaning: str) -> ProblemKind:
    return ProblemKind(Severity.WARNING, meaning)


def _note(meaning: str) -> ProblemKind:
    return ProblemKind(Severity.NOTE, meaning)


PROBLEM_CODES: dict[str, ProblemKind] = {
    # The crash kernel is not loaded. Most of these words are the reason of a class in errors.py.
    "not-yet-armed": _fatal("The service has not loaded the crash kernel yet."),
    "disarmed": _fatal("The crash kernel was unloaded on request."),
    "unloaded-by-others": _fatal("Another program unloaded the crash kernel."),
    "no-reservation": _fatal("No memory is reserved for a crash kernel."),
    "reservation-too-small": _fatal("Kernel and initramfs do not fit into the reserved memory."),
    "not-supported": _fatal("This kernel cannot load a crash kernel."),
    "signature-refused": _fatal("The kernel does not accept the signature of the crash kernel."),
    "not-privileged": _fatal("The service is not allowed to load a crash kernel."),
    "image-missing": _fatal("There is no kernel or no initramfs to load."),
    "image-unreadable": _fatal("Kernel or initramfs cannot be read."),
    "image-refused": _fatal("The kernel does not accept the kernel image."),
    "bad-command-line": _fatal("The command line of the capture kernel is too long."),
    "kernel-busy": _fatal("Another program was loading a kernel."),
    "load-failed": _fatal("Loading failed for a reason that has no code of its own."),
    # What is loaded
    "image-stale": _warning("Kernel or initramfs have changed since they were loaded."),
    "image-mismatch": _warning("Kernel and initramfs are of different releases."),
    "image-building": _note("The capture image is being built; until then the root file system is used."),
    "image-outdated": _note("What went into the capture image has changed; a new one is being built."),
    "image-not-built": _warning("The capture image could not be built, or did not prove itself."),
    "image-not-supported": _note("The target's devices are none that the small capture image can bring up."),
    "image-tools-missing": _note("What builds the small capture image is not installed."),
    "modules-missing": _warning("The modules of the loaded kernel are not installed any more."),
    "loading-locked": _note("What is loaded cannot be replaced until the next boot."),
    # The configuration
    "bad-configuration": _warning("A line of the configuration cannot be used."),
    "configuration-not-loaded": _warning("Configuration files have changed since they were read."),
    # The reservation
    "reservation-reduced": _warning("The kernel reserved less memory than it was asked for."),
    "reservation-low": _warning("Captures on record used almost all of the reserved memory."),
    "reservation-tight": _note("The reserved memory is little for this kernel and initramfs."),
    "reservation-shrunk": _warning("More of the reservation was given back than captures can do without."),
    "reservation-not-kept": _warning("The next boot will reserve no memory."),
    "reservation-after-reboot": _note("The reservation is configured, and takes effect with a reboot."),
    # The capture boot
    "capture-unit-missing": _fatal("A unit that the capture boot starts is missing or masked."),
    "capture-not-started": _fatal("The command line of the capture kernel does not start the capture."),
    "root-encrypted": _warning("The root file system is encrypted, and may ask for a passphrase."),
    # The target
    "target-missing-mount": _warning("The file system that is to hold the dumps is not mounted."),
    "target-mounted-by-hand": _warning("The capture boot does not know how to mount the target."),
    "target-needs-network": _warning("The target needs a network, which the capture boot does not start."),
    "target-encrypted": _warning("The target is encrypted, and may ask for a passphrase."),
    "target-volatile": _fatal("The target is in memory, and lost at the reboot."),
    "target-read-only": _fatal("The target cannot be written."),
    "target-not-folder": _fatal("The target is no folder."),
    "target-unreachable": _fatal("The target does not answer."),
    "target-full": _warning("The target has too little room."),
    "target-exposed": _warning("Others than root can change what is in the target."),
    # Others on the machine
    "rival-service": _warning("Another tool is set up to load a crash kernel."),
    "watchdog-not-fed": _warning("A hardware watchdog was started after the crash kernel was loaded."),
    "watchdog-too-short": _warning("A hardware watchdog may reset the machine during a capture."),
    "memory-changed": _warning("Memory was added or removed since the crash kernel was loaded."),
    "processors-changed": _warning("Processors were added or removed since the crash kernel was loaded."),
    "program-replaced": _warning("Files of the service were replaced since its daemon started."),
    # What makes the kernel panic
    "trigger-without-detector": _warning("A panic is asked for that nothing would detect."),
    "panic-notifiers-first": _warning("Other code runs after a panic, before the crash kernel starts."),
    "panic-on-oops-off": _note("An oops does not make the kernel panic."),
    "sysrq-crash-off": _note("The key that crashes the machine is switched off."),
    # After a crash
    "test-failed": _warning("A test crash of what is armed was not captured whole."),
    "crash-loop": _warning("The machine crashed several times within an hour."),
    "journal-volatile": _note("The journal is not kept over a reboot."),
    # The check itself
    "check-failed": _note("Something could not be looked at."),
}  # fmt: skip


def found(code: str, what: str, remedy: str, severity: Severity | None = None) -> Problem:
    """A problem with the severity that its code has, unless another is given."""
    return Problem(code, severity or PROBLEM_CODES[code].severity, what, remedy)


def worst_first(problems: Iterable[Problem]) -> list[Problem]:
    """In order of severity, otherwise as they come; of each code and sentence the first one only."""
    seen: set[tuple[str, str]] = set()
    result = []
    for problem in sorted(problems, key=lambda each: _RANKS[each.severity]):
        if (problem.code, problem.what) not in seen:
            seen.add((problem.code, problem.what))
            result.append(problem)
    return result
