# SPDX-License-Identifier: LGPL-2.1-or-later
"""The end of the capture boot.

A reboot is not done here: it is SuccessAction= and FailureAction= of kdump-capture.service, so that it
happens whatever became of this program. Only another wish of the configuration is carried out by us, and if
that fails, the unit's action still follows.
"""

from __future__ import annotations

import logging

from kdump_service.errors import ProgramFailed
from kdump_service.process import run

__all__ = ["final_action"]

logger = logging.getLogger(__name__)


def final_action(action: str, *, at_once: bool = False) -> None:
    """``reboot`` leaves it to the unit; ``poweroff`` and ``halt`` are asked of systemd. ``at_once``: someone
    hangs, and systemd would wait for it; what was saved is on the disk."""
    if at_once:
        logger.warning("Final action: %s at once, since a process hangs in the kernel", action)
        try:
            # ctypes, which nothing else here needs.
            from kdump_service.kernel.reboot import end_at_once  # noqa: PLC0415

            end_at_once(action)
        except OSError as error:
            logger.error("%s", error)
    if action == "reboot":
        logger.info("Rebooting")
        return
    logger.info("Final action: %s", action)
    try:
        # --force: services are not stopped one by one, but file systems are unmounted (systemctl(1)).
        run(["systemctl", "--force", action], timeout_sec=30)
    except ProgramFailed as error:
        logger.error("cannot %s, rebooting instead: %s", action, error)
