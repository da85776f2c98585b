# SPDX-License-Identifier: LGPL-2.1-or-later
"""Kernel command lines as lists of words. Pure functions over text."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["join_words", "same_parameter", "split_words", "word_name"]


def split_words(command_line: str) -> list[str]:
    """Split as the kernel does (lib/cmdline.c: next_arg): at white space, unless between double quotes.

    Quotes stay part of the word. What stands behind a lone ``--`` is for the init program; the ``--`` is a
    word like others here.
    """
    words: list[str] = []
    current = ""
    quoted = False
    for character in command_line:
        if character == '"':
            quoted = not quoted
        if character.isspace() and not quoted:
            if current:
                words.append(current)
            current = ""
        else:
            current += character
    if current:
        words.append(current)
    return words


def join_words(words: Iterable[str]) -> str:
    """The inverse of :func:`split_words`, with single blanks."""
    return " ".join(words)


def word_name(word: str) -> str:
    """The parameter that a word sets: what stands before the first ``=``, without quotes."""
    return word.lstrip('"').partition("=")[0].rstrip('"')


def same_parameter(one: str, other: str) -> bool:
    """Whether two names mean one parameter: the kernel takes dash and underscore as equal (parameq)."""
    return one.replace("-", "_") == other.replace("-", "_")
