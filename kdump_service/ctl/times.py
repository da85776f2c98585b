# SPDX-License-Identifier: LGPL-2.1-or-later
"""Points in time: what journalctl takes in ``--since`` (systemd.time(7)), and how times are shown."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta

from kdump_service.errors import ConfigError
from kdump_service.quantity import parse_utc

__all__ = ["ago", "local_time", "parse_time"]

_UNIT_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600),
    **dict.fromkeys(("d", "day", "days"), 86400),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400),
    # systemd.time(7): 30.44 and 365.25 days.
    **dict.fromkeys(("M", "month", "months"), 2629800),
    **dict.fromkeys(("y", "year", "years"), 31557600),
}
_SPAN_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", re.ASCII)
_WEEKDAY = re.compile(r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+", re.IGNORECASE)
_DAYS = {"yesterday": -1, "today": 0, "tomorrow": 1}


def parse_time(text: str, now: float) -> float:
    """Seconds since the epoch. Raises ConfigError.

    Taken are ``2026-11-23 10:00:30`` and shorter, in local time or with ``UTC``, ``Z`` or an offset as
    ``+01:00`` behind it; ``10:00``, of today; ``now today yesterday tomorrow``; ``-1h 30min``, ``+1h`` and
    ``2 days ago``, from ``now``; ``@1795406400``.
    """
    stripped = text.strip()
    try:
        if stripped == "now":
            return now
        if stripped in _DAYS:
            today = datetime.fromtimestamp(now).date()
            return _midnight(today + timedelta(days=_DAYS[stripped]))
        if re.fullmatch(r"@\d+(\.\d+)?", stripped, re.ASCII):
            return float(stripped[1:])
        if stripped[:1] in ("-", "+"):
            return now + float(f"{stripped[0]}1") * _span_seconds(stripped[1:])
        if stripped.endswith(" ago"):
            return now - _span_seconds(stripped.removesuffix(" ago"))
        return _calendar(stripped, now)
    except (ValueError, OverflowError) as error:
        raise ConfigError(
            f"{text!r} is no time",
            "Write one as in 2026-11-23, '2026-11-23 10:00', 10:00, today, yesterday, -1h, '2 days ago' or "
            "@1795406400.",
        ) from error


def _span_seconds(text: str) -> float:
    if not text.strip():
        raise ValueError("no time span")
    total, position = 0.0, 0
    while position < len(text):
        part = _SPAN_PART.match(text, position)
        if part is None:
            raise ValueError(text)
        total += float(part[1]) * (_UNIT_SECONDS[part[2]] if part[2] in _UNIT_SECONDS else _bare(part[2]))
        position = part.end()
    return total


def _bare(unit: str) -> int:
    if unit:
        raise ValueError(unit)
    return 1


def _calendar(text: str, now: float) -> float:
    text = _WEEKDAY.sub("", text, count=1) if _WEEKDAY.match(text) else text
    utc = text.endswith(" UTC")
    text = text.removesuffix(" UTC").strip()
    if re.fullmatch(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?", text, re.ASCII):
        today = datetime.fromtimestamp(now, UTC if utc else None).date()
        moment = datetime.combine(today, time.fromisoformat(text.zfill(len(text) + (text[1] == ":"))))
    elif re.match(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        moment = datetime.fromisoformat(text)
    else:
        raise ValueError(text)
    if utc and moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.timestamp()


def _midnight(day: date) -> float:
    return datetime.combine(day, time()).timestamp()


def local_time(utc: str) -> str:
    """``2026-11-23T04:49:11Z`` as ``Mon 2026-11-23 05:49:11 CET``; what is no such time stays as it is."""
    try:
        moment = datetime.fromtimestamp(parse_utc(utc)).astimezone()
    except (ValueError, OverflowError):
        return utc
    # Names of weekdays as systemd prints them, whatever the locale.
    weekday = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")[moment.weekday()]
    return f"{weekday} {moment:%Y-%m-%d %H:%M:%S} {moment.tzname()}"


def ago(utc: str, now: float) -> str:
    """How long ago that was, as ``3 days ago``; empty for what is no time, or is yet to come."""
    try:
        seconds = now - parse_utc(utc)
    except ValueError:
        return ""
    if seconds < 0:
        return ""
    for unit, length in (("year", 31557600), ("month", 2629800), ("week", 604800), ("day", 86400),
                         ("h", 3600), ("min", 60)):  # fmt: skip
        count = int(seconds // length)
        if count:
            plural = "s" if (count > 1 and len(unit) > 3) or (unit == "day" and count > 1) else ""
            return f"{count} {unit}{plural} ago"
    return f"{int(seconds)} s ago"
