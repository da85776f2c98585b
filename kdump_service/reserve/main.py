# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs ``reserve`` and ``unreserve`` of kdump-service.

``reserve`` does what the request in /run asks for, and leaves the answer there. It runs in
kdump-reserve.service, which may write to /boot and /etc, where the daemon may not. ``unreserve`` is for the
removal of the program, when there is no daemon.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdump_service import log
from kdump_service.atomic_file import write_atomically
from kdump_service.errors import KdumpError
from kdump_service.process import run as run_program
from kdump_service.reserve.apply import COMMAND_SEC, Run, apply_plan
from kdump_service.reserve.plan import Plan
from kdump_service.reserve.planner import make_plan
from kdump_service.reserve.request import REQUEST_FILE, RESERVE_AGAIN_FILE, RESULT_FILE, Request
from kdump_service.reserve.way_back import kept, plan_way_back
from kdump_service.unit_exchange import answer_unit_request, run_unit_verb

__all__ = ["answer_request", "run_reserve", "run_unreserve", "take_back"]

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
    """Entry of the verb ``reserve``; returns the exit code."""
    return run_unit_verb(answer_request)


def take_back(root: Path, run: Run = _run) -> None:
    """Make the boot loader's files what they were before ``crashkernel=`` was set by this program, if it was,
    and leave a request for the same in /run, for a removal that is called off. Raises ConfigError or
    ProgramFailed, and then nothing has changed."""
    (root / RESERVE_AGAIN_FILE).unlink(missing_ok=True)
    reserved = kept(root)
    if reserved is None:
        return
    plan = plan_way_back(root)
    doubts = apply_plan(root, plan, run)
    for change in plan.changes:
        logger.info("%s: crashkernel= is as it was before it was reserved", change.path)
    for doubt in doubts:
        logger.warning("%s", doubt)
    path = root / RESERVE_AGAIN_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, Request("again", reserved.words).to_json())


def run_unreserve() -> int:
    """Entry of the verb ``unreserve``, for packages that are removed; returns the exit code."""
    log.to_stderr()
    try:
        take_back(Path("/"))
    except KdumpError as error:
        logger.error("crashkernel= stays in the boot loader's configuration: %s", error.explanation())
        return error.exit_code
    return 0
