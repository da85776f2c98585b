# SPDX-License-Identifier: LGPL-2.1-or-later
"""The disk that a capture writes its dump to, and when QEMU saw how much being written to it.

Both contestants get /var/crash on a disk of its own, so that what is written there in the capture boot is the
dump, the log, what is noted beside them, and the journal of an otherwise empty file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.vm.disk import copy_image, take_folder
from tests.vm.tool import run_tool

__all__ = ["FSTAB", "SETTINGS", "TargetDisk", "WriteWatch", "allowance"]

UUID = "6b64756d-702d-7365-7276-696365300005"
SIZE_MIB = 4096  # sparse

# The root as tests.vm.disk has it. No check of the other one at boot: with /var/crash on the root, as on most
# machines, the capture boot of kdump-tools has one file system to check.
FSTAB = f"/dev/vda / ext4 errors=remount-ro 0 1\nUUID={UUID} /var/crash ext4 defaults 0 0\n"

# Pages go to the disk when they are written, and not when the page cache sees fit, which is seconds later or
# at the end: for both the same, and without making a write wait. Without this, kdump-tools' first page was
# seen 7 s later, and its end at the same time. See the kernel's kernel-parameters.txt (sysctl.*) and
# admin-guide/sysctl/vm.rst.
SETTINGS = "sysctl.vm.dirty_background_bytes=4096"

POLL_SEC = 0.02  # QEMU has no event for writes; asking takes 0.2 ms
PAGE_BYTES = 4096


def allowance(memory_mib: int) -> int:
    """Bytes that a capture may have written before its first page: beyond them, it writes pages.

    384 KiB for the log, the record, and the file system's journal (a transaction for each file or folder
    made, and what the crashed system had left): 152 KiB were measured with kdump-tools, 328 KiB with this
    project. Two bitmaps, one bit a page each, which every kdump-compressed file begins with. Much more would
    not do: with 8 GiB the first MiB takes two seconds, since its pages compress to next to nothing.
    """
    return (384 << 10) + 2 * (memory_mib << 20) // PAGE_BYTES // 8


@dataclass(frozen=True)
class Sample:
    """Of QEMU since it began, at this host time (seconds, monotonic)."""

    at: float
    written_bytes: int
    """To the target."""
    cpu_seconds: float


class TargetDisk:
    """An image with an empty ext4 file system, of which each machine gets a copy."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._empty = folder / "empty.img"
        # Else the guest's kernel would write inode tables in the background, for as long as it has any left.
        at_once = "lazy_itable_init=0,lazy_journal_init=0"
        run_tool("mke2fs", "-q", "-F", "-t", "ext4", "-U", UUID, "-E", at_once, self._empty, f"{SIZE_MIB}M")
        self.image = folder / "target.img"

    def renew(self) -> list[str]:
        """An empty disk again; words for QEMU."""
        copy_image(self._empty, self.image)
        return [
            *("-drive", f"if=none,id=target,format=raw,cache=unsafe,file={self.image}"),
            *("-device", "virtio-blk-pci,drive=target"),
        ]

    def take_out(self) -> Path:
        """All files of the disk, in a folder; only when the machine is off."""
        folder = self.folder / "files"
        run_tool("rm", "-rf", folder)
        take_folder(self.image, "/", folder)
        return folder


class WriteWatch:
    """Asks QEMU, by a monitor of its own, how much was written to the target; within `with`."""

    def __init__(self, folder: Path) -> None:
        path = folder / "watch"
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.qemu_arguments = [
            *("-chardev", f"socket,id=watch,path={path}"),
            *("-mon", "chardev=watch,mode=control"),
        ]
        self._samples = [Sample(time.monotonic(), 0, 0.0)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="write-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._thread.join()
        self._listener.close()

    def written_beyond(self, size_bytes: int, since: float) -> float | None:
        """The host time at which more than this was written since that host time; None if never."""
        before = self._last(since).written_bytes
        return next((each.at for each in self._samples if each.written_bytes - before > size_bytes), None)

    def writes(self, since: float) -> list[tuple[float, int]]:
        """Host times at which the bytes that were written since that host time had become more, and these."""
        before = self._last(since)
        found: list[tuple[float, int]] = []
        for each in self._samples:
            if each.written_bytes > before.written_bytes + (found[-1][1] if found else 0):
                found.append((each.at, each.written_bytes - before.written_bytes))
        return found

    def cpu_seconds(self, since: float, until: float) -> float:
        """What QEMU took of the host's processors between these host times."""
        return self._last(until).cpu_seconds - self._last(since).cpu_seconds

    def _last(self, moment: float) -> Sample:
        return self._samples[bisect_right(self._samples, moment, key=lambda each: each.at) - 1]

    def _watch(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # no QEMU came
            return
        # QEMU ends before we do, which closing what was not sent notices, too.
        with (
            contextlib.suppress(OSError, EOFError),
            connection,
            connection.makefile("rwb") as lines,
        ):
            self._ask(lines, "qmp_capabilities")
            statistics = Path(f"/proc/{_peer(connection)}/stat")
            while not self._ended.wait(POLL_SEC):
                devices = self._ask(lines, "query-blockstats")
                total = next(each for each in devices if each["device"] == "target")["stats"]["wr_bytes"]
                self._samples.append(Sample(time.monotonic(), total, _cpu_seconds(statistics)))

    @staticmethod
    def _ask(lines: Any, command: str) -> Any:
        lines.write(json.dumps({"execute": command}).encode() + b"\n")
        lines.flush()
        while line := lines.readline():
            answer = json.loads(line)
            if "return" in answer:
                return answer["return"]
        raise EOFError


def _peer(connection: socket.socket) -> int:
    """The process at the other end."""
    process, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(process)


def _cpu_seconds(statistics: Path) -> float:
    """utime and stime of proc(5)'s stat, the 12th and 13th field behind the name in parentheses."""
    fields = statistics.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
