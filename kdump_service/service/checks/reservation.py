# SPDX-License-Identifier: LGPL-2.1-or-later
"""The memory of the crash kernel: what was asked for, what was got, what the next boot will ask for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kdump_service.kernel.boot_loader import BootLoaderFiles
from kdump_service.kernel.crashkernel import asks_for_reservation, requested, reservation_of
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes
from kdump_service.service.estimate import Need
from kdump_service.service.problems import Problem, found
from kdump_service.service.shrunk import Shrunk

__all__ = ["boot_loader_problems", "memory_span_bytes", "size_problems"]


def memory_span_bytes(kernel_files: KernelFiles, reserved_bytes: int) -> tuple[int, int]:
    """The least and the most that the kernel may have taken for the size of memory when it reserved.

    It counts its own image and page descriptors, which MemTotal lacks; blocks of memory may reach into gaps.
    """
    least = kernel_files.meminfo_kib().get("MemTotal", 0) * 1024 + reserved_bytes
    return least, max(least, kernel_files.memory_blocks * kernel_files.memory_block_bytes)


def size_problems(
    command_line: str,
    reserved_bytes: int,
    need: Need,
    memory_bytes: tuple[int, int],
    shrunk: Shrunk | None = None,
    *,
    too_small: bool = False,
) -> Iterator[Problem]:
    """``memory_bytes``: as :func:`memory_span_bytes` has it. ``shrunk``: what the service gave back.
    ``too_small``: kernel and image do not fit."""
    if not reserved_bytes:
        return  # why there is none, arming says
    if shrunk is not None:
        yield from _shrunk_problems(reserved_bytes, need.recommended_bytes, shrunk, too_small)
        reserved_bytes = shrunk.from_bytes
    asked_bytes = reservation_of(command_line).asked_between(*memory_bytes)
    if asked_bytes is not None and reserved_bytes < asked_bytes:
        yield found(
            "reservation-reduced",
            f"The kernel was asked for {' '.join(requested(command_line))}, and has "
            f"{format_bytes(reserved_bytes)} reserved.",
            "See: journalctl -k --grep crashkernel. If a program shrank it (by "
            "/sys/kernel/kexec_crash_size), a reboot brings it back.",
        )
    words = f"crashkernel={need.recommended_bytes >> 20}M in the boot loader's configuration, and reboot."
    if need.measured_bytes > reserved_bytes:
        yield found(
            "reservation-low",
            f"{format_bytes(reserved_bytes)} are reserved; captures on record used so much of it that "
            f"{format_bytes(need.measured_bytes)} are needed to be safe.",
            f"Set {words}",
        )
    elif need.images_bytes > reserved_bytes:
        by_size = (
            f"{format_bytes(reserved_bytes)} are reserved; by the size of kernel and initramfs, "
            f"{format_bytes(need.images_bytes)} would be safe."
        )
        if need.measured_bytes:
            but = "Captures on record used less, but nobody measures while the kernel unpacks its initramfs."
            yield found("reservation-tight", f"{by_size} {but}", f"Set {words}")
        else:
            yield found(
                "reservation-tight",
                f"{by_size} No capture was measured yet.",
                f"Try it: kdumpctl test. Or set {words}",
            )


def _shrunk_problems(
    reserved_bytes: int, needed_bytes: int, shrunk: Shrunk, too_small: bool
) -> Iterator[Problem]:
    needed_bytes = max(needed_bytes, shrunk.to_bytes)
    if too_small:
        why = "kernel and image do not fit any more"
    elif reserved_bytes < needed_bytes:
        why = f"{format_bytes(needed_bytes)} are needed now"
    else:
        return
    yield found(
        "reservation-shrunk",
        f"{format_bytes(reserved_bytes)} of {format_bytes(shrunk.from_bytes)} are left reserved since "
        f"Shrink= gave back the rest, and {why}.",
        "Reboot: it is all there again, and Shrink= goes by what is measured by then.",
    )


def boot_loader_problems(kernel_files: KernelFiles) -> Iterator[Problem]:
    """Will the next boot reserve memory?"""
    files = BootLoaderFiles(kernel_files.root, kernel_files.mounts)
    next_boot = files.next_boot()
    will_reserve = [line for line in next_boot if asks_for_reservation(line.text)]
    if not requested(kernel_files.command_line):
        if will_reserve:
            yield found(
                "reservation-after-reboot",
                f"{will_reserve[0].file} has crashkernel=, the running kernel was started without it.",
                "Reboot.",
            )
        return
    if next_boot and not will_reserve:
        yield found(
            "reservation-not-kept",
            f"The running kernel was started with {requested(kernel_files.command_line)[-1]}, but in "
            f"{_listed(line.file for line in next_boot)} there is no crashkernel=: the next boot reserves "
            "nothing.",
            _HOW_TO_ADD,
        )
        return
    sources = files.sources()
    if sources and not any(asks_for_reservation(source.text) for source in sources):
        yield found(
            "reservation-not-kept",
            f"There is no crashkernel= in {_listed(source.file for source in sources)}: the next update of "
            "the kernel or of the boot loader's menu takes the reservation away.",
            _HOW_TO_ADD,
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({name for name in names if not name.startswith("/etc/grub.d/")}))


_HOW_TO_ADD = "Add it for good: kdumpctl reserve SIZE"
