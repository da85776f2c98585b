# SPDX-License-Identifier: LGPL-2.1-or-later
"""When a machine is taken for hung by the emulation, by what its console says."""

import re
from collections.abc import Sequence

from .channel import ConsoleLine

__all__ = ["STALL_SEC", "stalls_at_start"]

# Emulated processors hang now and then, with two machines on two cores: production's kernel then complains
# of itself before anything of the project has started. So long after the first complaint it will not come up.
# It dies of it where the timer's interrupt has not come in the tenth of a second in which it looks for it.
DEAD_TIMER = "Kernel panic - not syncing: IO-APIC + timer doesn't work!"
STALL = re.compile(r"rcu: INFO: rcu_\w+ (self-)?detected stall|watchdog: BUG: soft lockup")
STALL_SEC = 60.0
KERNEL_STARTS = "Command line: "  # always of production, whose console is not quiet
KERNEL_DIED = "Kernel panic - not syncing"
CAPTURES = "systemd.unit=kdump-capture.target"


def stalls_at_start(lines: Sequence[ConsoleLine], now: float) -> bool:
    """Whether production's kernel, which nobody has crashed yet, has complained of itself for `STALL_SEC`.

    What a capture kernel does is the project's business, and never excused: it comes after a panic, and says
    on its command line that it is one, if it is not quiet.
    """
    first_complaint = None
    for line in reversed(lines):
        if DEAD_TIMER in line.text:
            first_complaint = now - STALL_SEC
        elif KERNEL_DIED in line.text:
            return False
        if STALL.search(line.text):
            first_complaint = line.at
        if KERNEL_STARTS in line.text:
            stalls = first_complaint is not None and now - first_complaint >= STALL_SEC
            return stalls and CAPTURES not in line.text
    return False
