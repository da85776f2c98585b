# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry of the verb ``capture``: run by kdump-capture.service in the capture boot, and by nobody else."""

from __future__ import annotations

import contextlib
import logging
import os

from systemd.daemon import notify

from kdump_service import log
from kdump_service.capture.action import final_action
from kdump_service.capture.pipeline import Capture, Surroundings
from kdump_service.capture.settings import read_capture_settings
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpState

__all__ = ["run_capture"]

logger = logging.getLogger(__name__)


def _open_console() -> None:
    # A console that cannot be written (a dead serial line gives EIO) must not cost the dump.
    logging.raiseExceptions = False
    with contextlib.suppress(OSError):
        descriptor = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        log.to_console(open(descriptor, "w", buffering=1, encoding="utf-8", errors="replace"))  # noqa: SIM115


def run_capture() -> int:
    """Capture, then the final action. Exit code 0 if the dump is complete, else 1."""
    log.to_journal()
    kernel_files = KernelFiles()
    if not kernel_files.has_vmcore:
        logger.error("/proc/vmcore does not exist: this is not a capture boot")
        return 1
    _open_console()
    notify("READY=1")
    config = read_capture_settings(kernel_files.root).config
    capture = Capture(Surroundings(kernel_files, notify))
    record = capture.run()
    complete = record.state is DumpState.COMPLETE
    final_action(config.on_success if complete else config.on_failure, at_once=capture.has_left_behind)
    return 0 if complete else 1
