# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the capture boot gets to run in, and what it finds there."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kdump_service.arm.environment import CaptureEnvironment, NothingBuiltYet, choose_environment
from kdump_service.arm.identity import armed_identity
from kdump_service.arm.loader import Loader
from kdump_service.arm.plan import plan_load
from kdump_service.capture_settings import CaptureSettings
from kdump_service.config import Config
from kdump_service.errors import ImageMissing
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.problems import PROBLEM_CODES
from tests.builders.machine_disks import (
    ROOT_UUID,
    SMALL_IMAGE_DRIVERS,
    Disks,
    put_image,
    small_image_machine,
)
from tests.builders.machine_root import BOOT_ID, RELEASE, FakeKernel, MachineRoot

DRACUT = "usr/bin/dracut"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return small_image_machine(tmp_path, built=False)


def _choose(machine: MachineRoot, **config: str) -> CaptureEnvironment:
    kernel = machine.path / f"boot/vmlinuz-{RELEASE}"
    found = choose_environment(KernelFiles(machine.path), Config(**config), kernel)  # type: ignore[arg-type]
    assert not found.remark or (found.remark in PROBLEM_CODES and found.explanation.count(". ") >= 1)
    assert found.explanation.endswith((".", "kdump-build-image@*'")) or not found.remark
    return found


def _rootfs(machine: MachineRoot) -> Path:
    return machine.path / f"boot/initrd.img-{RELEASE}"


def test_current_image_is_taken_and_nothing_is_wanted(machine: MachineRoot) -> None:
    image = put_image(machine)
    found = _choose(machine)
    assert (found.name, found.initramfs) == ("initramfs", image)
    assert (found.wanted, found.remark, found.explanation) == (None, "", "")
    assert found.buildable == RELEASE  # on request


def test_current_image_is_taken_without_what_builds_it(machine: MachineRoot) -> None:
    image = put_image(machine)
    (machine.path / DRACUT).unlink()
    found = _choose(machine)
    assert (found.initramfs, found.wanted, found.remark, found.buildable) == (image, None, "", "")


@pytest.mark.parametrize("config", [{"environment": "rootfs"}, {"image": f"/boot/initrd.img-{RELEASE}"}])
def test_what_is_asked_for_is_no_remark(machine: MachineRoot, config: dict[str, str]) -> None:
    put_image(machine)
    found = _choose(machine, **config)
    assert (found.name, found.initramfs) == ("rootfs", _rootfs(machine))
    assert (found.wanted, found.remark, found.files, found.places) == (None, "", {}, CaptureSettings())
    assert found.buildable == ""


def test_not_built_yet(machine: MachineRoot) -> None:
    found = _choose(machine)
    assert (found.name, found.initramfs, found.remark) == ("rootfs", _rootfs(machine), "image-building")
    assert found.wanted is not None
    assert (found.wanted.release, found.wanted.drivers) == (RELEASE, SMALL_IMAGE_DRIVERS)
    assert found.buildable == RELEASE


def test_another_kernels_image_is_none(machine: MachineRoot) -> None:
    put_image(machine, release="6.12.0-other")
    assert _choose(machine).remark == "image-building"


@pytest.mark.promise("root-serves")
def test_neither_image_nor_tools(machine: MachineRoot) -> None:
    (machine.path / DRACUT).unlink()
    found = _choose(machine)
    assert (found.name, found.wanted, found.remark) == ("rootfs", None, "image-tools-missing")
    assert "dracut-core" in found.explanation


def test_without_our_module_dracut_is_not_enough(machine: MachineRoot) -> None:
    shutil.rmtree(machine.path / "usr/lib/dracut")
    assert _choose(machine).remark == "image-tools-missing"


def test_outdated_image_is_used_until_the_next_is_there(machine: MachineRoot) -> None:
    image = put_image(machine)
    machine.write("usr/bin/kdump-service", "newer")
    found = _choose(machine)
    assert (found.name, found.initramfs, found.remark) == ("initramfs", image, "image-outdated")
    assert found.wanted is not None
    assert "/usr/bin/kdump-service has changed" in found.explanation
    assert found.buildable == RELEASE


def test_outdated_image_without_tools_is_used_and_said_so(machine: MachineRoot) -> None:
    image = put_image(machine)
    machine.write("usr/bin/kdump-service", "newer")
    (machine.path / DRACUT).unlink()
    found = _choose(machine)
    assert (found.initramfs, found.wanted, found.remark) == (image, None, "image-tools-missing")
    assert "/usr/bin/kdump-service has changed" in found.explanation


def test_image_with_more_drivers_than_needed_will_do_for_now(machine: MachineRoot) -> None:
    image = put_image(machine, drivers=(*SMALL_IMAGE_DRIVERS, "xfs"))
    found = _choose(machine)
    assert (found.initramfs, found.remark) == (image, "image-outdated")
    assert "its recipe has changed" in found.explanation


def test_image_that_lacks_a_driver_of_the_target_will_not_do(machine: MachineRoot) -> None:
    put_image(machine, drivers=[each for each in SMALL_IMAGE_DRIVERS if each != "virtio_blk"])
    assert (_choose(machine).name, _choose(machine).remark) == ("rootfs", "image-building")


def test_image_that_lacks_a_driver_that_is_asked_for_will_do_for_now(machine: MachineRoot) -> None:
    image = put_image(machine)
    found = _choose(machine, extra_drivers="megaraid_sas")
    assert (found.initramfs, found.remark) == (image, "image-outdated")
    assert found.wanted is not None and "megaraid_sas" in found.wanted.drivers
    (machine.path / DRACUT).unlink()
    found = _choose(machine, extra_drivers="megaraid_sas")
    assert (found.initramfs, found.remark) == (image, "image-tools-missing")


def test_image_that_lacks_a_driver_of_the_states_disk_will_do_for_now(machine: MachineRoot) -> None:
    """That disk is the last resort where the target fails."""
    Disks(machine).sata()
    image = put_image(machine)
    machine.set_mounts("1 0 8:1 / / rw - ext4 /dev/sda1 rw", "2 1 254:0 / /var/crash rw - ext4 /dev/vda rw")
    found = _choose(machine)
    assert (found.initramfs, found.remark) == (image, "image-outdated")
    assert found.wanted is not None and "ahci" in found.wanted.drivers


@pytest.mark.promise("image-damaged")
def test_damaged_image_is_passed_over(machine: MachineRoot) -> None:
    older = put_image(machine, b"older", built="2026-11-20T04:00:00Z", drivers=(*SMALL_IMAGE_DRIVERS, "xfs"))
    put_image(machine).write_bytes(b"smashed")
    found = _choose(machine)
    assert (found.initramfs, found.remark) == (older, "image-outdated")


def test_settings_of_the_unit_make_another_image(machine: MachineRoot) -> None:
    put_image(machine)
    machine.write("etc/systemd/system/kdump-capture.service.d/a.conf", "[Service]\nWatchdogSec=5min\n")
    found = _choose(machine)
    assert found.remark == "image-outdated"
    assert found.wanted is not None
    [(path, digest)] = found.wanted.unit_settings
    assert path == "/etc/systemd/system/kdump-capture.service.d/a.conf"
    put_image(machine, b"with it", unit_settings={path: digest})
    assert _choose(machine).remark == ""


@pytest.mark.promise("root-serves")
def test_target_that_needs_more_than_a_driver(machine: MachineRoot) -> None:
    put_image(machine)
    machine.set_mounts(
        "1 0 254:0 / / rw - ext4 /dev/vda rw", "2 1 0:50 / /var/crash rw - nfs4 server:/dumps rw"
    )
    found = _choose(machine)
    assert (found.name, found.wanted, found.remark) == ("rootfs", None, "image-not-supported")
    assert "/var/crash is a file system of type nfs4" in found.explanation


def test_no_initramfs_of_the_systems_own_and_none_built_yet(machine: MachineRoot) -> None:
    """As on systems whose initramfs is part of the kernel's image: what is missing is known, and can be
    built."""
    _rootfs(machine).unlink()
    with pytest.raises(NothingBuiltYet) as caught:
        _choose(machine)
    assert caught.value.wanted.release == RELEASE
    assert "kdump-build-image" in caught.value.hint


def test_nothing_to_arm_with(machine: MachineRoot) -> None:
    _rootfs(machine).unlink()
    with pytest.raises(ImageMissing):
        _choose(machine)
    put_image(machine)
    assert _choose(machine).name == "initramfs"


def test_kernel_of_another_release_gets_its_own_image(machine: MachineRoot) -> None:
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = (0x300 - 0x200).to_bytes(2, "little")
    head[0x300:0x310] = b"6.12.9-own (x) #"
    machine.write("boot/own", bytes(head))
    kernel = machine.path / "boot/own"
    image = put_image(machine, release="6.12.9-own")
    put_image(machine, b"of the running kernel")
    assert choose_environment(KernelFiles(machine.path), Config(), kernel).initramfs == image


# What is found there


def test_places_of_target_and_state(machine: MachineRoot) -> None:
    put_image(machine)
    found = _choose(machine)
    assert found.places == CaptureSettings(
        target_folder="/kdump/target/var/crash",
        target_mount_point="/kdump/target",
        fallback_folder="/kdump/state/var/lib/kdump-service/crash",
        fallback_mount_point="/kdump/state",
        small_image=True,
    )
    assert found.files["etc/machine-id"] == "00112233445566778899aabbccddeeff\n"
    assert found.files["etc/hostname"] == "testhost\n"
    assert found.files["kdump/target.mount"] == f"UUID={ROOT_UUID} ext4 rw\n"
    wants = "etc/systemd/system/kdump-capture.target.wants/"
    assert found.files[f"{wants}kdump-target.mount"] == "-> ../kdump-target.mount"
    assert f"{wants}kdump-state.mount" not in found.files


def _targets_place(machine: MachineRoot, target: str, *mounts: str) -> str:
    put_image(machine, drivers=(*SMALL_IMAGE_DRIVERS, "ahci", "sd_mod", "btrfs", "xxhash_generic",
                                "blake2b_generic", "sha256_generic"))  # fmt: skip
    machine.set_mounts("1 0 254:0 / / rw - ext4 /dev/vda rw", *mounts)
    return _choose(machine, target=target).places.target_folder


def test_target_on_a_file_system_of_its_own(machine: MachineRoot) -> None:
    Disks(machine).sata("uuid-of-sda1")
    place = _targets_place(machine, "/srv/crash/here", "2 1 8:1 / /srv/crash rw - ext4 /dev/sda1 rw")
    assert place == "/kdump/target/here"
    assert _choose(machine, target="/srv/crash").places.target_folder.rstrip("/") == "/kdump/target"


def test_target_on_a_bind_mount(machine: MachineRoot) -> None:
    Disks(machine).sata()
    place = _targets_place(machine, "/srv/crash", "2 1 8:1 /data/dumps /srv rw - ext4 /dev/sda1 rw")
    assert place == "/kdump/target/data/dumps/crash"


def test_target_on_a_subvolume(machine: MachineRoot) -> None:
    Disks(machine).sata()
    place = _targets_place(machine, "/srv/crash", "2 1 0:35 /@srv /srv rw - btrfs /dev/sda1 rw")
    assert place == "/kdump/target/@srv/crash"


def test_target_behind_a_link_is_where_the_link_leads(machine: MachineRoot) -> None:
    Disks(machine).sata("uuid-of-sda1")
    machine.write("srv/dumps/.keep", "")
    (machine.path / "var/link").symlink_to("../srv/dumps")
    place = _targets_place(machine, "/var/link/sub", "2 1 8:1 / /srv rw - ext4 /dev/sda1 rw")
    assert place == "/kdump/target/dumps/sub"
    files = _choose(machine, target="/var/link/sub").files
    assert "What=/dev/disk/by-uuid/uuid-of-sda1\n" in files["etc/systemd/system/kdump-target.mount"]


def test_state_that_cannot_be_mounted_is_left_out(machine: MachineRoot) -> None:
    put_image(machine)
    machine.set_mounts("1 0 0:22 / / rw - overlay overlay rw", "2 1 254:0 / /var/crash rw - ext4 /dev/vda rw")
    found = _choose(machine)
    assert (found.name, found.places.target_folder.rstrip("/")) == ("initramfs", "/kdump/target")
    assert found.places.fallback_folder == ""
    assert "etc/systemd/system/kdump-state.mount" not in found.files


def test_mount_units_are_such(machine: MachineRoot, tmp_path: Path) -> None:
    put_image(machine)
    units = tmp_path / "units"
    units.mkdir()
    for path, text in _choose(machine).files.items():
        if path.startswith("etc/systemd/") and not text.startswith("-> "):
            (units / Path(path).name).write_text(text)
    assert {path.name for path in units.iterdir()} == {"kdump-target.mount", "kdump-state.mount"}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, units.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# What is loaded


def test_plan_for_the_small_image(machine: MachineRoot) -> None:
    image = put_image(machine)
    machine.write(
        "proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/vda ro quiet crashkernel=256M console=ttyS0\n"
    )
    request = plan_load(KernelFiles(machine.path), Config()).request
    assert request.initramfs.path == str(image)
    words = request.command_line.split()
    assert "rootfstype=ramfs" in words and "console=ttyS0" in words
    assert not {"ro", "root=/dev/vda"} & set(words)
    settings = json.loads(dict(request.added_files)["var/lib/kdump-service/capture.json"])
    assert (settings["boot_id"], settings["host"]) == (BOOT_ID, "testhost")
    assert settings["target_folder"] == "/kdump/target/var/crash"
    assert settings["config"]["target"] == "/var/crash"
    assert len(settings["armed_identity"]) == 64


class _KernelThatUnpacks(FakeKernel):
    """Keeps what it is handed as initramfs."""

    def load(self, kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
        assert initrd_fd is not None
        # The kernel refuses with ETXTBSY what somebody could still write to (kernel_read_file).
        with open(f"/proc/self/fdinfo/{initrd_fd}") as info:
            flags = next(line.split()[1] for line in info if line.startswith("flags:"))
        assert int(flags, 8) & 3 == 0
        with open(initrd_fd, "rb", closefd=False) as file:
            self.initramfs = file.read()
        super().load(kernel_fd, initrd_fd, command_line)


@pytest.mark.parametrize("size", [0, 1, 510, 511, 512, 513, 1 << 20, (1 << 20) + 3])
def test_kernel_gets_image_and_settings_in_one_file(machine: MachineRoot, tmp_path: Path, size: int) -> None:
    content = b"\x07" * size
    put_image(machine, content)
    kernel = _KernelThatUnpacks(machine)
    files = KernelFiles(machine.path)
    loader = Loader(files, kernel.load, kernel.unload)
    request = plan_load(files, Config()).request
    loader.load(request)
    assert kernel.initramfs.startswith(content)
    added = kernel.initramfs[size:]
    assert added.startswith(bytes(-size % 4) + b"070701")
    folder = tmp_path / "unpacked"
    folder.mkdir()
    command = ["cpio", "--extract", "--quiet", "--make-directories"]
    subprocess.run(command, input=added[-size % 4 :], cwd=folder, check=True)
    for path, text in request.added_files:
        if text.startswith("-> "):
            assert str((folder / path).readlink()) == text[3:]
        else:
            assert (folder / path).read_text() == text
    assert loader.loaded_request() == request
    assert Loader(files, kernel.load, kernel.unload).loaded_request() == request


def test_settings_change_the_request_and_nothing_else_does(machine: MachineRoot) -> None:
    put_image(machine)
    files = KernelFiles(machine.path)
    first = plan_load(files, Config()).request
    assert plan_load(files, Config()).request == first
    machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt")  # not used
    assert plan_load(files, Config()).request == first
    assert plan_load(files, Config(contents="user")).request != first


# What it is proven by


def _identity(machine: MachineRoot, **config: str | int) -> str:
    """Of what would be loaded; the one in the settings is the same."""
    files = KernelFiles(machine.path)
    asked = Config(**config)  # type: ignore[arg-type]
    request = plan_load(files, asked).request
    identity = armed_identity(request, asked.target, machine.path)
    settings = json.loads(dict(request.added_files)["var/lib/kdump-service/capture.json"])
    assert settings["armed_identity"] == identity
    assert len(identity) == 64
    return identity


def test_another_disk_at_the_same_path_is_another_identity(machine: MachineRoot) -> None:
    put_image(machine, drivers=(*SMALL_IMAGE_DRIVERS, "ahci", "sd_mod"))
    root = "1 0 254:0 / / rw - ext4 /dev/vda rw"
    Disks(machine).sata("uuid-of-sda1")
    machine.set_mounts(root, "2 1 8:1 / /var/crash rw - ext4 /dev/sda1 rw")
    first = _identity(machine)
    machine.set_mounts(root, "2 1 8:1 /dumps /var/crash rw - ext4 /dev/sda1 rw")
    other_folder = _identity(machine)
    machine.set_mounts(root)
    no_disk_of_its_own = _identity(machine)
    machine.set_mounts(root, "2 1 8:1 / /var/crash rw - ext4 /dev/sda1 rw")
    assert _identity(machine) == first
    machine.write("run/udev/data/b8:1", "E:ID_FS_TYPE=ext4\nE:ID_FS_UUID=of-another\n")
    assert len({first, other_folder, no_disk_of_its_own, _identity(machine)}) == 4


def test_settings_that_have_nothing_to_do_with_it_leave_the_identity(machine: MachineRoot) -> None:
    put_image(machine)
    first = _identity(machine)
    assert _identity(machine, contents="user", compression="zlib", max_dumps=3) == first
    machine.write("proc/sys/kernel/hostname", "another\n")
    machine.write("proc/sys/kernel/random/boot_id", "ffffffff-ffff-ffff-ffff-ffffffffffff\n")
    assert _identity(machine) == first
    assert _identity(machine, target="/var/lib") != first
