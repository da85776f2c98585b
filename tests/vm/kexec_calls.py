# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a machine's kernel is asked to load and unload, by its own trace of system calls.

A kernel that is replaced while it is loaded, or unloaded and loaded again, is seen whoever does it, and
nothing has to look at /sys/kernel/kexec_crash_loaded all the time.
"""

from .machine import Machine

__all__ = ["follow_kexec_calls", "kexec_calls"]

_TRACE = "/sys/kernel/tracing"  # trace/events.rst of the kernel's documentation
_FOLLOW = (
    "for call in kexec_load kexec_file_load; do"
    f" echo 1 >{_TRACE}/events/syscalls/sys_enter_$call/enable; done && echo >{_TRACE}/trace"
)


def follow_kexec_calls(machine: Machine) -> None:
    """Begin to note them, and forget those that were noted before."""
    machine.run(_FOLLOW)


def kexec_calls(machine: Machine) -> list[str]:
    """The calls since then: a line for each, with the task, the time and the arguments."""
    lines = machine.run(f"cat {_TRACE}/trace").stdout.splitlines()
    return [line for line in lines if not line.startswith("#")]
