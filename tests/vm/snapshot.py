# SPDX-License-Identifier: LGPL-2.1-or-later
"""Machines that were booted once and go on from there: each as often as it is asked for, within a second.

The memory is a file that each machine maps privately (copy on write), the state of the devices a small stream
beside it (QEMU's capability x-ignore-shared), and the disk a copy. QEMU 7.2 can do that; its own forms of it
(file:, mapped-ram) came with 8.2 and 9.0.

What all of them share is what the snapshot was made with: boot id, random state, and a clock that stood still
since. So a case about records, history or clocks boots a machine of its own, and so does one about the boot
itself or about another board, memory, or kernel command line. QEMU accepts a state under another command line
and has not what it names: the whole of it is in the snapshot's key.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self, TypedDict, Unpack

from tests.budget import guests

from .cache import Cache, digest
from .disk import AGENT_IN_CAPTURE, Disk, copy_image
from .events import Boot, MachineLost
from .machine import ENVIRONMENT_FILE, ROOTFS, Environment, Machine
from .qemu import Memory, qemu_version

__all__ = ["RestoredMachine", "RestoredOptions", "Snapshot", "armed_snapshot"]

KEPT = 3  # 0.5 to 0.9 GB each: of this state of the project, and of those before
WITHOUT_THE_MEMORY = {"capability": "x-ignore-shared", "state": True}
WITH_EVENTS = {"capability": "events", "state": True}
BUILDS = "'Building the capture image'"
AGENT_FILE = "/etc/kdump-service.conf.d/01-agent.conf"


@dataclass(frozen=True)
class Snapshot:
    """A machine that is armed and at rest."""

    folder: Path
    disk: Disk
    boot: Boot

    @property
    def memory(self) -> Path:
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        return self.folder / "state"


def armed_snapshot(cache: Cache, disk: Disk) -> Snapshot:
    """The usual machine, armed, after everything of its boot has come to rest."""
    usual = Machine(disk, Path("nowhere"))
    words = usual.qemu_words(Path("disk"), 0, 0)
    key = digest(disk.image.parent.name, qemu_version(), *words, Path(__file__).read_bytes())

    def build(folder: Path) -> None:
        with (folder / "memory").open("wb") as file:
            file.truncate(usual.memory_mib << 20)
        machine = Machine(disk, folder / "machine", memory=Memory(folder / "memory", shared=True))
        with machine:
            boot = machine.wait_for_boot()
            machine.wait_until_armed()
            # "degraded", where a unit of Debian's fails in a machine like this, is at rest, too.
            machine.run("systemctl is-system-running --wait", check=False)
            if machine.run(
                f"journalctl -b -u 'kdump-build-image@*' -o cat | grep {BUILDS}", check=False
            ).stdout:
                raise RuntimeError(
                    "the capture image of the disk is not what the machine wants: it built another"
                )
            machine.run("sync")
            _save(machine, folder)
        copy_image(machine.image, folder / "disk.img")
        (folder / "boot.json").write_text(json.dumps(asdict(boot)))
        for path in (folder / "machine").iterdir():
            path.unlink()
        (folder / "machine").rmdir()

    folder = cache.entry("snapshot", key, build, doing="snapshot of a machine that is armed", keep=KEPT)
    boot = Boot(**json.loads((folder / "boot.json").read_text()))
    return Snapshot(folder, replace(disk, image=folder / "disk.img"), boot)


def _save(machine: Machine, folder: Path) -> None:
    """Write the state of a machine whose memory is a shared file; it stands still from then on."""
    machine.execute("stop")
    machine.execute("migrate-set-capabilities", capabilities=[WITHOUT_THE_MEMORY, WITH_EVENTS])
    machine.execute("migrate", uri=f"exec:cat >{folder}/state")
    _wait_for_migration(machine)


def _wait_for_migration(machine: Machine) -> None:
    ended = machine.wait_for_event("MIGRATION", where=lambda data: data["status"] in ("completed", "failed"))
    if ended.data["status"] != "completed":
        raise MachineLost("QEMU failed to write or read the snapshot; it says why in qemu.log")


class RestoredOptions(TypedDict, total=False):
    """What a case may choose about a machine that was booted before; as in `MachineOptions`."""

    files: Mapping[str, bytes]  # guest path -> content: settings and units, in force when it is up
    agent_in_capture: bool
    environment: Environment
    disks: Sequence[Path]  # images of further disks


class RestoredMachine(Machine):
    """A machine that goes on from a snapshot: `with` brings it up, armed, with `files` put into it."""

    def __init__(
        self,
        snapshot: Snapshot,
        work: Path,
        module: Callable[[str], Path] | None = None,
        **options: Unpack[RestoredOptions],
    ) -> None:
        super().__init__(snapshot.disk, work, module, memory=Memory(snapshot.memory, shared=False))
        self._snapshot = snapshot
        self._put = dict(options.get("files", {}))
        self._disks = tuple(options.get("disks", ()))
        self._agent_in_capture = options.get("agent_in_capture", False)
        if options.get("environment", "rootfs" if self._agent_in_capture else "initramfs") == "rootfs":
            self._put[ENVIRONMENT_FILE] = ROOTFS
        if self._agent_in_capture:
            self._put[AGENT_FILE] = f"[Kernel]\nCommandLineAppend={AGENT_IN_CAPTURE}\n".encode()

    def __enter__(self) -> Self:
        self.work.mkdir(parents=True, exist_ok=True)
        copy_image(self.disk.image, self.image)
        self._incoming = ["-incoming", "defer"]
        self.start()
        self._incoming = []
        self.execute("migrate-set-capabilities", capabilities=[WITHOUT_THE_MEMORY, WITH_EVENTS])
        self.execute("migrate-incoming", uri=f"exec:cat {self._snapshot.state}")
        _wait_for_migration(self)
        self.execute("cont")
        # Nobody says hello: to the guest nothing has happened.
        self.boots.append(replace(self._snapshot.boot, at=time.monotonic()))
        self._seen = 1
        guests.COUNTED.restored += 1
        for image in self._disks:
            self.add_disk(image)
        for path, content in self._put.items():
            self.put(path, content)
        if any(path.startswith("/etc/systemd/") for path in self._put):
            self.run("systemctl daemon-reload")
        if any(path.startswith("/etc/kdump-service.conf") for path in self._put):
            self.run("systemctl reload kdump.service")
        return self
