# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: the daemon of daemon_on_fake_kernel, which runs the code of kdump-shrink.service itself.

The kernel's file is faked where it is written. For the unit that rehearses there is a file."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

from kdump_service import log
from kdump_service.errors import ProgramFailed
from kdump_service.service import rehearsal, shrink, shrink_unit
from tests.builders.machine_root import FakeCrashSize
from tests.bus import daemon_on_fake_kernel


def _shrink(command: list[str], *, timeout_sec: float) -> str:
    assert command == ["systemctl", "start", "kdump-shrink.service"]
    root = Path(sys.argv[1])
    with open(root / "shrinks", "a") as begun:
        begun.write("begun\n")
    size = FakeCrashSize(daemon_on_fake_kernel._ExistingRoot(root))
    if (root / "shrink-fails").exists():
        size.failure = int((root / "shrink-fails").read_text())
    vars(shrink_unit)["os"] = SimpleNamespace(
        open=os.open, close=os.close, O_WRONLY=os.O_WRONLY, write=size.write
    )
    if not shrink_unit.answer_request(root):
        raise ProgramFailed("systemctl start kdump-shrink.service: exit status 1")
    return ""


def _rehearse(command: list[str], *, timeout_sec: float) -> str:
    root = Path(sys.argv[1])
    shutil.copy(root / "result.json", root / "run/kdump-service/rehearsal.json")
    return ""


if __name__ == "__main__":
    log.to_stderr()
    vars(shrink)["run"] = _shrink
    vars(rehearsal)["run"] = _rehearse
    asyncio.run(daemon_on_fake_kernel._main())
