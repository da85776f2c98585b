# SPDX-License-Identifier: LGPL-2.1-or-later
"""The vmcores that are measured: the whole memory of guests with bookworm's kernel, idle and at work.

As in `tests.vm.reference`, nothing of the project has a part in them. The capture boot copies /proc/vmcore to
a disk of its own, and that disk's image is the vmcore. Made once and kept in the cache: about 6 GB in all.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

from tests.vm.cache import Cache, digest, say
from tests.vm.disk import HOME, project_disk
from tests.vm.machine import Machine
from tests.vm.reference import PROGRAM, UNIT
from tests.vm.tree import base_tree

from .content import Load, content_disk

__all__ = ["GUESTS", "LOADER", "Guest", "benchmark_vmcore", "drive", "take_load"]

HERE = Path(__file__).parent
LOADER = HERE / "guest_load.py"
CRASHKERNEL = "256M"
MATERIAL_MIB = (
    64  # bytes of each kind of anonymous memory before they repeat; pages are compressed one by one
)
PIECE_MIB = 64  # size of the files in the page cache
LOAD_SEC = 900.0
CAPTURE_SEC = 900.0
WHOLE = "the vmcore is whole"

# The first process of the capture boot. /dev/vdb is as long as the memory, and reads as zeros where nothing
# was written.
CAPTURE = f"""\
#!/bin/sh
dd if=/proc/vmcore of=/dev/vdb bs=256K iflag=fullblock oflag=direct conv=sparse,notrunc && echo {WHOLE}
sync
systemctl --force --force poweroff
"""


@dataclass(frozen=True)
class Guest:
    """A machine whose memory is worth measuring on."""

    memory_mib: int
    load: Load | None = None


GUESTS = {
    "2g-idle": Guest(2048),
    "2g-loaded": Guest(
        2048,
        Load(
            cache_mib=480,
            text_mib=160,
            heap_mib=80,
            noise_mib=160,
            stale_mib=128,
            files=50_000,
            names=1_000_000,
        ),
    ),
    "8g-idle": Guest(8192),
    "8g-loaded": Guest(
        8192,
        Load(
            cache_mib=2560,
            text_mib=1024,
            heap_mib=512,
            noise_mib=1024,
            stale_mib=1024,
            files=200_000,
            names=1_000_000,
        ),
    ),
}


def benchmark_vmcore(cache: Cache, name: str) -> Path:
    """The vmcore of `GUESTS[name]`, a raw ELF core."""
    guest = GUESTS[name]
    tree = base_tree(cache)
    # How the guest arms itself (PROGRAM, UNIT) makes no difference to what is in its memory.
    sources = (LOADER.read_bytes(), (HERE / "content.py").read_bytes())
    key = digest(tree.key, tree.version, repr(guest), CRASHKERNEL, CAPTURE, *sources)

    def build(folder: Path) -> None:
        work = folder / "work"
        disk = project_disk(Cache(work / "cache"), tree, _install)
        vmcore = folder / "vmcore"
        with vmcore.open("wb") as file:
            file.truncate((guest.memory_mib + 64) << 20)
        disks = [vmcore]
        if guest.load:
            say(f"{name}: making what the guest reads")
            disks.append(content_disk(work, tree, guest.load))
        machine = Machine(
            disk,
            work / "machine",
            memory_mib=guest.memory_mib,
            crashkernel=CRASHKERNEL,
            qemu_arguments=[
                word for number, path in enumerate(disks) for word in drive(f"disk{number}", path)
            ],
        )
        with machine:
            (folder / "guest.txt").write_text(_load_and_crash(machine, guest))
        _cut_to_length(vmcore)
        shutil.rmtree(work)

    entry = cache.entry(f"benchmark-{name}", key, build, doing=f"vmcore of {name} for the benchmark", keep=1)
    return entry / "vmcore"


def _install(root: Path) -> None:
    home = root / HOME
    home.mkdir(parents=True)
    for program in (PROGRAM, LOADER):
        shutil.copy(program, home / program.name)
    capture = home / "reference-capture"
    capture.write_text(CAPTURE)
    capture.chmod(0o755)
    unit = root / "etc/systemd/system/kdump.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT)


def drive(name: str, path: Path) -> list[str]:
    """Words for QEMU: one more disk, /dev/vdb, /dev/vdc and so on in the guest."""
    drive = f"if=none,id={name},format=raw,cache=unsafe,discard=unmap,file={path}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _load_and_crash(machine: Machine, guest: Guest) -> str:
    """Returns what the guest said of its memory."""
    machine.wait_for_boot()
    machine.wait_until_armed()
    if guest.load:
        take_load(machine, guest.load, "/dev/vdc")
    said = machine.run("cat /proc/meminfo /proc/sys/fs/dentry-state /proc/vmstat /proc/slabinfo").stdout
    say("the guest dies")
    crashed = machine.crash("sysrq")
    machine.wait_for_console(WHOLE, since=crashed, timeout_sec=CAPTURE_SEC)
    machine.wait_for_event("SHUTDOWN", since=crashed)
    return said


def take_load(machine: Machine, load: Load, device: str) -> None:
    """Have the guest, which is up, do what its load says; `device` is the disk with the content."""
    argument = json.dumps(dataclasses.asdict(load))
    machine.run(f"mount -o ro {device} /mnt")
    say("the guest is up and takes its load")
    machine.spawn(f"exec python3 -I /{HOME}/{LOADER.name} '{argument}' >/run/load.log 2>&1")
    machine.wait_until("test -e /run/loaded", timeout_sec=LOAD_SEC)


def _cut_to_length(vmcore: Path) -> None:
    """The image of a disk becomes a file as long as its ELF headers say, with holes where there are zeros."""
    with vmcore.open("rb") as file:
        length = max(segment["p_offset"] + segment["p_filesz"] for segment in ELFFile(file).iter_segments())
    with vmcore.open("rb+") as file:
        file.truncate(length)
    subprocess.run(["fallocate", "--dig-holes", vmcore], check=True)
