# SPDX-License-Identifier: LGPL-2.1-or-later
"""The service in production: what it says and does without a crash. Most cases share one machine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import RestoredFactory
from .kexec_calls import follow_kexec_calls, kexec_calls
from .lab import Lab
from .machine import Machine

LOADED = "cat /sys/kernel/kexec_crash_loaded"
SHRINK = "echo $(({mib} << 20)) >/sys/kernel/kexec_crash_size"
LOCK_DOWN = "echo integrity >/sys/kernel/security/lockdown"
DROP_IN = "/etc/kdump-service.conf.d/test.conf"


@pytest.fixture(scope="module")
def armed(lab_base: Lab) -> Iterator[Machine]:
    """A machine that is up and armed; every case leaves it so."""
    with lab_base.restored() as machine:
        yield machine
    lab_base.clean_up([machine])


@pytest.mark.promise("contract")
@pytest.mark.guest(seconds=1)
def test_state_on_the_bus(armed: Machine) -> None:
    said: dict[str, Any] = json.loads(armed.run("kdumpctl status --json").stdout)
    assert said == armed.status()
    assert (said["State"], said["Reason"], said["Loaded"]) == ("armed", "", True)
    assert said["ReservedBytes"] == 256 << 20
    read = "busctl get-property org.kdump.Kdump1 /org/kdump/Kdump1 org.kdump.Kdump1 "
    assert armed.run(read + "State").stdout == 's "armed"\n'
    assert armed.run(read + "CommandLine").stdout == f's "{said["CommandLine"]}"\n'
    assert "crashkernel=" not in said["CommandLine"]
    described = armed.run("busctl introspect org.kdump.Kdump1 /org/kdump/Kdump1").stdout
    assert all(f".{name} " in described for name in ("State", "Reason", "Arm", "Disarm", "Reload"))


@pytest.mark.promise("stop-disarms")
@pytest.mark.guest(seconds=1)
def test_stop_disarms_and_start_arms(armed: Machine) -> None:
    follow_kexec_calls(armed)
    armed.run("systemctl stop kdump.service")
    assert armed.run(LOADED).stdout == "0\n"
    armed.run("systemctl start kdump.service")
    assert armed.run(LOADED).stdout == "1\n"
    # So that a case that expects none can fail.
    assert len(kexec_calls(armed)) == 2


@pytest.mark.promise("restart-stays-armed")
@pytest.mark.guest(seconds=1)
def test_restart_leaves_no_gap(armed: Machine) -> None:
    follow_kexec_calls(armed)
    armed.run("systemctl restart kdump.service")
    assert kexec_calls(armed) == []
    assert armed.status()["State"] == "armed"


@pytest.mark.promise("restart-stays-armed")
@pytest.mark.guest(seconds=1)
def test_killed_daemon_leaves_the_kernel_armed(armed: Machine) -> None:
    before = armed.run("systemctl show -P MainPID kdump.service").stdout
    armed.run("systemctl kill --signal=KILL kdump.service")
    assert armed.run(LOADED).stdout == "1\n"
    armed.wait_until(f"test $(systemctl show -P MainPID kdump.service) -gt 0 -a {before.strip()} !="
                     " $(systemctl show -P MainPID kdump.service)")  # fmt: skip
    armed.wait_until_armed()
    told = "journalctl -u kdump.service --no-pager -o cat -n 20 | grep 'was already loaded'"
    armed.wait_until(told)


@pytest.mark.promise("restart-stays-armed")
@pytest.mark.guest(seconds=1)
def test_killed_while_arming(armed: Machine) -> None:
    armed.run("systemctl stop kdump.service; systemctl start --no-block kdump.service")
    # While the kernel loads, it answers EBUSY to whoever asks.
    armed.run(
        "while cat /sys/kernel/kexec_crash_size && ! grep -q 1 /sys/kernel/kexec_crash_loaded;"
        " do :; done; systemctl kill --signal=KILL kdump.service"
    )
    armed.wait_until("test $(systemctl show -P NRestarts kdump.service) -gt 0")
    armed.wait_until_armed()
    assert armed.status()["State"] == "armed"


@pytest.mark.guest(seconds=1)
def test_reload_takes_a_new_command_line(armed: Machine) -> None:
    armed.put(DROP_IN, b"[Kernel]\nCommandLineAppend=kdump_test.word\n")
    armed.run("systemctl reload kdump.service")
    assert armed.status()["CommandLine"].endswith("kdump_test.word")
    armed.run(f"rm {DROP_IN} && systemctl reload kdump.service")
    assert "kdump_test.word" not in armed.status()["CommandLine"]


@pytest.mark.promise("bad-settings")
@pytest.mark.guest(seconds=1)
def test_garbage_configuration(armed: Machine) -> None:
    before = armed.status()["CommandLine"]
    armed.put(DROP_IN, b"[Kernel]\nCommandLineAppend=kdump_test.word\n[Dump]\nCompression=\xff\n")
    assert armed.run("systemctl reload kdump.service", check=False).status != 0
    said = armed.status()
    assert (said["State"], said["Reason"], said["CommandLine"]) == ("armed", "bad-configuration", before)
    assert DROP_IN in said["Explanation"]
    # A new start uses what can be used: a typo must not leave the machine unarmed.
    armed.put(DROP_IN, b"[Dump]\nCompression=nonsense\n\x00\x01[\nWithout value\n")
    armed.run("systemctl restart kdump.service")
    said = armed.status()
    assert (said["State"], said["Reason"]) == ("armed", "bad-configuration")
    armed.run(f"rm {DROP_IN} && systemctl reload kdump.service")
    assert armed.status()["Reason"] == ""


@pytest.mark.promise("kernel-refuses")
@pytest.mark.guest(seconds=1)
def test_refused_kernel_brings_the_previous_one_back(armed: Machine) -> None:
    """The kernel drops what was loaded before it looks at the new file, which is none that it can start."""
    before = armed.status()
    armed.put(DROP_IN, b"[Kernel]\nKernel=/etc/hostname\n")
    reloaded = armed.run("systemctl reload kdump.service", check=False)
    assert reloaded.status != 0
    said = armed.status()
    assert (said["State"], said["Reason"], said["Loaded"]) == ("armed", "image-refused", True)
    assert "/etc/hostname is no kernel image" in said["Explanation"]
    assert said["Kernel"] == before["Kernel"]
    armed.run(f"rm {DROP_IN} && systemctl reload kdump.service")
    assert armed.status() == before


NO_PRIVILEGE = "echo 1 >/proc/sys/kernel/kexec_load_disabled"


@pytest.mark.promise("kernel-refuses", "reservation-too-small")
@pytest.mark.guest(seconds=20)
@pytest.mark.parametrize(
    ("before", "reason", "advice"),
    [
        (SHRINK.format(mib=0), "no-reservation", "crashkernel="),
        (SHRINK.format(mib=32), "reservation-too-small", "crashkernel="),
        # The kernel would load them, and hang.
        (SHRINK.format(mib=72), "reservation-too-small", "would hang in the 72.0 MiB"),
        (NO_PRIVILEGE, "not-privileged", "kernel.kexec_load_disabled is 1"),
        (LOCK_DOWN, "signature-refused", "lockdown=integrity"),
    ],
    ids=["no-reservation", "32M", "72M", "kexec-disabled", "locked-down"],
)
def test_not_armed_but_up(restored: RestoredFactory, before: str, reason: str, advice: str) -> None:
    """Whatever the kernel refuses: the service is there, and says what to do. What the kernel has been told
    by its command line as a rule, it is told here while it runs."""
    with restored() as machine:
        machine.run(f"systemctl stop kdump.service && {before}")
        machine.run("systemctl start kdump.service")
        said = machine.status()
        assert (said["State"], said["Reason"], said["Loaded"]) == ("not-armed", reason, False)
        assert advice in said["Explanation"]
        assert "Not armed" in machine.run("systemctl status --no-pager kdump.service").stdout
        if before == LOCK_DOWN:
            assert "[integrity]" in machine.run("cat /sys/kernel/security/lockdown").stdout
            # Debian's key comes to the kernel by shim only: without it Debian's own kernels are refused.
            assert "kexec of unsigned images is restricted" in machine.run("dmesg").stdout


@pytest.mark.promise("stop-disarms")
@pytest.mark.guest(seconds=1)
def test_asking_does_not_start_what_was_stopped(armed: Machine) -> None:
    armed.run("systemctl stop kdump.service")
    asked = armed.run("kdumpctl status", check=False)
    assert asked.status == 60
    assert "systemctl start kdump.service" in asked.stderr
    assert armed.run(LOADED).stdout == "0\n"
    # Arm is an act, and brings the service up by bus activation.
    armed.run("kdumpctl arm")
    assert armed.run(LOADED).stdout == "1\n"
    assert armed.run("systemctl is-active kdump.service").stdout == "active\n"
