# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reference vmcores: the whole memory of a loaded guest, for each kernel that dumps are compared on.

Nothing of the project has a part in them: the guest arms itself with kexec_file_load(2), and the capture boot
is `cp /proc/vmcore`. So one is made once, in about two minutes, and stays as it is while the project changes.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, digest, say
from .debuggers import vmcoreinfo
from .disk import HOME, project_disk
from .machine import Machine
from .tree import Tree, base_tree

__all__ = ["GUESTS", "Guest", "Reference", "reference_vmcore"]

PROGRAM = Path(__file__).parent / "guest_reference.py"
KEPT = 4  # 0.6 to 0.9 GB each
BALLOON_MIB = 48
CAPTURE_SEC = 300.0

# In place of the project's unit, for which the machine waits.
UNIT = f"""\
[Unit]
Description=Arm for a reference vmcore

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/python3 -I /{HOME}/guest_reference.py arm

[Install]
WantedBy=multi-user.target
"""
# The first process of the capture boot, after Debian's initramfs. /proc is there already. Switched off within
# a system call that never returns: the kernel takes the disk away first, and no program could go on then.
CAPTURE = """\
#!/bin/sh
mount -o remount,rw /
rm -f /swap
cp --sparse=always /proc/vmcore /vmcore.part && mv /vmcore.part /vmcore
sync
mount -o remount,ro /
systemctl --force --force poweroff
"""


@dataclass(frozen=True)
class Guest:
    """A machine whose memory is worth comparing."""

    suite: str
    crashkernel: str
    qemu_arguments: tuple[str, ...] = ()
    memory_mib: int = 1536


# Together: struct page of three times, page tables of four and five levels, memory in one piece and on both
# sides of a hole (from 512 MiB to 4 GiB here).
GUESTS = {
    guest.suite: guest
    for guest in (
        Guest("bookworm", "256M"),
        Guest("trixie", "320M", ("-machine", "pc,max-ram-below-4g=512M")),
        Guest("sid", "320M", ("-cpu", "max")),
    )
}


@dataclass(frozen=True)
class Reference:
    """An ELF vmcore with all of a guest's memory; `key` stands for what went into it."""

    key: str
    tree: Tree
    vmcore: Path


class _LoadedMachine(Machine):
    def take_away(self, mib: int) -> None:
        """Have the guest give up memory: its pages are logically offline then."""
        self.execute("balloon", value=(self.memory_mib - mib) << 20)
        # Counted in base pages.
        self.wait_until(f"awk '/^balloon_inflate / {{ exit $2 < {mib << 8} }}' /proc/vmstat")


def _install(root: Path) -> None:
    home = root / HOME
    home.mkdir(parents=True)
    shutil.copy(PROGRAM, home / PROGRAM.name)
    capture = home / "reference-capture"
    capture.write_text(CAPTURE)
    capture.chmod(0o755)
    unit = root / "etc/systemd/system/kdump.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)


def reference_vmcore(cache: Cache, suite: str) -> Reference:
    """The reference vmcore of `GUESTS[suite]`."""
    guest = GUESTS[suite]
    tree = base_tree(cache, suite)
    # Not the tree's packages: the project's dependencies are among them, and they change with the project.
    key = digest(tree.version, repr(guest), str(BALLOON_MIB), UNIT, CAPTURE, PROGRAM.read_bytes())

    def build(folder: Path) -> None:
        work = folder / "work"
        # A cache of its own, so that this disk does not push out one of the project's.
        disk = project_disk(Cache(work / "cache"), tree, _install)
        machine = _LoadedMachine(
            disk,
            work / "machine",
            memory_mib=guest.memory_mib,
            crashkernel=guest.crashkernel,
            qemu_arguments=[*guest.qemu_arguments, "-device", "virtio-balloon-pci"],
        )
        with machine:
            (folder / "guest.txt").write_text(_load_and_crash(machine))
        machine.extract("/vmcore", folder / "vmcore")
        found = vmcoreinfo(folder / "vmcore")["OSRELEASE"]
        if found != tree.release:
            raise RuntimeError(f"the vmcore is of {found}, not of {tree.release}")
        shutil.rmtree(work)

    entry = cache.entry("reference", key, build, doing=f"reference vmcore of {suite}", keep=KEPT)
    return Reference(key=key, tree=tree, vmcore=entry / "vmcore")


def _load_and_crash(machine: _LoadedMachine) -> str:
    """Returns what the guest said of its load."""
    machine.wait_for_boot()
    machine.wait_until_armed()
    say(f"{machine.boots[0].release} is armed")
    machine.spawn(f"exec python3 -I /{HOME}/guest_reference.py load >/root/load.log 2>&1")
    machine.wait_until("test -e /run/loaded", timeout_sec=240)
    machine.take_away(BALLOON_MIB)
    said = machine.run("cat /root/load.log /proc/meminfo /proc/vmstat").stdout
    crashed = machine.crash("sysrq")
    machine.wait_for_event("SHUTDOWN", since=crashed, timeout_sec=CAPTURE_SEC)
    return said
