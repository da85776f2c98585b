# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capture boots that go wrong before or beside the capture: the machine comes back within a bounded time."""

import functools

import pytest

from .conftest import MachineFactory

ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"
FALLBACK = "/var/lib/kdump-service/crash"


@pytest.fixture
def machine_factory(machine_factory: MachineFactory) -> MachineFactory:
    """Machines whose capture boot mounts production's root: what the small image does is in
    test_capture_image."""
    return functools.partial(machine_factory, environment="rootfs", cpus=1)


def test_file_system_that_does_not_mount(machine_factory: MachineFactory) -> None:
    """local-fs.target fails, systemd goes to emergency mode: the capture runs there, without a prompt."""
    with machine_factory() as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.put("/etc/fstab", ROOT + b"/dev/vda /mnt vfat defaults 0 0\n")
        machine.run("sync")
        asked = machine.crash("sysrq")
        machine.wait_for_console("Reached target emergency.target", since=asked)
        machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_for_event("RESET", since=asked, timeout_sec=60)
        said = [line.text for line in machine.console.lines if line.at >= asked]
        assert not any("password for maintenance" in text for text in said)


@pytest.mark.slow
def test_file_system_that_never_comes(machine_factory: MachineFactory) -> None:
    """Something else that production mounts never comes: the capture does not wait for it."""
    with machine_factory() as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        # As for a volume in crypttab whose passphrase nobody types.
        line = b"/dev/gone /mnt ext4 x-systemd.device-timeout=infinity 0 2\n"
        machine.put("/etc/fstab", ROOT + line)
        machine.run("sync")
        asked = machine.crash("sysrq")
        machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_for_event("RESET", since=asked, timeout_sec=60)


@pytest.mark.slow
def test_boot_that_never_reaches_the_capture(machine_factory: MachineFactory) -> None:
    """What the capture itself waits for never comes: the target's time limit ends the boot."""
    impatient = b"[Unit]\nJobTimeoutSec=15s\n"
    files = {"/etc/systemd/system/kdump-capture.target.d/test.conf": impatient}
    with machine_factory(files=files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        line = b"/dev/gone /mnt ext4 noauto,x-systemd.device-timeout=infinity 0 2\n"
        machine.put("/etc/fstab", ROOT + line)
        # "noauto", so that production does not wait for it; the capture boot does, for as long as it may.
        machine.put(
            "/etc/systemd/system/kdump-capture.service.d/test.conf",
            b"[Unit]\nRequires=mnt.mount\nAfter=mnt.mount\n",
        )
        machine.run("sync")
        asked = machine.crash("sysrq")
        machine.wait_for_event("RESET", since=asked, timeout_sec=120)
        machine.wait_for_boot()
        assert machine.dumps() == []


def test_target_disk_is_missing(machine_factory: MachineFactory) -> None:
    """What held the target at arming is not there: nothing is written below its mount point."""
    with machine_factory() as machine:
        machine.wait_for_boot()
        machine.run(
            "truncate -s 300M /dumps.img && mke2fs -q /dumps.img && mkdir -p /var/crash"
            " && mount -o loop /dumps.img /var/crash && systemctl reload kdump.service"
        )
        machine.wait_until_armed()
        machine.crash("sysrq")
        machine.wait_for_boot()
        assert machine.run("ls /var/crash").stdout == ""
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert "/var/crash is not mounted" in dump.record["problems"][0]["message"]


def test_capture_that_stalls(machine_factory: MachineFactory) -> None:
    """No bytes move: the watchdog of the unit ends it. Its time is cut from two minutes to twenty seconds."""
    impatient = b"[Service]\nWatchdogSec=20s\n"
    files = {
        "/etc/systemd/system/kdump-capture.service.d/test.conf": impatient,
        # So slow that it is far from its end when it is stopped, however fast the machine is.
        "/etc/kdump-service.conf.d/test.conf": b"[Dump]\nContents=everything\nCompressionLevel=19\n",
    }
    with machine_factory(agent_in_capture=True, files=files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.crash("sysrq")
        machine.wait_for_boot("capture")
        machine.wait_until("systemctl show -P StatusText kdump-capture.service | grep 'Saving: '")
        machine.spawn("systemctl kill --signal=STOP kdump-capture.service")
        machine.wait_for_boot()
        # systemd wakes what it ends (SendSIGCONT), so the capture comes to say what became of it.
        [dump] = machine.dumps()
        assert dump.record["state"] == "incomplete"
        assert [problem["reason"] for problem in dump.record["problems"]] == ["interrupted"]
        assert sorted(dump.files) == ["dmesg.txt", "record.json", "vmcore.incomplete"]


@pytest.mark.slow
def test_capture_kernel_without_memory(machine_factory: MachineFactory) -> None:
    """The images fit, but the capture boot cannot live in what is left. In 72M it would not come as far as to
    its panic=, and the service does not arm."""
    with machine_factory(crashkernel="90M") as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.crash("sysrq")
        machine.wait_for_boot()
        assert all(dump.record["state"] != "complete" for dump in machine.dumps())
        machine.wait_until_armed()


@pytest.mark.slow
def test_root_is_not_found(machine_factory: MachineFactory) -> None:
    """The capture kernel's initramfs gives up: panic= on the command line makes it reboot instead of ask."""
    drop_in = b"[Kernel]\nCommandLineRemove=root\nCommandLineAppend=root=/dev/gone rootdelay=3\n"
    with machine_factory(files={"/etc/kdump-service.conf.d/test.conf": drop_in}) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        asked = machine.crash("sysrq")
        machine.wait_for_console("/dev/gone does not exist", since=asked)
        machine.wait_for_boot()
        assert machine.dumps() == []


@pytest.mark.slow
def test_panic_during_shutdown(machine_factory: MachineFactory) -> None:
    """The service has stopped because the machine goes down; the crash kernel is loaded until the end."""
    # kdump.service starts early and stops late; what stops after it must, too.
    unit = b"""[Unit]
DefaultDependencies=no
Conflicts=shutdown.target
Before=kdump.service shutdown.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c 'systemctl is-active --quiet kdump.service || echo c >/proc/sysrq-trigger'
"""
    with machine_factory(files={"/etc/systemd/system/last-words.service": unit}) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.run("systemctl start last-words.service")
        machine.spawn("systemctl poweroff")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"


def test_power_off_when_saved(machine_factory: MachineFactory) -> None:
    """OnSuccess= has its way over the unit's reboot."""
    files = {"/etc/kdump-service.conf.d/test.conf": b"[Action]\nOnSuccess=poweroff\n"}
    with machine_factory(files=files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        asked = machine.crash("sysrq")
        machine.wait_for_console("kdump: Dump saved", since=asked)
        assert machine.wait_for_event("SHUTDOWN", since=asked).data["reason"] == "guest-shutdown"


@pytest.mark.slow
def test_halt_when_saved(machine_factory: MachineFactory) -> None:
    """OnSuccess=halt: the machine stands still, for somebody who wants to look at it."""
    files = {"/etc/kdump-service.conf.d/test.conf": b"[Action]\nOnSuccess=halt\n"}
    with machine_factory(files=files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        asked = machine.crash("sysrq")
        machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_for_console("reboot: System halted", since=asked)
