# SPDX-License-Identifier: LGPL-2.1-or-later
"""Bytes and times: parse what administrators write, format what they read.

Sizes use systemd's rule: a suffix K, M, G, T counts in powers of 1024.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

__all__ = ["format_bytes", "format_seconds", "format_utc", "parse_bytes", "parse_seconds", "parse_utc"]

_SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.ASCII)
# systemd.time(7), as far as it names whole seconds; a month and a year have no one length.
_SPAN_UNITS = {"": 1, "s": 1, "sec": 1, "min": 60, "m": 60, "h": 3600, "hr": 3600, "d": 86400, "day": 86400,
               "days": 86400, "w": 7 * 86400, "week": 7 * 86400, "weeks": 7 * 86400}  # fmt: skip
_SPAN_PART = re.compile(r"(\d+)\s*([a-z]*)", re.ASCII)


def parse_bytes(text: str) -> int:
    """Turn ``512M`` into a number of bytes. Raises ValueError with a sentence for the administrator."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise ValueError(
            f"{text!r} is not a size: write a whole number, with K, M, G or T for powers of 1024"
        )
    return int(match[1]) * _SUFFIXES[match[2]]


def parse_seconds(text: str) -> int:
    """Turn ``30d`` or ``1h 30min`` into seconds. Raises ValueError with a sentence for the administrator."""
    parts = _SPAN_PART.findall(text)
    rest = _SPAN_PART.sub("", text).strip()
    if not parts or rest or any(unit not in _SPAN_UNITS for _, unit in parts):
        raise ValueError(
            f"{text!r} is not a time span: write whole numbers with s, min, h, d or w, as in 30d or 1h 30min"
        )
    return sum(int(number) * _SPAN_UNITS[unit] for number, unit in parts)


def format_bytes(size_bytes: float) -> str:
    """Three significant figures with a binary unit, as in ``1.21 GiB``."""
    if size_bytes < 1024:
        return f"{int(size_bytes)} B"
    value = float(size_bytes)
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while value >= 1024 and unit != "TiB":
        value /= 1024
        unit = next(units)
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def format_seconds(seconds: float) -> str:
    """A duration as ``4.2 s``, ``3 min 10 s`` or ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def format_utc(unix_sec: float) -> str:
    """Seconds since the epoch as ``2026-11-23T04:49:11Z`` (whole seconds)."""
    return datetime.fromtimestamp(int(unix_sec), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_utc(text: str) -> int:
    """The inverse of :func:`format_utc`. Raises ValueError."""
    return int(datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
