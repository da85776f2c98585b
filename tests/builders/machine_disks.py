# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks of a machine, as sysfs and udev's database have them; and an image that was built for them.

The folders are those of real machines (Linux 6.1 to 6.12), with the links that the kernel makes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.builders.machine_root import RELEASE, MachineRoot

__all__ = ["ROOT_UUID", "SMALL_IMAGE_DRIVERS", "Disks", "put_image", "small_image_machine"]

ROOT_UUID = "0b7a1f0e-4b1c-4e0b-9a55-3f9e2d6c7b10"
SMALL_IMAGE_DRIVERS = (
    "crc32c_generic", "ext4", "libcrc32c", "loop", "squashfs", "virtio_blk", "virtio_pci",
)  # fmt: skip
"""What an image for ext4 on a disk of virtio holds."""


class Disks:
    """Adds disks to a machine."""

    def __init__(self, machine: MachineRoot) -> None:
        self._machine = machine
        self._devices = machine.path / "sys/devices"

    def device(self, path: str, driver: str = "", module: str = "", bus: str = "pci") -> Path:
        """A device below sys/devices, bound to a driver; a driver that is built in has no module."""
        folder = self._devices / path
        folder.mkdir(parents=True, exist_ok=True)
        if driver:
            place = self._machine.path / "sys/bus" / bus / "drivers" / driver
            place.mkdir(parents=True, exist_ok=True)
            self._link(folder / "driver", place)
            if module and not (place / "module").is_symlink():
                its = self._machine.path / "sys/module" / module
                its.mkdir(parents=True, exist_ok=True)
                self._link(place / "module", its)
        return folder

    def block(self, path: str, number: str, uuid: str = "", partition: int = 0) -> Path:
        """A disk or a partition, and what udev found on it."""
        folder = self._devices / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dev").write_text(f"{number}\n")
        if partition:
            (folder / "partition").write_text(f"{partition}\n")
        for place in (f"dev/block/{number}", f"class/block/{folder.name}"):
            link = self._machine.path / "sys" / place
            link.parent.mkdir(parents=True, exist_ok=True)
            self._link(link, folder)
        found = f"S:disk/by-uuid/{uuid}\nE:ID_FS_TYPE=ext4\nE:ID_FS_UUID={uuid}\n" if uuid else ""
        self._machine.write(f"run/udev/data/b{number}", f"I:1234567\n{found}G:systemd\n")
        return folder

    def virtio(self, name: str = "vda", number: str = "254:0", uuid: str = ROOT_UUID) -> Path:
        """A disk of virtio, without partitions."""
        controller = "pci0000:00/0000:00:04.0"
        self.device(controller, "virtio-pci", "virtio_pci")
        self.device(f"{controller}/virtio1", "virtio_blk", "virtio_blk", "virtio")
        return self.block(f"{controller}/virtio1/block/{name}", number, uuid)

    def nvme_multipath(self) -> Path:
        """A disk of NVMe by two controllers, with a partition on it: 259:2."""
        subsystem = "virtual/nvme-subsystem/nvme-subsys0"
        disk = self.block(f"{subsystem}/nvme0n1", "259:0")
        for number, address in enumerate(("0000:03:00.0", "0000:04:00.0")):
            port = f"pci0000:00/0000:00:1d.{number}"
            self.device(port, "pcieport")
            self.device(f"{port}/{address}", "nvme", "nvme")
            controller = self.device(f"{port}/{address}/nvme/nvme{number}")
            (controller / f"nvme0c{number}n1").mkdir()
            self._link(self._devices / subsystem / f"nvme{number}", controller)
        self.block(f"{subsystem}/nvme0n1/nvme0n1p2", "259:2", "aa-bb", 2)
        return disk

    def sata(self, uuid: str = "") -> Path:
        """sda behind ahci, with a partition on it: 8:1."""
        way = "pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0"
        self.device("pci0000:00/0000:00:1f.2", "ahci", "ahci")
        self.device(way, "sd", "sd_mod", "scsi")
        self.block(f"{way}/block/sda", "8:0")
        return self.block(f"{way}/block/sda/sda1", "8:1", uuid, 1)

    def usb(self) -> Path:
        """sdb, a stick: 8:17 is its partition."""
        host = "pci0000:00/0000:00:14.0"
        self.device(host, "xhci_hcd", "xhci_pci")
        self.device(f"{host}/usb1", "usb", "usbcore", "usb")
        self.device(f"{host}/usb1/1-1", "usb", "usbcore", "usb")
        self.device(f"{host}/usb1/1-1/1-1:1.0", "usb-storage", "usb_storage", "usb")
        way = f"{host}/usb1/1-1/1-1:1.0/host6/target6:0:0/6:0:0:0"
        self.device(way, "sd", "sd_mod", "scsi")
        self.block(f"{way}/block/sdb", "8:16")
        return self.block(f"{way}/block/sdb/sdb1", "8:17", "ABCD-1234", 1)

    def hyper_v(self) -> Path:
        """sdc of a virtual machine of Hyper-V: 8:33 is its partition."""
        bus = "LNXSYSTM:00/LNXSYBUS:00/ACPI0004:00/VMBUS:00"
        self.device(bus, "vmbus", "hv_vmbus", "acpi")
        adapter = f"{bus}/fd1d2cbd-ce7c-535c-966b-eb5f811c95f0"
        self.device(adapter, "hv_storvsc", "hv_storvsc", "vmbus")
        way = f"{adapter}/host2/target2:0:0/2:0:0:0"
        self.device(way, "sd", "sd_mod", "scsi")
        self.block(f"{way}/block/sdc", "8:32")
        return self.block(f"{way}/block/sdc/sdc1", "8:33", "hv", 1)

    def iscsi(self) -> Path:
        """sdd, reached over the network: 8:48."""
        way = "platform/host7/session1/target7:0:0/7:0:0:0"
        self.device(way, "sd", "sd_mod", "scsi")
        return self.block(f"{way}/block/sdd", "8:48", "net")

    def mapped(self, uuid: str, *below: Path, name: str = "dm-0", number: str = "253:0") -> Path:
        """A device of device-mapper, with the UUID that its owner gave it."""
        folder = self.made_of(name, number, *below)
        (folder / "dm").mkdir()
        (folder / "dm/uuid").write_text(f"{uuid}\n")
        return folder

    def made_of(self, name: str, number: str, *below: Path) -> Path:
        """A virtual device made of others."""
        folder = self.block(f"virtual/block/{name}", number, "upper")
        (folder / "slaves").mkdir()
        for each in below:
            self._link(folder / "slaves" / each.name, each)
        return folder

    def _link(self, link: Path, to: Path) -> None:
        link.symlink_to(os.path.relpath(to, link.parent))


def small_image_machine(path: Path, *, built: bool = True) -> MachineRoot:
    """A machine that can have a small image, and has a current one if it is ``built``."""
    machine = MachineRoot(path)
    machine.set_environment("initramfs")
    machine.write("etc/machine-id", "00112233445566778899aabbccddeeff\n")
    Disks(machine).virtio()
    machine.write("usr/bin/dracut", "#!/bin/sh\n").chmod(0o755)
    machine.write("usr/lib/dracut/modules.d/99kdump-service/module-setup.sh", "install() { :; }\n")
    machine.write("var/crash/.keep", "")
    if built:
        put_image(machine)
    return machine


def put_image(
    machine: MachineRoot,
    content: bytes = b"small image ",
    *,
    release: str = RELEASE,
    drivers: Iterable[str] = SMALL_IMAGE_DRIVERS,
    sources: Iterable[str] = ("usr/bin/kdump-service",),
    unit_settings: Mapping[str, str] | None = None,
    watchdog_drivers: Iterable[str] = (),
    built: str = "2026-11-23T04:00:00Z",
    schema: int = 1,
) -> Path:
    """An image with its manifest, as the service keeps it; its path."""
    digest = hashlib.sha256(content).hexdigest()
    document = {
        "recipe": {
            "release": release,
            "drivers": sorted(drivers),
            "unit_settings": [[path, each] for path, each in (unit_settings or {}).items()],
            "watchdog_drivers": sorted(watchdog_drivers),
            "schema": schema,
        },
        "sources": {f"/{path}": _source(machine.path / path) for path in sources},
        "image_sha256": digest,
        "image_bytes": len(content),
        "unpacked_bytes": 3 * len(content),
        "peak_bytes": 4 * len(content),
        "built": built,
        "build_seconds": 21.5,
        "packing": "squashfs",
    }
    name = hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]
    folder = "var/lib/kdump-service/images"
    machine.write(f"{folder}/{name}.json", json.dumps(document))
    return machine.write(f"{folder}/{name}.img", content)


def _source(path: Path) -> list[int | str]:
    status = path.stat()
    return [status.st_size, int(status.st_mtime), hashlib.sha256(path.read_bytes()).hexdigest()]
