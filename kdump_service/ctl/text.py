# SPDX-License-Identifier: LGPL-2.1-or-later
"""Text for a terminal: what may be shown, how wide it is, how it is shortened, which colour it has."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterable
from enum import StrEnum
from typing import TextIO

__all__ = ["Colour", "display_width", "ellipsized", "labelled", "paint", "printable", "use_colour"]


class Colour(StrEnum):
    """Select Graphic Rendition parameters of ECMA-48, as systemd uses them."""

    GOOD = "32"
    BAD = "1;31"
    DOUBTFUL = "1;33"
    FAINT = "2"
    STRONG = "1"
    HEADER = "4"


def printable(text: str, *, keep: str = "") -> str:
    """The text with all that a terminal would act upon shown as ``\\xNN``, except characters in ``keep``.

    Texts of a crashed kernel hold what any program wrote: a task's name may be an escape sequence. Also those
    characters are shown that change the direction of others, which ``isprintable`` counts as not printable.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    # Names of files that are no UTF-8 come as lone surrogates (PEP 383): these have no bytes but their own.
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape" if
                   "\udc80" <= character <= "\udcff" else "backslashreplace"))  # fmt: skip


def display_width(text: str) -> int:
    """Columns that the text takes on a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_columns(each) for each in text)


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def ellipsized(text: str, width: int) -> str:
    """The text, with an ellipsis for its end if it takes more than ``width`` columns."""
    if display_width(text) <= width:
        return text
    taken = 0
    for count, character in enumerate(text):
        taken += _columns(character)
        if taken > width - 1:
            return text[:count] + "…"
    return text


def labelled(rows: Iterable[tuple[str, str]], *, least_width: int = 0) -> str:
    """``   Key: value`` lines, keys aligned to the right; an empty key continues the value above it.

    Rows without a value are left out. Line breaks in a value are kept, and aligned with it.
    """
    shown = [(label, value) for label, value in rows if value]
    width = max([least_width, *(display_width(label) for label, _ in shown)]) + 1
    lines = []
    for label, value in shown:
        head = f"{label}:" if label else ""
        first, *others = value.split("\n")
        lines.append(f"{' ' * (width - display_width(head))}{head} {first}")
        lines += [f"{' ' * width} {other}" for other in others]
    return "\n".join(lines)


def use_colour(stream: TextIO | None = None) -> bool:
    """Whether what is written to the stream (default: standard output) may be coloured (no-color.org)."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: Colour | None, *, enabled: bool) -> str:
    """The text in a colour, if colours are ``enabled``."""
    return f"\x1b[{colour}m{text}\x1b[0m" if enabled and colour and text else text
