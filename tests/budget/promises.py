# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads tests/promises.toml: what cases are for."""

import tomllib
from pathlib import Path

__all__ = ["PROMISES", "read_promises"]

PROMISES = Path(__file__).parents[1] / "promises.toml"


def read_promises(path: Path = PROMISES) -> dict[str, dict[str, str]]:
    """Section -> id -> sentence; an id that is in two sections is an error."""
    sections: dict[str, dict[str, str]] = tomllib.loads(path.read_text())
    seen: set[str] = set()
    for section, sentences in sections.items():
        if twice := seen & sentences.keys():
            raise ValueError(f"{path}: [{section}] repeats {', '.join(sorted(twice))}")
        seen |= sentences.keys()
    return sections
