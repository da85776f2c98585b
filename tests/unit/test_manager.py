# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.errors import ConfigError, ReservationTooSmall
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.manager import Manager
from kdump_service.service.state import ArmState, Status
from kdump_service.service.systemd import StopCause, parse_jobs
from tests.builders.machine_root import RELEASE, FakeKernel, MachineRoot


class _Bench:
    def __init__(self, path: Path) -> None:
        self.machine = MachineRoot(path)
        self.kernel = FakeKernel(self.machine)
        self.changes: list[Status] = []
        self.manager = self.restarted()

    def restarted(self) -> Manager:
        files = KernelFiles(self.machine.path)
        return Manager(files, Loader(files, self.kernel.load, self.kernel.unload), self.changes.append)


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    return _Bench(tmp_path)


def test_start_arms_and_tells(bench: _Bench) -> None:
    bench.manager.start()
    assert [status.state for status in bench.changes] == [ArmState.ARMING, ArmState.ARMED]
    assert bench.changes[-1].summary().startswith("Armed: ")


def test_restart_loads_nothing_anew(bench: _Bench) -> None:
    bench.manager.start()
    again = bench.restarted()
    again.start()
    assert len(bench.kernel.loads) == 1
    assert again.status().state is ArmState.ARMED


def test_what_nobody_knows_is_replaced(bench: _Bench) -> None:
    bench.machine.set_loaded(True)
    bench.manager.start()
    assert len(bench.kernel.loads) == 1


def test_reload_without_change_leaves_the_kernel_alone(bench: _Bench) -> None:
    bench.manager.start()
    bench.manager.reload()
    assert len(bench.kernel.loads) == 1


def test_new_initramfs_is_loaded_at_reload(bench: _Bench) -> None:
    bench.manager.start()
    bench.machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")
    bench.manager.reload()
    assert len(bench.kernel.loads) == 2


def test_refused_change_brings_the_previous_one_back(bench: _Bench) -> None:
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
    bench.kernel.failures = [errno.EADDRNOTAVAIL]
    with pytest.raises(ReservationTooSmall):
        bench.manager.reload()
    status = bench.manager.status()
    assert (status.state, status.reason, status.loaded) == (ArmState.ARMED, "reservation-too-small", True)
    assert not status.command_line.endswith("new")
    assert len(bench.kernel.loads) == 2


def test_refused_twice_is_not_armed(bench: _Bench) -> None:
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
    bench.kernel.failures = [errno.EADDRNOTAVAIL, errno.EBUSY]
    with pytest.raises(ReservationTooSmall):
        bench.manager.reload()
    assert bench.manager.status().state is ArmState.NOT_ARMED


def test_start_with_garbage_configuration_arms_and_says_so(bench: _Bench) -> None:
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nnonsense\nCommandLineAppend=good\n")
    bench.manager.start()
    status = bench.manager.status()
    assert (status.state, status.reason) == (ArmState.ARMED, "bad-configuration")
    assert status.command_line.endswith(" good")
    assert "Attention" in status.summary()


def test_garbage_goes_and_so_does_the_reason(bench: _Bench) -> None:
    path = bench.machine.write("etc/kdump-service.conf", "garbage\n")
    bench.manager.start()
    with pytest.raises(ConfigError):
        bench.manager.reload()
    path.unlink()
    bench.manager.reload()
    assert bench.manager.status().reason == ""


def test_disarmed_stays_so_over_a_reload(bench: _Bench) -> None:
    bench.manager.start()
    bench.manager.disarm()
    bench.manager.reload()
    assert bench.manager.status().reason == "disarmed"
    bench.manager.arm()
    assert bench.manager.status().state is ArmState.ARMED


def test_settings_of_the_capture_boot_that_cannot_be_written_do_not_stop_arming(bench: _Bench) -> None:
    bench.machine.write("var/lib/kdump-service", "a file in the way")
    bench.manager.start()
    assert bench.manager.status().state is ArmState.ARMED


@pytest.mark.parametrize(
    ("listing", "cause"),
    [
        ("", StopCause.SIGNAL),
        ("12 kdump.service stop running\n", StopCause.STOPPED),
        ("12 kdump.service restart running\n", StopCause.RESTARTED),
        ("7 kdump.service stop running\n8 shutdown.target start waiting\n", StopCause.SHUTDOWN),
        ("8 shutdown.target stop waiting\n", StopCause.SIGNAL),
        ("No jobs running.\n", StopCause.SIGNAL),
    ],
)
def test_why_it_is_stopped(listing: str, cause: StopCause) -> None:
    assert parse_jobs(listing) is cause


def test_questions_never_take_the_lock_of_kexec(bench: _Bench) -> None:
    """A panic while the kernel answers for kexec_crash_size would not start the capture kernel."""
    bench.manager.start()
    (bench.machine.path / "sys/kernel/kexec_crash_size").unlink()
    status = bench.manager.status()
    assert (status.state, status.reserved_bytes) == (ArmState.ARMED, 256 << 20)


def test_busy_kernel_is_a_reason(bench: _Bench) -> None:
    bench.kernel.failures = [errno.EBUSY]
    bench.manager.start()
    assert bench.manager.status().reason == "kernel-busy"
    bench.manager.arm()
    assert bench.manager.status().reason == ""


def test_encrypted_root_is_remarked(bench: _Bench) -> None:
    bench.machine.write(
        "proc/self/mountinfo",
        "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/mapper/vg-root rw\n"
        "30 22 0:25 / /proc rw shared:12 - proc proc rw\n",
    )
    bench.manager.start()
    assert bench.manager.status().reason == ""
    bench.machine.write("sys/dev/block/254:1/dm/uuid", "LVM-abc\n")
    bench.machine.write("sys/dev/block/254:1/slaves/dm-0/dev", "254:0\n")
    bench.machine.write("sys/dev/block/254:0/dm/uuid", "CRYPT-LUKS2-abc-luks\n")
    bench.manager.arm()
    status = bench.manager.status()
    assert (status.state, status.reason) == (ArmState.ARMED, "root-encrypted")
    assert "passphrase" in status.summary()
