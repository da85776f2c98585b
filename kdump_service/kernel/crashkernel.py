# SPDX-License-Identifier: LGPL-2.1-or-later
"""What ``crashkernel=`` asks for, by the kernel's own rules. Pure functions over text.

Rules: kernel/crash_reserve.c and Documentation/admin-guide/kdump/kdump.rst, Linux 6.17. Forms of a value:

    SIZE[@OFFSET]                       that much, at that address
    RANGE:SIZE[,RANGE:SIZE...][@OFFSET] by the size of memory; RANGE is START-[END], without END itself
    SIZE,high                           above 4 GiB
    SIZE,low                            for devices that reach no higher, besides ``,high``
    SIZE,cma                            more, lent to processes until the crash, besides any of the above

Of several values of one kind the last one counts; the first two forms are one kind, and where there is one of
them, ``,high`` and ``,low`` are not looked at.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from enum import StrEnum

from kdump_service.kernel.cmdline import split_words
from kdump_service.quantity import format_bytes

__all__ = [
    "Area",
    "BadCrashkernel",
    "Kind",
    "MemoryRange",
    "Reservation",
    "aligned",
    "asks_for_reservation",
    "parse_argument",
    "parse_value",
    "requested",
    "reservation_of",
    "rounded_memory_bytes",
]

_ALIGN_BYTES = 16 << 20

# lib/cmdline.c: memparse; numbers as lib/kstrtox.c reads them with base 0.
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)([KMGTPEkmgtpe]?)")
_SHIFTS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50, "E": 60}
_MOST = (1 << 64) - 1
"""Larger numbers wrap in the kernel, silently."""
_ROUNDING_BYTES = 128 << 20
"""parse_crashkernel_mem: firmware keeps some memory for itself, so the size of memory is rounded up."""


class Kind(StrEnum):
    """Which of the areas a value is for."""

    PLAIN = ""
    HIGH = ",high"
    LOW = ",low"
    CMA = ",cma"


class BadCrashkernel(ValueError):
    """The kernel would refuse this, or pass over a part of it; ``position`` is where in the value."""

    def __init__(self, text: str, position: int, why: str) -> None:
        self.position = position
        read, rest = text[:position], text[position:]
        place = f"at {rest!r}, behind {read!r}" if read and rest else "at its end" if read else "at its start"
        super().__init__(f"{text!r}: {why} ({place})")


@dataclass(frozen=True)
class MemoryRange:
    """One ``START-[END]:SIZE``, in bytes."""

    start: int
    end: int | None
    """The first size of memory that is too large; None: no memory is."""
    size: int

    def holds(self, memory_bytes: int) -> bool:
        """Whether a machine of this size is meant."""
        return self.start <= memory_bytes and (self.end is None or memory_bytes < self.end)


@dataclass(frozen=True)
class Area:
    """One value of ``crashkernel=``, as far as the kernel reads it."""

    text: str
    kind: Kind = Kind.PLAIN
    size: int = 0
    """Of a plain size, in bytes."""
    ranges: tuple[MemoryRange, ...] = ()
    offset: int | None = None
    """The address where it has to lie; None: where the kernel finds room."""
    fault: BadCrashkernel | None = None
    """What is wrong behind the last of ``ranges``: the kernel gets there only if none of them is meant."""
    unread: int | None = None
    """Position from which on the kernel passes over the text without a word; None: it reads all of it."""

    def asked_bytes(self, memory_bytes: int) -> int:
        """What a machine with this much memory is asked for; 0 if no range is meant. Raises BadCrashkernel.

        ``memory_bytes`` is all memory that the firmware hands over, more than MemTotal of /proc/meminfo.
        """
        total = rounded_memory_bytes(memory_bytes)
        if not self.ranges and self.fault is None:
            if self.kind in (Kind.PLAIN, Kind.HIGH) and self.size >= memory_bytes:
                raise BadCrashkernel(self.text, 0, f"this machine has {format_bytes(memory_bytes)} only")
            return self.size
        for each in self.ranges:
            # Refused by the kernel even if the range is for machines of another size.
            if each.size >= total:
                why = f"{format_bytes(each.size)} is not less than this machine's {format_bytes(total)}"
                raise BadCrashkernel(self.text, 0, why)
            if each.holds(total):
                if each.size >= memory_bytes:
                    raise BadCrashkernel(self.text, 0, f"this machine has {format_bytes(memory_bytes)} only")
                return each.size
        if self.fault is not None:
            raise self.fault
        return 0

    def sentence(self) -> str:
        """What it means, for people; without a full stop."""
        at = "" if self.offset is None else f" at the address {self.offset:#x}"
        size = format_bytes(self.size)
        match self.kind:
            case Kind.HIGH:
                return f"{size} above 4 GiB, and a little below"
            case Kind.LOW:
                return f"{size} below 4 GiB, besides what is above"
            case Kind.CMA:
                return f"{size} more, which processes may use until the crash"
        if self.ranges:
            return "by the size of memory: " + "; ".join(_range_text(each) for each in self.ranges) + at
        return f"{size}{at}"


def _range_text(each: MemoryRange) -> str:
    size = format_bytes(each.size) if each.size else "nothing"
    if each.end is None:
        return f"{size} from {format_bytes(each.start)} on"
    return f"{size} from {format_bytes(each.start)} to less than {format_bytes(each.end)}"


@dataclass(frozen=True)
class Reservation:
    """All that a command line asks for."""

    main: Area | None = None
    """A plain size, ranges, or ``,high``: what holds the crash kernel."""
    low: Area | None = None
    """Only beside ``,high``; None: the kernel decides how much."""
    cma: Area | None = None
    refused: BadCrashkernel | None = None
    """Why the kernel reserves nothing, whatever else is asked for."""

    def asked_bytes(self, memory_bytes: int) -> int:
        """What is asked for beside ``,low`` and ``,cma``, which the kernel counts apart; 0 if it is nothing.

        Raises BadCrashkernel where the kernel would reserve nothing since it cannot read it.
        """
        if self.refused is not None:
            raise self.refused
        return self.main.asked_bytes(memory_bytes) if self.main else 0

    def asked_between(self, least_memory_bytes: int, most_memory_bytes: int) -> int | None:
        """What is asked for on a machine whose size is known so far only; None where that is not enough.

        Sizes of memory at which the kernel would refuse are left out: who asks knows that it reserved some.
        """
        if self.main is not None and not self.main.ranges:
            return self.main.size
        asked = set()
        for memory_bytes in (least_memory_bytes, most_memory_bytes):
            with contextlib.suppress(BadCrashkernel):
                asked.add(self.asked_bytes(memory_bytes))
        return asked.pop() if len(asked) == 1 else None


def rounded_memory_bytes(memory_bytes: int) -> int:
    """The size by which the kernel chooses among ranges: rounded up to 128 MiB."""
    return -(-memory_bytes // _ROUNDING_BYTES) * _ROUNDING_BYTES


def requested(command_line: str) -> list[str]:
    """The ``crashkernel=`` words of a command line, as they stand there."""
    return [word for word in split_words(command_line) if word.startswith("crashkernel=")]


def asks_for_reservation(text: str) -> bool:
    """Whether a line of a boot loader's file has ``crashkernel=`` with a value, quotes or not."""
    return re.search(r"(?:^|[\s\"'])crashkernel=[^\s\"']", text) is not None


def reservation_of(command_line: str) -> Reservation:
    """What a kernel with this command line is asked to reserve.

    The kernel looks for ``crashkernel=`` anywhere, also inside another word, and ends a value at a blank.
    """
    last: dict[Kind, str] = {}
    for match in re.finditer(r"crashkernel=(?=([^ ]*))", command_line):
        last[_kind(match[1])] = match[1]
    cma = None
    if Kind.CMA in last:
        try:
            cma = parse_value(last[Kind.CMA])
        except BadCrashkernel:
            cma = None  # said in the kernel's log, and nothing more comes of it
    try:
        if Kind.PLAIN in last:
            return Reservation(parse_value(last[Kind.PLAIN]), None, cma)
        if Kind.HIGH in last:
            low = parse_value(last[Kind.LOW]) if Kind.LOW in last else None
            return Reservation(parse_value(last[Kind.HIGH]), low, cma)
    except BadCrashkernel as error:
        return Reservation(refused=error)
    return Reservation(cma=cma)


def parse_value(text: str) -> Area:
    """What stands behind ``crashkernel=``, as the kernel reads it. Raises BadCrashkernel if it does not."""
    kind = _kind(text)
    if kind is not Kind.PLAIN:
        size, end = _number(text, 0)
        if text[end:] != kind.value:
            raise BadCrashkernel(text, end, f"only {kind.value} may follow the size")
        return Area(text, kind, size)
    if ":" in text:
        return _parse_ranges(text)
    size, end = _number(text, 0)
    if end == len(text):
        return Area(text, size=size)
    if text[end] != "@":
        raise BadCrashkernel(text, end, "only @ and an address may follow the size")
    found = _NUMBER.match(text, end + 1)
    offset, unread = (_value(found), found.end()) if found else (0, end + 1)
    return Area(text, size=size, offset=offset, unread=None if found and unread == len(text) else unread)


def parse_argument(text: str) -> Area:
    """A value that somebody wants to set: one of which the kernel reads every character, and takes each part
    whatever the size of memory is. Raises BadCrashkernel."""
    if text == "auto":
        raise BadCrashkernel(text, 0, "no kernel of today knows this word")
    area = parse_value(text)
    if area.fault is not None:
        raise area.fault
    if area.unread is not None:
        raise BadCrashkernel(text, area.unread, "the kernel would pass over the rest")
    if area.kind is Kind.LOW:
        raise BadCrashkernel(text, 0, "this is an area besides another one, which is missing")
    if area.kind is Kind.CMA:
        raise BadCrashkernel(
            text, 0, "this is an area besides another one, which has to hold the crash kernel"
        )
    if not area.size and not any(each.size for each in area.ranges):
        raise BadCrashkernel(text, 0, "this reserves nothing")
    return area


def _kind(text: str) -> Kind:
    return next((kind for kind in Kind if kind.value and text.endswith(kind.value)), Kind.PLAIN)


def _parse_ranges(text: str) -> Area:
    ranges: list[MemoryRange] = []
    position, fault = 0, None
    while True:
        try:
            each, position = _one_range(text, position)
        except BadCrashkernel as error:
            if not ranges:
                raise
            fault = error
            break
        ranges.append(each)
        if text[position : position + 1] != ",":
            break
        position += 1
    # Whatever stands between the last range that was read and the @ is passed over.
    at = text.find("@", position)
    unread, offset = None, None
    if fault is None and position != (at if at >= 0 else len(text)):
        unread = position
    if at >= 0:
        found = _NUMBER.match(text, at + 1)
        if found is None:
            raise BadCrashkernel(text, at + 1, "an address has to follow the @")
        offset = _value(found)
        if found.end() != len(text) and unread is None:
            unread = found.end()
    return Area(text, ranges=tuple(ranges), offset=offset, fault=fault, unread=unread)


def _one_range(text: str, position: int) -> tuple[MemoryRange, int]:
    start, position = _number(text, position)
    if text[position : position + 1] != "-":
        raise BadCrashkernel(text, position, "a - has to follow the start of a range")
    position += 1
    end = None
    if text[position : position + 1] != ":":
        begin = position
        end, position = _number(text, position)
        if end <= start:
            raise BadCrashkernel(text, begin, "the end of a range has to be larger than its start")
        if text[position : position + 1] != ":":
            raise BadCrashkernel(text, position, "a : has to follow the range")
    size, position = _number(text, position + 1)
    return MemoryRange(start, end, size), position


def _number(text: str, position: int) -> tuple[int, int]:
    """A size and the position behind it."""
    found = _NUMBER.match(text, position)
    if found is None:
        raise BadCrashkernel(text, position, "a size is missing, as in 256M")
    return _value(found), found.end()


def _value(found: re.Match[str]) -> int:
    digits = found[1]
    base = 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" else 10
    return (int(digits, base) << _SHIFTS[found[2].upper()]) & _MOST


def aligned(size_bytes: float) -> int:
    """The next size that the kernel reserves, in steps of 16 MiB (arch/x86/include/asm/crash_reserve.h,
    CRASH_ALIGN)."""
    return -(-int(size_bytes) // _ALIGN_BYTES) * _ALIGN_BYTES
