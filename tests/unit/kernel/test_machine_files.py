# SPDX-License-Identifier: LGPL-2.1-or-later
"""Readers of what machines show of themselves: mounts, units, boot loaders, crashkernel=."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.kernel.boot_loader import BootLoaderFiles
from kdump_service.kernel.crashkernel import asks_for_reservation
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import holder_of, parse_mounts
from kdump_service.kernel.unit_files import UnitFiles
from tests.builders.machine_root import MachineRoot


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


# Mounts


def test_mounts_as_the_kernel_writes_them() -> None:
    mounts = parse_mounts(
        "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw,errors=remount-ro\n"
        "23 22 0:50 /sub /a\\040b\\134c ro,nosuid shared:2 master:3 propagate_from:1 - btrfs /dev/sdb "
        "rw,subvol=/x\n"
        "24 22 0:51 / /fuse rw - fuse.sshfs  rw,user_id=0\n"  # without a source
        "25 22 0:52 mnt:[4026531841] /run/ns rw - nsfs nsfs rw\n"
    )
    assert [(mount.point, mount.kind, mount.source) for mount in mounts] == [
        ("/", "ext4", "/dev/sda1"),
        ("/a b\\c", "btrfs", "/dev/sdb"),
        ("/fuse", "fuse.sshfs", ""),
        ("/run/ns", "nsfs", "nsfs"),
    ]
    assert [mount.read_only for mount in mounts] == [False, True, False, False]
    assert [mount.may_hang for mount in mounts] == [False, False, True, False]


def test_names_that_users_choose_break_no_line() -> None:
    text = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n30 22 0:60 / /home/u/a\x0c\x1c\u2028b rw - fuse.x x rw\n"
    assert [mount.point for mount in parse_mounts(text)] == ["/", "/home/u/a\x0c\x1c\u2028b"]


@given(st.text(alphabet="0123456789:/ -,\n\\ abc\x0c"))
def test_any_text_is_some_list_of_mounts(text: str) -> None:
    parse_mounts(text)


@pytest.mark.parametrize(
    ("line", "network", "hangs", "memory"),
    [
        ("nfs4 server:/x", True, True, False),
        ("cifs //server/x", True, True, False),
        ("fuse.sshfs u@server:/x", True, True, False),
        ("fuse.ntfs-3g /dev/sdb1", False, True, False),
        ("fuseblk /dev/sdb1", False, True, False),
        ("autofs systemd-1", False, True, False),
        ("virtiofs tag", False, True, False),
        ("xfs /dev/sdb1", False, False, False),
        ("tmpfs tmpfs", False, False, True),
        ("fusectl fusectl", False, False, False),
    ],
)
def test_kinds_of_file_systems(line: str, network: bool, hangs: bool, memory: bool) -> None:
    [mount] = parse_mounts(f"9 1 0:9 / /x rw - {line} rw\n")
    assert (mount.needs_network, mount.may_hang, mount.in_memory) == (network, hangs, memory)


@pytest.mark.parametrize("option", ["ro", "emergency_ro", "shutdown"])
def test_file_systems_that_are_read_only(option: str) -> None:
    [mount] = parse_mounts(f"9 1 0:9 / /x rw - ext4 /dev/sdb1 rw,errors=remount-ro,{option}\n")
    assert mount.read_only


def test_the_last_mount_on_a_point_is_the_one_that_is_seen() -> None:
    mounts = parse_mounts(
        "1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /var rw - ext4 b rw\n3 2 8:3 / /var rw - xfs c rw\n"
    )
    holder = holder_of("/var/crash", mounts)
    assert holder is not None
    assert holder.kind == "xfs"
    assert holder_of("/", []) is None


def test_mounts_of_the_machine_rather_than_those_of_the_service(machine: MachineRoot) -> None:
    machine.set_mounts("1 0 8:1 / / ro - ext4 /dev/sda1 rw")
    assert KernelFiles(machine.path).mounts[0].read_only
    machine.write("proc/1/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    assert not KernelFiles(machine.path).mounts[0].read_only


def test_this_machine() -> None:
    files = KernelFiles()
    assert "/" in files.mount_points
    assert "/proc" in files.mount_points
    assert files.watchdogs is not None
    assert files.processors_present.startswith("0")
    BootLoaderFiles(files.root, files.mounts).next_boot()
    UnitFiles(files.root).mounts_at_boot()


# crashkernel=


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("linux /vmlinuz root=/dev/vda crashkernel=256M", True),
        ('GRUB_CMDLINE_LINUX="crashkernel=256M"', True),
        ("GRUB_CMDLINE_LINUX_DEFAULT='quiet crashkernel=256M'", True),
        ("crashkernel=", False),
        ("nocrashkernel=256M", False),
        ("GRUB_CMDLINE_LINUX=", False),
    ],
)
def test_which_text_asks_for_a_reservation(text: str, asks: bool) -> None:
    assert asks_for_reservation(text) is asks


# Boot loaders


def _next(machine: MachineRoot) -> list[str]:
    files = KernelFiles(machine.path)
    return [line.text for line in BootLoaderFiles(files.root, files.mounts).next_boot()]


def test_lines_of_a_grub_menu(machine: MachineRoot) -> None:
    menu = "set extra='a b'\n# linux /no\nlinuxefi /vmlinuz root=x ${extra} $nothing\n  linux16 /two $extra\n"
    machine.write("boot/grub/grub.cfg", menu)
    assert _next(machine) == ["/vmlinuz root=x a b ", "/two a b"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        (
            "boot/loader/entries/a.conf",
            "title A\nlinux /vmlinuz\noptions root=x\noptions b=c\n",
            "root=x b=c",
        ),
        ("boot/extlinux/extlinux.conf", "LABEL l\n  LINUX /vmlinuz\n  APPEND root=x\n", "root=x"),
        ("boot/firmware/cmdline.txt", "root=x\n", "root=x"),
        ("etc/zipl.conf", '[linux]\nparameters = "root=x"\n', '"root=x"'),
    ],
)
def test_lines_of_other_boot_loaders(machine: MachineRoot, name: str, content: str, line: str) -> None:
    (machine.path / "boot/grub/grub.cfg").unlink()
    machine.write(name, content)
    assert _next(machine) == [line]


def test_what_an_automounter_holds_is_left_alone(machine: MachineRoot) -> None:
    machine.write("efi/loader/entries/a.conf", "options root=x\n")
    assert "root=x" in _next(machine)
    machine.set_mounts("1 0 8:1 / / rw - ext4 /dev/vda rw", "2 1 0:9 / /efi rw - autofs systemd-1 rw")
    assert "root=x" not in _next(machine)
    machine.set_mounts(
        "1 0 8:1 / / rw - ext4 /dev/vda rw",
        "2 1 0:9 / /efi rw - autofs systemd-1 rw",
        "3 2 8:2 / /efi rw - vfat /dev/vda2 rw",
    )
    assert "root=x" in _next(machine)


# Units


def test_unit_that_weighs_more(machine: MachineRoot) -> None:
    files = UnitFiles(machine.path)
    assert files.find("x.service") is None
    assert not files.is_masked("x.service")
    machine.write("usr/lib/systemd/system/x.service", "[Unit]\nDescription=low\n")
    machine.write("etc/systemd/system/x.service", "[Unit]\nDescription=high\n")
    assert "high" in UnitFiles(machine.path).text("x.service")


def test_settings_with_drop_ins(machine: MachineRoot) -> None:
    files = UnitFiles(machine.path)
    assert files.setting("journald.conf", "Storage") == ""
    machine.write("usr/lib/systemd/journald.conf", "[Journal]\nStorage=auto\n")
    machine.write("etc/systemd/journald.conf", "[Journal]\n#Storage=none\nStorage = volatile\nStorageX=1\n")
    assert files.setting("journald.conf", "Storage") == "volatile"
    machine.write("usr/lib/systemd/journald.conf.d/50-a.conf", "[Journal]\nStorage=none\n")
    assert files.setting("journald.conf", "Storage") == "none"
    (machine.path / "etc/systemd/journald.conf.d").mkdir()
    (machine.path / "etc/systemd/journald.conf.d/50-a.conf").symlink_to("/dev/null")
    assert files.setting("journald.conf", "Storage") == "volatile"


def test_mounts_that_a_boot_knows(machine: MachineRoot) -> None:
    machine.write(
        "etc/fstab",
        "#/dev/x /no xfs\n/dev/y /a\\040b xfs\n/dev/z /c/ xfs defaults 0 0\nswap none swap sw\n\n/x\n",
    )
    machine.write("etc/systemd/system/d.mount", "[Mount]\nWhere = /d\n")
    machine.write("run/systemd/transient/e.mount", "[Mount]\nWhere=/e\n")
    assert UnitFiles(machine.path).mounts_at_boot() == {"/a b", "/c", "/d"}


def test_watchdogs(machine: MachineRoot) -> None:
    machine.add_watchdog("watchdog0", identity="iTCO_wdt", timeout_sec=30)
    machine.add_watchdog("watchdog1", identity="Software Watchdog", timeout_sec=60, active=False)
    machine.write("sys/class/watchdog/watchdog2/identity", "without CONFIG_WATCHDOG_SYSFS\n")
    assert [(dog.identity, dog.active, dog.timeout_sec) for dog in KernelFiles(machine.path).watchdogs] == [
        ("iTCO_wdt", True, 30),
        ("Software Watchdog", False, 60),
    ]
