# SPDX-License-Identifier: LGPL-2.1-or-later
"""A table that fits the terminal: columns that may be shortened are, the widest first; long texts wrap."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from kdump_service.ctl.text import Colour, display_width, ellipsized, paint

__all__ = ["Cell", "Column", "natural_width", "render", "terminal_width"]

_GAP = "  "
_LEAST_WRAP_WIDTH = 24
"""Where the terminal leaves less, lines go over its edge rather than fall into single words."""


@dataclass(frozen=True)
class Column:
    """How a column looks."""

    title: str
    right: bool = False
    """Numbers stand to the right."""
    least: int | None = None
    """It may be shortened to this width; None: never."""
    wraps: bool = False
    """Its text goes on in further lines. The last column only."""


@dataclass(frozen=True)
class Cell:
    """A text and its colour. Line breaks are kept in a column that wraps."""

    text: str
    colour: Colour | None = None


def terminal_width() -> int | None:
    """Columns of the terminal behind standard output, or as $COLUMNS says; None if it is no terminal."""
    if os.environ.get("COLUMNS", "").isdecimal() and int(os.environ["COLUMNS"]) > 0:
        return int(os.environ["COLUMNS"])
    if not sys.stdout.isatty():
        return None
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except OSError:
        return None


def render(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Cell | str]],
    *,
    width: int | None = None,
    legend: bool = True,
    colour: bool = False,
) -> str:
    """The table as text without a line break at its end; ``width`` None: as wide as it needs."""
    cells = [[each if isinstance(each, Cell) else Cell(each) for each in row] for row in rows]
    if legend:
        cells.insert(0, [Cell(column.title, Colour.HEADER) for column in columns])
    widths = _fitted(columns, cells, width)
    lines: list[str] = []
    for row in cells:
        lines += _row_lines(columns, row, widths, colour=colour)
    return "\n".join(lines)


def natural_width(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> int:
    """Width of the table, with its legend, where nothing is shortened."""
    titles = [Cell(column.title) for column in columns]
    return sum(_fitted(columns, [titles, *rows], None)) + len(_GAP) * (len(columns) - 1)


def _fitted(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int | None) -> list[int]:
    widths = [
        max((display_width(line) for row in rows for line in row[index].text.split("\n")), default=0)
        for index in range(len(columns))
    ]
    if width is None or not columns:
        return widths
    room = width - len(_GAP) * (len(columns) - 1)
    if columns[-1].wraps:
        others = sum(widths[:-1])
        widths[-1] = max(min(widths[-1], room - others), _LEAST_WRAP_WIDTH)
        return widths
    while sum(widths) > room:
        longest = max(
            (index for index, column in enumerate(columns) if (column.least or 1 << 16) < widths[index]),
            key=lambda index: widths[index],
            default=None,
        )
        if longest is None:
            break
        widths[longest] -= 1
    return widths


def _row_lines(
    columns: Sequence[Column], row: Sequence[Cell], widths: Sequence[int], *, colour: bool
) -> list[str]:
    head = []
    for column, cell, width in zip(columns[:-1], row[:-1], widths[:-1], strict=True):
        text = ellipsized(cell.text, width)
        padding = " " * (width - display_width(text))
        painted = paint(text, cell.colour, enabled=colour)
        head.append(padding + painted if column.right else painted + padding)
    last, width = row[-1], widths[-1]
    if columns[-1].wraps:
        texts = [part for line in last.text.split("\n") for part in _wrapped(line, width)]
    else:
        text = ellipsized(last.text, width)
        texts = [" " * (width - display_width(text)) + text if columns[-1].right else text]
    lines = [_GAP.join((*head, paint(texts[0], last.colour, enabled=colour))).rstrip()]
    indent = " " * (sum(widths[:-1]) + len(_GAP) * (len(columns) - 1))
    return lines + [indent + paint(text, last.colour, enabled=colour) for text in texts[1:]]


def _wrapped(line: str, width: int) -> list[str]:
    # What begins with an arrow goes on behind the arrow.
    further = "  " if line.startswith("→ ") else ""
    return textwrap.wrap(
        line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    ) or [""]
