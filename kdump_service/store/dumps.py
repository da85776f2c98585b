# SPDX-License-Identifier: LGPL-2.1-or-later
"""List the dump folders below the target."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import stat
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache, partial
from pathlib import Path

from kdump_service.folders import FALLBACK_FOLDER
from kdump_service.record import (
    LARGEST_RECORD_BYTES,
    LOG_FILE,
    RECORD_FILE,
    DumpFile,
    DumpRecord,
    DumpState,
    Problem,
)
from kdump_service.store.own_files import beneath, names_in, open_own_folder, read_text, within

__all__ = [
    "MOST_DUMPS",
    "NAME",
    "PATIENCE_SEC",
    "Presence",
    "StoredDump",
    "Survey",
    "image_name",
    "scan",
    "survey",
]

logger = logging.getLogger(__name__)

MOST_DUMPS = 1000
"""Of each place, the newest: an entry takes about 4 KiB of the daemon's memory."""
PATIENCE_SEC = 10.0
"""A disk that sleeps is there again within this time; what is slower counts as unreachable."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", re.ASCII)
"""Of a dump folder: time and host, as capture makes it. Nothing that a shell, a path or the bus would take
for something else."""
_IMAGE = re.compile(r"vmcore[A-Za-z0-9._-]{0,60}", re.ASCII)


class Presence(StrEnum):
    """Whether the files of a dump are there. The values are those on the bus."""

    PRESENT = "present"
    MISSING = "missing"
    """Deleted, or the target was changed; the record is from the history."""
    UNREACHABLE = "unreachable"
    """The target cannot be looked at now."""


@dataclass(frozen=True)
class StoredDump:
    """One crash, and the folder of its dump."""

    folder: Path
    record: DumpRecord
    presence: Presence = Presence.PRESENT
    kept: bool = False
    """Whether the limits of the store pass it over."""

    @property
    def name(self) -> str:
        """Name of the folder, which identifies the crash."""
        return self.folder.name

    @property
    def image(self) -> Path | None:
        """The memory image, if there is one."""
        name = image_name(self.record)
        return self.folder / name if name else None


@dataclass(frozen=True)
class Survey:
    """What was found in the places where dumps lie."""

    dumps: list[StoredDump]
    """Oldest first; no name twice."""
    unreachable: frozenset[Path]
    """Places that could not be looked at."""
    places: tuple[Path, ...]


def image_name(record: DumpRecord) -> str:
    """The image's file name, which is one of ours and no path; empty if there is none."""
    return next((file.name for file in record.files if _IMAGE.fullmatch(file.name)), "")


def survey(root: Path, target: str, most: int | None = None) -> Survey:
    """Look at the target and the fallback folder; takes no longer than PATIENCE_SEC for each of them.

    Of each, the newest ``most`` dumps are found; MOST_DUMPS if not told otherwise.
    """
    places = tuple(dict.fromkeys((root / target.lstrip("/"), root / FALLBACK_FOLDER)))
    found: dict[str, StoredDump] = {}
    unreachable = set()
    for place in places:
        try:
            dumps = within(
                PATIENCE_SEC, place, partial(_dumps_of, place, MOST_DUMPS if most is None else most)
            )
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("%s: dumps cannot be listed: %s", place, error.strerror)
            unreachable.add(place)
            continue
        for dump in dumps:
            found.setdefault(dump.name, dump)
    return Survey(sorted(found.values(), key=lambda dump: dump.name), frozenset(unreachable), places)


def scan(root: Path, target: str) -> list[StoredDump]:
    """All dumps of the target and the fallback folder, oldest first. What is no dump is passed over."""
    return survey(root, target).dumps


def _dumps_of(place: Path, most: int) -> list[StoredDump]:
    """The newest dumps of a place, newest first. Raises OSError if the place itself cannot be read."""
    dumps: list[StoredDump] = []
    with beneath(place) as parent:
        names = sorted((name for name in names_in(parent) if NAME.fullmatch(name)), reverse=True)
        for name in names:
            try:
                folder = open_own_folder(name, parent)
            except OSError:  # a file, a link, another's folder, or deleted just now: no dump of ours
                continue
            try:
                record = _record_of(folder, place / name)
            finally:
                os.close(folder)
            if record is not None:
                dumps.append(StoredDump(place / name, record))
            if len(dumps) == most:
                logger.debug("%s: looked at the newest %d dumps", place, most)
                break
    return dumps


def _record_of(folder: int, path: Path) -> DumpRecord | None:
    try:
        record = DumpRecord.from_json(read_text(RECORD_FILE, folder, LARGEST_RECORD_BYTES))
        return _cut_off(folder, record) if record.state is DumpState.CAPTURING else record
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _warn_once(path / RECORD_FILE, str(error))
        return None


@lru_cache(maxsize=256)
def _warn_once(path: Path, problem: str) -> None:
    """Dumps are listed often, and what is wrong with one does not change."""
    logger.warning("%s: skipping: %s", path, problem)


def _cut_off(folder: int, record: DumpRecord) -> DumpRecord:
    """Judge a record that still says ``capturing``: the capture never came to write its end."""
    files = []
    for name in sorted(names_in(folder)):
        if _IMAGE.fullmatch(name) or name in (LOG_FILE, f"{LOG_FILE}.incomplete"):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                files.append(DumpFile(name, status.st_size, status.st_blocks * 512))  # stat(2)
    has_image = any(_IMAGE.fullmatch(file.name) for file in files)
    return dataclasses.replace(
        record,
        state=DumpState.INCOMPLETE if has_image else DumpState.FAILED,
        files=files,
        problems=[*record.problems, Problem("capture", "cut-off", "the capture ended before it was done")],
    )
