# SPDX-License-Identifier: LGPL-2.1-or-later
"""Put ``crashkernel=`` words into command lines and files with command lines. Pure functions over text.

Nothing else of a text changes, not even its blanks: what is not ours stays as somebody wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from kdump_service.errors import ConfigError

__all__ = [
    "edited_assignments",
    "edited_keys",
    "edited_lines",
    "line_with",
    "replaced_words",
    "words_in",
]

# Both as the kernel takes words and as shells do: up to a blank or a closing quotation mark.
_WORD = re.compile(r"(?:(?<=[\s\"'])|^)crashkernel=[^\s\"']*")
_LONE_DASHES = re.compile(r"(?:^|\s)--(?=\s|$)")
"""What stands behind is for init, not for the kernel."""


def words_in(text: str) -> list[str]:
    """The ``crashkernel=`` words of a file or line; without those in comments."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return [word for line in lines for word in _WORD.findall(line)]


def line_with(line: str, words: Sequence[str]) -> str:
    """A command line with these words in place of all ``crashkernel=`` words that it has."""
    body = line.rstrip()
    kept = re.sub(r"\s+crashkernel=\S*", "", f" {body}")[1:]
    if not words:
        return kept + line[len(body) :]
    ours = " ".join(words)
    dashes = _LONE_DASHES.search(kept)
    if dashes:
        head, rest = kept[: dashes.start()], kept[dashes.start() :].lstrip()
        kept = f"{head} {ours} {rest}".lstrip() if head else f"{ours} {rest}"
    else:
        kept = f"{kept} {ours}" if kept else ours
    return kept + line[len(body) :]


def edited_lines(text: str, words: Sequence[str]) -> str:
    """A file of nothing but one command line, which may go over several lines, with comments between."""
    lines = text.splitlines(keepends=True)
    ours = [number for number, line in enumerate(lines) if line.strip() and line.lstrip()[0] != "#"]
    if not ours:
        return text + ("" if not text or text.endswith("\n") else "\n") + " ".join(words) + "\n"
    # A lone "--" in an earlier line makes all that follows init's.
    split = (number for number in ours if _LONE_DASHES.search(lines[number]))
    last = next(split, ours[-1])
    for number in ours:
        lines[number] = line_with(lines[number], words if number == last else ())
    return "".join(lines)


def edited_keys(
    text: str, key: str, words: Sequence[str], *, all_lines: Callable[[str], bool] | None = None
) -> str:
    """A file with lines ``KEY COMMAND LINE``, blanks between: loader entries, extlinux.conf.

    Without ``all_lines`` the lines are parts of one command line, and the last one gets the words; else each
    line of which it is true gets them, and the others are left alone.
    """
    pattern = re.compile(rf"^([ \t]*{key}[ \t]+)([^\n]*)$", re.MULTILINE | re.IGNORECASE)
    found = list(pattern.finditer(text))
    for match in reversed(found):
        if all_lines is None:
            mine: Sequence[str] = words if match is found[-1] else ()
        elif all_lines(match[2]):
            mine = words
        else:
            continue
        text = text[: match.start(2)] + line_with(match[2], mine) + text[match.end(2) :]
    return text


def edited_assignments(file: str, text: str, names: Sequence[str], target: str, words: Sequence[str]) -> str:
    """A shell file, with the words in its variable ``target``, and none in others of ``names``.

    Raises ConfigError for an assignment that is more than a plain text, with file and line.
    """
    alternatives = "|".join(sorted(names, key=len, reverse=True))
    plain = re.compile(
        rf"""^(?P<head>[ \t]*(?:export[ \t]+)?(?P<name>{alternatives})=)"""
        r"""(?P<value>"(?:[^"\\`]|\\[\s\S])*"|'[^']*'|[^\s"'#;&|()<>$`\\]*)(?P<tail>[ \t]*(?:#[^\n]*)?)$""",
        re.MULTILINE,
    )
    found = {match.start(): match for match in plain.finditer(text)}
    for match in re.finditer(rf"^[ \t]*(?:export[ \t]+)?(?:{alternatives})\+?=", text, re.MULTILINE):
        if match.start() not in found:
            number = text.count("\n", 0, match.start()) + 1
            raise ConfigError(
                f"{file}:{number}: this assignment is more than a plain text, and is not edited",
                f"Put {' '.join(words) or 'the words of before'} in by hand.",
            )
    last = max((start for start, match in found.items() if match["name"] == target), default=None)
    for start, match in sorted(found.items(), reverse=True):
        value = match["value"]
        quote = value[0] if value[:1] in ('"', "'") else ""
        inner = value[1:-1] if quote else value
        edited = line_with(inner, words if start == last else ())
        if edited != inner:
            quote = quote or '"'
            text = text[: match.start("value")] + quote + edited + quote + text[match.end("value") :]
    if last is None and words:
        text += ("" if not text or text.endswith("\n") else "\n") + f'{target}="{" ".join(words)}"\n'
    return text


def replaced_words(text: str, ours: Sequence[str], others: Sequence[str]) -> str | None:
    """The text with what we have put in replaced by what was there before; None if it is not just ours that
    it has of ``crashkernel=`` words."""
    run = re.compile(
        r"(?P<blank>[ \t]*)(?:(?<=[\s\"'])|^)"
        + r"[ \t]+".join(re.escape(word) for word in ours)
        + r"(?=[\s\"']|$)"
    )
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            continue
        new, count = run.subn(lambda found: _joined(found["blank"], others), line)
        if len(words_in(line)) != count * len(ours):
            return None
        lines[number] = new
    return "".join(lines)


def _joined(blank: str, words: Sequence[str]) -> str:
    return blank + " ".join(words) if words else ""
