# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel log of a virtual machine that is gone, out of its memory.

A capture kernel says on a console why it dies; the armed command line may name none that QEMU has, and it is
not changed for a rehearsal. So the text is looked up where the kernel keeps it, without knowing its
structures: from the first message on, printable runs, with a few bytes between them
(kernel/printk/printk_ringbuffer.h: each text has an id in front of it and is padded)."""

from __future__ import annotations

import mmap
import re

__all__ = ["memory_log"]

_FIRST = b"Linux version "
_MOST_LOG_BYTES = 1 << 20
_SIGN_LENGTH = 60
"""So much of the command line is looked for: a message has a largest length."""
_RUN = re.compile(rb"[\t\x20-\x7e]{6,}")
_LARGEST_GAP = 64
"""Bytes between two messages: an id, padding, and texts too short to be taken for ones."""


def memory_log(descriptor: int, first: int, length: int, command_line: str) -> list[str]:
    """The longest log of a kernel with this command line that is found in these bytes of a file; empty if
    none is."""
    sign = command_line[:_SIGN_LENGTH]
    best: list[str] = []
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
        end = min(first + length, len(memory))
        at = memory.find(_FIRST, first, end)
        while at >= 0:
            found = _runs(memory[at : min(at + _MOST_LOG_BYTES, end)])
            # Strings of the kernel's image begin so, too.
            if len(found) > len(best) and any(sign in line for line in found):
                best = found
            at = memory.find(_FIRST, at + len(_FIRST), end)
    return best


def _runs(text: bytes) -> list[str]:
    found = []
    last = 0
    for run in _RUN.finditer(text):
        if run.start() - last > _LARGEST_GAP:
            break
        last = run.end()
        # An id of a kernel that is young ends in this letter: its two highest bits are cleared, the others
        # set.
        found.append(run[0].decode("ascii").removeprefix("?"))
    return found
