# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is asked for, and its way from the daemon to the unit that has the rights for it: a file in /run.

Only words that the kernel takes as they are get into a request, whoever wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdump_service.errors import InvalidArgument
from kdump_service.folders import RUN_FOLDER
from kdump_service.kernel.crashkernel import BadCrashkernel, Kind, parse_argument, parse_value

__all__ = ["REQUEST_FILE", "RESERVE_AGAIN_FILE", "RESULT_FILE", "Request", "crashkernel_words"]

REQUEST_FILE = f"{RUN_FOLDER}/reserve-request.json"
RESULT_FILE = f"{RUN_FOLDER}/reserve-result.json"
RESERVE_AGAIN_FILE = f"{RUN_FOLDER}/reserve-again.json"
"""A request for what was reserved before the program was about to be removed; packaging/debian reads it."""
_NAME = "crashkernel="


def crashkernel_words(size: str, cma: str | None = None) -> tuple[str, ...]:
    """The words for a size as the kernel takes it, and for an area of CMA besides. Raises InvalidArgument.

    ``cma``: how much; empty: as much as ``size``; None: no such area.
    """
    try:
        area = parse_argument(size)
    except BadCrashkernel as error:
        raise InvalidArgument(f"the kernel does not take this for crashkernel=: {error}") from error
    if cma is None:
        return (f"{_NAME}{size}",)
    if area.kind is Kind.HIGH:
        raise InvalidArgument(
            "an area of CMA besides ,high reserves nothing on kernels that do not know ,cma",
            "Leave ,high away: where the kernel finds no room below 4 GiB, it looks above.",
        )
    if not cma:
        if area.ranges:
            raise InvalidArgument("how much CMA does not follow from ranges", "Name a size: --cma=512M")
        cma = size.partition("@")[0]
    try:
        if not parse_value(f"{cma},cma").size:
            raise BadCrashkernel(cma, 0, "this reserves nothing")
    except BadCrashkernel as error:
        raise InvalidArgument(f"the kernel does not take this as an area of CMA: {error}") from error
    # The fixed part comes last: a kernel that does not know ,cma takes the last word, whatever that is.
    return (f"{_NAME}{cma},cma", f"{_NAME}{size}")


@dataclass(frozen=True)
class Request:
    """What the unit is to do."""

    id: str
    """The answer has the same."""
    words: tuple[str, ...] = ()
    """What to set; none: take back what was set."""
    dry_run: bool = False

    def to_json(self) -> str:
        """For the file."""
        return json.dumps({"id": self.id, "words": self.words, "dry_run": self.dry_run})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read one. Raises InvalidArgument for anything but what :func:`crashkernel_words` makes."""
        try:
            document: dict[str, Any] = json.loads(text)
            request_id, words, dry_run = document["id"], document["words"], document["dry_run"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"/{REQUEST_FILE} is not a request: {error}") from error
        if not (isinstance(request_id, str) and isinstance(words, list) and isinstance(dry_run, bool)):
            raise InvalidArgument(f"/{REQUEST_FILE} is not a request")
        if words and not _made_by_us(words):
            raise InvalidArgument(f"/{REQUEST_FILE}: {words!r} is nothing that may be set")
        return cls(request_id, tuple(words), dry_run)


def _made_by_us(words: Sequence[object]) -> bool:
    values = [word.removeprefix(_NAME) for word in words if isinstance(word, str) and word.startswith(_NAME)]
    if len(values) != len(words) or len(values) not in (1, 2):
        return False
    try:
        return list(words) == list(
            crashkernel_words(values[-1], values[0].removesuffix(",cma") if len(values) == 2 else None)
        )
    except InvalidArgument:
        return False
