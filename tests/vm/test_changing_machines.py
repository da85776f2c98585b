# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that change under the service: other kernels, more memory, more processors. And other machines
than the usual one: another Debian, the generic kernel, 8 GiB."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from .conftest import REPO, MachineFactory, OpenDumpOf
from .lab import Lab
from .machine import PLANTED_COMMAND, STATUS, Machine
from .test_capture_image import BUILD_IS_UNDER_WAY, BUILD_SEC, BUILDS, IMAGES, codes, image

GENERIC = "linux-image-amd64"
GIB = 1 << 30


def was_not_built_here(machine: Machine) -> bool:
    """Whether no image was built in this boot; journalctl fails where there never was such a unit."""
    return machine.run(BUILDS, check=False).stdout.strip() in ("", "-- No entries --")


@pytest.mark.promise("image-is-current")
@pytest.mark.guest(boots=4, captures=1, seconds=100)
@pytest.mark.part("machines")
def test_kernel_is_upgraded_and_downgraded(lab: Lab) -> None:
    """dpkg tells the service of a kernel, whose image is built before its first boot."""
    disk = lab.disk_with(GENERIC)
    cloud = disk.tree
    [new] = [path.name for path in (cloud.root / "usr/lib/modules").iterdir() if "cloud" not in path.name]
    generic = replace(
        cloud,
        release=new,
        kernel=cloud.root / f"boot/vmlinuz-{new}",
        initrd=cloud.root / f"boot/initrd.img-{new}",
    )
    with lab.machine(disk=disk) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        before = image(machine)
        # Of the two that were built with the disk, that of the running kernel stays.
        machine.run(
            f"cd {IMAGES} && find -name '*.img' ! -name {Path(before).name} -delete"
            f" && find -name '*.json' ! -name {Path(before).stem}.json -delete"
        )
        assert machine.run(f"ls {IMAGES}/*.img").stdout.split() == [before]
        # As dpkg does when it installs the package; without production's initramfs, which takes minutes.
        machine.run("rm -f /etc/kernel/postinst.d/*initramfs* /etc/kernel/postinst.d/dracut")
        machine.run(f"dpkg-reconfigure --frontend=noninteractive linux-image-{new}")
        machine.wait_until(f"{BUILDS} | grep 'Capture image built for Linux {new}'", timeout_sec=BUILD_SEC)
        machine.wait_until(f"! {BUILD_IS_UNDER_WAY}")
        assert len(machine.run(f"ls {IMAGES}/*.img").stdout.split()) == 2
        assert image(machine) == before
        assert machine.run("cat /sys/kernel/kexec_crash_loaded").stdout == "1\n"

        machine.poweroff()
        machine.disk = replace(disk, tree=generic)
        machine.start()
        assert machine.wait_for_boot().release == new
        machine.wait_until_armed()
        assert image(machine) not in (before, "")
        assert image(machine).startswith(IMAGES)
        assert was_not_built_here(machine)
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert (dump.record["state"], dump.record["kernel_release"]) == ("complete", new)

        machine.poweroff()
        machine.disk = disk
        machine.start()
        machine.wait_for_boot()
        machine.wait_until_armed()
        assert image(machine) == before
        assert was_not_built_here(machine)


@pytest.mark.promise("elf")
@pytest.mark.guest(boots=2, captures=1)
@pytest.mark.part("machines")
def test_memory_and_a_processor_are_plugged(machine_factory: MachineFactory, open_dump: OpenDumpOf) -> None:
    """What is loaded describes the machine of then, and is loaded anew; all below 4 GiB is the first module,
    so that the kernel takes what it needs from now on from the new one."""
    with machine_factory(
        files={"/etc/kdump-service.conf.d/test.conf": b"[Dump]\nFormat=elf\n"},
        command_line="memhp_default_state=online",
        qemu_arguments=("-m", "1024,slots=2,maxmem=4096M", "-smp", "2,sockets=4,cores=1,maxcpus=4"),
    ) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.add_memory(512)
        machine.add_processor(2)
        machine.wait_until("test -d /sys/devices/system/cpu/cpu2")
        machine.run("echo 1 >/sys/devices/system/cpu/cpu2/online")
        loaded_anew = "journalctl -b -u kdump.service -o cat --no-pager | grep 'loaded anew'"
        machine.wait_until(f"{loaded_anew} && ! {STATUS} | grep -E 'memory-changed|processors-'")
        assert not codes(machine) & {"memory-changed", "processors-changed"}
        machine.run("sync")
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert (dump.record["state"], dump.record["problems"]) == ("complete", [])
        assert dump.record["vmcore_bytes"] > 1.25 * GIB
        opened = open_dump(machine, dump)
    seen = opened.drgn(PLANTED_COMMAND)
    assert (seen.comm, seen.unreadable) == (PLANTED_COMMAND, "")
    # gdb shows fewer threads: idle processors are one task to it.
    with opened.vmcore.open("rb") as file:
        [notes] = ELFFile(file).iter_segments("PT_NOTE")
        assert isinstance(notes, NoteSegment)
        assert [note["n_type"] for note in notes.iter_notes()].count("NT_PRSTATUS") == 3


@pytest.fixture
def trixie(lab: Lab) -> Iterator[Lab]:
    made = Lab(REPO, lab.work / "trixie", suite="trixie", cache=lab.cache)
    yield made
    made.clean_up()
    shutil.rmtree(made.work, ignore_errors=True)


@pytest.mark.promise("opens-in-debuggers", "never-hang")
@pytest.mark.guest(boots=2, captures=1)
@pytest.mark.part("machines")
def test_trixie_with_8_gib_and_a_watchdog(trixie: Lab) -> None:
    """The watchdog would reset the machine amid the capture: systemd feeds it in production, and here too."""
    with trixie.machine(
        memory_mib=8192,
        files={"/etc/systemd/system.conf.d/test.conf": b"[Manager]\nRuntimeWatchdogSec=30s\n"},
        qemu_arguments=("-device", "i6300esb", "-action", "watchdog=reset"),
    ) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.wait_until("grep -qx active /sys/class/watchdog/watchdog0/state")
        machine.wait_until(f"{STATUS} | grep -q systemd.watchdog_sec=30")
        assert "watchdog-not-fed" not in codes(machine)
        assert image(machine).startswith(IMAGES)
        assert "root=" not in machine.status()["CommandLine"]
        assert was_not_built_here(machine)
        crashed = machine.crash("sysrq")
        machine.wait_for_boot()
        assert [event for event in machine.events if event.name == "WATCHDOG" and event.at > crashed] == []
        [dump] = machine.dumps()
        assert (dump.record["state"], dump.record["problems"]) == ("complete", [])
        assert dump.record["vmcore_bytes"] > 7 * GIB
        # Of PID 1 of the capture boot, to the kernel's log, since there was no journal yet.
        machine.wait_until("journalctl -b -1 -o cat --no-pager | grep -i 'hardware watchdog.*6300'")
        opened = trixie.open_dump(machine, dump)
    seen = opened.drgn(PLANTED_COMMAND)
    assert (seen.comm, seen.unreadable) == (PLANTED_COMMAND, "")
