# SPDX-License-Identifier: LGPL-2.1-or-later
"""How much memory and room a capture needs: from what earlier ones used, and from sizes of files.

Each figure is an upper bound, so that who follows it is on the safe side.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdump_service.arm.images import find_initramfs, find_kernel, release_of
from kdump_service.arm.loader import FileIdentity, Loader, LoadRequest, least_reservation_bytes
from kdump_service.config import Config
from kdump_service.errors import ImageMissing, ImageUnreadable
from kdump_service.image.store import ImageStore, Manifest
from kdump_service.kernel.crashkernel import aligned
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord, DumpState
from kdump_service.service.checks.target import TargetFacts
from kdump_service.service.rehearsal import measured_by_rehearsals
from kdump_service.service.shrunk import reserved_at_boot

__all__ = [
    "Need",
    "dump_bytes",
    "environment_of",
    "estimate",
    "measured_reservation_bytes",
    "of_the_same_kind",
    "reservation_need",
    "used_bytes",
]

_KIB = 1 << 10
_MIB = 1 << 20

_MARGIN = 0.25
"""Added to what captures used: other drivers, other firmware, a busier file system."""
_UNSEEN_BYTES = 41 * _MIB
"""What a capture kernel takes before it counts its memory: its image, page descriptors, early tables.
Measured with Debian's 6.1 on x86: 37 to 41 MiB of reservations from 80M to 256M. For records that do not
tell."""
_MOST_UNSEEN_BYTES = 128 * _MIB

_KERNEL_BYTES = 65 * _MIB
"""That, and what the kernel takes for itself until the first process starts; measured likewise: 62 to 65. It
does not grow with production's memory: with 8 GiB, no capture needed more than with 2."""
_PROCESSOR_BYTES = 1 << 10
"""For each processor of production; the capture boot starts one. A program header of 56 bytes, which the
capture kernel copies, and a copy of the note with the registers, 356 bytes on x86 (kernel/crash_core.c:
crash_prepare_elf64_headers; fs/proc/vmcore.c: merge_note_headers_elf64)."""
_FRAMES_PER_BYTE = 8
"""The survey keeps a bit for each frame of production, compressed (kdump_service/pfn.py). This is what they
take if nothing compresses, 32 KiB per GiB; measured with tests/bench/terabyte.py: 0.5 KiB per GiB. Nothing
else grows with memory: the whole survey took 28.4 MiB for 2 GiB, and 28.9 for 1 TiB."""

_CAPTURE_BYTES = 96 * _MIB
"""Allowance for PID 1, journal, udev, and the capture with its engine."""
_IMAGE_GROWTH = 4.5
"""While an initramfs is unpacked, the archive and its content lie in memory: measured 4.1 to 4.4 times the
archive's size. The content goes before the capture starts."""

_SMALL_CAPTURE_BYTES = 40 * _MIB
"""PID 1, journal and capture beside the small image: measured 37 MiB with Debian 12. What the image itself
takes is known when it is built, and in its manifest."""
_SMALL_GROWTH = 2.3
_SMALL_STAYS = 0.9
"""For an image without one: the most that lies in memory while it is unpacked, and what stays, in sizes of
its file; manifests say 2.2 and 0.85."""

_LOG_BYTES = 2 * _MIB
"""A dump folder without an image: log, record and journal."""
_UNTESTED_RATIO = 0.5
"""Compressed size of memory where no dump tells, as dbus/org.kdump.Kdump1.xml says."""

# Bits of a dump level (makedumpfile(8), -d).
_ALL_CACHE_BITS = 2 | 4
_USER_BIT = 8
_FREE_BIT = 16


def estimate(
    kernel_files: KernelFiles,
    config: Config,
    records: Sequence[DumpRecord],
    target_facts: TargetFacts | None,
    reserved_bytes: int | None = None,
) -> dict[str, int | str]:
    """The dictionary of the method Estimate (dbus/org.kdump.Kdump1.xml); what is not known is left out.

    ``records``: of this machine's crashes. ``target_facts``: None if the target was not asked.
    ``reserved_bytes``: as the status has it; None asks the kernel, which takes the lock of kexec for it.
    """
    if reserved_bytes is None:
        try:
            reserved_bytes = kernel_files.crash_size_bytes
        except OSError:  # EBUSY: a kernel is being loaded at this moment
            reserved_bytes = 0
    result: dict[str, int | str] = {
        "MemoryBytes": kernel_files.meminfo_kib().get("MemTotal", 0) * _KIB,
        "ReservedBytes": reserved_bytes,
        "Contents": config.contents,
        "DumpBytes": dump_bytes(kernel_files, config, records, reserved_bytes),
    }
    loaded = Loader(kernel_files).loaded_request()
    need = reservation_need(kernel_files, config, records, loaded, reserved_bytes)
    if need.used_bytes:
        result["CaptureUsedBytes"] = need.used_bytes
    if need.recommended_bytes:
        result["RecommendedBytes"] = need.recommended_bytes
        result["Basis"] = "measured" if need.measured_bytes >= need.images_bytes else "images"
    if target_facts is not None and target_facts.free_bytes is not None:
        result["TargetFreeBytes"] = max(target_facts.free_bytes - config.keep_free_bytes, 0)
    return result


@dataclass(frozen=True)
class Need:
    """Of memory, in bytes; 0 where nothing is known."""

    used_bytes: int = 0
    """The most that a capture boot used."""
    measured_bytes: int = 0
    """What to reserve by that."""
    images_bytes: int = 0
    """What to reserve by the sizes of kernel and initramfs."""

    @property
    def recommended_bytes(self) -> int:
        """What to reserve. Both count: nobody measures while the kernel unpacks its initramfs."""
        return max(self.measured_bytes, self.images_bytes)


def reservation_need(
    kernel_files: KernelFiles,
    config: Config,
    records: Iterable[DumpRecord],
    loaded: LoadRequest | None,
    reserved_bytes: int,
) -> Need:
    """What a crash now would take.

    ``records``: of this machine's crashes; rehearsals are added to them. ``loaded``: if nothing is, it is
    about what the files and the configuration would have loaded. ``reserved_bytes``: now.
    """
    images = _images(kernel_files, config, loaded)
    measured = of_the_same_kind(
        [*records, *measured_by_rehearsals(kernel_files.root)],
        kernel_files.release,
        "" if images is None else images.environment,
    )
    return Need(
        used_bytes(measured),
        measured_reservation_bytes(measured, reserved_at_boot(kernel_files, reserved_bytes)),
        0 if images is None else images.reservation_bytes(kernel_files),
    )


# What was measured


def environment_of(request: LoadRequest) -> str:
    """What a capture boot of this runs in, as in the configuration."""
    return "initramfs" if request.added_files else "rootfs"


def of_the_same_kind(records: Iterable[DumpRecord], release: str, environment: str) -> list[DumpRecord]:
    """The captures of this kernel in this environment; in any, if it is empty.

    Records of versions that did not write it down count for whatever is asked for: a machine's environment
    seldom changes, so that of now is the one that they most likely had.
    """
    return [
        record
        for record in records
        if record.kernel_release == release and (not environment or record.environment in ("", environment))
    ]


def used_bytes(records: Iterable[DumpRecord]) -> int:
    """The most memory that a capture boot used, in bytes: MemTotal less the smallest MemAvailable that was
    seen. 0 if there is none. One that was cut off counts, too: it used at least that."""
    return max((_used(record) for record in records), default=0)


def _used(record: DumpRecord) -> int:
    if not record.memory_total_kib or not record.memory_available_low_water_kib:
        return 0
    return max(record.memory_total_kib - record.memory_available_low_water_kib, 0) * _KIB


def measured_reservation_bytes(records: Sequence[DumpRecord], reserved_bytes: int) -> int:
    """What to reserve by :func:`used_bytes`: that, what the capture kernel took before it counted its memory,
    and a quarter more; rounded up to 16 MiB. 0 if nothing was measured.

    What it took uncounted is the reservation less its MemTotal, if the reservation is still that of then.
    """
    used = used_bytes(records)
    if not used:
        return 0
    total = max(record.memory_total_kib * _KIB for record in records)
    unseen = reserved_bytes - total
    if not 0 < unseen <= _MOST_UNSEEN_BYTES:
        unseen = _UNSEEN_BYTES
    return aligned((used + unseen) * (1 + _MARGIN))


# What the images take


@dataclass(frozen=True)
class _Images:
    """What a crash starts."""

    request: LoadRequest
    environment: str
    manifest: Manifest | None = None
    """Of the small image."""

    def reservation_bytes(self, kernel_files: KernelFiles) -> int:
        """What to reserve by the images' sizes, and the least whatever was measured: the kernel, and the
        larger of what unpacking its initramfs takes and what the capture does; rounded up to 16 MiB."""
        size = self.request.initramfs.size_bytes
        stays: float
        if self.environment != "initramfs":
            peak, stays, capture = _IMAGE_GROWTH * size, 0, _CAPTURE_BYTES
        elif self.manifest is not None:
            peak, stays, capture = (
                self.manifest.peak_bytes,
                self.manifest.unpacked_bytes,
                _SMALL_CAPTURE_BYTES,
            )
        else:
            peak, stays, capture = _SMALL_GROWTH * size, _SMALL_STAYS * size, _SMALL_CAPTURE_BYTES
        needed = _kernel_bytes(kernel_files) + max(peak, stays + capture + _bitmap_bytes(kernel_files))
        # Into less than the latter it would not be loaded.
        return aligned(max(needed, least_reservation_bytes(self.request)))


def _kernel_bytes(kernel_files: KernelFiles) -> int:
    ranges = [part.partition("-") for part in kernel_files.processors_present.split(",") if part]
    processors = sum(int(last or first) - int(first) + 1 for first, _, last in ranges)
    return _KERNEL_BYTES + processors * _PROCESSOR_BYTES


def _bitmap_bytes(kernel_files: KernelFiles) -> int:
    memory_bytes = _memory_kib(kernel_files, kernel_files.meminfo_kib(), 0) * _KIB
    return memory_bytes // os.sysconf("SC_PAGE_SIZE") // _FRAMES_PER_BYTE


def _images(kernel_files: KernelFiles, config: Config, loaded: LoadRequest | None) -> _Images | None:
    """What is loaded; else what would be, as far as that is seen without the looks that arming takes. None if
    there are no images."""
    if loaded is not None:
        if environment_of(loaded) == "rootfs":
            return _Images(loaded, "rootfs")
        path = Path(loaded.initramfs.path)
        its = [each for each in ImageStore(kernel_files.root).manifests() if each.path == path]
        return _Images(loaded, "initramfs", its[0] if its else None)
    root = kernel_files.root
    try:
        kernel = find_kernel(root, kernel_files.release, config)
        release = release_of(kernel) or kernel_files.release
        small = _newest_image(root, release, config)
        initramfs = find_initramfs(root, release, config) if small is None else small.path
        request = LoadRequest(FileIdentity.of(kernel), FileIdentity.of(initramfs), "")
    except (ImageMissing, ImageUnreadable):
        return None
    return _Images(request, "rootfs" if small is None else "initramfs", small)


def _newest_image(root: Path, release: str, config: Config) -> Manifest | None:
    """Of our own for this kernel, if such a one is used."""
    if config.image or config.environment != "initramfs":
        return None
    return next((each for each in ImageStore(root).manifests() if each.recipe.release == release), None)


# What a dump takes


def dump_bytes(
    kernel_files: KernelFiles, config: Config, records: Sequence[DumpRecord], reserved_bytes: int = 0
) -> int:
    """What a dump now would occupy at most.

    From all of the machine's memory is taken away, as far as the dump level leaves it out, and by the
    figures of /proc/meminfo: MemFree (16); Buffers, Cached and SwapCached (2 or 4: pages with private data
    are few, and count as cache); AnonPages and Hugetlb (8). So memory that /proc/meminfo has no name for
    counts as the kernel's, and pages of zeros (1) as full. The rest is multiplied by the worst ratio of
    stored bytes to pages of the complete dumps on record that were made with the same level, format and
    compression; or by half.
    """
    level = config.level
    if level is None:
        return _LOG_BYTES
    info = kernel_files.meminfo_kib()
    kept_kib = _memory_kib(kernel_files, info, reserved_bytes)
    if level & _FREE_BIT:
        kept_kib -= info.get("MemFree", 0)
    if level & _ALL_CACHE_BITS:
        kept_kib -= info.get("Buffers", 0) + info.get("Cached", 0) + info.get("SwapCached", 0)
    if level & _USER_BIT:
        kept_kib -= info.get("AnonPages", 0) + info.get("Hugetlb", 0)
    kept_kib = max(kept_kib, 0)
    return _LOG_BYTES + int(kept_kib * _KIB * _ratio(config, records))


def _memory_kib(kernel_files: KernelFiles, info: dict[str, int], reserved_bytes: int) -> int:
    """Memory that a dump may hold: the larger of two figures.

    MemTotal lacks the kernel's image and page descriptors. The blocks have them, but may reach into a gap;
    they count less the reservation, and at most a tenth above MemTotal.
    """
    total = info.get("MemTotal", 0)
    blocks = (kernel_files.memory_blocks * kernel_files.memory_block_bytes - reserved_bytes) // _KIB
    return max(total, min(blocks, total * 11 // 10 + 64 * _KIB))


def _ratio(config: Config, records: Sequence[DumpRecord]) -> float:
    codec = config.dump_options(processors=1).codec
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    ratios = []
    for record in records:
        content_bytes = (record.pages - record.zero_pages) * page_bytes
        same = (record.dump_level, record.format, record.compression) == (config.level, config.format, codec)
        if same and record.state is DumpState.COMPLETE and content_bytes > 0:
            ratios.append(record.stored_bytes / content_bytes)
    if ratios:
        return max(ratios)
    return 1.0 if codec == "none" else _UNTESTED_RATIO
