# SPDX-License-Identifier: LGPL-2.1-or-later
"""The same inside a capture boot: seconds from the panic until the dump is on the disk.

Two guests with the same load and one processor in the capture boot. One runs the project as it is installed,
with its defaults. The other has makedumpfile as the first process after the initramfs: no systemd, no
journal, no log, no verification, which is less than any distribution does. Both are emulated, and both times
are the host's, from line to line of the console.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.cache import Cache, say
from tests.vm.disk import HOME, project_disk
from tests.vm.lab import Lab
from tests.vm.machine import Machine
from tests.vm.makedumpfile import Makedumpfile
from tests.vm.reference import PROGRAM, UNIT

from .content import content_disk
from .guests import GUESTS, LOADER, drive, take_load

__all__ = ["Capture", "measure_captures"]

REPO = Path(__file__).parents[2]
GUEST = "2g-loaded"
CRASHKERNEL = "256M"
CAPTURE_SEC = 600.0
PANIC = r"Kernel panic - not syncing"
OURS_SAVED = r"kdump: Dump saved"
PEER = f"/{HOME}/peer"
ARGUMENTS = "-l -d 31"

# The first process of the capture boot; see tests.vm.reference, whose way of arming this takes.
SCRIPT = f"""\
#!/bin/sh
mount -o remount,rw /
read began rest </proc/uptime
{PEER}/loader --library-path {PEER} {PEER}/makedumpfile {ARGUMENTS} /proc/vmcore /dump >/dev/null 2>&1
status=$?
sync
read ended rest </proc/uptime
echo "peer saved: status $status, $(stat -c %s /dump) bytes, from $began to $ended"
mount -o remount,ro /
systemctl --force --force poweroff
"""
PEER_SAVED = r"peer saved: status (\d+), (\d+) bytes, from ([\d.]+) to ([\d.]+)"


@dataclass(frozen=True)
class Capture:
    """What one capture took; seconds."""

    name: str
    panic_to_saved: float
    dump_seconds: float
    """Of these, filtering, writing and, in ours, verifying: without the boot, and what else is saved."""
    output_bytes: int
    details: dict[str, float] = field(default_factory=dict)


def measure_captures(makedumpfile: Makedumpfile, work: Path) -> list[Capture]:
    """One capture with each. Raises MachineLost, or AssertionError for a capture that failed."""
    lab = Lab(REPO, work / "lab")
    load = GUESTS[GUEST].load
    assert load is not None
    say("capture boots: making what the guests read")
    work.mkdir(parents=True, exist_ok=True)
    content = content_disk(work, lab.tree, load)
    try:
        return [_ours(lab, content), _peer(lab, makedumpfile, content)]
    finally:
        lab.clean_up()


def _ours(lab: Lab, content: Path) -> Capture:
    machine = lab.machine(
        memory_mib=GUESTS[GUEST].memory_mib,
        crashkernel=CRASHKERNEL,
        files={f"/{HOME}/{LOADER.name}": LOADER.read_bytes()},
        qemu_arguments=drive("content", content),
    )
    with machine:
        seconds, _ = _crashed(machine, OURS_SAVED)
        machine.wait_for_boot()
        [dump] = machine.dumps()
    record = dump.record
    assert record["state"] == "complete", record["problems"]
    stages: dict[str, float] = record["stage_seconds"]
    image = ("load-engine", "survey", "write-image", "verify", "commit")
    return Capture(
        name="kdump-service",
        panic_to_saved=seconds,
        dump_seconds=sum(stages.get(name, 0.0) for name in image),
        output_bytes=next(size for name, size in dump.files.items() if name.startswith("vmcore")),
        details={**stages, "uptime_at_start": record["capture_uptime_seconds"]},
    )


def _peer(lab: Lab, makedumpfile: Makedumpfile, content: Path) -> Capture:
    machine = Machine(
        # A cache of its own, so that this disk does not push out one of the project's.
        project_disk(Cache(lab.work / "cache"), lab.tree, _installer(makedumpfile)),
        lab.work / "peer",
        memory_mib=GUESTS[GUEST].memory_mib,
        crashkernel=CRASHKERNEL,
        qemu_arguments=drive("content", content),
    )
    lab.machines.append(machine)
    with machine:
        seconds, line = _crashed(machine, PEER_SAVED)
    said = re.search(PEER_SAVED, line)
    assert said is not None
    status, size, began, ended = said.groups()
    assert status == "0", line
    return Capture(
        name=f"makedumpfile {ARGUMENTS}, as first process",
        panic_to_saved=seconds,
        dump_seconds=float(ended) - float(began),
        output_bytes=int(size),
        details={"uptime_at_start": float(began)},
    )


def _crashed(machine: Machine, saved: str) -> tuple[float, str]:
    """Load and crash the guest; seconds from the panic to the line that says `saved`, and that line."""
    machine.wait_for_boot()
    machine.wait_until_armed()
    load = GUESTS[GUEST].load
    assert load is not None
    take_load(machine, load, "/dev/vdb")
    say("the guest dies")
    asked = machine.crash("sysrq")
    panic = machine.wait_for_console(PANIC, since=asked)
    line = machine.wait_for_console(saved, since=panic.at, timeout_sec=CAPTURE_SEC)
    return line.at - panic.at, line.text


def _installer(makedumpfile: Makedumpfile) -> Callable[[Path], None]:
    """What puts makedumpfile of sid, the libraries that it asks for and its loader into a tree."""
    loader, option, folder, program = makedumpfile.command("makedumpfile")
    listed = subprocess.run(
        [loader, option, folder, "--list", program], check=True, capture_output=True, text=True
    ).stdout
    libraries = re.findall(r"=> (\S+) \(", listed)

    def install(root: Path) -> None:
        home = root / HOME
        peer = root / PEER[1:]
        peer.mkdir(parents=True)
        shutil.copy(loader, peer / "loader")
        for path in (program, *libraries):
            shutil.copy(path, peer)
        for path in (PROGRAM, LOADER):
            shutil.copy(path, home)
        script = home / "reference-capture"
        script.write_text(SCRIPT)
        script.chmod(0o755)
        unit = root / "etc/systemd/system/kdump.service"
        unit.parent.mkdir(parents=True)
        unit.write_text(UNIT)

    return install
