# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verb ``reserve`` of kdump-service: do what the request in /run asks for, and leave the answer there.

Runs in kdump-reserve.service, which may write to /boot and /etc, where the daemon may not.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdump_service.process import run as run_program
from kdump_service.reserve.apply import COMMAND_SEC, Run, apply_plan
from kdump_service.reserve.plan import Plan
from kdump_service.reserve.planner import make_plan
from kdump_service.reserve.request import REQUEST_FILE, RESULT_FILE, Request
from kdump_service.reserve.way_back import plan_way_back
from kdump_service.unit_exchange import answer_unit_request, run_unit_verb

__all__ = ["answer_request", "run_reserve"]

logger = logging.getLogger(__name__)


def _run(command: Sequence[str]) -> object:
    return run_program(command, timeout_sec=COMMAND_SEC)


def answer_request(root: Path, run: Run = _run) -> bool:
    """Do what is asked for; returns whether it could be done. Raises InvalidArgument where nothing is."""
    return answer_unit_request(
        root / REQUEST_FILE,
        root / RESULT_FILE,
        "Run: kdumpctl reserve",
        Request.from_json,
        lambda request: _do(root, request, run),
    )


def _do(root: Path, request: Request, run: Run) -> dict[str, Any]:
    plan: Plan = make_plan(root, request.words) if request.words else plan_way_back(root)
    result = {**plan.to_json(), "applied": False}
    if request.dry_run or not plan.boot_loader:
        return result
    doubts = apply_plan(root, plan, run)
    for change in plan.changes:
        logger.info("%s: %s", change.path, " ".join(request.words) or "as before")
    return {**result, "applied": True, "notes": [*result["notes"], *doubts]}


def run_reserve() -> int:
    """Entry of the verb; returns the exit code."""
    return run_unit_verb(answer_request)
