# SPDX-License-Identifier: LGPL-2.1-or-later
"""The records of all crashes, kept by the service itself, so that a crash is known after its dump is gone.

A record in the history is also the mark that the journal was told of the crash.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kdump_service.atomic_file import sync_folder, write_atomically
from kdump_service.folders import STATE_FOLDER
from kdump_service.record import LARGEST_RECORD_BYTES, DumpRecord, DumpState
from kdump_service.store.dumps import MOST_DUMPS, NAME, Presence, StoredDump, Survey, survey
from kdump_service.store.own_files import names_in, own_folder, read_text

__all__ = [
    "MOST_RECORDS",
    "catalogue",
    "forget",
    "is_known",
    "keep",
    "kept_names",
    "look",
    "prune",
    "remember",
    "same_bug",
]

logger = logging.getLogger(__name__)

RECORDS_FOLDER = f"{STATE_FOLDER}/records"
KEPT_FOLDER = f"{STATE_FOLDER}/kept"
"""An empty file for each dump that is to be kept, named as it is: nothing that could be damaged in part."""
MOST_RECORDS = MOST_DUMPS
_SUFFIX = ".json"
_SCHEMA = 1


@dataclass(frozen=True)
class _Entry:
    folder: Path
    """As it is now, below the root."""
    mount_point: Path | None
    """Of the file system that held it, if that was not the root's."""
    record: DumpRecord


def catalogue(root: Path, target: str) -> list[StoredDump]:
    """All crashes that are known, oldest first: dumps that are there, and records of those that are not.

    Takes seconds if a target does not answer, but ends.
    """
    return look(root, target).dumps


def look(root: Path, target: str) -> Survey:
    """The catalogue, and which places could not be looked at."""
    found = survey(root, target)
    kept = kept_names(root)
    dumps = {dump.name: replace(dump, kept=kept is None or dump.name in kept) for dump in found.dumps}
    for name in _names(root):
        if name not in dumps:
            entry = _read(root, name)
            if entry is not None:
                presence = _presence(entry, found)
                dumps[name] = StoredDump(entry.folder, entry.record, presence, kept is None or name in kept)
    return replace(found, dumps=sorted(dumps.values(), key=lambda dump: dump.name))


def _presence(entry: _Entry, found: Survey) -> Presence:
    place = entry.folder.parent
    if place in found.unreachable:
        return Presence.UNREACHABLE
    if place in found.places and entry.mount_point and not os.path.ismount(entry.mount_point):
        return Presence.UNREACHABLE  # its disk is away: what was found is the empty mount point
    return Presence.MISSING


def is_known(root: Path, dump: StoredDump) -> bool:
    """Whether this very crash is in the history: a name can come again where a clock was set back."""
    entry = _read(root, dump.name)
    if entry is None:
        return False
    known, record = entry.record, dump.record
    return (known.boot_id, known.crash_time) == (record.boot_id, record.crash_time)


def remember(root: Path, dump: StoredDump) -> None:
    """Put the record into the history, synced. Raises OSError."""
    folder = root / RECORDS_FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {
        "schema": _SCHEMA,
        "folder": f"/{dump.folder.relative_to(root)}",
        "mount_point": _mount_point(root, dump.folder),
        "record": json.loads(dump.record.to_json()),
    }
    write_atomically(folder / f"{dump.name}{_SUFFIX}", json.dumps(document, indent=2) + "\n")


def forget(root: Path, name: str) -> None:
    """Take a record out of the history, and the mark that its dump is kept. Raises OSError."""
    (root / RECORDS_FOLDER / f"{name}{_SUFFIX}").unlink(missing_ok=True)
    keep(root, name, False)


def prune(root: Path, present: Collection[str]) -> None:
    """Drop the oldest records of dumps that are gone until MOST_RECORDS are left. Raises OSError."""
    names = _names(root)
    surplus = len(names) - MOST_RECORDS
    for name in [name for name in names if name not in present][: max(surplus, 0)]:
        forget(root, name)


def keep(root: Path, name: str, kept: bool) -> None:
    """Set or take away the mark that a dump is to be kept, synced. Raises OSError."""
    folder = root / KEPT_FOLDER
    if kept:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / name).touch(mode=0o600)
    elif (folder / name).exists():
        (folder / name).unlink()
    else:
        return
    sync_folder(folder)


def kept_names(root: Path) -> frozenset[str] | None:
    """Names of the dumps that are to be kept; None if that cannot be found out, and all have to be kept."""
    try:
        with own_folder(root / KEPT_FOLDER) as folder:
            return frozenset(names_in(folder))
    except FileNotFoundError:
        return frozenset()
    except OSError as error:
        logger.warning("%s: cannot be read, keeping all dumps: %s", root / KEPT_FOLDER, error.strerror)
        return None


def same_bug(dumps: Collection[StoredDump], dump: StoredDump) -> list[StoredDump]:
    """The others of ``dumps`` that have the same signature, in their order."""
    signature = dump.record.signature
    return [
        other
        for other in dumps
        if signature and other.record.signature == signature and other.name != dump.name
    ]


def _mount_point(root: Path, folder: Path) -> str:
    """Where the file system of a folder is mounted; empty if it is the root's."""
    for parent in folder.parents:
        if parent == root or root not in parent.parents:
            break
        if os.path.ismount(parent):
            return f"/{parent.relative_to(root)}"
    return ""


def _names(root: Path) -> list[str]:
    """Names of the crashes in the history, oldest first."""
    try:
        with own_folder(root / RECORDS_FOLDER) as folder:
            names = [name.removesuffix(_SUFFIX) for name in names_in(folder) if name.endswith(_SUFFIX)]
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("%s: the history cannot be read: %s", root / RECORDS_FOLDER, error.strerror)
        return []
    return sorted(name for name in names if NAME.fullmatch(name))


def _read(root: Path, name: str) -> _Entry | None:
    path = root / RECORDS_FOLDER / f"{name}{_SUFFIX}"
    try:
        with own_folder(path.parent) as folder:
            document: Any = json.loads(read_text(path.name, folder, 2 * LARGEST_RECORD_BYTES))
        folder_name, mount_point = document["folder"], document["mount_point"]
        if document["schema"] != _SCHEMA or Path(folder_name).name != name:
            raise ValueError("not an entry of the history")
        record = DumpRecord.from_document(document["record"])
        if record.state is DumpState.CAPTURING:
            raise ValueError("a capture under way")
        held_by = root / mount_point.lstrip("/") if mount_point else None
        return _Entry(root / folder_name.lstrip("/"), held_by, record)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        logger.warning("%s: skipping: %s", path, error)
        return None
