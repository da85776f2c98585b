# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU: where it is, how it is called, and one boot of it, watched line by line."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kdump_service.errors import CannotRehearse
from kdump_service.process import Beside

__all__ = [
    "ACCELERATOR_VARIABLE",
    "Accelerator",
    "Board",
    "Boot",
    "Line",
    "Machine",
    "accelerators",
    "board_of",
]

Accelerator = Literal["kvm", "tcg"]
ACCELERATOR_VARIABLE = "KDUMP_REHEARSAL_ACCELERATOR"
"""In the environment: ``kvm`` or ``tcg``, and nothing else is tried."""

_PATH = "/usr/local/bin:/usr/bin:/usr/libexec"


@dataclass(frozen=True)
class Board:
    """What QEMU needs to know of an architecture."""

    programs: tuple[str, ...]
    """The first that is there is taken; RHEL has its own outside of the path."""
    machine: str
    emulated_processor: str
    console: str
    early_console: str
    """Word of the kernel command line for messages from the very beginning."""
    memory_base: int
    """Physical address of the first byte of memory."""
    memory_in_one: int
    """So many bytes from there on lie one behind the other."""
    packages: str


# The processor without five levels of page tables, which emulation has and few machines.
_BOARDS = {
    "x86_64": Board(
        ("qemu-system-x86_64", "qemu-kvm"), "q35", "max,la57=off",
        "ttyS0", "earlyprintk=serial,ttyS0,115200", 0, 2 << 30,
        "Debian, Ubuntu: qemu-system-x86; Fedora, RHEL: qemu-kvm; SUSE: qemu-x86; Arch: qemu-system-x86",
    ),
    "aarch64": Board(
        ("qemu-system-aarch64", "qemu-kvm"), "virt,gic-version=max", "max,pauth-impdef=on",
        "ttyAMA0", "earlycon", 1 << 30, 255 << 30,
        "Debian, Ubuntu: qemu-system-arm; Fedora, RHEL: qemu-kvm; SUSE: qemu-arm; Arch: qemu-system-aarch64",
    ),
}  # fmt: skip


def board_of(machine: str) -> Board:
    """By ``uname -m``. Raises CannotRehearse."""
    if machine not in _BOARDS:
        raise CannotRehearse(
            f"a rehearsal is not possible on {machine} yet", "kdumpctl test crashes the machine itself."
        )
    return _BOARDS[machine]


def find_program(board: Board) -> str:
    """Raises CannotRehearse where QEMU is not installed."""
    for name in board.programs:
        found = shutil.which(name, path=_PATH)
        if found is not None:
            return found
    raise CannotRehearse("QEMU is not installed", f"Install it ({board.packages}).")


def accelerators(kvm: Path = Path("/dev/kvm")) -> list[Accelerator]:
    """What to try, in this order."""
    wanted = os.environ.get(ACCELERATOR_VARIABLE, "")
    if wanted == "kvm":
        return ["kvm"]
    if wanted == "tcg" or not os.access(kvm, os.R_OK | os.W_OK):
        return ["tcg"]
    return ["kvm", "tcg"]


@dataclass(frozen=True)
class Line:
    """Of the console."""

    at: float
    """When it came: time.monotonic()."""
    text: str


@dataclass
class Boot:
    """What was seen of a virtual machine."""

    lines: list[Line] = field(default_factory=list)
    ended_at: float | None = None
    """None: it was ended by its watcher."""
    status: int = 0
    complaints: str = ""
    """Of QEMU itself."""


@dataclass(frozen=True)
class Machine:
    """A virtual machine with one disk, whose kernel is started by QEMU itself."""

    board: Board
    program: str
    accelerator: Accelerator
    processors: int
    memory_bytes: int
    kernel: Path
    initramfs: Path
    command_line: str
    disk: Path
    memory_descriptor: int
    """An open file that its memory lies in, to be looked at when the machine is gone."""

    def command(self) -> list[str]:
        """The command."""
        processor = "host" if self.accelerator == "kvm" else self.board.emulated_processor
        memory = f"memory-backend-file,id=memory,size={self.memory_bytes},share=on"
        return [
            self.program,
            *("-nodefaults", "-no-user-config", "-display", "none", "-name", "kdump-rehearsal"),
            # A reboot of the guest is the end.
            "-no-reboot",
            *("-machine", f"{self.board.machine},memory-backend=memory", "-accel", self.accelerator),
            *("-cpu", processor, "-smp", str(self.processors), "-m", f"{self.memory_bytes >> 20}M"),
            *("-object", f"{memory},mem-path=/proc/self/fd/{self.memory_descriptor}"),
            *("-kernel", str(self.kernel), "-initrd", str(self.initramfs), "-append", self.command_line),
            # A disk that is thrown away needs no sync.
            *("-drive", f"if=none,id=target,format=raw,cache=unsafe,file={_escaped(self.disk)}"),
            *("-device", "virtio-blk-pci,drive=target"),
            *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        ]

    def boot(self, limit_of: Callable[[Boot], float]) -> Boot:
        """Start it, and watch it until it ends or its time is over. Raises ProgramFailed.

        ``limit_of`` says of what was seen so far until when (time.monotonic()) there may be more.
        """
        boot = Boot()
        rest = b""
        with Beside(self.command(), pass_fds=(self.memory_descriptor,)) as qemu:
            while True:
                left = limit_of(boot) - time.monotonic()
                data = qemu.read(left) if left > 0 else None
                if data is None:
                    break
                now = time.monotonic()
                if not data:
                    boot.ended_at = now
                    boot.status, boot.complaints = qemu.end()
                    break
                *whole, rest = (rest + data).split(b"\n")
                boot.lines += [Line(now, _printable(line)) for line in whole]
        if rest:
            boot.lines.append(Line(time.monotonic(), _printable(rest)))
        return boot


def _escaped(path: Path) -> str:
    """A comma ends an option of QEMU, two are one."""
    return str(path).replace(",", ",,")


def _printable(line: bytes) -> str:
    text = line.decode("utf-8", "replace").strip("\r")
    return "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)
