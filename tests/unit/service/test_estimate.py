# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from kdump_service.arm.loader import Loader, LoadRequest
from kdump_service.arm.plan import plan_load
from kdump_service.config import Config
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpFile, DumpRecord, DumpState
from kdump_service.service.checks.target import TargetFacts
from kdump_service.service.estimate import (
    Need,
    dump_bytes,
    estimate,
    measured_reservation_bytes,
    of_the_same_kind,
    reservation_need,
    used_bytes,
)
from kdump_service.service.rehearsal import REHEARSALS_FILE
from tests.builders.machine_disks import put_image, small_image_machine
from tests.builders.machine_root import RELEASE, FakeKernel, MachineRoot

MIB = 1 << 20

# Of the size that an idle machine with 1 GiB and crashkernel=256M shows.
IDLE_1_GIB = """\
MemTotal:         730876 kB
MemFree:          512312 kB
MemAvailable:     591248 kB
Buffers:            7132 kB
Cached:           116564 kB
SwapCached:            0 kB
AnonPages:         26472 kB
Mapped:            38804 kB
Shmem:               844 kB
Slab:              33128 kB
Hugetlb:               0 kB
HugePages_Total:       0
"""


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    machine = MachineRoot(tmp_path)
    machine.write("proc/meminfo", IDLE_1_GIB)
    return machine


@pytest.fixture
def files(machine: MachineRoot) -> KernelFiles:
    return KernelFiles(machine.path)


def _record(**values: object) -> DumpRecord:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    described: dict[str, object] = {
        "state": DumpState.COMPLETE,
        "kernel_release": RELEASE,
        "memory_total_kib": 220680,
        "memory_available_low_water_kib": 120680,
        "format": "kdump",
        "compression": "zstd",
        "dump_level": 31,
        "pages": 1000 + 200,
        "zero_pages": 200,
        "files": [DumpFile("vmcore", 1000 * page_bytes, 250 * page_bytes)],
        **values,
    }
    return DumpRecord("crash", **described)  # type: ignore[arg-type]


def test_all_keys_of_the_interface(files: KernelFiles) -> None:
    facts = TargetFacts("/var/crash", free_bytes=1000 * MIB)
    result = estimate(files, Config(), [_record()], facts)
    assert result == {
        "MemoryBytes": 730876 << 10,
        "ReservedBytes": 256 * MIB,
        "CaptureUsedBytes": 100000 << 10,
        "RecommendedBytes": 176 * MIB,  # 97.7 used, 40.5 uncounted, a quarter more, rounded up
        "Basis": "measured",
        "Contents": "kernel",
        "DumpBytes": result["DumpBytes"],
        "TargetFreeBytes": 872 * MIB,
    }
    interface = (Path(__file__).parents[3] / "dbus/org.kdump.Kdump1.xml").read_text()
    for key in result:
        assert f" {key} " in interface


def test_dump_of_an_idle_machine_is_bounded(files: KernelFiles) -> None:
    """Measured: 24 MiB stored of what the kernel itself uses."""
    size = dump_bytes(files, Config(), [], 256 * MIB)
    assert 24 * MIB <= size <= 80 * MIB
    assert dump_bytes(files, Config(), [_record()], 256 * MIB) < size


def test_more_contents_take_more(files: KernelFiles) -> None:
    sizes = [
        dump_bytes(files, Config(contents=word), [], 256 * MIB)
        for word in ("log", "kernel", "user", "everything")
    ]
    assert sizes == sorted(set(sizes))
    assert sizes[0] == 2 * MIB
    assert sizes[3] <= 2 * MIB + 768 * MIB // 2
    # Anonymous memory, halved; nothing else is between the two.
    assert sizes[2] - sizes[1] == pytest.approx((26472 << 10) / 2, abs=4)


def test_levels_count_bit_by_bit(files: KernelFiles) -> None:
    whole = dump_bytes(files, Config(dump_level=0), [])
    for level, kib in (
        (16, 512312),
        (8, 26472),
        (4, 7132 + 116564),
        (2, 7132 + 116564),
        (6, 7132 + 116564),
        (1, 0),
    ):
        assert whole - dump_bytes(files, Config(dump_level=level), []) == pytest.approx(kib << 9, abs=4)


def test_ratio_is_the_worst_of_those_that_compare(files: KernelFiles) -> None:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    bad = _record(files=[DumpFile("vmcore", 0, 400 * page_bytes)])
    others = [
        _record(files=[DumpFile("vmcore", 0, 900 * page_bytes)], compression="zlib"),
        _record(files=[DumpFile("vmcore", 0, 900 * page_bytes)], dump_level=1),
        _record(files=[DumpFile("vmcore", 0, 900 * page_bytes)], state=DumpState.INCOMPLETE),
        _record(files=[], pages=0, zero_pages=0),
    ]
    assert dump_bytes(files, Config(), [_record(), bad, *others]) == dump_bytes(files, Config(), [bad])
    uncompressed = dump_bytes(files, Config(compression="none"), [])
    assert uncompressed == pytest.approx(2 * (dump_bytes(files, Config(), []) - 2 * MIB) + 2 * MIB, abs=4)


def test_nothing_measured_means_by_the_images(machine: MachineRoot, files: KernelFiles) -> None:
    os.truncate(machine.path / f"boot/initrd.img-{RELEASE}", 40 * MIB)
    other = _record(kernel_release="5.10.0-another")
    untold = _record(memory_available_low_water_kib=0)
    result = estimate(files, Config(), [other, untold], None)
    assert (result["Basis"], result["RecommendedBytes"]) == ("images", 256 * MIB)
    assert {"CaptureUsedBytes", "TargetFreeBytes"}.isdisjoint(result)


@pytest.mark.parametrize("file", [f"initrd.img-{RELEASE}", f"vmlinuz-{RELEASE}"])
def test_without_images_nothing_is_recommended(machine: MachineRoot, files: KernelFiles, file: str) -> None:
    (machine.path / "boot" / file).unlink()
    assert {"Basis", "RecommendedBytes"}.isdisjoint(estimate(files, Config(), [], None))
    assert estimate(files, Config(), [_record()], None)["RecommendedBytes"] == 176 * MIB


def test_what_was_measured_does_not_hide_what_unpacking_takes(
    machine: MachineRoot, files: KernelFiles
) -> None:
    os.truncate(machine.path / f"boot/initrd.img-{RELEASE}", 40 * MIB)
    result = estimate(files, Config(), [_record()], None)
    assert (result["Basis"], result["RecommendedBytes"]) == ("images", 256 * MIB)
    assert result["CaptureUsedBytes"] == 100000 << 10


def test_never_less_than_the_kernel_can_be_loaded_into(machine: MachineRoot, files: KernelFiles) -> None:
    head = bytearray(0x264)
    head[0x202:0x208] = b"HdrS\x0f\x02"
    head[0x260:0x264] = (300 * MIB).to_bytes(4, "little")  # init_size
    machine.write(f"boot/vmlinuz-{RELEASE}", bytes(head))
    assert estimate(files, Config(), [_record()], None)["RecommendedBytes"] == 320 * MIB


def test_most_memory_of_all_captures_counts(files: KernelFiles) -> None:
    cut_off = _record(state=DumpState.CAPTURING, memory_available_low_water_kib=680)
    assert used_bytes([_record(), cut_off]) == 220000 << 10
    assert used_bytes([]) == 0
    # The reservation was another one then: what was not counted is not known.
    assert measured_reservation_bytes([_record()], 1024 * MIB) == 176 * MIB
    assert measured_reservation_bytes([_record(memory_total_kib=900000)], 256 * MIB) > 256 * MIB


# Environments


def _small(**values: object) -> DumpRecord:
    """20 MiB less than :func:`_record`."""
    return _record(environment="initramfs", memory_available_low_water_kib=140680 + 480, **values)


def test_other_environments_and_kernels_do_not_count() -> None:
    small, rootfs, untold = _small(), _record(environment="rootfs"), _record()
    other = _record(kernel_release="6.2.0-other")
    records = [small, rootfs, untold, other]
    assert of_the_same_kind(records, RELEASE, "initramfs") == [small, untold]
    assert of_the_same_kind(records, RELEASE, "rootfs") == [rootfs, untold]
    assert of_the_same_kind(records, RELEASE, "") == [small, rootfs, untold]


@pytest.mark.parametrize("armed", [True, False], ids=["armed", "not-armed"])
def test_captures_and_images_of_the_environment_in_force(tmp_path: Path, armed: bool) -> None:
    """A machine with a small image, and an initramfs of its own that needs twice as much."""
    machine = small_image_machine(tmp_path)
    files, kernel = KernelFiles(tmp_path), FakeKernel(machine)
    os.truncate(tmp_path / f"boot/initrd.img-{RELEASE}", 40 * MIB)
    records = [_small(), _record(environment="rootfs", memory_available_low_water_kib=680)]

    def need(config: Config) -> Need:
        loaded = None
        if armed:
            loader = Loader(files, kernel.load, kernel.unload)
            loader.load(plan_load(files, config).request)
            loaded = loader.loaded_request()
        found = reservation_need(files, config, records, loaded, 256 * MIB)
        figures = estimate(files, config, records, None)
        assert (figures["CaptureUsedBytes"], figures["RecommendedBytes"]) == (
            found.used_bytes,
            found.recommended_bytes,
        )
        return found

    assert need(Config()) == Need(79520 << 10, 160 * MIB, 112 * MIB)
    rootfs = need(Config(environment="rootfs"))
    assert (rootfs.used_bytes, rootfs.images_bytes) == (220000 << 10, 256 * MIB)
    # The system's own initramfs is loaded until an image is built.
    for image in (tmp_path / "var/lib/kdump-service/images").iterdir():
        image.unlink()
    assert need(Config()) == rootfs


def test_rehearsals_are_of_the_small_image(tmp_path: Path) -> None:
    machine = small_image_machine(tmp_path)
    measure = {"release": RELEASE, "memory_total_kib": 220680, "memory_low_water_kib": 120680, "passed": True}
    machine.write(REHEARSALS_FILE, json.dumps([measure]))
    files = KernelFiles(tmp_path)
    assert estimate(files, Config(), [], None)["CaptureUsedBytes"] == 100000 << 10
    assert "CaptureUsedBytes" not in estimate(files, Config(environment="rootfs"), [], None)


# The small image


def _put_small_image(machine: MachineRoot, packed: int, stays: int, peak: int, **values: str) -> Path:
    """An image of so many MiB, with what its build measured."""
    path = put_image(machine, bytes(packed * MIB), **values)  # type: ignore[arg-type]
    manifest = path.with_suffix(".json")
    measured = {"unpacked_bytes": stays * MIB, "peak_bytes": peak * MIB}
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **measured}))
    return path


@pytest.fixture
def unbuilt(tmp_path: Path) -> MachineRoot:
    return small_image_machine(tmp_path, built=False)


def _by_images(machine: MachineRoot, loaded: LoadRequest | None = None) -> int:
    return reservation_need(KernelFiles(machine.path), Config(), [], loaded, 256 * MIB).images_bytes


@pytest.mark.parametrize("memory_gib", [2, 8])
def test_small_image_of_20_mib_needs_128(unbuilt: MachineRoot, memory_gib: int) -> None:
    """As ten of ten crashes have shown, with 2 and with 8 GiB of memory."""
    unbuilt.write("proc/meminfo", f"MemTotal: {memory_gib << 20} kB\n")
    unbuilt.set_memory_blocks(8 * memory_gib)
    _put_small_image(unbuilt, 20, 17, 44)
    assert _by_images(unbuilt) == 128 * MIB


def test_what_the_build_measured_counts(unbuilt: MachineRoot) -> None:
    _put_small_image(unbuilt, 20, 50, 60)
    assert _by_images(unbuilt) == 160 * MIB  # 65, 50 and 40; where no squashfs could be made
    _put_small_image(unbuilt, 21, 17, 100, built="2026-11-24T04:00:00Z")
    assert _by_images(unbuilt) == 176 * MIB  # 65 and 100


def test_images_of_other_kernels_do_not_count(unbuilt: MachineRoot) -> None:
    _put_small_image(unbuilt, 20, 17, 44)
    newer = _put_small_image(unbuilt, 60, 50, 140, release="6.12.9-other", built="2026-11-24T04:00:00Z")
    os.utime(newer, (1 << 33, 1 << 33))
    assert _by_images(unbuilt) == 128 * MIB


def test_image_that_is_loaded_and_not_the_newest(unbuilt: MachineRoot) -> None:
    kernel = FakeKernel(unbuilt)
    _put_small_image(unbuilt, 20, 17, 44)
    files = KernelFiles(unbuilt.path)
    loader = Loader(files, kernel.load, kernel.unload)
    loader.load(plan_load(files, Config()).request)
    loaded = loader.loaded_request()
    assert loaded is not None
    assert loaded.added_files
    newer = _put_small_image(unbuilt, 60, 50, 140, built="2026-11-24T04:00:00Z")
    assert _by_images(unbuilt, loaded) == 128 * MIB
    assert _by_images(unbuilt) == 208 * MIB
    # Without its manifest, by its size.
    for manifest in newer.parent.glob("*.json"):
        manifest.unlink()
    assert _by_images(unbuilt, loaded) == 128 * MIB


def test_large_machines_take_little_more(unbuilt: MachineRoot) -> None:
    _put_small_image(unbuilt, 20, 17, 44)
    unbuilt.write("proc/meminfo", f"MemTotal: {1 << 30} kB\n")  # 1 TiB: 32 MiB of bits at most
    assert _by_images(unbuilt) == 160 * MIB
    unbuilt.write("proc/meminfo", "MemTotal: 2097152 kB\n")
    unbuilt.write("sys/devices/system/cpu/present", "0-4095,8192-12287,20000\n")
    assert _by_images(unbuilt) == 144 * MIB  # 8193 notes


# What else is told


def test_target_with_less_than_it_is_to_keep(files: KernelFiles) -> None:
    facts = TargetFacts("/var/crash", free_bytes=1 * MIB)
    assert estimate(files, Config(), [], facts)["TargetFreeBytes"] == 0
    assert "TargetFreeBytes" not in estimate(files, Config(), [], TargetFacts("/x", silent=True))


def test_kernel_that_loads_at_this_moment(files: KernelFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(_: KernelFiles) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(KernelFiles, "crash_size_bytes", property(busy))
    assert estimate(files, Config(), [], None)["ReservedBytes"] == 0
    assert estimate(files, Config(), [], None, 256 * MIB)["ReservedBytes"] == 256 * MIB


def test_this_machine_has_an_estimate() -> None:
    result = estimate(KernelFiles(), Config(), [], None)
    memory = result["MemoryBytes"]
    assert isinstance(memory, int)
    assert 0 < int(result["DumpBytes"]) < memory
