# SPDX-License-Identifier: LGPL-2.1-or-later
"""One rehearsal, from beginning to end.

A first boot: the armed kernel with the armed image, and a reservation as large as the machine's. It loads
what is armed, and panics; the capture boot follows, in the same virtual machine, and ends it. A second one
mounts the scratch target and tells what is on it, as production would find it. Nothing of both is left
behind."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from kdump_service.errors import CannotRehearse
from kdump_service.folders import STATE_FOLDER
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.free_room import check_room
from kdump_service.quantity import format_bytes, format_utc
from kdump_service.rehearse.armed import Armed
from kdump_service.rehearse.inside import CRASHING, READY
from kdump_service.rehearse.memory_log import memory_log
from kdump_service.rehearse.qemu import Accelerator, Boot, Machine, accelerators, board_of, find_program
from kdump_service.rehearse.scratch import make_scratch
from kdump_service.rehearse.stage import Stage, write_stage
from kdump_service.rehearse.verdict import Rehearsal, judge, told

__all__ = ["LIMITS", "Limits", "rehearse"]

logger = logging.getLogger(__name__)

_PREFIX = "rehearsal-"
_OWN_BYTES = 384 << 20
"""What the first boot needs for itself, beside its files."""
_FILE_COPIES = 6
"""The files of kernel and image lie in memory as QEMU gave them, unpacked, as what is loaded, and while it is
read."""
_GRAIN_BYTES = 16 << 20
_WORDS = (
    "rootfstype=ramfs",  # as the capture boot: else the files must fit into half of the memory
    "panic=5",
    "printk.devkmsg=on",  # all lines that processes give the kernel, however many
    "systemd.unit=kdump-rehearsal.target",
    "systemd.show_status=0",
)


@dataclass(frozen=True)
class Limits:
    """In seconds."""

    silent: float
    """Until the kernel says its first word."""
    crash: float
    """Until it crashes."""
    whole: float
    """Until the capture boot has come to its end; from the start on."""


LIMITS: dict[Accelerator, Limits] = {
    # On some machines, as those that are virtual themselves, KVM can be opened and hangs.
    "kvm": Limits(silent=10, crash=40, whole=120),
    "tcg": Limits(silent=60, crash=240, whole=600),
}


def rehearse(
    kernel_files: KernelFiles,
    armed: Armed,
    *,
    on_stage: Callable[[str], object] = lambda stage: None,
    limits: dict[Accelerator, Limits] = LIMITS,
) -> Rehearsal:
    """Do it. Raises CannotRehearse, ProgramFailed or OSError where it cannot be done."""
    board = board_of(platform.machine())
    program = find_program(board)
    files_bytes = armed.request.kernel.size_bytes + armed.request.initramfs.size_bytes
    memory_bytes = armed.reserved_bytes + _OWN_BYTES + _FILE_COPIES * files_bytes
    memory_bytes = -(-memory_bytes // _GRAIN_BYTES) * _GRAIN_BYTES
    _check_memory(kernel_files, memory_bytes)
    began = format_utc(time.time())
    with _work_folder(kernel_files.root, 3 * files_bytes + memory_bytes // 2) as work:
        for stage in ("crash", "read"):
            write_stage(armed, stage, work / stage)
        rehearsal: Rehearsal | None = None
        for accelerator in accelerators():
            on_stage(accelerator)
            machine = Machine(
                board, program, accelerator, armed.processors, memory_bytes, Path(armed.request.kernel.path),
                work / "crash", "", work / "target.img", -1,
            )  # fmt: skip
            seen = Rehearsal(
                passed=False, time=began, identity=armed.identity, release=armed.release,
                accelerator=accelerator, reserved_bytes=armed.reserved_bytes,
            )  # fmt: skip
            rehearsal = _try(machine, armed, seen, limits[accelerator], kernel_files, work)
            if rehearsal.reason != "does-not-start":
                break
            logger.info("With %s: %s", accelerator, rehearsal.explanation)
        assert rehearsal is not None
        return rehearsal


def _try(
    machine: Machine, armed: Armed, seen: Rehearsal, limits: Limits, kernel_files: KernelFiles, work: Path
) -> Rehearsal:
    # As much as a dump without any compression takes, and what is to stay free.
    scratch_bytes = 2 * machine.memory_bytes + armed.config.keep_free_bytes + (512 << 20)
    make_scratch(machine.disk, scratch_bytes, armed.target_kind, armed.target_uuid)
    log: list[str] = []
    read = None
    with _memory(machine.memory_bytes) as memory:
        crash = _boot(replace(machine, memory_descriptor=memory), "crash", armed.reserved_bytes, limits, work)
        ready = told(crash.lines, READY)
        got = int(ready.values["reserved_bytes"]) if ready is not None else armed.reserved_bytes
        if got < armed.reserved_bytes:
            raise CannotRehearse(
                f"the virtual machine reserves {format_bytes(got)} instead of "
                f"{format_bytes(armed.reserved_bytes)}",
                "kdumpctl test crashes the machine itself.",
            )
        if ready is not None:
            first = int(ready.values["reserved_at"]) - machine.board.memory_base
            if 0 < first < machine.board.memory_in_one:
                log = memory_log(memory, first, armed.reserved_bytes, armed.request.command_line)
    if told(crash.lines, CRASHING) is not None:
        with _memory(machine.memory_bytes) as memory:
            read = _boot(replace(machine, memory_descriptor=memory), "read", 0, limits, work)
    return judge(armed, crash, read, log, seen, kernel_files)


def _boot(machine: Machine, stage: Stage, reserve_bytes: int, limits: Limits, work: Path) -> Boot:
    words = [f"console={machine.board.console}", machine.board.early_console, *_WORDS]
    if reserve_bytes:
        words.append(f"crashkernel={reserve_bytes}")
    started = time.monotonic()

    def limit_of(boot: Boot) -> float:
        if not boot.lines:
            return started + limits.silent
        if stage == "crash" and told(boot.lines, CRASHING) is None:
            return started + limits.crash
        return started + limits.whole

    return replace(machine, initramfs=work / stage, command_line=" ".join(words)).boot(limit_of)


@contextmanager
def _memory(size_bytes: int) -> Iterator[int]:
    descriptor = os.memfd_create("kdump-rehearsal")
    try:
        os.ftruncate(descriptor, size_bytes)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _work_folder(root: Path, needed_bytes: int) -> Iterator[Path]:
    state = root / STATE_FOLDER
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    for stale in state.glob(f"{_PREFIX}*"):  # of one that was killed
        if stale.is_dir():
            shutil.rmtree(stale)
    check_room(state, needed_bytes, CannotRehearse, "a rehearsal may need")
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=state) as folder:
        yield Path(folder)


def _check_memory(kernel_files: KernelFiles, memory_bytes: int) -> None:
    """The machine's work has precedence."""
    free = kernel_files.meminfo_kib().get("MemAvailable", 0) << 10
    if free < memory_bytes:
        raise CannotRehearse(
            f"{format_bytes(free)} of memory are free, and a rehearsal may need {format_bytes(memory_bytes)}",
            "Try again when the machine has less to do.",
        )
