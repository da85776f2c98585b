# SPDX-License-Identifier: LGPL-2.1-or-later
"""Progress on a terminal: one line of standard error, written over and over, that leaves no trace."""

from __future__ import annotations

import os
import sys
import time

from kdump_service.ctl.text import display_width, ellipsized
from kdump_service.quantity import format_bytes, format_seconds

__all__ = ["ProgressLine", "bar"]

_INTERVAL_SEC = 0.2
_BAR_COLUMNS = 20
_DEFAULT_COLUMNS = 80


class ProgressLine:
    """Shows how far something got; nothing at all where standard error is no terminal."""

    def __init__(self, *, counts_bytes: bool = False) -> None:
        self._counts_bytes = counts_bytes
        self.shown = sys.stderr is not None and sys.stderr.isatty()
        """Whether there is a terminal."""
        self._last = 0.0
        self._began = time.monotonic()
        self._what = ""
        self._width = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` pages or bytes."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._began = what, now
        if not self.shown or now - self._last < _INTERVAL_SEC:
            return
        self._last = now
        amount = format_bytes(total) if self._counts_bytes else f"{total} pages"
        line = f"{bar(done / max(total, 1))} of {amount}"
        elapsed = now - self._began
        if done and elapsed > 1:
            if self._counts_bytes:
                line += f", {format_bytes(done / elapsed)}/s"
            line += f", {format_seconds(elapsed * (total - done) / done)} left"
        self._write(f"{what}: {line}")

    def tell(self, what: str, fraction: float) -> None:
        """An activity of the service, of which ``fraction`` is done; below 0: not known."""
        if self.shown and what:
            self._write(f"{what}: {bar(fraction)}" if fraction >= 0 else f"{what} ...")

    def clear(self) -> None:
        """Leave no trace."""
        if self._width:
            self._write("")
            sys.stderr.write("\r")
            sys.stderr.flush()

    def _write(self, line: str) -> None:
        try:
            columns = os.get_terminal_size(sys.stderr.fileno()).columns or _DEFAULT_COLUMNS
        except OSError:
            columns = _DEFAULT_COLUMNS
        line = ellipsized(line, columns - 1)  # a line that wraps cannot be written over
        width = display_width(line)
        sys.stderr.write(f"\r{line}{' ' * (self._width - width)}")
        sys.stderr.flush()
        self._width = width


def bar(fraction: float) -> str:
    """``[#####---------------] 25 %``."""
    fraction = min(max(fraction, 0.0), 1.0)
    full = int(fraction * _BAR_COLUMNS)
    return f"[{'#' * full}{'-' * (_BAR_COLUMNS - full)}] {int(fraction * 100)} %"
