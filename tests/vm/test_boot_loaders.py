# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that start through firmware and a boot loader: reserve, crash, dump, and back the same way.

Also what the kernel demands of a crash kernel where it is locked down.
"""

import time

import pytest

from .boot_disk import BootLoader
from .conftest import MachineFactory
from .machine import Machine

SIZE = "256M"

# What the boot loader reads, and what packages make that from.
FILES: dict[BootLoader, str] = {
    "grub-bios": "/boot/grub /etc/default/grub /etc/default/grub.d",
    "systemd-boot": "/boot/efi/loader /etc/kernel",
    "secure-boot": "/boot/grub /boot/efi/EFI /etc/default/grub /etc/default/grub.d",
}
LOCKDOWN = "cat /sys/kernel/security/lockdown"


def files_that_reserve(machine: Machine, boot_loader: BootLoader) -> list[str]:
    """Those of the boot loader's files that have crashkernel= in them."""
    found = machine.run(f"grep -rlI crashkernel= {FILES[boot_loader]}", check=False)
    assert (found.status, found.stderr) in ((0, ""), (1, "")), found
    return found.stdout.split()


def reserve_and_crash(machine: Machine, boot_loader: BootLoader) -> None:
    """From a machine that reserves nothing to one with a dump that reserves nothing at its next boot."""
    machine.wait_for_boot()
    machine.wait_until("systemctl is-active kdump.service")
    said = machine.status()
    assert (said["State"], said["Reason"]) == ("not-armed", "no-reservation")
    assert files_that_reserve(machine, boot_loader) == []

    machine.run(f"kdumpctl reserve {SIZE}")
    assert files_that_reserve(machine, boot_loader) != []
    armed = machine.reboot()
    machine.wait_until_armed()
    assert machine.run("grep -o 'crashkernel=[^ ]*' /proc/cmdline").stdout == f"crashkernel={SIZE}\n"

    machine.crash("sysrq")
    machine.wait_for_boot()
    [dump] = machine.dumps()
    assert (dump.record["state"], dump.record["problems"]) == ("complete", [])
    assert dump.record["boot_id"] == armed.boot_id.replace("-", "")
    assert dump.record["kernel_release"] == armed.release
    # Back through the boot loader, and ready for the next crash.
    machine.wait_until_armed()

    machine.run("kdumpctl reserve --revert")
    assert files_that_reserve(machine, boot_loader) == []


BOOT_LOADERS = [
    pytest.param("grub-bios", marks=pytest.mark.promise("grub")),
    pytest.param("systemd-boot", marks=pytest.mark.promise("systemd-boot")),
]


@pytest.mark.promise("reserve-and-revert")
@pytest.mark.guest(boots=1)
@pytest.mark.parametrize("boot_loader", BOOT_LOADERS)
def test_the_next_kernel_reserves(machine_factory: MachineFactory, boot_loader: BootLoader) -> None:
    """It is told to by the boot loader; what comes of that is the same whoever started it."""
    with machine_factory(boot_loader=boot_loader, cpus=1) as machine:
        machine.wait_for_boot()
        firmware = machine.run("test -d /sys/firmware/efi", check=False).status == 0
        assert firmware == (boot_loader == "systemd-boot")
        machine.wait_until("systemctl is-active kdump.service")
        said = machine.status()
        assert (said["State"], said["Reason"]) == ("not-armed", "no-reservation")
        assert files_that_reserve(machine, boot_loader) == []
        if boot_loader == "systemd-boot":  # with grub, slower by far, in the part boot-loaders
            machine.run(f"kdumpctl reserve {SIZE}")
            assert files_that_reserve(machine, boot_loader) != []
            machine.run("kdumpctl reserve --revert")
            assert files_that_reserve(machine, boot_loader) == []
        machine.run(f"kdumpctl reserve {SIZE} && sync")
        assert files_that_reserve(machine, boot_loader) != []
        asked = time.monotonic()
        machine.spawn("systemctl --force reboot")
        line = machine.wait_for_console("Command line: ", since=asked).text
        assert f" crashkernel={SIZE}" in line


@pytest.mark.promise("reserve-and-revert")
@pytest.mark.guest(boots=3, captures=1)
@pytest.mark.part("boot-loaders")
@pytest.mark.parametrize("boot_loader", BOOT_LOADERS)
def test_reserve_and_crash(machine_factory: MachineFactory, boot_loader: BootLoader) -> None:
    with machine_factory(boot_loader=boot_loader, cpus=1) as machine:
        reserve_and_crash(machine, boot_loader)
        if boot_loader == "systemd-boot":
            kernel_install_has_the_image_built(machine)


def kernel_install_has_the_image_built(machine: Machine) -> None:
    """By the hook of this project; what is current is not built again."""
    release = machine.boots[-1].release
    # What systemctl show says is forgotten as soon as the unit has ended.
    built = "journalctl -b --no-pager -o cat -u 'kdump-build-image@*' | grep -c 'capture image is current'"
    earlier = machine.run(built, check=False).stdout.strip()
    machine.run(f"kernel-install add {release} /boot/vmlinuz-{release}")
    machine.wait_until(f'test "$({built})" -gt {earlier}')
    assert machine.run("grep -l crashkernel= /boot/efi/loader/entries/*", check=False).status == 1


@pytest.mark.promise("grub")
@pytest.mark.guest(boots=3, captures=1)
@pytest.mark.part("boot-loaders")
def test_secure_boot(machine_factory: MachineFactory) -> None:
    """Debian's generic kernel, signed by Debian, which locks itself down."""
    with machine_factory(boot_loader="secure-boot") as machine:
        reserve_and_crash(machine, "secure-boot")
        assert machine.run("mokutil --sb-state").stdout == "SecureBoot enabled\n"
        assert "[integrity]" in machine.run(LOCKDOWN).stdout
        assert "cloud" not in machine.boots[-1].release
        assert (machine.status()["State"], machine.status()["Loaded"]) == ("armed", True)
