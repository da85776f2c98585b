# SPDX-License-Identifier: LGPL-2.1-or-later
"""Small JSON files in which the service remembers things. None of them is worth failing for."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from kdump_service.atomic_file import write_atomically

__all__ = ["read_json", "write_json"]

logger = logging.getLogger(__name__)

_LARGEST_FILE_BYTES = 64 << 10


def read_json(path: Path, kind: type) -> Any:
    """A file of the service's own; an empty one of ``kind`` if it is not there or damaged."""
    try:
        with open(path, encoding="utf-8") as file:
            document = json.loads(file.read(_LARGEST_FILE_BYTES))
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s: cannot be used, ignoring: %s", path, error)
        return kind()
    return document if isinstance(document, kind) else kind()


def write_json(path: Path, document: object) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(path, json.dumps(document, indent=2) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written, ignoring: %s", path, error)
