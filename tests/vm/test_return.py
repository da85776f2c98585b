# SPDX-License-Identifier: LGPL-2.1-or-later
"""Capture boots that go wrong before or beside the capture: the machine comes back within a bounded time."""

import pytest

from .conftest import RestoredFactory
from .machine import Machine

CONFIG = "/etc/kdump-service.conf.d/test.conf"
ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"
FALLBACK = "/var/lib/kdump-service/crash"
SHRINK = "systemctl stop kdump.service && echo $(({mib} << 20)) >/sys/kernel/kexec_crash_size"
SMALL_RESERVATION = f"{SHRINK} && systemctl start kdump.service"


def crash(machine: Machine) -> float:
    """Crash a machine that ends when it would come back; answers with the host time of it."""
    machine.run("sync")
    machine.end_at_reset()
    return machine.crash("sysrq")


@pytest.mark.promise("mount-fails", "never-hang", "back-soon")
@pytest.mark.guest(captures=1)
def test_file_system_that_does_not_mount(restored: RestoredFactory) -> None:
    """local-fs.target fails, systemd goes to emergency mode: the capture runs there, without a prompt."""
    with restored(environment="rootfs") as machine:
        machine.put("/etc/fstab", ROOT + b"/dev/vda /mnt vfat defaults 0 0\n")
        asked = crash(machine)
        machine.wait_for_console("Reached target emergency.target", since=asked)
        saved = machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_until_off(since=saved.at, timeout_sec=60)
        said = [line.text for line in machine.console.lines if line.at >= asked]
        assert not any("password for maintenance" in text for text in said)


@pytest.mark.promise("mount-never-comes")
@pytest.mark.guest(captures=1)
def test_file_system_that_never_comes(restored: RestoredFactory) -> None:
    """Something else that production mounts never comes: the capture does not wait for it."""
    with restored(environment="rootfs") as machine:
        # As for a volume in crypttab whose passphrase nobody types.
        line = b"/dev/gone /mnt ext4 x-systemd.device-timeout=infinity 0 2\n"
        machine.put("/etc/fstab", ROOT + line)
        asked = crash(machine)
        saved = machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_until_off(since=saved.at, timeout_sec=60)


@pytest.mark.promise("capture-not-reached", "never-hang")
@pytest.mark.guest(captures=1)
def test_boot_that_never_reaches_the_capture(restored: RestoredFactory) -> None:
    """What the capture itself waits for never comes: the target's time limit ends the boot."""
    impatient = b"[Unit]\nJobTimeoutSec=15s\n"
    files = {"/etc/systemd/system/kdump-capture.target.d/test.conf": impatient}
    with restored(environment="rootfs", files=files) as machine:
        line = b"/dev/gone /mnt ext4 noauto,x-systemd.device-timeout=infinity 0 2\n"
        machine.put("/etc/fstab", ROOT + line)
        # "noauto", so that production does not wait for it; the capture boot does, for as long as it may.
        machine.put(
            "/etc/systemd/system/kdump-capture.service.d/test.conf",
            b"[Unit]\nRequires=mnt.mount\nAfter=mnt.mount\n",
        )
        asked = crash(machine)
        machine.wait_until_off(since=asked, timeout_sec=120)
        assert machine.dumps() == []


@pytest.mark.promise("target-missing")
@pytest.mark.guest(captures=1)
@pytest.mark.part("captures")
def test_target_disk_is_missing(restored: RestoredFactory) -> None:
    """What held the target at arming is not there: nothing is written below its mount point."""
    with restored() as machine:
        machine.run(
            "truncate -s 300M /dumps.img && mke2fs -q /dumps.img && mkdir -p /var/crash"
            " && mount -o loop /dumps.img /var/crash && systemctl reload kdump.service"
        )
        asked = crash(machine)
        machine.wait_until_off(since=asked)
        # What is on the root's disk below the mount point.
        assert machine.listing("/var/crash") == {}
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert "/var/crash is not mounted" in dump.record["problems"][0]["message"]


@pytest.mark.promise("capture-stalls", "never-hang", "no-broken-dump-as-good")
@pytest.mark.guest(captures=1)
def test_capture_that_stalls(restored: RestoredFactory) -> None:
    """No bytes move: the watchdog of the unit ends it. Its time is cut from two minutes to twenty seconds."""
    impatient = b"[Service]\nWatchdogSec=20s\n"
    files = {
        "/etc/systemd/system/kdump-capture.service.d/test.conf": impatient,
        # So slow that it is far from its end when it is stopped, however fast the machine is.
        CONFIG: b"[Dump]\nContents=everything\nCompressionLevel=19\n",
    }
    with restored(agent_in_capture=True, files=files) as machine:
        crash(machine)
        machine.wait_for_boot("capture")
        machine.wait_until("systemctl show -P StatusText kdump-capture.service | grep 'Saving: '")
        machine.spawn("systemctl kill --signal=STOP kdump-capture.service")
        machine.wait_until_off()
        # systemd wakes what it ends (SendSIGCONT), so the capture comes to say what became of it.
        [dump] = machine.dumps()
        assert dump.record["state"] == "incomplete"
        assert [problem["reason"] for problem in dump.record["problems"]] == ["interrupted"]
        assert sorted(dump.files) == ["dmesg.txt", "record.json", "vmcore.incomplete"]


@pytest.mark.promise("out-of-memory")
@pytest.mark.guest(captures=1)
@pytest.mark.part("captures")
def test_capture_kernel_without_memory(restored: RestoredFactory) -> None:
    """The images fit, but the capture boot cannot live in what is left. In 72M it would not come as far as to
    its panic=, and the service does not arm."""
    with restored(environment="rootfs") as machine:
        machine.run(SMALL_RESERVATION.format(mib=90))
        machine.wait_until_armed()
        asked = crash(machine)
        machine.wait_until_off(since=asked)
        assert all(dump.record["state"] != "complete" for dump in machine.dumps())


@pytest.mark.promise("root-not-found", "never-hang")
@pytest.mark.guest(captures=1)
def test_root_is_not_found(restored: RestoredFactory) -> None:
    """The capture kernel's initramfs gives up: panic= on the command line makes it reboot instead of ask."""
    drop_in = b"[Kernel]\nCommandLineRemove=root\nCommandLineAppend=root=/dev/gone rootdelay=3\n"
    with restored(environment="rootfs", files={CONFIG: drop_in}) as machine:
        asked = crash(machine)
        machine.wait_for_console("/dev/gone does not exist", since=asked)
        machine.wait_until_off(since=asked)
        assert machine.dumps() == []


@pytest.mark.promise("panic-in-shutdown", "restart-stays-armed")
@pytest.mark.guest(captures=1)
def test_panic_during_shutdown(restored: RestoredFactory) -> None:
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
    with restored(files={"/etc/systemd/system/last-words.service": unit}) as machine:
        machine.run("systemctl start last-words.service")
        machine.end_at_reset()
        asked = machine.crash_by("systemctl poweroff")
        machine.wait_until_off(since=asked)
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"


@pytest.mark.guest(captures=1)
@pytest.mark.part("captures")
def test_halt_when_saved(restored: RestoredFactory) -> None:
    """OnSuccess=halt: the machine stands still, for somebody who wants to look at it."""
    with restored(files={CONFIG: b"[Action]\nOnSuccess=halt\n"}) as machine:
        asked = crash(machine)
        machine.wait_for_console("kdump: Dump saved", since=asked)
        machine.wait_for_console("reboot: System halted", since=asked)
