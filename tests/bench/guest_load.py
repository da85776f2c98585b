# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the guest whose memory becomes a vmcore for the benchmark. Standard library only.

Its argument is a JSON object with the fields of `guests.Load`. It says in /run/loaded when it is done, and
stays, since its memory is a part of the load. The disk with the content is mounted already.
"""

import json
import mmap
import os
import signal
import sys
from pathlib import Path

MIB = 1 << 20
CONTENT = Path("/mnt")  # as `guests` mounts it
LOADED = Path("/run/loaded")


def read_files() -> None:
    """The page cache."""
    buffer = bytearray(MIB)
    for path in sorted((CONTENT / "cache").iterdir()):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def look_up(files: int, names: int) -> None:
    """Dentries with inodes, then dentries of names that do not exist; one process for each processor."""
    children = []
    processors = os.cpu_count() or 1
    for processor in range(processors):
        if child := os.fork():
            children.append(child)
            continue
        exists = os.access
        for number in range(processor, files, processors):
            exists(f"{CONTENT}/names/{number // 1000}/{number}", os.F_OK)
        os.chdir(CONTENT / "names")
        for number in range(processor, names - files, processors):
            exists(f"{number}.missing", os.F_OK)
        os._exit(0)
    for child in children:
        os.waitpid(child, 0)


def area(kind: str, mib: int) -> mmap.mmap:
    """Anonymous memory with this kind of content."""
    memory = mmap.mmap(-1, max(mib, 1) * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    material = (CONTENT / kind).read_bytes()
    for start in range(0, mib * MIB, len(material)):
        part = material[: mib * MIB - start]
        memory[start : start + len(part)] = part
    return memory


def leave_behind(mib: int) -> None:
    """Free memory that somebody used before."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    area("text", mib // 2), area("heap", mib - mib // 2)
    os._exit(0)


def main() -> None:
    load = json.loads(sys.argv[1])
    look_up(load["files"], load["names"])
    print("looked up", flush=True)
    read_files()
    print("read", flush=True)
    leave_behind(load["stale_mib"])
    kept = [area(kind, load[f"{kind}_mib"]) for kind in ("text", "heap", "noise")]
    LOADED.write_text("yes\n")
    signal.pause()
    del kept


if __name__ == "__main__":
    main()
