# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrink=: when it is done, whatever else is being done just then."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from unittest.mock import AsyncMock

from kdump_service.arm.loader import Loader
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord, DumpState
from kdump_service.service.acting import Acting
from kdump_service.service.lanes import Lane, Lanes
from kdump_service.service.manager import Manager
from kdump_service.service.shrinking import Shrinking
from tests.builders.machine_disks import put_image, small_image_machine
from tests.builders.machine_root import RELEASE, FakeKernel, MachineRoot

MEASURED = DumpRecord(
    "crash",
    state=DumpState.COMPLETE,
    kernel_release=RELEASE,
    memory_total_kib=220680,
    memory_available_low_water_kib=120680,
    pages=1000,
)


class _SlowKernel(FakeKernel):
    """Its second load takes until the test has seen it."""

    def __init__(self, machine: MachineRoot) -> None:
        super().__init__(machine)
        self.begun = threading.Event()
        self.may_end = threading.Event()

    def load(self, kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
        if self.loads:
            self.begun.set()
            assert self.may_end.wait(60)
        super().load(kernel_fd, initrd_fd, command_line)


def test_an_answer_amid_a_load_is_of_what_is_loaded_then(tmp_path: Path) -> None:
    machine = small_image_machine(tmp_path, built=False)
    machine.write("etc/kdump-service.conf", "[Kernel]\nShrink=yes\n")
    files, kernel, whole = KernelFiles(tmp_path), _SlowKernel(machine), AsyncMock(spec=Acting)
    manager = Manager(files, Loader(files, kernel.load, kernel.unload))

    async def scene() -> None:
        lanes = Lanes()
        shrinking = Shrinking(files, whole, manager, lanes)
        await lanes.run(Lane.ACTS, manager.start)
        assert not await shrinking.shrink([MEASURED])
        assert shrinking.waits  # for the image
        put_image(machine)
        loading = asyncio.ensure_future(lanes.run(Lane.ACTS, manager.image_built))
        await asyncio.to_thread(kernel.begun.wait, 60)
        asked = asyncio.ensure_future(shrinking.shrink([MEASURED]))
        await lanes.run(Lane.QUESTIONS, lambda: None)  # which would be answered by now
        kernel.may_end.set()
        await loading
        assert await asked
        lanes.close()

    asyncio.run(scene())
    assert [call.args[0] for call in whole.act.await_args_list] == ["shrinking"]
