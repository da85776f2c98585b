# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's brain where it meets what is slow; what it does on a bus is in tests/bus."""

from __future__ import annotations

import asyncio
import errno
import threading
from pathlib import Path

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.config import Config
from kdump_service.errors import KernelBusy
from kdump_service.kernel.files import KernelFiles
from kdump_service.service import control as control_module
from kdump_service.service.control import Control
from kdump_service.service.lanes import Lane
from kdump_service.service.state import ArmState, View
from kdump_service.store.dumps import StoredDump
from tests.builders.machine_root import FakeKernel, MachineRoot
from tests.hang import HANG_SEC, until


class _Nobody:
    """Who is told, and does not care."""

    def announce_view(self, view: View) -> None:
        pass

    def announce_config(self, config: Config) -> None:
        pass

    def announce_dumps(self, dumps: object, same_bugs: object) -> None:
        pass


class _Bench:
    def __init__(self, path: Path) -> None:
        self.machine = MachineRoot(path)
        self.kernel = FakeKernel(self.machine)
        files = KernelFiles(path)
        loader = Loader(files, self.kernel.load, self.kernel.unload)
        self.control = Control(files, loader, lambda files, identity: None, lambda status: None)

    async def start(self) -> None:
        await self.control.start(_Nobody())

    async def stop(self) -> None:
        await self.control.stop(disarm=False)
        self.control.close()


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    return _Bench(tmp_path)


def test_check_does_not_wait_for_dumps_that_are_being_deleted(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_LONGEST_REFRESH_SEC", 0.2)
    done = threading.Event()

    async def check() -> None:
        await bench.start()
        lanes = bench.control._lanes
        deleting = asyncio.create_task(lanes.run(Lane.STORE, done.wait))
        await asyncio.wait_for(bench.control.check(), HANG_SEC)
        assert not deleting.done()
        done.set()
        await deleting
        await bench.stop()

    asyncio.run(check())


def test_kernel_that_was_busy_is_asked_again_after_any_act(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the start alone: another program may load a kernel at any time."""
    monkeypatch.setattr(control_module, "_BUSY_PAUSE_SEC", 0.01)

    async def change() -> View:
        await bench.start()
        bench.kernel.failures = [errno.EBUSY, errno.EBUSY]
        bench.machine.write("etc/kdump-service.conf", "[Kernel]\nCommandLineAppend=new\n")
        with pytest.raises(KernelBusy):
            await bench.control.reload()
        await until(lambda: bench.control.view().status.command_line.endswith(" new"))
        view = bench.control.view()
        await bench.stop()
        return view

    status = asyncio.run(change()).status
    assert (status.state, status.reason) == (ArmState.ARMED, "")


def test_target_that_comes_is_brought_within_its_limits(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the start its folder was an empty mount point."""
    applied: list[StoredDump | None] = []

    async def mount() -> None:
        await bench.start()
        while bench.control._lanes._tasks:  # what the start leaves to the background
            await asyncio.sleep(0.01)
        monkeypatch.setattr(
            bench.control._dumps, "apply_limits", lambda config, advance: applied.append(None)
        )
        bench.control._something_changed("mounts")
        while bench.control._lanes._tasks:
            await asyncio.sleep(0.01)
        await bench.stop()

    asyncio.run(mount())
    assert applied == [None]
