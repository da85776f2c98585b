# SPDX-License-Identifier: LGPL-2.1-or-later
"""What lies below a file system: its device, by a name that another boot understands too, and the drivers on
the way.

All from sysfs and udev's database; no device is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdump_service.errors import NotSupported
from kdump_service.kernel.mounts import Mount

__all__ = ["Storage", "drivers_of", "storage_of"]

_DISK_FILE_SYSTEMS = frozenset(
    {"btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "nilfs2", "vfat", "xfs"}
)

# What the modules of a file system ask for by name at run time, where no dependency tells of it: checksums of
# ext4 with metadata_csum, xfs and btrfs (crypto API), the tables of names of FAT.
_ASKED_FOR_BY_NAME = {
    "btrfs": ("crc32c_generic", "libcrc32c", "xxhash_generic", "blake2b_generic", "sha256_generic"),
    "ext4": ("crc32c_generic", "libcrc32c"),
    "f2fs": ("crc32_generic", "crc32c_generic"),
    "vfat": ("nls_ascii", "nls_cp437", "nls_iso8859_1", "nls_utf8"),
    "xfs": ("crc32c_generic", "libcrc32c"),
}

_REMEDY = "Environment=rootfs brings it up as production does."


@dataclass(frozen=True)
class Storage:
    """Of one file system on a local disk."""

    device: str
    """A path in /dev, the same in each boot where the file system has a UUID."""
    kind: str
    """Type of the file system."""
    options: str
    """For mount(8)."""
    folder: str
    """Which of its folders is mounted in production; ``/`` is all of it."""
    drivers: tuple[str, ...]
    """Names of kernel modules, sorted; those that are built in may be among them."""

    @property
    def early_name(self) -> str:
        """The device for mount(8) where there is no udev to make links yet."""
        folder, _, name = self.device.rpartition("/")
        return f"UUID={name}" if folder == "/dev/disk/by-uuid" else self.device


def storage_of(root: Path, mount: Mount) -> Storage:
    """Look below ``mount``. Raises NotSupported, with the reason, if a small image cannot bring it up
    alone."""
    if mount.kind not in _DISK_FILE_SYSTEMS:
        raise NotSupported(f"{mount.point} is a file system of type {mount.kind}", _REMEDY)
    folder = _device_folder(root, mount)
    drivers = {mount.kind, *_ASKED_FOR_BY_NAME.get(mount.kind, ())}
    _add_drivers(root, folder, mount.point, drivers)
    options = "rw"
    if mount.kind == "btrfs":
        for devices in root.glob("sys/fs/btrfs/*/devices"):
            names = [path.name for path in devices.iterdir()]
            if folder.name in names and len(names) > 1:
                raise NotSupported(f"{mount.point} is a file system on {len(names)} devices", _REMEDY)
        options += ",subvolid=5"  # the top, below which `folder` is counted
    return Storage(
        device=_stable_name(root, folder),
        kind=mount.kind,
        options=options,
        folder=mount.root,
        drivers=tuple(sorted(drivers)),
    )


def _device_folder(root: Path, mount: Mount) -> Path:
    """Of sysfs. btrfs has a device number of its own making; then the name that was mounted must do."""
    folder = root / "sys/dev/block" / mount.device
    if not folder.exists():
        folder = root / "sys/class/block" / Path(mount.source).name
    if not folder.exists():
        raise NotSupported(f"the device {mount.source} of {mount.point} is not known to sysfs", _REMEDY)
    return folder.resolve()


def _add_drivers(root: Path, folder: Path, point: str, drivers: set[str]) -> None:
    disk = folder.parent if (folder / "partition").exists() else folder
    if (disk / "dm").is_dir():
        kind = (disk / "dm/uuid").read_text(encoding="utf-8").partition("-")[0].strip() or "device-mapper"
        what = {"CRYPT": "is encrypted", "LVM": "is a logical volume", "mpath": "is reached by several paths"}
        raise NotSupported(f"{point} {what.get(kind, f'lies on {kind}')}", _REMEDY)
    if (disk / "md").is_dir():
        raise NotSupported(f"{point} lies on a software RAID", _REMEDY)
    if any((disk / "slaves").glob("*")):
        raise NotSupported(f"{point} lies on {disk.name}, which is made of other devices", _REMEDY)
    ways = [disk]
    # With native multipath a disk of NVMe is a virtual device; its controllers are beside it.
    ways += [path.resolve() for path in disk.parent.glob("nvme[0-9]*") if path.is_symlink()]
    found = set()
    for way in ways:
        if any(re.fullmatch(r"session\d+", place.name) for place in way.parents):
            # drivers/scsi/scsi_transport_iscsi.c
            raise NotSupported(f"{point} is reached by iSCSI", _REMEDY)
        found |= drivers_of(root, way)
    if not found:
        raise NotSupported(f"{point} lies on {disk.name}, which no driver serves", _REMEDY)
    drivers |= found - {""}


def drivers_of(root: Path, device: Path) -> set[str]:
    """Modules of the drivers of a device, a folder of sysfs, and of what it is reached by; an empty name
    stands for those that are built in."""
    devices = root / "sys/devices"
    found = set()
    for place in (device, *device.parents):
        if place in (devices, devices.resolve()):
            break
        driver = place / "driver"
        if driver.exists():
            found.add((driver / "module").resolve().name if (driver / "module").exists() else "")
    return found


def _stable_name(root: Path, folder: Path) -> str:
    """udev's database has what udev found in the super block (/run/udev/data/bMAJOR:MINOR, lines
    E:NAME=VALUE)."""
    number = (folder / "dev").read_text(encoding="utf-8").strip()
    try:
        lines = (root / "run/udev/data" / f"b{number}").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        if line.startswith("E:ID_FS_UUID="):
            return "/dev/disk/by-uuid/" + line.partition("=")[2]
    return f"/dev/{folder.name}"
