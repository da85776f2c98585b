# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rehearsals for real: QEMU on this very host crashes Debian's kernel and captures it, with its image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.arm.plan import plan_load
from kdump_service.config import Config
from kdump_service.kernel.files import KernelFiles
from kdump_service.rehearse.main import leave_result
from kdump_service.rehearse.qemu import ACCELERATOR_VARIABLE
from kdump_service.rehearse.verdict import RESULT_FILE, Rehearsal
from tests.builders.machine_disks import put_image, small_image_machine
from tests.builders.machine_root import MachineRoot

from .disk import copy_image, take_folder
from .lab import Lab

IMAGES = "/var/lib/kdump-service/images"
RUNNING_LINE = "BOOT_IMAGE=/boot/vmlinuz root=UUID=0 ro quiet crashkernel=256M"


@pytest.fixture(scope="module")
def capture_image(lab_base: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one that was built for Debian's kernel."""
    folder = tmp_path_factory.mktemp("disk")
    disk = folder / "disk.img"
    copy_image(lab_base.disk.image, disk)
    take_folder(disk, IMAGES, folder)
    disk.unlink()
    [image] = (folder / "images").glob("*.img")
    return image


def _armed_machine(lab: Lab, image: Path, folder: Path, reserved_mib: int) -> MachineRoot:
    """A machine in a folder, armed with Debian's kernel and that image; with so little memory as the service
    itself might not arm."""
    machine = small_image_machine(folder, built=False)
    release = lab.tree.release
    put_image(machine, image.read_bytes(), release=release)
    machine.write(f"boot/vmlinuz-{release}", lab.tree.kernel.read_bytes())
    machine.write("proc/sys/kernel/osrelease", f"{release}\n")
    machine.write("proc/cmdline", f"{RUNNING_LINE}\n")
    machine.write("proc/meminfo", Path("/proc/meminfo").read_text())
    kernel_files = KernelFiles(machine.path)
    # The host's own kernel is left alone.
    Loader(kernel_files, load=lambda kernel, image, line: machine.set_loaded(True)).load(
        plan_load(kernel_files, Config()).request
    )
    machine.write("sys/kernel/kexec_crash_size", f"{reserved_mib << 20}\n")
    return machine


def _rehearse(machine: MachineRoot) -> Rehearsal:
    code = leave_result(machine.path)
    answer: dict[str, Any] = json.loads((machine.path / RESULT_FILE).read_text())
    assert code == 0, answer
    assert list((machine.path / "var/lib/kdump-service").glob("rehearsal-*")) == []
    return Rehearsal.from_json(answer["result"])


@pytest.mark.promise("rehearse", "back-soon")
@pytest.mark.guest(seconds=60)
def test_what_is_armed_captures_a_crash(lab: Lab, capture_image: Path, tmp_path: Path) -> None:
    """Also where KVM can be opened and hangs; the command line names no console that QEMU has."""
    result = _rehearse(_armed_machine(lab, capture_image, tmp_path / "machine", 256))
    assert result.passed, result
    assert 0 < result.seconds_to_capture < result.seconds_to_saved < result.seconds_to_reboot + 2
    assert 150 << 10 < result.memory_total_kib < 256 << 10
    assert 32 << 10 < result.memory_low_water_kib < result.memory_total_kib
    assert 1 << 20 < result.stored_bytes < 200 << 20


@pytest.mark.promise("rehearse", "out-of-memory")
@pytest.mark.guest(seconds=40)
def test_a_capture_that_runs_out_of_memory_is_told(
    lab: Lab, capture_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel loads it; it dies while it unpacks the image, and nothing of that is on a console."""
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "tcg")
    result = _rehearse(_armed_machine(lab, capture_image, tmp_path / "machine", 88))
    assert (result.passed, result.reason) == (False, "out-of-memory"), result
    assert "88.0 MiB are too little" in result.explanation
    assert result.hint == "Reserve more: kdumpctl reserve 128M"
    assert any(
        "Kernel panic - not syncing: System is deadlocked on memory" in line for line in result.console
    )
    assert 0 < result.seconds_to_reboot < 600


@pytest.mark.promise("rehearse", "reservation-too-small")
@pytest.mark.guest(seconds=20)
def test_a_reservation_that_holds_no_kernel_is_told(
    lab: Lab, capture_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ACCELERATOR_VARIABLE, "tcg")
    result = _rehearse(_armed_machine(lab, capture_image, tmp_path / "machine", 64))
    assert (result.passed, result.reason) == (False, "not-loaded"), result
    assert "do not fit into the 64.0 MiB reserved" in result.explanation
