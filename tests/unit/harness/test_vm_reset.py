# SPDX-License-Identifier: LGPL-2.1-or-later
"""A machine of tests/vm that is reset goes on in another process. QEMU is faked: its side of two sockets."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.hang import HANG_SEC
from tests.vm.disk import Disk
from tests.vm.events import MachineLost
from tests.vm.machine import Machine

QEMU = """
import json, socket, sys
ends, lives = json.loads(sys.argv[1]), sys.argv[2]
side, qmp = (socket.socket(fileno=int(number)) for number in sys.argv[3:])
def say(line, **message): line.sendall(json.dumps(message).encode() + b"\\n")
with open(lives, "a+") as file:
    file.write("x"); file.flush(); file.seek(0); life = len(file.read())
if life > len(ends) or ends[life - 1] != "dies":
    asked = json.loads(qmp.makefile().readline())
    say(qmp, id=asked["id"], **{"return": {}})
    print("life", life, flush=True)
    if life <= len(ends):
        say(qmp, event="SHUTDOWN", data={"reason": ends[life - 1]})
    else:
        qmp.recv(1)
"""


class _Fake(Machine):
    def __init__(self, work: Path, ends: str) -> None:
        disk = SimpleNamespace(image=work / "nothing", firmware="direct", root="/dev/vda", root_offset=0)
        super().__init__(cast(Disk, disk), work)
        self._ends = ends

    def qemu_words(self, image: Path, side_fd: int, qmp_fd: int) -> list[str]:
        return [
            *(sys.executable, "-c", QEMU, self._ends),
            *(str(self.work / "lives"), str(side_fd), str(qmp_fd)),
        ]


def _lives(work: Path) -> int:
    return (work / "lives").stat().st_size


def _started(work: Path, ends: str) -> _Fake:
    machine = _Fake(work, ends)
    machine.start()
    return machine


def test_after_a_reset_it_is_the_same_machine(tmp_path: Path) -> None:
    machine = _started(tmp_path, '["guest-reset", "guest-reset"]')
    try:
        machine.wait_for_console("life 3", timeout_sec=HANG_SEC)
        assert [line.text for line in machine.console.lines] == ["life 1", "life 2", "life 3"]
    finally:
        machine.stop()


@pytest.mark.parametrize(
    ("ends", "lives"),
    [
        ('["guest-shutdown"]', 1),
        ('["guest-panic"]', 1),
        # An end that nobody announced is no reset, though there was one before.
        ('["guest-reset", "dies"]', 2),
    ],
)
def test_other_ends_are_the_end(tmp_path: Path, ends: str, lives: int) -> None:
    machine: Any = None
    with pytest.raises(MachineLost, match="QEMU ended"):
        machine = _started(tmp_path, ends)
        machine.wait_for_console("never said", timeout_sec=HANG_SEC)
    if machine is not None:
        machine.stop()
    assert _lives(tmp_path) == lives


def test_a_machine_that_shall_end_at_its_reset_does(tmp_path: Path) -> None:
    machine = _Fake(tmp_path, '["guest-reset"]')
    machine.end_at_reset()
    machine.start()
    machine.wait_until_off(timeout_sec=HANG_SEC)
    assert (_lives(tmp_path), machine.running) == (1, False)
