# SPDX-License-Identifier: LGPL-2.1-or-later
"""One record of the kernel's log, and what its readers need of a memory image."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["LogMemory", "LogRecord", "caller_text"]

_CALLER_IS_CPU = 1 << 31


class LogMemory(Protocol):
    """Reads kernel virtual addresses."""

    def read(self, address: int, length: int, /) -> bytes:
        """Exactly these bytes. Raises BadVmcore where they are not mapped."""

    def unsigned(self, address: int, length: int, /) -> int:
        """An integer of 1, 2, 4 or 8 bytes. Raises BadVmcore where it is not mapped."""


class LogRecord(NamedTuple):
    """One record of the log."""

    sequence: int
    """As the kernel counts; of the buffer before 5.10, which does not keep it, from the oldest record."""
    timestamp_nsec: int
    """Since boot, by the kernel's local clock."""
    level: int
    """syslog priority: 0 emergency to 7 debug."""
    facility: int
    """syslog facility: 0 is the kernel itself, all others came through /dev/kmsg."""
    text: str
    """Without the line's end; may hold several lines."""
    caller_id: str = ""
    """``T`` and the thread's id, or ``C`` and the processor if that was in no task; empty if unknown."""
    subsystem: str = ""
    """Of dev_printk(): ``pci``, ``usb``; empty if the message is about no device."""
    device: str = ""
    """Of dev_printk(), as systemd-udev names devices: ``+pci:0000:00:1f.2``, ``b8:0``, ``n2``."""


def caller_text(caller_id: int) -> str:
    """caller_id as the kernel shows it (print_caller of kernel/printk/printk.c)."""
    return f"{'C' if caller_id & _CALLER_IS_CPU else 'T'}{caller_id & ~_CALLER_IS_CPU}"
