# SPDX-License-Identifier: LGPL-2.1-or-later
"""Everything a case needs, made on first use: base tree, project disk, symbols, machines, opened dumps.

Usable without pytest too: `Lab(repo, work).machine()` is what a demonstration is made of.
"""

import functools
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import lz4.frame

from .apt import ROLLING
from .boot_disk import BootLoader, boot_loader_disk
from .cache import Cache, slow_step
from .debuggers import OpenDump
from .disk import Disk, Install, project_disk
from .events import GuestDump
from .machine import Machine, MachineOptions
from .makedumpfile import Makedumpfile
from .package import Package
from .snapshot import RestoredMachine, RestoredOptions, Snapshot, armed_snapshot
from .symbols import kernel_module, vmlinux
from .tree import SUITE, Tree, base_tree

__all__ = ["Lab", "crash_command"]

IMAGES = ("vmcore", "vmcore.lz4", "vmcore.incomplete", "vmcore.lz4.incomplete")
PIECE = 64 << 10  # bytes; all zero becomes a hole


class Lab:
    """Machines of the project in the checkout `repo`; all that they leave behind is under `work`."""

    def __init__(
        self,
        repo: Path,
        work: Path,
        *,
        suite: str = SUITE,
        cache: Cache | None = None,
        install: Install | None = None,
    ) -> None:
        """`install` instead of the project's package is for trying the harness on something else."""
        self.work = work
        self.suite = suite
        self.cache = cache or Cache()
        self.machines: list[Machine] = []
        self._numbers = itertools.count()
        self._boot_loader_disks: dict[BootLoader, Disk] = {}
        self.package = Package(self.cache, repo)
        self._install = install or self.package

    @functools.cached_property
    def tree(self) -> Tree:
        return base_tree(self.cache, self.suite)

    @functools.cached_property
    def disk(self) -> Disk:
        return project_disk(self.cache, self.tree, self._install)

    def boot_loader_disk(self, boot_loader: BootLoader) -> Disk:
        """The project's disk with a boot loader."""
        if boot_loader not in self._boot_loader_disks:
            disk = boot_loader_disk(self.cache, boot_loader, self._install, self.suite)
            self._boot_loader_disks[boot_loader] = disk
        return self._boot_loader_disks[boot_loader]

    @functools.cached_property
    def vmlinux(self) -> Path:
        return vmlinux(self.cache, self.tree)

    def disk_with(self, *packages: str) -> Disk:
        """The project's disk with further packages of Debian."""
        return project_disk(self.cache, base_tree(self.cache, self.suite, packages), self._install)

    def machine(
        self,
        *,
        boot_loader: BootLoader | None = None,
        disk: Disk | None = None,
        **options: Unpack[MachineOptions],
    ) -> Machine:
        """A machine, switched off; `with` switches it on. With a boot loader it has the firmware for it."""
        disk = disk or (self.boot_loader_disk(boot_loader) if boot_loader else self.disk)
        work = self.work / f"machine{next(self._numbers)}"
        machine = Machine(disk, work, functools.partial(kernel_module, self.cache, disk.tree), **options)
        self.machines.append(machine)
        return machine

    @functools.cached_property
    def snapshot(self) -> Snapshot:
        """The usual machine, armed."""
        return armed_snapshot(self.cache, self.disk)

    def restored(self, **options: Unpack[RestoredOptions]) -> RestoredMachine:
        """A machine that was booted and armed before; `with` has it go on from there. See `snapshot` for what
        it is not good for."""
        work = self.work / f"machine{next(self._numbers)}"
        module = functools.partial(kernel_module, self.cache, self.disk.tree)
        machine = RestoredMachine(self.snapshot, work, module, **options)
        self.machines.append(machine)
        return machine

    def open_dump(self, machine: Machine, dump: GuestDump) -> OpenDump:
        """Take the dump's image out of the machine, whose plug is pulled for it."""
        name = next((name for name in IMAGES if name in dump.files), None)
        if name is None:
            raise AssertionError(f"{dump.path} holds no image, only {sorted(dump.files)}")
        if machine.running:
            machine.run("sync")
            machine.stop()
        with slow_step(f"take {name} ({dump.files[name] >> 20} MiB) out of the machine"):
            image = machine.extract(f"{dump.path}/{name}", machine.work / f"{Path(dump.path).name}.{name}")
            if ".lz4" in name:
                image = _decompress(image)
        by = machine.crashed_by
        modules = [kernel_module(self.cache, machine.disk.tree, by)] if by == "null_dereference" else []
        symbols = vmlinux(self.cache, machine.disk.tree)
        return OpenDump(image, symbols, modules, crash_command=crash_command(self.cache, self.suite))

    def clean_up(self, machines: Sequence[Machine] | None = None) -> None:
        """Switch these machines off, or all, and remove what they left on the host: disks, dumps."""
        for machine in list(self.machines if machines is None else machines):
            machine.stop()
            shutil.rmtree(machine.work, ignore_errors=True)
            self.machines.remove(machine)


def crash_command(cache: Cache, suite: str) -> list[str]:
    """The crash that opens dumps of this suite's kernel: the machine's, or for newer kernels that of sid."""
    if suite == SUITE:
        return ["crash"]
    # crash 9.0.2 ends at once on Linux 7.2 if it looks for modules: "invalid structure member offset:
    # module_num_gpl_syms".
    return [*Makedumpfile(cache).crash, *(["--no_modules"] if suite in ROLLING else [])]


def _decompress(packed: Path) -> Path:
    """Unpack LZ4 frames into a file with holes where there are zeros; the packed file goes."""
    image = packed.with_name(packed.name.replace(".lz4", ""))
    with lz4.frame.open(packed) as source, image.open("wb") as target:
        while piece := source.read(PIECE):
            if piece.strip(b"\0"):
                target.write(piece)
            else:
                target.seek(len(piece), 1)
        target.truncate(target.tell())
    packed.unlink()
    return image
