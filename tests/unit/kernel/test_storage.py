# SPDX-License-Identifier: LGPL-2.1-or-later
"""What lies below a file system, in sysfs trees as machines have them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kdump_service.config import Config
from kdump_service.errors import NotSupported
from kdump_service.image.recipe import find_storages, recipe_of
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import parse_mounts
from kdump_service.kernel.storage import Storage, storage_of
from tests.builders.machine_disks import ROOT_UUID, Disks
from tests.builders.machine_root import RELEASE, MachineRoot

EXT4 = {"ext4", "crc32c_generic", "libcrc32c"}


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


@pytest.fixture
def disks(machine: MachineRoot) -> Disks:
    return Disks(machine)


def _storage(
    machine: MachineRoot, number: str, kind: str = "ext4", source: str = "/dev/x", folder: str = "/"
) -> Storage:
    [mount] = parse_mounts(f"30 1 {number} {folder} /srv rw,relatime shared:1 - {kind} {source} rw")
    return storage_of(machine.path, mount)


@pytest.mark.parametrize(
    ("add", "number", "drivers", "device"),
    [
        (Disks.virtio, "254:0", {"virtio_blk", "virtio_pci"}, f"/dev/disk/by-uuid/{ROOT_UUID}"),
        (Disks.nvme_multipath, "259:2", {"nvme"}, "/dev/disk/by-uuid/aa-bb"),
        (Disks.nvme_multipath, "259:0", {"nvme"}, "/dev/nvme0n1"),
        (Disks.sata, "8:1", {"ahci", "sd_mod"}, "/dev/sda1"),
        (
            Disks.usb,
            "8:17",
            {"xhci_pci", "usbcore", "usb_storage", "sd_mod"},
            "/dev/disk/by-uuid/ABCD-1234",
        ),
        (Disks.hyper_v, "8:33", {"hv_vmbus", "hv_storvsc", "sd_mod"}, "/dev/disk/by-uuid/hv"),
    ],
    ids=["virtio", "nvme-partition", "nvme-disk", "sata", "usb", "hyper-v"],
)
def test_drivers_on_the_way_and_a_lasting_name(
    machine: MachineRoot,
    disks: Disks,
    add: Callable[[Disks], object],
    number: str,
    drivers: set[str],
    device: str,
) -> None:
    add(disks)
    storage = _storage(machine, number)
    assert set(storage.drivers) == EXT4 | drivers
    assert list(storage.drivers) == sorted(storage.drivers)
    assert (storage.device, storage.kind, storage.options, storage.folder) == (device, "ext4", "rw", "/")


def test_name_before_there_is_udev(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    disks.sata()
    assert _storage(machine, "254:0").early_name == f"UUID={ROOT_UUID}"
    assert _storage(machine, "8:1").early_name == "/dev/sda1"


def test_without_a_database_of_udev_the_name_is_the_kernels(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    (machine.path / "run/udev/data/b254:0").unlink()
    assert _storage(machine, "254:0").device == "/dev/vda"


def test_all_that_is_built_in_needs_no_module(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    for place in ("pci/drivers/virtio-pci", "virtio/drivers/virtio_blk"):
        (machine.path / "sys/bus" / place / "module").unlink()
    assert set(_storage(machine, "254:0").drivers) == EXT4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("nfs4", "/srv is a file system of type nfs4"),
        ("tmpfs", "of type tmpfs"),
        ("zfs", "of type zfs"),
        ("overlay", "of type overlay"),
        ("virtiofs", "of type virtiofs"),
        ("autofs", "of type autofs"),
    ],
)
def test_what_is_on_no_disk_is_refused(machine: MachineRoot, kind: str, words: str) -> None:
    with pytest.raises(NotSupported, match=words) as caught:
        _storage(machine, "0:44", kind, "server:/share")
    assert "Environment=rootfs" in caught.value.hint


def _luks(disks: Disks) -> None:
    disks.mapped("CRYPT-LUKS2-4e7a0c6d-root", disks.sata())


def _lvm(disks: Disks) -> None:
    disks.mapped("LVM-QyQ3wVdWQ6rp", disks.sata())


def _partition_of_multipath(disks: Disks) -> None:
    disks.mapped("part1-mpath-3600", disks.mapped("mpath-3600", disks.sata(), name="dm-7", number="253:7"))


def _multipath(disks: Disks) -> None:
    disks.mapped("mpath-3600508b4000156d7", disks.sata())


def _unnamed(disks: Disks) -> None:
    disks.mapped("", disks.sata())


def _raid(disks: Disks) -> None:
    (disks.made_of("md0", "253:0", disks.sata()) / "md").mkdir()


def _partition_of_a_raid(disks: Disks) -> None:
    (disks.made_of("md126", "9:126", disks.sata()) / "md").mkdir()
    disks.block("virtual/block/md126/md126p2", "253:0", "upper", 2)


def _bcache(disks: Disks) -> None:
    disks.made_of("bcache0", "253:0", disks.sata())


def _loop(disks: Disks) -> None:
    disks.block("virtual/block/loop0", "253:0", "upper")


def _nothing(disks: Disks) -> None:
    pass


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (_luks, "/srv is encrypted"),
        (_lvm, "/srv is a logical volume"),
        (_multipath, "/srv is reached by several paths"),
        (_partition_of_multipath, "/srv lies on part1"),
        (_unnamed, "/srv lies on device-mapper"),
        (_raid, "/srv lies on a software RAID"),
        (_partition_of_a_raid, "/srv lies on a software RAID"),
        (_bcache, "/srv lies on bcache0, which is made of other devices"),
        (_loop, "/srv lies on loop0, which no driver serves"),
        (_nothing, "the device /dev/mapper/x of /srv is not known to sysfs"),
    ],
)
def test_what_needs_more_than_a_driver_is_refused(
    machine: MachineRoot, disks: Disks, add: Callable[[Disks], None], words: str
) -> None:
    add(disks)
    with pytest.raises(NotSupported) as caught:
        _storage(machine, "253:0", source="/dev/mapper/x")
    assert str(caught.value) == words
    assert "Environment=rootfs" in caught.value.hint


def test_disk_over_the_network_is_refused(machine: MachineRoot, disks: Disks) -> None:
    disks.iscsi()
    with pytest.raises(NotSupported, match="/srv is reached by iSCSI"):
        _storage(machine, "8:48")


def test_subvolume_of_btrfs(machine: MachineRoot, disks: Disks) -> None:
    """Its device number is none of a device; all subvolumes are below the top, which is mounted."""
    disks.virtio()
    storage = _storage(machine, "0:35", "btrfs", "/dev/vda", "/@srv")
    assert (storage.device, storage.options) == (f"/dev/disk/by-uuid/{ROOT_UUID}", "rw,subvolid=5")
    assert storage.folder == "/@srv"
    assert {"btrfs", "virtio_blk", "crc32c_generic"} <= set(storage.drivers)


def test_btrfs_on_several_devices_is_refused(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    for name in ("vda", "vdb"):
        machine.write(f"sys/fs/btrfs/0b5e/devices/{name}/dev", "")
    with pytest.raises(NotSupported, match="on 2 devices"):
        _storage(machine, "0:35", "btrfs", "/dev/vda", "/@srv")


@pytest.mark.parametrize(
    ("kind", "driver"),
    [("xfs", "libcrc32c"), ("vfat", "nls_cp437"), ("f2fs", "crc32_generic"), ("ext4", "ext4")],
)
def test_what_a_file_system_asks_for_by_name(
    machine: MachineRoot, disks: Disks, kind: str, driver: str
) -> None:
    disks.virtio()
    assert {kind, driver} <= set(_storage(machine, "254:0", kind).drivers)


def test_bind_mount_names_the_folder_behind_it(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    assert _storage(machine, "254:0", folder="/data/crash\\040dumps").folder == "/data/crash dumps"


# The file systems of target and state


def test_state_that_cannot_be_had_is_done_without(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    disks.mapped("CRYPT-LUKS2-4e7a0c6d-var", disks.sata())
    machine.set_mounts(
        "1 0 253:0 / / rw - ext4 /dev/mapper/root rw", "2 1 254:0 / /var/crash rw - ext4 /dev/vda rw"
    )
    storages = find_storages(KernelFiles(machine.path), Config())
    assert (storages.target.device, storages.state) == (f"/dev/disk/by-uuid/{ROOT_UUID}", None)
    with pytest.raises(NotSupported, match="/ is encrypted"):
        find_storages(KernelFiles(machine.path), Config(target="/elsewhere"))


def test_target_behind_a_link(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    disks.sata("the-target")
    machine.set_mounts("1 0 254:0 / / rw - ext4 /dev/vda rw", "2 1 8:1 / /srv rw - ext4 /dev/sda1 rw")
    machine.write("srv/dumps/.keep", "")
    (machine.path / "var").mkdir(exist_ok=True)
    (machine.path / "var/crash").symlink_to(machine.path / "srv/dumps")
    storages = find_storages(KernelFiles(machine.path), Config())
    assert storages.target.device == "/dev/disk/by-uuid/the-target"
    assert storages.state is not None and storages.state.device == f"/dev/disk/by-uuid/{ROOT_UUID}"


def test_target_on_a_share_that_may_hang_is_not_asked_for_links(
    machine: MachineRoot, disks: Disks, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks.virtio()
    machine.set_mounts(
        "1 0 254:0 / / rw - ext4 /dev/vda rw", "2 1 0:50 / /var/crash rw - nfs4 server:/dead rw"
    )
    monkeypatch.setattr(KernelFiles, "true_path", lambda self, path: pytest.fail(f"{path} is asked"))
    with pytest.raises(NotSupported, match="/var/crash is a file system of type nfs4"):
        find_storages(KernelFiles(machine.path), Config())


def test_recipe_holds_the_drivers_of_a_watchdog_that_runs(machine: MachineRoot, disks: Disks) -> None:
    """And those of what it is reached by; a driver that is built in needs nothing."""
    disks.virtio()
    machine.set_mounts("1 0 254:0 / / rw - ext4 /dev/vda rw")
    bridge = machine.path / "sys/devices/pci0000:00/0000:00:1f.0"
    for place, module in ((bridge / "iTCO_wdt.1", "iTCO_wdt"), (bridge, "lpc_ich"), (bridge.parent, "")):
        driver = machine.path / f"sys/bus/any/drivers/{module or 'built-in'}"
        driver.mkdir(parents=True)
        if module:
            (machine.path / "sys/module" / module).mkdir(parents=True)
            (driver / "module").symlink_to(machine.path / "sys/module" / module)
        place.mkdir(parents=True, exist_ok=True)
        (place / "driver").symlink_to(driver)
    files = KernelFiles(machine.path)

    def drivers(identity: str, active: bool) -> set[str]:
        machine.add_watchdog("watchdog0", identity=identity, timeout_sec=30, active=active)
        return set(recipe_of(files, Config(), RELEASE, find_storages(files, Config())).all_drivers)

    (machine.path / "sys/class/watchdog/watchdog0").mkdir(parents=True)
    (machine.path / "sys/class/watchdog/watchdog0/device").symlink_to(bridge / "iTCO_wdt.1")
    assert {"iTCO_wdt", "lpc_ich"} <= drivers("iTCO_wdt", active=True)
    assert {"iTCO_wdt", "lpc_ich"}.isdisjoint(drivers("iTCO_wdt", active=False))
    assert {"iTCO_wdt", "lpc_ich"}.isdisjoint(drivers("Software Watchdog", active=True))


def test_recipe_holds_what_both_need_and_what_was_asked_for(machine: MachineRoot, disks: Disks) -> None:
    disks.virtio()
    disks.sata()
    machine.set_mounts("1 0 254:0 / / rw - xfs /dev/vda rw", "2 1 8:1 / /var/crash rw - ext4 /dev/sda1 rw")
    files = KernelFiles(machine.path)
    config = Config(extra_drivers="megaraid_sas ext4")
    recipe = recipe_of(files, config, RELEASE, find_storages(files, config))
    assert recipe.drivers == (
        "ahci", "crc32c_generic", "ext4", "libcrc32c", "loop", "megaraid_sas", "sd_mod", "squashfs",
        "virtio_blk", "virtio_pci", "xfs",
    )  # fmt: skip
    assert recipe.release == RELEASE


def test_settings_of_the_unit_that_cannot_be_read_are_left_out(
    machine: MachineRoot, disks: Disks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disks.virtio()
    machine.set_mounts("1 0 254:0 / / rw - ext4 /dev/vda rw")
    folder = machine.write("etc/systemd/system/kdump-capture.service.d/a.conf", "[Service]\n").parent
    (folder / "folder.conf").mkdir()
    (folder / "link.conf").symlink_to("nowhere")
    (folder / "loop.conf").symlink_to("loop.conf")
    (folder / "masked.conf").symlink_to("/dev/null")
    machine.write("usr/lib/systemd/system/kdump-capture.service.d/secret.conf", "")
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:  # root may read all
        if path.name == "secret.conf":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    files = KernelFiles(machine.path)
    found = recipe_of(files, Config(), RELEASE, find_storages(files, Config())).unit_settings
    assert [Path(path).name for path, _ in found] == ["a.conf", "masked.conf"]
    for name in ("folder", "link", "loop", "secret"):
        assert f"{name}.conf: cannot be read" in caplog.text
