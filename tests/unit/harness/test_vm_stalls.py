# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the harness of tests/vm takes a machine for hung by the emulation: never in a capture boot."""

import pytest

from tests.vm.channel import ConsoleLine
from tests.vm.stalls import STALL_SEC, stalls_at_start

STARTS = "[    0.000000] Command line: root=/dev/vda ro console=ttyS0 crashkernel=256M"
CAPTURE_STARTS = f"{STARTS} systemd.unit=kdump-capture.target"
PANIC = "[   40.1] Kernel panic - not syncing: sysrq triggered crash"
RCU = "[  279.421912] rcu: INFO: rcu_preempt self-detected stall on CPU"
LOCKUP = "[   58.1] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [swapper/1:0]"
DEAD_TIMER = "[    0.0] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug."


def lines(*texts: str) -> list[ConsoleLine]:
    """One a second, from second 0 on."""
    return [ConsoleLine(float(at), text) for at, text in enumerate(texts)]


@pytest.mark.parametrize(("told", "after_sec", "stalls"), [
    ((STARTS, "Starting services", RCU), STALL_SEC, True),
    ((STARTS, LOCKUP, RCU), STALL_SEC, True),
    ((STARTS, LOCKUP), STALL_SEC - 1, False),
    ((STARTS, "Starting services"), 10 * STALL_SEC, False),
    # a machine that came back
    ((STARTS, PANIC, "quiet capture", STARTS, RCU), STALL_SEC, True),
    # of the boot before
    ((STARTS, RCU, STARTS), STALL_SEC, False),
    # dead at once
    ((STARTS, DEAD_TIMER, "Call Trace:", f"---[ end {DEAD_TIMER} ]---"), 0, True),
    ((STARTS, PANIC, "quiet capture", STARTS, DEAD_TIMER), 0, True),
    ((STARTS, PANIC, DEAD_TIMER), 10 * STALL_SEC, False),
    ((STARTS, PANIC, CAPTURE_STARTS, DEAD_TIMER), 10 * STALL_SEC, False),
    # capture boots, quiet or not
    ((STARTS, PANIC, RCU), 10 * STALL_SEC, False),
    ((STARTS, PANIC, CAPTURE_STARTS, RCU), 10 * STALL_SEC, False),
    ((RCU,), 10 * STALL_SEC, False),
])  # fmt: skip
def test_only_production_stalls(told: tuple[str, ...], after_sec: float, stalls: bool) -> None:
    console = lines(*told)
    first = next((line.at for line in console if line.text in (RCU, LOCKUP)), 0.0)
    assert stalls_at_start(console, first + after_sec) is stalls
