# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: the daemon of daemon_on_fake_kernel, with a file for the unit that rehearses."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from kdump_service import log
from kdump_service.errors import ProgramFailed
from kdump_service.service import rehearsal
from tests.bus import daemon_on_fake_kernel


def _run(command: list[str], *, timeout_sec: float) -> str:
    assert command == ["systemctl", "start", "kdump-rehearse.service"]
    root = Path(sys.argv[1])
    with open(root / "rehearse", encoding="utf-8") as pipe:  # a pipe: until a test says how it went
        outcome = pipe.read().strip()
    if (root / "result.json").exists():
        shutil.copy(root / "result.json", root / "run/kdump-service/rehearsal.json")
    if outcome == "fails":
        raise ProgramFailed("systemctl start kdump-rehearse.service: exit status 1: made to fail")
    return ""


if __name__ == "__main__":
    log.to_stderr()
    vars(rehearsal)["run"] = _run
    asyncio.run(daemon_on_fake_kernel._main())
