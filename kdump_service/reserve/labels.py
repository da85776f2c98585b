# SPDX-License-Identifier: LGPL-2.1-or-later
"""The labels of extlinux.conf: each has a command line of its own, and so words of its own to get back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from kdump_service.reserve.plan import Change
from kdump_service.reserve.words import replaced_words, words_in

__all__ = ["restored_labels"]

_LINE = re.compile(r"[ \t]*(?P<key>label|append)[ \t]+(?P<value>.*)", re.IGNORECASE)


def restored_labels(now: str, change: Change, ours: Sequence[Sequence[str]]) -> tuple[str, bool]:
    """The file as it is now, with what each label had before the change in place of ``ours``, and nothing in
    their place where the label came later.

    Also returns whether there is a label of before that somebody else gave other words since; these stay.
    """
    lines = now.split("\n")
    old_lines, new_lines = _by_label(change.before), _by_label(change.after)
    others = False
    for place, number in _places(lines).items():
        line, old = lines[number], old_lines.get(place)
        if old is not None and line == new_lines.get(place):
            lines[number] = old
            continue
        restored = _restored(line, words_in(old or ""), ours)
        if restored is not None:
            lines[number] = restored
        elif old is not None:
            others = True
    return "\n".join(lines), others


def _restored(line: str, before: list[str], ours: Sequence[Sequence[str]]) -> str | None:
    """The line with the words of before; None if it has somebody else's."""
    if words_in(line) in ([], before):
        return line
    edited = (replaced_words(line, each, before) for each in ours)
    return next((text for text in edited if text is not None), None)


def _by_label(text: str | None) -> dict[tuple[str, int], str]:
    lines = (text or "").split("\n")
    return {place: lines[number] for place, number in _places(lines).items()}


def _places(lines: Sequence[str]) -> dict[tuple[str, int], int]:
    """Number of each line with a command line, by its label (empty in front of the first), and which it is of
    those with this label."""
    places = {}
    label, counts = "", Counter[str]()
    for number, line in enumerate(lines):
        found = _LINE.match(line)
        if found and found["key"].lower() == "label":
            label = found["value"].strip()
        elif found:
            places[label, counts[label]] = number
            counts[label] += 1
    return places
