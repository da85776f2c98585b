# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crash the machine on request, to see the crash captured.

Two halves. The service writes down that the crash is a test and starts a unit; the unit runs ``kdump-service
crash-now``, which has the right to crash the machine, and does so only if it finds that note.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

from kdump_service import log
from kdump_service.errors import KdumpError, NotReady, ProgramFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.process import run
from kdump_service.quantity import format_utc
from kdump_service.record import TEST_CRASH_MARK
from kdump_service.service.proof import TEST_CRASH_FILE, announce_test, withdraw_test

__all__ = ["TEST_CRASH_UNIT", "crash_now", "run_crash_now", "start_test_crash"]

logger = logging.getLogger(__name__)

TEST_CRASH_UNIT = "kdump-test-crash.service"
_SYNC_SEC = 30.0
"""A disk that has not written what it holds by then is left to the journal of its file system."""
_CRASH_SEC = _SYNC_SEC + 60.0


def start_test_crash(kernel_files: KernelFiles, identity: str) -> None:
    """Announce a test of what is armed, and crash. Returns never, or raises KdumpError.

    ``identity`` is that of :func:`kdump_service.arm.identity.armed_identity`.
    """
    root = kernel_files.root
    try:
        announce_test(root, kernel_files.boot_id, identity, format_utc(time.time()))
    except OSError as error:
        raise NotReady(f"the test cannot be written down: {error.filename}: {error.strerror}") from error
    try:
        run(["systemctl", "start", TEST_CRASH_UNIT], timeout_sec=_CRASH_SEC)
    except ProgramFailed:
        _withdraw(root)
        raise
    _withdraw(root)
    raise KdumpError("the machine did not crash", f"See: journalctl -u {TEST_CRASH_UNIT}")


def _withdraw(root: Path) -> None:
    try:
        withdraw_test(root)
    except OSError as error:
        logger.warning("the next start takes the test for one that failed, ignoring: %s", error)


def crash_now(root: Path = Path("/")) -> None:
    """Crash, if the service has announced a test in this boot. Raises NotReady if it has not.

    Returns only where the kernel did not take the order (Documentation/admin-guide/sysrq.rst).
    """
    kernel_files = KernelFiles(root)
    try:
        announced = json.loads((root / TEST_CRASH_FILE).read_text(encoding="utf-8"))["boot_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotReady("no test crash was announced", "Run: kdumpctl test") from error
    if not announced or announced != kernel_files.boot_id:
        raise NotReady("a test crash was announced, but in another boot", "Run: kdumpctl test")
    if not kernel_files.crash_loaded:
        raise NotReady("the crash kernel is not loaded", "Run: kdumpctl arm")
    try:
        run(["sync"], timeout_sec=_SYNC_SEC)
    except ProgramFailed as error:
        logger.warning("crashing all the same: %s", error)
    # For the capture boot, which may see nothing of this system but its memory.
    try:
        (root / "dev/kmsg").write_text(f"<5>{TEST_CRASH_MARK}\n")
    except OSError as error:
        logger.warning("the dump will not know that it was a test: %s", error)
    # Whatever kernel.sysrq allows at the keyboard: here everything is allowed.
    (root / "proc/sysrq-trigger").write_text("c\n")


def run_crash_now() -> int:
    """Entry of the verb ``crash-now``; returns the exit code, if it returns."""
    log.to_journal()
    try:
        crash_now()
    except KdumpError as error:
        logger.error("%s", error.explanation())
        return error.exit_code
    except OSError as error:
        logger.error("the kernel does not take the order to crash: %s", error)
    return 1
