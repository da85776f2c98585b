# SPDX-License-Identifier: LGPL-2.1-or-later
"""Watchdogs that do not wait for a capture; memory and processors that came or went since the load."""

from __future__ import annotations

from collections.abc import Iterator

from kdump_service.arm.command_line import WATCHDOG_WORD
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.hardware import Hardware
from kdump_service.kernel.unit_files import UnitFiles
from kdump_service.service.problems import Problem, found
from kdump_service.service.state import Status

__all__ = ["hotplug_problems", "watchdog_problems"]

_SHORTEST_CAPTURE_SEC = 60
"""Assumed while no capture is on record: drivers have to start, file systems to be found and checked."""
_SHORTEST_WATCHDOG_SEC = 30
"""Time for a capture boot to come to PID 1, which then feeds the watchdog."""


def watchdog_problems(kernel_files: KernelFiles, loaded: Status, capture_sec: float) -> Iterator[Problem]:
    """Watchdogs that run, and would strike before a capture is over if nobody feeds them meanwhile.

    ``loaded``: what is loaded for a crash. ``capture_sec``: what the longest capture on record took.
    """
    needed_sec = max(capture_sec, _SHORTEST_CAPTURE_SEC)
    # PID 1 of the capture boot feeds the first watchdog, once its driver is loaded: in the small image it is
    # told to; with the root file system by production's systemd-system.conf(5).
    fed = WATCHDOG_WORD in loaded.command_line
    if loaded.environment != "initramfs":
        setting = UnitFiles(kernel_files.root).setting("system.conf", "RuntimeWatchdogSec")
        fed = fed or setting not in ("", "0", "off")
    for watchdog in kernel_files.watchdogs:
        if not watchdog.outlives_the_kernel or watchdog.timeout_sec >= needed_sec:
            continue
        if not fed and loaded.environment == "initramfs":
            yield found(
                "watchdog-not-fed",
                f"{watchdog.name} ({watchdog.identity}) was started after the crash kernel was loaded, whose "
                f"image cannot feed it: it resets the machine after {watchdog.timeout_sec} s.",
                "Run: kdumpctl rebuild",
            )
            continue
        if fed and watchdog.timeout_sec >= _SHORTEST_WATCHDOG_SEC:
            continue
        yield found(
            "watchdog-too-short",
            f"{watchdog.name} ({watchdog.identity}) resets the machine when it is not fed for "
            f"{watchdog.timeout_sec} s; a capture may take {needed_sec:.0f} s, and no program of production "
            "runs meanwhile.",
            "Give it more time, or have systemd feed it in the capture boot, too: RuntimeWatchdogSec=30s or "
            "more in /etc/systemd/system.conf.",
        )


def hotplug_problems(kernel_files: KernelFiles, then: Hardware) -> Iterator[Problem]:
    """What came or went since the load, where the kernel does not adapt what is loaded by itself."""
    now = Hardware.of(kernel_files)
    block_bytes = kernel_files.memory_block_bytes
    if now.memory_blocks != then.memory_blocks and not kernel_files.updates_crash_header("memory"):
        change = (now.memory_blocks - then.memory_blocks) * block_bytes >> 20
        yield found(
            "memory-changed",
            f"Since the crash kernel was loaded, {abs(change)} MiB of memory were "
            + (
                "added: a dump would not hold them."
                if change > 0
                else "removed: a capture may stumble over it."
            ),
            "Run: kdumpctl rebuild",
        )
    if now.processors != then.processors and not kernel_files.updates_crash_header("cpu"):
        yield found(
            "processors-changed",
            f"When the crash kernel was loaded, the machine had the processors {then.processors}, now it has "
            f"{now.processors}: a dump may lack the registers of new ones.",
            "Run: kdumpctl rebuild",
        )
