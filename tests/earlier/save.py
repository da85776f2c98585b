# SPDX-License-Identifier: LGPL-2.1-or-later
"""Save what this version writes: a machine that crashed twice, a boot loader, a captured specimen."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import zstandard

from kdump_service.capture.trial import run_capture_trial
from kdump_service.reserve.apply import apply_plan
from kdump_service.reserve.planner import make_plan
from kdump_service.reserve.way_back import WAY_BACK_FILE
from tests.builders.boot_trees import BootTree, debian_grub
from tests.vm.lab import Lab
from tests.vm.machine import Machine

REPO = Path(__file__).parents[2]
STATES = Path(__file__).parent / "states"
SPECIMEN = REPO / "packaging/specimen.vmcore.zst"
WORDS = ("crashkernel=300M",)
# What the service writes, without images and dumps, which are large: a specimen's are saved in their place.
SAVED = "/etc/kdump-service.conf.d /run/kdump-service /var/lib/kdump-service /var/crash"
LEFT_OUT = ("*.img", "lock", "capture.journal", "vmcore*", "environment.conf")


def crash_twice(machine: Machine) -> None:
    """A test crash with the defaults, and one that nobody asked for with other settings."""
    machine.spawn("kdumpctl test --yes")
    machine.wait_for_boot()
    machine.wait_until_armed()
    [first] = machine.dumps()
    machine.run(f"kdumpctl keep {Path(first.path).name}")
    machine.run("kdumpctl config set Contents log && kdumpctl config set KeepFree 100M")
    machine.crash("null_dereference")
    machine.wait_for_boot()
    machine.wait_until_armed()
    machine.wait_until("test $(ls /var/lib/kdump-service/records | wc -l) = 2")


def save_machine(machine: Machine, state: Path) -> None:
    """Take the files out of a machine that is up."""
    excludes = " ".join(f"--exclude='{pattern}'" for pattern in LEFT_OUT)
    machine.run(f"tar -cf /root/state.tar {excludes} -C / {SAVED.replace(' /', ' ').lstrip('/')}")
    unpack = ["tar", "-C", str(state), "--no-same-owner", "-x"]
    subprocess.run(unpack, input=machine.get("/root/state.tar"), check=True)


def save_way_back(state: Path, work: Path) -> None:
    """What `kdumpctl reserve` keeps of a boot loader's files."""
    tree = debian_grub(BootTree(work))
    apply_plan(tree.path, make_plan(tree.path, WORDS), tree.run)
    shutil.copy(tree.path / WAY_BACK_FILE, state / WAY_BACK_FILE)


def save_specimen(state: Path, work: Path) -> None:
    """Dumps of a vmcore of 3 KiB, one in each format and compression, with zstd(1) around."""
    (work / "proc").mkdir()
    packed = SPECIMEN.read_bytes()
    (work / "proc/vmcore").write_bytes(
        zstandard.ZstdDecompressor().decompress(packed, max_output_size=64 << 20)
    )
    with contextlib.redirect_stdout(None):
        run_capture_trial(str(work))
    for folder in work.glob("trial-*"):
        [dump] = folder.iterdir()
        saved = state / "specimen" / folder.name.removeprefix("trial-")
        shutil.copytree(dump, saved)
        for image in saved.glob("vmcore*"):  # nearly all of it is zeros
            image.with_name(f"{image.name}.zst").write_bytes(zstandard.compress(image.read_bytes()))
            image.unlink()


def write_list(state: Path) -> None:
    """files.txt: each file and its size in bytes."""
    files = sorted(path for path in state.rglob("*") if path.is_file() and path.name != "files.txt")
    lines = [f"{path.stat().st_size:8} {path.relative_to(state)}\n" for path in files]
    (state / "files.txt").write_text("".join(lines))


def main(name: str) -> None:
    """Save the state under this name."""
    state = STATES / name
    state.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="kdump-state-") as folder:
        work = Path(folder)
        lab = Lab(REPO, work / "lab")
        with lab.machine() as machine:
            machine.wait_for_boot()
            machine.wait_until_armed()
            crash_twice(machine)
            save_machine(machine, state)
        for step, saver in (("loader", save_way_back), ("specimen", save_specimen)):
            (work / step).mkdir()
            saver(state, work / step)
    version = subprocess.run(
        ["git", "-C", REPO, "log", "-1", "--format=%H %cs"], check=True, capture_output=True, text=True
    ).stdout
    (state / "of.json").write_text(json.dumps({"commit": version.strip()}) + "\n")
    write_list(state)


if __name__ == "__main__":
    main(sys.argv[1])
