# SPDX-License-Identifier: LGPL-2.1-or-later
"""What concerns crashes that were: whether they come in a row, whether their traces are kept, whether a test
failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdump_service.kernel.unit_files import UnitFiles
from kdump_service.service.problems import Problem, found
from kdump_service.service.proof import Level, Proof

__all__ = ["crash_loop_problems", "failed_test_problems", "journal_problems"]

_WINDOW_SEC = 3600
"""CrashLoopLimit= counts the crashes of an hour."""


def crash_loop_problems(crash_times: Sequence[float], limit: int, now: float) -> Iterator[Problem]:
    """``crash_times``: of crashes on record, in seconds since the epoch; ``limit`` 0: none is noticed."""
    recent = [moment for moment in crash_times if now - _WINDOW_SEC <= moment <= now]
    if limit and len(recent) >= limit:
        yield found(
            "crash-loop",
            f"The machine crashed {len(recent)} times within the last hour.",
            "See what they have in common: kdumpctl list, kdumpctl info",
        )


def journal_problems(root: Path) -> Iterator[Problem]:
    """Is the capture boot's journal kept? journald.conf(5): Storage=auto keeps it if its folder exists."""
    storage = UnitFiles(root).setting("journald.conf", "Storage").lower() or "auto"
    folder = (root / "var/log/journal").is_dir()
    if storage in ("volatile", "none") or (storage == "auto" and not folder):
        why = (
            "/var/log/journal does not exist" if storage == "auto" else f"Storage={storage} in journald.conf"
        )
        yield found(
            "journal-volatile",
            f"The journal is not kept over a reboot ({why}): what the machine said before a crash, and what "
            "the capture boot says, are lost.",
            "Run: mkdir -p /var/log/journal && systemctl restart systemd-journald"
            if storage == "auto"
            else "Set Storage=persistent in /etc/systemd/journald.conf.",
        )


def failed_test_problems(proof: Proof) -> Iterator[Problem]:
    """``proof``: of what is armed now."""
    if proof.level == Level.FAILED:
        yield found(
            "test-failed",
            f"The test crash of {proof.time} was not captured whole, and kernel, image, command line and "
            "target are the same since.",
            "See why: journalctl -u kdump.service --grep 'test crash', and kdumpctl info. Then: kdumpctl "
            "rehearse, or kdumpctl test",
        )
