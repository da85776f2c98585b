# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrink=yes with a real kernel: production gets what captures do not need, and they do not need it."""

import pytest

from .conftest import MachineFactory
from .machine import Machine

SIZE = "/sys/kernel/kexec_crash_size"
AT_BOOT = 256 << 20
RESERVATION_SHRUNK = "f3db6b037e3747b6af0d087716b5ac0d"


def shrunk_bytes(machine: Machine) -> int:
    """What is left reserved, when this boot has given back the rest and is armed again."""
    machine.wait_until(f"test $(cat {SIZE}) -lt {AT_BOOT}")
    machine.wait_until_armed()
    command = f"journalctl -b -u kdump.service MESSAGE_ID={RESERVATION_SHRUNK} -o cat --no-pager | grep ."
    [entry] = machine.wait_until(command).stdout.splitlines()
    assert "given back to production" in entry
    return int(machine.run(f"cat {SIZE}").stdout)


@pytest.mark.guest(boots=3, captures=2)
@pytest.mark.part("captures")
def test_a_crash_is_captured_in_what_is_left(machine_factory: MachineFactory) -> None:
    with machine_factory(cpus=1, crashkernel="256M") as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        # Nothing was measured yet, so nothing is given back.
        machine.run("kdumpctl config set Shrink yes")
        machine.run("kdumpctl check", check=False)
        assert int(machine.run(f"cat {SIZE}").stdout) == AT_BOOT
        machine.run("sync")
        machine.crash("sysrq")

        machine.wait_for_boot()
        left = shrunk_bytes(machine)
        assert left <= AT_BOOT - (32 << 20)
        assert f"{left >> 20} MiB (crashkernel=256M)" in machine.run("kdumpctl status").stdout
        assert "reservation-" not in machine.run("kdumpctl check --json=short", check=False).stdout
        machine.run("sync")
        machine.crash("sysrq")

        # This boot has all of it again, and gives it back.
        machine.wait_for_boot()
        shrunk_bytes(machine)
        first, second = machine.dumps()
        assert [first.record["state"], second.record["state"]] == ["complete", "complete"]
        had_less_kib = first.record["memory_total_kib"] - second.record["memory_total_kib"]
        assert had_less_kib > (AT_BOOT - left >> 10) * 9 // 10
