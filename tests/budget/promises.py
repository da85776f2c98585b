# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads tests/promises.toml: what cases are for."""

import tomllib
from pathlib import Path

__all__ = ["PROMISES", "read_promises"]

PROMISES = Path(__file__).parents[1] / "promises.toml"


def read_promises(path: Path = PROMISES) -> dict[str, dict[str, str]]:
    """Section -> id -> sentence. Raises ValueError for an id of two sections, and for what is no sentence."""
    try:
        sections: dict[str, dict[str, str]] = tomllib.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if "promise" not in sections:
        raise ValueError(f"{path}: there is no [promise]")
    seen: set[str] = set()
    for section, sentences in sections.items():
        if not isinstance(sentences, dict) or not all(isinstance(text, str) for text in sentences.values()):
            raise ValueError(f"{path}: [{section}] is to have an id and a sentence in each line")
        if twice := seen & sentences.keys():
            raise ValueError(f"{path}: [{section}] repeats {', '.join(sorted(twice))}")
        seen |= sentences.keys()
    return sections
