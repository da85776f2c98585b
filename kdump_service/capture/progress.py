# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tell the console and systemd how far the capture is, and keep its watchdog content while bytes move."""

from __future__ import annotations

import time
from collections.abc import Callable

from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes, format_seconds

__all__ = ["MemoryGauge", "Progress", "progress_line"]

_STATUS_INTERVAL_SEC = 1.0
_CONSOLE_INTERVAL_SEC = 5.0
"""A serial console takes about 10 ms for a line at 9600 baud; this often, it costs nothing."""


def progress_line(what: str, done_bytes: int, total_bytes: int, elapsed_sec: float) -> str:
    """``Saving: 43 % of 15.9 GiB, 512 MiB/s, 18.3 s left``."""
    percent = 100 * done_bytes // total_bytes if total_bytes else 100
    line = f"{what}: {percent} % of {format_bytes(total_bytes)}"
    if elapsed_sec > 0 and done_bytes > 0:
        rate = done_bytes / elapsed_sec
        line += f", {format_bytes(rate)}/s, {format_seconds((total_bytes - done_bytes) / rate)} left"
    return line


class MemoryGauge:
    """The capture boot's memory: at the start, and the least that was ever seen available."""

    def __init__(self, kernel_files: KernelFiles) -> None:
        self._kernel_files = kernel_files
        memory = kernel_files.meminfo_kib()
        self.total_kib = memory.get("MemTotal", 0)
        self.available_at_start_kib = memory.get("MemAvailable", 0)
        self.low_water_kib = self.available_at_start_kib

    def resident_kib(self) -> int:
        """The largest resident set that this process has had."""
        return self._kernel_files.peak_resident_kib()

    def sample(self) -> None:
        """Look once."""
        available = self._kernel_files.meminfo_kib().get("MemAvailable", self.low_water_kib)
        self.low_water_kib = min(self.low_water_kib, available)


class Progress:
    """One long piece of work that counts bytes."""

    def __init__(
        self,
        what: str,
        total_bytes: int,
        gauge: MemoryGauge,
        notify: Callable[[str], object],
        say: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``notify`` takes sd_notify(3) assignments, ``say`` a line for the console."""
        self._what = what
        self._total_bytes = total_bytes
        self._gauge = gauge
        self._notify = notify
        self._say = say
        self._clock = clock
        self._started = clock()
        self._notified = float("-inf")
        self._said = self._started

    def advance(self, done_bytes: int) -> None:
        """Bytes have moved: so many in all."""
        now = self._clock()
        if now - self._notified < _STATUS_INTERVAL_SEC:
            return
        self._notified = now
        self._gauge.sample()
        line = progress_line(self._what, done_bytes, self._total_bytes, now - self._started)
        self._notify(f"WATCHDOG=1\nSTATUS={line}")
        if now - self._said >= _CONSOLE_INTERVAL_SEC:
            self._said = now
            self._say(line)
