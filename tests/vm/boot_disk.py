# SPDX-License-Identifier: LGPL-2.1-or-later
"""Disks with partitions and a boot loader on them, as Debian's installer leaves a machine.

Made in two steps, each in the cache. The shell has partitions and the boot loader's files, and no root file
system: a machine that QEMU starts by -kernel runs Debian's own tools once, so that they see real devices. The
disk is a copy of the shell with the project's root file system in it, so that a change of the project starts
no machine. Neither step needs loop devices.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .cache import Cache, digest
from .disk import (
    KEPT_DISKS,
    SIZE_MIB,
    WORDS,
    Disk,
    Firmware,
    Install,
    copy_image,
    make_file_system,
    make_root,
    stage,
    take_folder,
)
from .machine import Machine
from .tool import run_tool
from .tree import CLOUD_KERNEL, SUITE, Tree, base_tree

__all__ = ["BootLoader", "boot_loader_disk"]

BootLoader = Literal["grub-bios", "systemd-boot", "secure-boot"]

MIB = 1 << 20
SECTOR = 512
START_MIB = 1  # of the first partition, where every partitioning tool puts it
BIOS_BOOT_MIB = 1  # core.img has 30 KB
# As the installer makes it: FAT32 must have 65525 clusters, and mkfs.vfat takes clusters of 4 KiB.
ESP_MIB = 512
GPT_END_MIB = 1  # the second copy of the partition table

# Types of partitions: GRUB's manual, "BIOS installation"; UEFI specification, 5.3.3; Linux file system, which
# is what Debian's installer takes (the type for roots would make systemd mount things by itself).
BIOS_BOOT_TYPE = "21686148-6449-6E6F-744E-656564454649"
ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
LINUX_TYPE = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"

# The same at each build: boot loaders find their files by them.
DISK_ID = "6b64756d-7064-4973-8b00-000000000000"
FIRST_ID = "6b64756d-7061-4172-8400-000000000001"
SECOND_ID = "6b64756d-7061-4172-8400-000000000002"
ROOT_UUID = "6b64756d-7072-4f6f-8400-000000000002"
ESP_UUID = "6B64-756D"

FSTAB = f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\n"
FSTAB_ESP = f"UUID={ESP_UUID} /boot/efi vfat umask=0077 0 1\n"

# Beside /etc/default/grub, which stays as the package makes it. Nobody is there to choose.
GRUB_SETTINGS = f"""\
GRUB_TIMEOUT=0
GRUB_DISABLE_OS_PROBER=true
GRUB_CMDLINE_LINUX_DEFAULT=""
GRUB_CMDLINE_LINUX="{" ".join(WORDS[1:])}"
"""
GRUB_ON_SERIAL = """\
GRUB_TERMINAL=serial
GRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"
"""
GRUB_FILE = "etc/default/grub.d/00-kdump-test.cfg"

# The machine that installs the boot loader has no project; this stands in its place.
NO_SERVICE = """\
[Service]
Type=oneshot
ExecStart=/bin/true

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Recipe:
    """How one boot loader gets on a disk."""

    firmware: Firmware
    packages: tuple[str, ...]
    files: Mapping[str, str]  # of the root file system, path -> text
    commands: tuple[str, ...]  # run once in the machine, as an administrator would
    kernel_package: str = CLOUD_KERNEL

    @property
    def has_esp(self) -> bool:
        return self.firmware != "bios"

    @property
    def first_mib(self) -> int:
        return ESP_MIB if self.has_esp else BIOS_BOOT_MIB

    @property
    def root_offset(self) -> int:
        """Bytes before the root file system, which is the second partition."""
        return (START_MIB + self.first_mib) * MIB


RECIPES: dict[BootLoader, Recipe] = {
    "grub-bios": Recipe(
        firmware="bios",
        packages=("grub-pc",),
        files={"etc/fstab": FSTAB, GRUB_FILE: GRUB_SETTINGS + GRUB_ON_SERIAL},
        commands=("grub-install /dev/vda", "update-grub"),
    ),
    # What the package's own postinst does where it finds an ESP. Without this file kernel-install takes the
    # command line of the running kernel.
    "systemd-boot": Recipe(
        firmware="uefi",
        packages=("systemd-boot", "dosfstools"),
        files={
            "etc/fstab": FSTAB + FSTAB_ESP,
            "etc/kernel/cmdline": " ".join((f"root=UUID={ROOT_UUID}", *WORDS)) + "\n",
        },
        commands=(
            "bootctl install --make-machine-id-directory=auto",
            'kernel-install add "$(uname -r)" "/boot/vmlinuz-$(uname -r)"',
        ),
    ),
    # The firmware's variables belong to a machine, not to the disk, so this is the removable path, which the
    # installer offers, too ("Force GRUB installation to the EFI removable media path").
    "secure-boot": Recipe(
        firmware="secure-boot",
        packages=("grub-efi-amd64", "grub-efi-amd64-signed", "shim-signed", "mokutil", "dosfstools"),
        files={"etc/fstab": FSTAB + FSTAB_ESP, GRUB_FILE: GRUB_SETTINGS + "GRUB_TERMINAL=console\n"},
        commands=(
            "grub-install --target=x86_64-efi --uefi-secure-boot --no-nvram --force-extra-removable",
            "update-grub",
        ),
        kernel_package="linux-image-amd64",
    ),
}


def boot_loader_disk(cache: Cache, boot_loader: BootLoader, install: Install, suite: str = SUITE) -> Disk:
    """The disk with this boot loader and what `install` installs: the first time a minute and a machine."""
    recipe = RECIPES[boot_loader]
    tree = base_tree(cache, suite, recipe.packages, recipe.kernel_package)
    shell = _shell(cache, boot_loader, tree)
    with stage(cache, install, recipe.files) as staged:

        def build(folder: Path) -> None:
            root = folder / "root"
            make_root(tree, staged, root)
            run_tool("cp", "-a", "--remove-destination", f"{shell}/boot", root)
            copy_image(shell / "disk.img", folder / "disk.img")
            make_file_system(root, folder / "disk.img", offset=recipe.root_offset, uuid=ROOT_UUID)
            shutil.rmtree(root)

        key = digest(shell.name, staged.key)
        entry = cache.entry(
            f"{boot_loader}-disk", key, build, doing=f"{boot_loader} disk with the project", keep=KEPT_DISKS
        )
    return _disk(entry / "disk.img", tree, recipe, recipe.firmware)


def _disk(image: Path, tree: Tree, recipe: Recipe, firmware: Firmware) -> Disk:
    return Disk(image, tree, firmware, root=f"UUID={ROOT_UUID}", root_offset=recipe.root_offset)


def _shell(cache: Cache, boot_loader: BootLoader, tree: Tree) -> Path:
    """The entry with `disk.img`, whose root partition is a hole, and `boot`, which belongs in there."""
    recipe = RECIPES[boot_loader]

    def build(folder: Path) -> None:
        image = folder / "disk.img"
        with stage(cache, _install_nothing, recipe.files) as staged:
            make_root(tree, staged, folder / "root")
        (folder / "root/boot/efi").mkdir(exist_ok=True)
        _partition(image, recipe)
        make_file_system(folder / "root", image, offset=recipe.root_offset, uuid=ROOT_UUID)
        shutil.rmtree(folder / "root")
        machine = Machine(_disk(image, tree, recipe, "direct"), folder / "machine", cpus=1, crashkernel=None)
        with machine:
            machine.wait_for_boot()
            for command in recipe.commands:
                machine.run(command)
            machine.run("sync")
        # Kernel and initrd come along; they are what the tree has anyway.
        take_folder(machine.image, "/boot", folder, offset=recipe.root_offset)
        copy_image(machine.image, image)
        run_tool(
            *("fallocate", "--punch-hole", "--offset", str(recipe.root_offset)),
            *("--length", str(SIZE_MIB * MIB), image),
        )
        shutil.rmtree(folder / "machine")

    key = digest(tree.key, tree.version, repr(recipe), Path(__file__).read_bytes())
    return cache.entry(f"{boot_loader}-shell", key, build, doing=f"install {boot_loader}", keep=KEPT_DISKS)


def _install_nothing(root: Path) -> None:
    unit = root / "etc/systemd/system/kdump.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(NO_SERVICE)


def _partition(image: Path, recipe: Recipe) -> None:
    """Make the image: a GPT, the boot loader's partition, and one for the root file system."""
    end_mib = START_MIB + recipe.first_mib + SIZE_MIB + GPT_END_MIB
    with image.open("wb") as file:
        file.truncate(end_mib * MIB)
    first_type = ESP_TYPE if recipe.has_esp else BIOS_BOOT_TYPE
    table = (
        f"label: gpt\nlabel-id: {DISK_ID}\n"
        f"start={START_MIB}MiB, size={recipe.first_mib}MiB, type={first_type}, uuid={FIRST_ID}\n"
        f"start={START_MIB + recipe.first_mib}MiB, size={SIZE_MIB}MiB, type={LINUX_TYPE}, uuid={SECOND_ID}\n"
    )
    run_tool("sfdisk", "--quiet", image, text=table)
    if recipe.has_esp:
        run_tool(
            # In this order: --invariant sets an identity, too.
            *("mkfs.vfat", "-F", "32", "-n", "ESP", "--invariant", "-i", ESP_UUID.replace("-", "")),
            *("--offset", str(START_MIB * MIB // SECTOR), image, str(ESP_MIB * MIB // 1024)),
        )
