# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verb ``rehearse`` of kdump-service: rehearse what is armed, and leave the result in /run.

Runs in kdump-rehearse.service, which may start QEMU, where the daemon may not.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from kdump_service import log
from kdump_service.atomic_file import write_atomically
from kdump_service.errors import CannotRehearse, KdumpError
from kdump_service.kernel.files import KernelFiles
from kdump_service.rehearse.armed import armed_now
from kdump_service.rehearse.rehearsal import rehearse
from kdump_service.rehearse.verdict import RESULT_FILE

__all__ = ["leave_result", "run_rehearse"]

logger = logging.getLogger(__name__)


def leave_result(root: Path) -> int:
    """Rehearse and leave the result; returns the exit code: 0 if there is one, whatever it is. Raises
    OSError."""
    answer: dict[str, Any]
    code = 0
    try:
        kernel_files = KernelFiles(root)
        answer = {"result": rehearse(kernel_files, armed_now(kernel_files), on_stage=_say).to_json()}
    except KdumpError as error:
        answer, code = _refused(error), error.exit_code
    except OSError as error:
        refused = CannotRehearse(f"{error.filename or 'rehearsal'}: {error.strerror}", "Make room in /var.")
        answer, code = _refused(refused), refused.exit_code
    write_atomically(root / RESULT_FILE, json.dumps(answer))
    return code


def _say(accelerator: str) -> None:
    logger.info(
        "Rehearsing in QEMU, %s", "with KVM" if accelerator == "kvm" else "emulated: this takes a minute"
    )


def _refused(error: KdumpError) -> dict[str, Any]:
    logger.error("No rehearsal: %s", error.explanation())
    return {"error": {"name": error.dbus_name(), "text": str(error), "hint": error.hint}}


def run_rehearse() -> int:
    """Entry of the verb; returns the exit code."""
    log.to_journal()
    try:
        return leave_result(Path("/"))
    except OSError as error:
        logger.error("the result cannot be left in /run: %s", error)
        return 1
