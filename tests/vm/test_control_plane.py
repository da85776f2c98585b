# SPDX-License-Identifier: LGPL-2.1-or-later
"""What administrators see: readiness, hardening, a bus that comes back. Cases share one machine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from .lab import Lab
from .machine import SERVICE, Machine

LARGEST_EXPOSURE = 2.5
LARGEST_IDLE_BYTES = 32 << 20
IDLE_SEC = 20
LOADS = 5  # that may begin one after the other while somebody looks
# By the bus: under emulation kdumpctl is three seconds of work before it says a word.
CALL = f"busctl call -j {SERVICE} org.kdump.Kdump1"
ARM = f"{CALL} Arm"
SETTINGS = f"{SERVICE} org.kdump.Kdump1.Settings"
DROP_IN = "/etc/kdump-service.conf.d/test.conf"


@pytest.fixture(scope="module")
def armed(lab_base: Lab) -> Iterator[Machine]:
    """A machine that is up and armed; every case leaves it so."""
    with lab_base.restored() as machine:
        machine.run("echo 1 >/proc/sys/kernel/sysrq")
        yield machine
    lab_base.clean_up([machine])


def check(machine: Machine, status: int) -> dict[str, dict[str, str]]:
    """What kdumpctl check finds, by code; its exit status is to be this."""
    done = machine.run("kdumpctl check --json", check=False)
    assert done.stdout, done.stderr
    problems: list[dict[str, str]] = json.loads(done.stdout)["problems"]
    # Spelled out: pytest would shorten it.
    assert done.status == status, "\n".join(str(problem) for problem in problems)
    return {problem["code"]: problem for problem in problems}


@pytest.mark.promise("check-tells")
@pytest.mark.guest(seconds=1)
def test_a_healthy_machine_is_ready(armed: Machine) -> None:
    problems = check(armed, 0)
    grave = {code: problem for code, problem in problems.items() if problem["severity"] != "note"}
    # The test's machine has no boot loader: QEMU hands it the command line.
    assert set(grave) <= {"reservation-not-kept"}, grave


@pytest.mark.promise("check-tells")
@pytest.mark.guest(seconds=1)
def test_check_of_a_machine_that_is_not_ready(armed: Machine) -> None:
    armed.run(f"{CALL} Disarm")
    assert "disarmed" in check(armed, 4)
    armed.run(ARM)
    assert "disarmed" not in check(armed, 0)


NOT_CAPTURED = False


@dataclass(frozen=True)
class Fault:
    """Something that an administrator or a program does to the machine, and how to undo it."""

    put: str
    undo: str
    captured: bool = True
    """Whether a crash would be, all the same."""


def _set(name: str, value: str) -> str:
    return f"busctl set-property {SETTINGS} {name} s -- {value}"


def _reset(name: str) -> str:
    return f"busctl call {SETTINGS} ResetSetting s {name}"


def _target_on(image: str, options: str = "loop") -> str:
    return (
        f"truncate -s {image} /target.img && mke2fs -q -F /target.img && mkdir -p /var/crash"
        f" && mount -o {options} /target.img /var/crash"
    )


_UNMOUNT = "umount /var/crash && rm -f /target.img"
_SYSCTL = "/proc/sys/kernel"
_UNLOAD = "from kdump_service.kernel.syscall import unload_crash_kernel as unload; unload()"

FAULTS = {
    "disarmed": Fault(f"{CALL} Disarm", ARM, NOT_CAPTURED),
    "unloaded-by-others": Fault(f"python3 -c '{_UNLOAD}'", ARM, NOT_CAPTURED),
    "bad-configuration": Fault(
        f"printf '[Dump]\\nContents=nonsense\\n' >{DROP_IN}; systemctl reload kdump.service; true",
        f"rm {DROP_IN}; systemctl reload kdump.service",
    ),
    "capture-unit-missing": Fault(
        "systemctl mask kdump-capture.service", "systemctl unmask kdump-capture.service", NOT_CAPTURED
    ),
    "capture-not-started": Fault(
        _set("CommandLineAppend", "systemd.unit=rescue.target"),
        _reset("CommandLineAppend"),
        NOT_CAPTURED,
    ),
    "modules-missing": Fault("mv /lib/modules /lib/modules.away", "mv /lib/modules.away /lib/modules"),
    "target-volatile": Fault("mount -t tmpfs none /var/crash", "umount /var/crash", NOT_CAPTURED),
    "target-mounted-by-hand": Fault(_target_on("300M"), _UNMOUNT),
    "target-read-only": Fault(_target_on("300M", "loop,ro"), _UNMOUNT, NOT_CAPTURED),
    "target-full": Fault(_target_on("8M"), _UNMOUNT, NOT_CAPTURED),
    "target-not-folder": Fault(_set("Target", "/etc/hostname"), _reset("Target"), NOT_CAPTURED),
    "target-missing-mount": Fault(
        "printf '/dev/gone /srv/dumps ext4 noauto 0 0\\n' >>/etc/fstab; mkdir -p /srv/dumps;"
        f" systemctl daemon-reload; {_set('Target', '/srv/dumps')}",
        f"{_reset('Target')}; sed -i /dev.gone/d /etc/fstab; systemctl daemon-reload",
    ),
    "target-exposed": Fault("chmod 0777 /var/crash", "chmod 0755 /var/crash"),
    "rival-service": Fault(
        "printf '[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n'"
        " >/etc/systemd/system/kdump-tools.service; systemctl enable kdump-tools.service",
        "systemctl disable kdump-tools.service; rm /etc/systemd/system/kdump-tools.service",
    ),
    "trigger-without-detector": Fault(
        f"echo 1 >{_SYSCTL}/softlockup_panic; echo 0 >{_SYSCTL}/soft_watchdog",
        f"echo 0 >{_SYSCTL}/softlockup_panic; echo 1 >{_SYSCTL}/soft_watchdog",
    ),
    "panic-notifiers-first": Fault(
        "echo Y >/sys/module/kernel/parameters/crash_kexec_post_notifiers",
        "echo N >/sys/module/kernel/parameters/crash_kexec_post_notifiers",
    ),
    "sysrq-crash-off": Fault(f"echo 0 >{_SYSCTL}/sysrq", f"echo 1 >{_SYSCTL}/sysrq"),
    "reservation-not-kept": Fault(
        "mkdir -p /boot/grub; printf 'linux /boot/vmlinuz root=/dev/vda ro quiet\\n' >/boot/grub/grub.cfg",
        "rm -r /boot/grub",
    ),
    "journal-volatile": Fault(
        "printf '[Journal]\\nStorage=volatile\\n' >/etc/systemd/journald.conf.d/zz.conf",
        "rm /etc/systemd/journald.conf.d/zz.conf",
    ),
}


class Looks:
    """What stands in the way of a capture, as the bus says it: code -> severity. The last look at a machine
    that is as it was serves again."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._last: dict[str, str] | None = None

    def last(self) -> dict[str, str]:
        return self.anew() if self._last is None else self._last

    def anew(self) -> dict[str, str]:
        for _ in range(LOADS):
            self._wait_for_the_load()
            answer = json.loads(self._machine.run(f"{CALL} Check").stdout)
            found = {code: severity for code, severity, *_ in answer["data"][0]}
            if "not-yet-armed" not in found:
                break
        self._last = found
        return found

    def _wait_for_the_load(self) -> None:
        """Amid one, as "starting" and "arming" tell, the kernel has dropped the old image: no verdict."""
        self._machine.wait_until(f"busctl get-property {SERVICE} org.kdump.Kdump1 State | grep armed")

    def forget(self) -> None:
        self._last = None

    def captured(self) -> bool:
        """Whether a crash would be, as kdumpctl check judges it."""
        for _ in range(LOADS):
            self._wait_for_the_load()
            said = self._machine.status()
            if said["State"] in ("armed", "not-armed"):
                break
        return said["Ready"] is True and "fatal" not in self.last().values()


@pytest.fixture(scope="module")
def looks(armed: Machine) -> Looks:
    armed.run("mkdir -p /var/crash && chmod 0755 /var/crash")
    return Looks(armed)


# Of each kind of fault one is looked for in `make test`: done to what is loaded, to systemd's units, to the
# command line, to the target (three ways), to settings, to the kernel's, and to the boot loader's files.
IN_MAKE_TEST = {
    "disarmed",
    "capture-unit-missing",
    "target-volatile",
    "target-read-only",
    "target-full",
    "bad-configuration",
    "trigger-without-detector",
    "reservation-not-kept",
}


@pytest.mark.promise("check-tells")
@pytest.mark.guest(seconds=10)
@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=() if code in IN_MAKE_TEST else pytest.mark.part("checks")) for code in FAULTS],
)
def test_check_finds(armed: Machine, looks: Looks, code: str) -> None:
    """Each fault by its code, and gone when it is gone."""
    fault = FAULTS[code]
    assert code not in looks.last()
    looks.forget()
    armed.run(fault.put)
    try:
        assert code in looks.anew()
        assert looks.captured() is fault.captured
    finally:
        looks.forget()
        armed.run(fault.undo)
    armed.wait_until_armed()
    assert code not in looks.anew()
    assert looks.captured()


@pytest.mark.guest(seconds=1)
def test_exposure_of_the_unit(armed: Machine) -> None:
    verdict = armed.run(
        "systemd-analyze security --no-pager kdump.service"
        " | grep -o 'exposure level for kdump.service: [0-9.]*'"
    )
    assert float(verdict.stdout.split()[-1]) <= LARGEST_EXPOSURE


@pytest.mark.guest(seconds=1)
def test_idle(armed: Machine) -> None:
    """Memory as systemd counts it, and not one wake-up of any thread."""
    armed.run("systemctl restart kdump.service")
    armed.wait_until_armed()
    armed.run("kdumpctl status && kdumpctl check; true")
    main_pid = armed.run("systemctl show -P MainPID kdump.service").stdout.strip()
    switches = (
        f"cat /proc/{main_pid}/task/*/status | awk '/ctxt_switches/ {{ total += $2 }} END {{ print total }}'"
    )
    before = armed.run(f"sleep 3; {switches}").stdout
    after = armed.run(f"sleep {IDLE_SEC}; {switches}").stdout
    assert after == before
    memory = armed.run(
        "systemctl show -P MemoryCurrent kdump.service;"
        f" awk '/^Pss:/ {{ print $2 * 1024 }}' /proc/{main_pid}/smaps_rollup"
    ).stdout.split()
    print("MemoryCurrent, Pss:", memory)
    assert int(memory[1]) <= LARGEST_IDLE_BYTES


@pytest.mark.promise("contract")
@pytest.mark.guest(seconds=1)
def test_the_bus_restarts(armed: Machine) -> None:
    armed.run("systemctl restart dbus.service")
    armed.wait_until(
        "busctl get-property org.kdump.Kdump1 /org/kdump/Kdump1 org.kdump.Kdump1 State | grep armed"
    )
    assert armed.run("cat /sys/kernel/kexec_crash_loaded").stdout == "1\n"


@pytest.mark.promise("settings-at-once")
@pytest.mark.guest(seconds=1)
def test_settings_over_the_bus(armed: Machine) -> None:
    """Effective at once, kept in one file, undone by reset; what cannot be used changes nothing."""
    armed.run("kdumpctl config set CommandLineAppend kdump_test.word")
    said = armed.status()
    assert said["CommandLine"].endswith("kdump_test.word")
    assert "90-kdumpctl.conf" in armed.run("kdumpctl config show --origin").stdout
    refused = armed.run("kdumpctl config set Kernel /etc/hostname", check=False)
    assert refused.status != 0
    assert "/etc/hostname is no kernel image" in refused.stderr
    assert armed.status()["CommandLine"] == said["CommandLine"]
    assert armed.run("cat /sys/kernel/kexec_crash_loaded").stdout == "1\n"
    armed.run("systemctl restart kdump.service")
    assert armed.run("kdumpctl config get CommandLineAppend").stdout == "kdump_test.word\n"
    armed.run(_reset("CommandLineAppend"))
    assert "kdump_test.word" not in armed.status()["CommandLine"]
