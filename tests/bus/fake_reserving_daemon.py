# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: the daemon of daemon_on_fake_kernel, which runs the unit's own code instead of systemd."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from kdump_service import log
from kdump_service.errors import ProgramFailed
from kdump_service.reserve.main import answer_request
from kdump_service.service import reservation
from tests.builders.boot_trees import BootTree
from tests.bus import daemon_on_fake_kernel


class _ExistingTree(BootTree):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.ran = []
        self.failing = set()


def _run(command: list[str], *, timeout_sec: float) -> str:
    assert command == ["systemctl", "start", "kdump-reserve.service"]
    tree = _ExistingTree(Path(sys.argv[1]))
    if (tree.path / "update-grub-fails").exists():
        tree.failing = {"update-grub"}
    if not answer_request(tree.path, tree.run):
        raise ProgramFailed("systemctl start kdump-reserve.service: exit status 1")
    return ""


if __name__ == "__main__":
    log.to_stderr()
    vars(reservation)["run"] = _run
    asyncio.run(daemon_on_fake_kernel._main())
