# SPDX-License-Identifier: LGPL-2.1-or-later
"""Journals of capture boots that had no disk of their own: taken into the machine's journal, as boots of
their own.

Form of the header: https://systemd.io/JOURNAL_FILE_FORMAT (stable; new fields come behind these).
"""

from __future__ import annotations

import logging
import os
import struct
from pathlib import Path

from kdump_service.record import JOURNAL_FILE

__all__ = ["adopt_journal"]

logger = logging.getLogger(__name__)

_SIGNATURE = b"LPKSHHRH"
_SEQNUM_ID_AT, _HEAD_SEQNUM_AT, _HEAD_REALTIME_AT = 72, 168, 184
_HEADER_BYTES = 208
_LARGEST_BYTES = 16 << 20
"""A capture boot keeps at most 4 MiB of it."""


def adopt_journal(root: Path, dump_folder: Path, machine_id: str) -> bool:
    """Copy the journal beside a dump into the machine's own; whether that was done.

    Under the name of an archived file, so that journald counts it and rotates it away in time. Nothing is
    done where the machine keeps no journal on disk, or has this one already. What fails is told, and costs
    nothing else.
    """
    source = dump_folder / JOURNAL_FILE
    place = root / "var/log/journal" / machine_id
    try:
        if not machine_id or not place.is_dir() or not source.is_file():
            return False
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if status.st_uid != root.stat().st_uid or status.st_mode & 0o022:
                logger.warning("%s: others than root may have written it, ignoring", source)
                return False
            content = file.read(_LARGEST_BYTES)
        if len(content) < _HEADER_BYTES or not content.startswith(_SIGNATURE):
            logger.warning("%s: is no journal, ignoring", source)
            return False
        seqnum_id = content[_SEQNUM_ID_AT : _SEQNUM_ID_AT + 16].hex()
        (head_seqnum,) = struct.unpack_from("<Q", content, _HEAD_SEQNUM_AT)
        (head_realtime,) = struct.unpack_from("<Q", content, _HEAD_REALTIME_AT)
        # The names that journald gives (src/libsystemd/sd-journal/journal-file.c).
        final = place / f"system@{seqnum_id}-{head_seqnum:016x}-{head_realtime:016x}.journal"
        if final.exists():
            return False
        unfinished = place / f".{final.name}.kdump-service"
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
        )
        with open(descriptor, "wb") as copy:
            copy.write(content)
        unfinished.rename(final)
    except OSError as error:
        logger.warning("the journal of the capture stays in %s, ignoring: %s", dump_folder, error)
        return False
    return True
