# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
import json
import logging
from pathlib import Path

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.errors import (
    CannotArm,
    ConfigError,
    ImageMissing,
    ImageNotBuilt,
    NoReservation,
    ReservationTooSmall,
)
from kdump_service.kernel.files import KernelFiles
from kdump_service.log import MessageId
from kdump_service.service.manager import Manager
from kdump_service.service.state import ArmState, Status
from kdump_service.service.systemd import StopCause, parse_jobs
from tests.builders.machine_disks import put_image, small_image_machine
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


@pytest.mark.promise("restart-stays-armed")
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


@pytest.mark.promise("kernel-refuses")
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


def test_change_that_is_refused_is_no_alarm(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever watches for NOT_ARMED is not woken while the machine is armed."""
    bench.manager.start()
    _told(caplog)
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nKernel=/nonexistent\n")
    with pytest.raises(ImageMissing):
        bench.manager.reload()
    assert bench.manager.status().state is ArmState.ARMED
    assert _told(caplog) == [MessageId.STILL_ARMED]


def test_what_the_kernel_was_not_asked_for_is_not_loaded_again(
    bench: _Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused before the system call: what is loaded stays, without a moment unarmed."""
    bench.manager.start()
    caplog.clear()
    bench.machine.write("sys/kernel/kexec_crash_size", "0\n")
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
    with pytest.raises(NoReservation):
        bench.manager.reload()
    assert (bench.manager.status().state, len(bench.kernel.loads)) == (ArmState.ARMED, 1)
    assert "again" not in caplog.text


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EPERM])
def test_kernel_that_lets_nobody_load_still_holds_what_was_loaded(bench: _Bench, code: int) -> None:
    """For one more try there may be no permission (kexec_load_limit_panic)."""
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
    bench.kernel.failures = [code, code]
    with pytest.raises(CannotArm):
        bench.manager.reload()
    status = bench.manager.status()
    assert (status.state, status.loaded, len(bench.kernel.failures)) == (ArmState.ARMED, True, 1)
    assert not status.command_line.endswith("new")
    assert len(bench.manager.identity) == 64


def test_refused_twice_is_not_armed(bench: _Bench) -> None:
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
    bench.kernel.failures = [errno.EADDRNOTAVAIL, errno.EBUSY]
    with pytest.raises(ReservationTooSmall):
        bench.manager.reload()
    assert bench.manager.status().state is ArmState.NOT_ARMED


@pytest.mark.promise("bad-settings")
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


def test_rebuild_loads_whatever_is_loaded(bench: _Bench) -> None:
    bench.manager.start()
    bench.manager.rebuild()
    assert len(bench.kernel.loads) == 2
    assert bench.manager.status().state is ArmState.ARMED


def test_a_new_image_is_loaded_when_it_is_noticed(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.manager.start()
    bench.machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")
    bench.manager.images_changed()
    assert len(bench.kernel.loads) == 2
    bench.manager.disarm()
    bench.machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt once more, longer")
    bench.manager.images_changed()
    assert len(bench.kernel.loads) == 2
    assert bench.manager.status().reason == "disarmed"


def test_files_that_changed_and_say_the_same_do_nothing(bench: _Bench) -> None:
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "# a comment\n[Dump]\nContents=kernel\n")
    bench.changes.clear()
    bench.manager.configuration_changed()
    assert bench.changes == []
    assert bench.manager.config_files.origins["Contents"] == "/etc/kdump-service.conf:3"


def test_files_that_cannot_be_used_are_told_once_and_change_nothing(bench: _Bench) -> None:
    bench.manager.start()
    path = bench.machine.write("etc/kdump-service.conf", "[Dump]\nContents=all\n[Target]\nTarget=/new\n")
    with pytest.raises(ConfigError):
        bench.manager.configuration_changed()
    assert bench.manager.config.target == "/var/crash"
    assert bench.manager.status().reason == "bad-configuration"
    bench.manager.configuration_changed()  # the same again
    path.write_text("[Target]\nTarget=/new\n")
    bench.manager.configuration_changed()
    assert (bench.manager.config.target, bench.manager.status().reason) == ("/new", "")


def test_identity_is_that_of_what_is_loaded(bench: _Bench) -> None:
    assert bench.manager.identity == ""
    bench.manager.start()
    first = bench.manager.identity
    assert len(first) == 64
    bench.machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")
    bench.manager.arm()
    assert bench.manager.identity not in ("", first)
    capture = json.loads((bench.machine.path / "var/lib/kdump-service/capture.json").read_text())
    assert capture["armed_identity"] == bench.manager.identity
    bench.manager.disarm()
    assert bench.manager.identity == ""


# The small image


class _SmallBench(_Bench):
    """A machine that can have a small image."""

    def __init__(self, path: Path, *, built: bool) -> None:
        super().__init__(path)
        self.machine = small_image_machine(path, built=built)

    @property
    def reasons(self) -> list[str]:
        return [status.reason for status in self.changes if status.state is ArmState.ARMED]


@pytest.fixture
def small(tmp_path: Path) -> _SmallBench:
    return _SmallBench(tmp_path, built=False)


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    ids = [
        record.journal_fields["MESSAGE_ID"] for record in caplog.records if hasattr(record, "journal_fields")
    ]
    caplog.clear()
    return ids


NO_ROOM = ImageNotBuilt("/var: 10 MiB are free", "Make room in /var.")


def test_current_image_is_armed_without_a_remark(tmp_path: Path) -> None:
    bench = _SmallBench(tmp_path, built=True)
    bench.manager.start()
    status = bench.manager.status()
    assert (status.environment, status.reason, bench.manager.wanted_image) == ("initramfs", "", None)
    assert status.image.endswith(".img") and "/images/" in status.image
    assert bench.manager.identity


def test_armed_with_the_root_until_the_image_is_built(
    small: _SmallBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    small.manager.start()
    status = small.manager.status()
    assert (status.environment, status.reason) == ("rootfs", "image-building")
    assert "kdump-build-image@" in status.explanation
    assert small.manager.wanted_image is not None
    _told(caplog)
    put_image(small.machine)
    small.manager.image_built()
    status = small.manager.status()
    assert (status.state, status.environment, status.reason) == (ArmState.ARMED, "initramfs", "")
    assert small.manager.wanted_image is None
    assert len(small.kernel.loads) == 2
    assert "rootfstype=ramfs" in small.kernel.loads[-1][1].split()
    assert _told(caplog) == [MessageId.IMAGE_REBUILT]


def test_what_could_not_be_built_is_told_once_and_tried_once(
    small: _SmallBench, caplog: pytest.LogCaptureFixture
) -> None:
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    _told(caplog)
    small.manager.image_not_built(wanted, NO_ROOM)
    assert _told(caplog) == [MessageId.IMAGE_NOT_BUILT]
    status = small.manager.status()
    assert (status.state, status.reason) == (ArmState.ARMED, "image-not-built")
    assert status.explanation == "/var: 10 MiB are free. Make room in /var."
    assert small.manager.wanted_image is None
    small.manager.reload()
    small.manager.images_changed()
    small.manager.arm()
    assert small.manager.wanted_image is None
    assert small.manager.status().reason == "image-not-built"
    assert MessageId.IMAGE_NOT_BUILT not in _told(caplog)


def test_what_could_not_be_built_is_tried_again_when_something_else_is_wanted(small: _SmallBench) -> None:
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    small.manager.image_not_built(wanted, NO_ROOM)
    small.machine.write("etc/kdump-service.conf", "[Image]\nExtraDrivers=xfs\n")
    small.manager.reload()
    assert small.manager.wanted_image not in (None, wanted)
    assert small.manager.status().reason == "image-building"


def test_what_could_not_be_built_is_tried_again_when_packages_change(small: _SmallBench) -> None:
    """Most builds fail of what is installed, and not of which drivers are wanted."""
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    small.manager.image_not_built(wanted, NO_ROOM)
    small.manager.packages_changed()
    assert (small.manager.wanted_image, small.manager.status().reason) == (wanted, "image-building")


def test_build_that_fails_hides_no_greater_trouble(small: _SmallBench) -> None:
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    small.manager.disarm()
    small.manager.image_not_built(wanted, NO_ROOM)
    assert small.manager.status().reason == "disarmed"
    small.kernel.failures = [errno.EADDRNOTAVAIL]
    with pytest.raises(ReservationTooSmall):
        small.manager.arm()
    small.manager.image_not_built(wanted, NO_ROOM)
    assert small.manager.status().reason == "reservation-too-small"


def test_machine_that_cannot_be_armed_without_the_build_tells_why_it_failed(small: _SmallBench) -> None:
    (small.machine.path / f"boot/initrd.img-{RELEASE}").unlink()
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    small.manager.image_not_built(wanted, NO_ROOM)
    told = (ArmState.NOT_ARMED, "image-not-built", "/var: 10 MiB are free. Make room in /var.")
    status = small.manager.status()
    assert (status.state, status.reason, status.explanation) == told
    with pytest.raises(ImageMissing, match="10 MiB are free"):
        small.manager.arm()
    status = small.manager.status()
    assert (status.state, status.reason, status.explanation) == told


def test_rebuild_tries_again(small: _SmallBench) -> None:
    small.manager.start()
    wanted = small.manager.wanted_image
    assert wanted is not None
    small.manager.image_not_built(wanted, NO_ROOM)
    small.manager.rebuild()
    assert (small.manager.wanted_image, small.manager.status().reason) == (wanted, "image-building")


def test_errors_of_the_configuration_come_before_those_of_the_image(small: _SmallBench) -> None:
    small.machine.write("etc/kdump-service.conf", "garbage\n")
    small.manager.start()
    assert small.manager.status().reason == "bad-configuration"
    assert small.manager.wanted_image is not None


def test_outdated_image_stays_armed_until_the_new_one_is_there(tmp_path: Path) -> None:
    bench = _SmallBench(tmp_path, built=True)
    bench.manager.start()
    first = bench.manager.status().image
    bench.machine.write("usr/bin/kdump-service", "a newer version")
    bench.manager.images_changed()
    status = bench.manager.status()
    assert (status.image, status.environment, status.reason) == (first, "initramfs", "image-outdated")
    assert bench.manager.wanted_image is not None
    assert len(bench.kernel.loads) == 1  # never a moment unarmed
    second = put_image(bench.machine, b"built anew", built="2026-11-24T04:00:00Z")
    bench.manager.image_built()
    status = bench.manager.status()
    assert (status.image, status.reason) == (str(second), "")
    assert len(bench.kernel.loads) == 2


def test_old_image_without_an_extra_driver_serves_until_the_new_one_is_there(tmp_path: Path) -> None:
    bench = _SmallBench(tmp_path, built=True)
    bench.machine.write("etc/kdump-service.conf", "[Image]\nExtraDrivers=xfs\n")
    bench.manager.start()
    status = bench.manager.status()
    assert (status.environment, status.reason) == ("initramfs", "image-outdated")
    assert bench.manager.wanted_image is not None


def test_nothing_is_wanted_after_the_image_is_built(small: _SmallBench) -> None:
    small.manager.start()
    put_image(small.machine)
    small.manager.image_built()
    assert small.manager.wanted_image is None


def test_image_that_is_built_while_disarmed_stays_on_disk(small: _SmallBench) -> None:
    small.manager.start()
    small.manager.disarm()
    assert small.manager.wanted_image is None
    put_image(small.machine)
    small.manager.image_built()
    assert small.manager.status().reason == "disarmed"
    small.manager.arm()
    assert small.manager.status().environment == "initramfs"


def test_image_that_the_kernel_refuses_leaves_the_one_before(small: _SmallBench) -> None:
    small.manager.start()
    before = small.manager.status().image
    put_image(small.machine)
    small.kernel.failures = [errno.EADDRNOTAVAIL]
    with pytest.raises(ReservationTooSmall):
        small.manager.image_built()
    status = small.manager.status()
    assert (status.state, status.image, status.environment) == (ArmState.ARMED, before, "rootfs")
    assert status.reason == "reservation-too-small"


def test_settings_are_loaded_with_the_small_image(tmp_path: Path) -> None:
    bench = _SmallBench(tmp_path, built=True)
    bench.manager.start()
    bench.machine.write("etc/kdump-service.conf", "[Dump]\nContents=user\n")
    bench.manager.reload()
    assert len(bench.kernel.loads) == 2
    again = bench.restarted()
    again.start()
    assert (len(bench.kernel.loads), again.status().environment) == (2, "initramfs")


def test_machine_that_needs_the_small_image_to_be_armed_at_all(small: _SmallBench) -> None:
    (small.machine.path / f"boot/initrd.img-{RELEASE}").unlink()
    small.manager.start()
    assert (small.manager.status().reason, small.manager.status().loaded) == ("image-missing", False)
    assert small.manager.wanted_image is not None
    put_image(small.machine)
    small.manager.image_built()
    assert (small.manager.status().reason, small.manager.status().loaded) == ("", True)
    assert small.manager.wanted_image is None
