# SPDX-License-Identifier: LGPL-2.1-or-later
"""What runs inside the virtual machine of a rehearsal, beside the armed image: a program of its own.

``inside.py crash`` loads what is armed for a crash, and crashes. ``inside.py read``, in another boot, looks
at what the capture saved. Both talk by lines on the console: ``kdump-rehearsal: `` and a JSON object. No more
is imported than what the image has, but for kernel/syscall.py, which is brought along."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import kdump_service.kernel

__all__ = ["CRASHING", "FOUND", "HOME", "LINE", "READY", "REFUSED", "Inside"]

HOME = "kdump/rehearsal"
"""The folder of this file in the virtual machine, and of what it needs."""
LINE = "kdump-rehearsal: "
READY, REFUSED, CRASHING, FOUND = "ready", "refused", "crashing", "found"
"""What a line tells: this system is up; the kernel does not load what is armed; the crash comes at once; what
the capture left."""

_MOST_RECORD_BYTES = 1 << 20


class Inside:
    """The program, below a root folder."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._home = root / HOME
        self._order = json.loads((self._home / "order.json").read_text(encoding="utf-8"))

    def crash(self) -> None:
        """Load and crash. Returns if the kernel refuses what is to be loaded."""
        # Nothing but a panic is to be printed between our own lines
        # (Documentation/core-api/printk-basics.rst).
        (self._root / "proc/sys/kernel/printk").write_text("1\n")
        # Linux 7.0 has these attributes in a folder.
        attributes = self._root / "sys/kernel/kexec"
        size = (
            attributes / "crash_size" if attributes.is_dir() else self._root / "sys/kernel/kexec_crash_size"
        )
        self._say(READY, reserved_bytes=int(size.read_text()), reserved_at=self._reserved_at())
        kdump_service.kernel.__path__.append(str(self._home / "kernel"))
        from kdump_service.kernel.syscall import load_crash_kernel  # noqa: PLC0415

        try:
            with (
                open(self._home / "armed-kernel", "rb") as kernel,
                open(self._home / "armed-image", "rb") as image,
            ):
                load_crash_kernel(kernel.fileno(), image.fileno(), self._order["command_line"])
        except OSError as error:
            self._say(REFUSED, errno=error.errno)
            return
        # The time of the crash, in the memory that is captured, has whole seconds.
        time.sleep(1 - time.time() % 1)
        self._say_at_once(CRASHING)
        (self._root / "proc/sysrq-trigger").write_text("c\n")

    def read(self) -> None:
        """Tell of the newest record, and whether its files are what it says."""
        folder = self._root / self._order["target_folder"].lstrip("/")
        records = sorted(folder.glob("*/record.json"))
        if not records:
            mounted = (self._root / self._order["target_mount_point"].lstrip("/")).is_mount()
            self._say(
                FOUND, record=None, wrong="" if mounted else "its file system cannot be mounted any more"
            )
            return
        text = records[-1].read_bytes()[:_MOST_RECORD_BYTES]
        try:
            record = json.loads(text)
            wrong = self._what_is_wrong(records[-1].parent, record)
        except (OSError, ValueError, KeyError, TypeError) as error:
            record, wrong = None, f"its record cannot be read: {error!r}"
        self._say(FOUND, record=record, wrong=wrong)

    def _what_is_wrong(self, folder: Path, record: dict[str, Any]) -> str:
        """Compare the files with the record: sizes, and the hash of each part of the image."""
        for file in record["files"]:
            size = (folder / file["name"]).stat().st_size
            if size != file["size_bytes"]:
                return f"{file['name']} has {size} bytes instead of {file['size_bytes']}"
        parts = record["image_parts"]
        images = [file["name"] for file in record["files"] if file["name"].startswith("vmcore")]
        if parts and len(images) != 1:
            return f"there are {len(images)} images"
        for part in parts:
            digest = hashlib.sha256()
            with open(folder / images[0], "rb") as file:
                file.seek(part["offset"])
                left = part["length"]
                while left and (data := file.read(min(left, 1 << 20))):
                    digest.update(data)
                    left -= len(data)
            if digest.hexdigest() != part["sha256"]:
                return f"{images[0]}: the part {part['name']} is not what was written"
        return ""

    def _reserved_at(self) -> int:
        """Physical address of the memory reserved for a crash; of the largest piece. 0 if there is none."""
        found = {0: 0}
        for line in (self._root / "proc/iomem").read_text().splitlines():
            place, _, name = line.partition(" : ")
            if name == "Crash kernel":
                first, last = (int(number, 16) for number in place.split("-"))
                found[last - first] = first
        return found[max(found)]

    def _say(self, what: str, **values: object) -> None:
        # A line of its own, whatever stands before it.
        text = f"\n{LINE}{json.dumps({'what': what, **values})}\n"
        with open(self._root / "dev/console", "wb", buffering=0) as console:
            console.write(text.encode())

    def _say_at_once(self, what: str) -> None:
        """By way of the kernel, which does not go on before it is out. The level is that of a panic."""
        (self._root / "dev/kmsg").write_text(f"<0>{LINE}{json.dumps({'what': what})}\n")


if __name__ == "__main__":
    getattr(Inside(), sys.argv[1])()
