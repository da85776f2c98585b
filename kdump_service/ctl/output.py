# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results for programs: JSON, and ``KEY=value`` lines as systemctl show prints them."""

from __future__ import annotations

import json
import sys
from typing import Any

from kdump_service.ctl.text import printable

__all__ = ["json_text", "key_value_lines", "notice"]


def json_text(document: Any, how: str) -> str:
    """The document as JSON, of which nothing acts on a terminal. ``how``: ``short`` is one line."""
    short = how == "short"
    text = json.dumps(document, indent=None if short else 2, separators=(",", ":") if short else None)
    return text.replace("\x7f", "\\u007f")  # the only control character that JSON lets stand


def key_value_lines(key: str, value: Any) -> list[str]:
    """A property as lines: one for each element of a list, as systemctl show does for lists of sentences."""
    if isinstance(value, list):
        return [f"{key}={_word(each)}" for each in value] or [f"{key}="]
    return [f"{key}={_word(value)}"]


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value))


def notice(text: str) -> None:
    """Say something on standard error."""
    print(f"kdumpctl: {text}", file=sys.stderr)
