# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keep the journal of a capture boot whose own file system is gone with the reboot."""

from __future__ import annotations

import logging
from pathlib import Path

from kdump_service.errors import ProgramFailed, TargetFull, TargetUnusable
from kdump_service.process import run
from kdump_service.record import JOURNAL_FILE
from kdump_service.targets.contract import Place

__all__ = ["save_own_journal"]

logger = logging.getLogger(__name__)

_NAME = "*/system.journal"
_SYNC_SEC = 30.0
"""journald has less of the processor than the capture, and may still be starting."""


def save_own_journal(root: Path, to: Place) -> None:
    """Copy it beside the dump, for root alone to read. What fails is told, and costs nothing else."""
    place = root / "run/log/journal"
    try:
        if not any(place.glob(_NAME)):
            # While it starts, there is nobody to take the other one's wish; this waits for the start's end.
            run(["systemctl", "start", "systemd-journald.service"], timeout_sec=_SYNC_SEC)
        run(["journalctl", "--sync"], timeout_sec=_SYNC_SEC)
    except ProgramFailed as error:
        logger.warning("the end of this journal may be missing: %s", error)
    try:
        journals = list(place.glob(_NAME))
        if not journals:
            logger.warning("the journal of the capture is not kept: journald has not written any")
        for source in journals:
            to.put(JOURNAL_FILE, source.read_bytes())
    except (OSError, TargetFull, TargetUnusable) as error:
        logger.warning("the journal of the capture is not kept: %s", error)
