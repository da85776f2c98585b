# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keep the store within its limits: MaxUse=, MaxDumps=, MaxAgeSec= and KeepFree= of [Store].

The oldest go first. Never removed: dumps that somebody marked to be kept, the newest dump, and the newest
whole one, since a machine that crashes again and again without room for a dump would else lose the last one
that can be read. Dumps that are kept count as room that is taken, and are passed over by the limits of number
and age.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from kdump_service import log
from kdump_service.errors import KdumpError
from kdump_service.quantity import format_bytes, parse_utc
from kdump_service.record import DumpState
from kdump_service.store.dump_folder import delete, occupied_bytes
from kdump_service.store.dumps import PATIENCE_SEC, StoredDump, survey
from kdump_service.store.history import kept_names
from kdump_service.store.own_files import within

__all__ = ["Candidate", "Limits", "Removal", "apply", "plan"]

logger = logging.getLogger(__name__)

_MOST_NAMES = 20
"""That an event spells out."""


@dataclass(frozen=True)
class Limits:
    """Settings of [Store]; 0 means no limit."""

    max_use_bytes: int = 0
    max_dumps: int = 0
    max_age_sec: int = 0
    keep_free_bytes: int = 0


@dataclass(frozen=True)
class Candidate:
    """A dump that is there, and what its removal would gain."""

    dump: StoredDump
    occupied_bytes: int
    on_target: bool = True
    """Whether it lies on the target's file system, which KeepFree= is about."""


@dataclass(frozen=True)
class Removal:
    """A dump that has to go."""

    candidate: Candidate
    limit: str
    """The setting that asks for it."""


def plan(
    candidates: Sequence[Candidate], limits: Limits, now: float, free_bytes: int | None
) -> list[Removal]:
    """What to remove, oldest first. ``candidates`` are all dumps that are there, oldest first.

    ``now`` is in seconds since the epoch; ``free_bytes`` is the room left on the target's file system, None
    if that is not known.
    """
    safe = {each.dump.name for each in candidates if each.dump.kept}
    counted = len(candidates) - len(safe)
    safe |= {each.dump.name for each in candidates[-1:]}
    whole = [each for each in candidates if each.dump.record.state is DumpState.COMPLETE]
    safe |= {each.dump.name for each in whole[-1:]}
    used_bytes = sum(each.occupied_bytes for each in candidates)
    removals = []
    for each in candidates:
        if each.dump.name in safe:
            continue
        if limits.max_age_sec and _age_sec(each.dump, now) > limits.max_age_sec:
            limit = "MaxAgeSec"
        elif limits.max_dumps and counted > limits.max_dumps:
            limit = "MaxDumps"
        elif limits.max_use_bytes and used_bytes > limits.max_use_bytes:
            limit = "MaxUse"
        elif free_bytes is not None and free_bytes < limits.keep_free_bytes and each.on_target:
            limit = "KeepFree"
        else:
            continue
        removals.append(Removal(each, limit))
        counted -= 1
        used_bytes -= each.occupied_bytes
        if free_bytes is not None and each.on_target:
            free_bytes += each.occupied_bytes
    return removals


def apply(
    root: Path,
    target: str,
    limits: Limits,
    now: float | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[StoredDump]:
    """Remove what has to go, tell the journal, and return what was removed.

    ``advance`` is told before each removal, and after the last, how many are done, and of how many.

    A dump that cannot be removed is told to the journal, too, and left. Takes as long as the file system
    takes to delete; a target that does not answer ends it.
    """
    place = root / target.lstrip("/")
    kept = kept_names(root)
    present = [
        replace(dump, kept=kept is None or dump.name in kept)
        for dump in survey(root, target, most=sys.maxsize).dumps
    ]
    try:
        candidates, free_bytes = within(PATIENCE_SEC, place, partial(_measure, place, present))
    except OSError as error:
        logger.warning("%s: old dumps are not looked for: %s", place, error.strerror)
        return []
    removed = []
    removals = plan(candidates, limits, time.time() if now is None else now, free_bytes)
    for done, removal in enumerate(removals):
        advance(done, len(removals))
        try:
            delete(root, removal.candidate.dump)
        except KdumpError as error:
            logger.error("%s=: %s", removal.limit, error.explanation())
            continue
        removed.append(removal)
    if removals:
        advance(len(removals), len(removals))
    if removed:
        _tell(removed)
    return [removal.candidate.dump for removal in removed]


def _measure(place: Path, dumps: Sequence[StoredDump]) -> tuple[list[Candidate], int | None]:
    """What each dump takes, and the room that is left. Raises OSError if the target cannot be asked."""
    device, free_bytes = None, None
    try:
        status = os.statvfs(place)
        device, free_bytes = place.stat().st_dev, status.f_bavail * status.f_frsize
    except FileNotFoundError:
        pass  # no crash yet; the fallback folder may still hold something
    candidates = []
    for dump in dumps:
        try:
            candidates.append(Candidate(dump, occupied_bytes(dump), dump.folder.stat().st_dev == device))
        except FileNotFoundError:
            continue  # deleted just now
    return candidates, free_bytes


def _age_sec(dump: StoredDump, now: float) -> float:
    """Since the crash; 0 where nobody knows, so that no limit asks for the dump."""
    moment = dump.record.crash_time or dump.record.saved_time
    return now - parse_utc(moment) if moment else 0.0


def _tell(removed: Sequence[Removal]) -> None:
    gained = sum(removal.candidate.occupied_bytes for removal in removed)
    limits = ", ".join(dict.fromkeys(f"{removal.limit}=" for removal in removed))
    names = [removal.candidate.dump.name for removal in removed]
    shown = ", ".join(names[:_MOST_NAMES]) + (" ..." if len(names) > _MOST_NAMES else "")
    log.event(
        logger,
        logging.INFO,
        log.MessageId.OLD_DUMPS_REMOVED,
        f"Removed {len(names)} old dump{'s' if len(names) > 1 else ''} ({format_bytes(gained)}) as {limits} "
        f"asks: {shown}",
        KDUMP_REMOVED=" ".join(names),
        KDUMP_REMOVED_BYTES=gained,
        KDUMP_LIMIT=limits,
    )
