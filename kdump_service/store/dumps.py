# SPDX-License-Identifier: LGPL-2.1-or-later
"""List the dumps below the target, and tell which of them nobody has been told of yet."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from kdump_service.record import (
    FALLBACK_FOLDER,
    RECORD_FILE,
    DumpFile,
    DumpRecord,
    DumpState,
    Problem,
    write_atomically,
)

__all__ = ["StoredDump", "mark_reported", "scan", "unreported"]

logger = logging.getLogger(__name__)

_IMAGE_PREFIX = "vmcore"
_REPORTED_FILE = "var/lib/kdump-service/reported.json"


@dataclass(frozen=True)
class StoredDump:
    """One dump folder."""

    folder: Path
    record: DumpRecord

    @property
    def image(self) -> Path | None:
        """The memory image, if there is one."""
        names = [file.name for file in self.record.files]
        return next((self.folder / name for name in names if name.startswith(_IMAGE_PREFIX)), None)


def _cut_off(folder: Path, record: DumpRecord) -> DumpRecord:
    """Judge a record that still says ``capturing``: the capture never came to write its end."""
    files = []
    for path in sorted((*folder.glob(_IMAGE_PREFIX + "*"), *folder.glob("dmesg.txt*"))):
        status = path.stat()
        files.append(DumpFile(path.name, status.st_size, status.st_blocks * 512))
    has_image = any(file.name.startswith(_IMAGE_PREFIX) for file in files)
    return dataclasses.replace(
        record,
        state=DumpState.INCOMPLETE if has_image else DumpState.FAILED,
        files=files,
        problems=[*record.problems, Problem("capture", "cut-off", "the capture ended before it was done")],
    )


def scan(root: Path, target: str) -> list[StoredDump]:
    """All dumps of the target and the fallback folder, oldest first. What is no dump is passed over."""
    found = []
    for parent in (root / target.lstrip("/"), root / FALLBACK_FOLDER):
        try:
            folders = [path for path in parent.iterdir() if _is_ours(path) and (path / RECORD_FILE).is_file()]
        except FileNotFoundError:
            continue
        except OSError as error:
            logger.warning("%s: dumps cannot be listed, skipping: %s", parent, error.strerror)
            continue
        for folder in folders:
            try:
                record = DumpRecord.read(folder)
                if record.state is DumpState.CAPTURING:
                    record = _cut_off(folder, record)
            except (OSError, ValueError) as error:
                logger.warning("%s: skipping: %s", folder / RECORD_FILE, error)
                continue
            found.append(StoredDump(folder, record))
    return sorted(found, key=lambda dump: dump.folder.name)


def _is_ours(path: Path) -> bool:
    """Whether this user, root in production, made the folder: some distributions let everybody write to
    /var/crash, and nobody else's folder may pass for a crash."""
    status = path.lstat()
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _reported_names(root: Path) -> set[str]:
    path = root / _REPORTED_FILE
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
        return {name for name in names if isinstance(name, str)}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError) as error:
        logger.warning("%s: reporting all dumps again, ignoring: %s", path, error)
        return set()


def unreported(root: Path, dumps: list[StoredDump]) -> list[StoredDump]:
    """Those of ``dumps`` that :func:`mark_reported` has not seen."""
    names = _reported_names(root)
    return [dump for dump in dumps if dump.folder.name not in names]


def mark_reported(root: Path, dumps: list[StoredDump]) -> None:
    """Remember that these, all that there are now, were reported. Raises OSError."""
    path = root / _REPORTED_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(path, json.dumps(sorted(dump.folder.name for dump in dumps), indent=2) + "\n")
