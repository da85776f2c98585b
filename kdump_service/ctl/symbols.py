# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find the symbols of the kernel that crashed: vmlinux with debug information, of the very build.

Places: where Debian's linux-image-*-dbg, Fedora's kernel-debuginfo and SUSE's kernel-*-debuginfo put it, the
build id's place below /usr/lib/debug (GDB's manual, "Separate Debug Files"), a kernel's own build tree, and
debuginfod(8).
"""

from __future__ import annotations

import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

__all__ = ["Search", "build_id_of", "find_symbols", "how_to_get"]

_SHT_NOTE = 7
_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_LARGEST_NOTES_BYTES = 1 << 20


@dataclass
class Search:
    """What was found, or what was looked at."""

    path: Path | None = None
    fits: bool = False
    """Whether its build id is that of the kernel; False also if either has none."""
    rejected: list[str] = field(default_factory=list)
    """A sentence for each file that is there and is not of this build."""


def find_symbols(release: str, build_id: str, *, root: Path = Path("/"), debuginfod: bool = True) -> Search:
    """Look for the vmlinux of this release and build; ``build_id`` empty: not known, the release decides."""
    search = Search()
    for path in _places(root, release, build_id):
        if _accept(search, path, build_id):
            return search
    if build_id and debuginfod and os.environ.get("DEBUGINFOD_URLS") and shutil.which("debuginfod-find"):
        fetched = _ask_debuginfod(build_id)
        if fetched is not None:
            _accept(search, fetched, build_id)
    return search


def _places(root: Path, release: str, build_id: str) -> list[Path]:
    places = []
    if release and "/" not in release and release not in (".", ".."):
        debug = root / "usr/lib/debug"
        places += [
            debug / f"boot/vmlinux-{release}",
            debug / f"lib/modules/{release}/vmlinux",
            debug / f"usr/lib/modules/{release}/vmlinux",
            debug / f"usr/lib/modules/{release}/vmlinux.debug",
            debug / f"lib/modules/{release}/vmlinux.debug",
            root / f"lib/modules/{release}/build/vmlinux",
            root / f"boot/vmlinux-{release}",
        ]
    if len(build_id) > 2 and set(build_id) <= set("0123456789abcdef"):
        places.append(root / "usr/lib/debug/.build-id" / build_id[:2] / f"{build_id[2:]}.debug")
    return places


def _accept(search: Search, path: Path, build_id: str) -> bool:
    """Take the file if it is of this build; note why not if it is another's."""
    try:
        with open(path, "rb") as file:
            found = build_id_of(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        search.rejected.append(f"{path} cannot be used: {reason}")
        return False
    if build_id and found and found != build_id:
        search.rejected.append(
            f"{path} is of another build: its build id is {found}, the kernel's {build_id}"
        )
        return False
    search.path, search.fits = path, bool(build_id) and found == build_id
    return True


def build_id_of(file: BinaryIO) -> str:
    """The build id of an ELF file (elf(5)), hexadecimal; empty if it has none. Raises OSError, ValueError."""
    ident = file.read(16)
    if ident[:4] != b"\x7fELF" or len(ident) < 16 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
        raise ValueError("no ELF file")
    order, is_64 = "<>"[ident[5] - 1], ident[4] == 2
    head = struct.Struct(order + ("HHIQQQIHHHHHH" if is_64 else "HHIIIIIHHHHHH"))
    try:
        fields = head.unpack(file.read(head.size))
        phoff, shoff, phentsize, phnum, shentsize, shnum = (fields[i] for i in (4, 5, 8, 9, 10, 11))
        # sh_type, sh_offset, sh_size; p_type, p_offset, p_filesz
        section = ("4xI16xQQ", 64) if is_64 else ("4xI8xII", 40)
        segment = ("I4xQ16xQ", 56) if is_64 else ("II8xI", 32)
        for (layout, least), offset, size, count, kind in (
            (section, shoff, shentsize, shnum, _SHT_NOTE),
            (segment, phoff, phentsize, phnum, _PT_NOTE),
        ):
            if size < least:
                continue
            for index in range(count):
                file.seek(offset + index * size)
                found_kind, start, length = struct.unpack_from(order + layout, file.read(size))
                if found_kind == kind and 0 < length <= _LARGEST_NOTES_BYTES:
                    file.seek(start)
                    if build_id := _build_id_note(file.read(length), order):
                        return build_id
    except (struct.error, OverflowError) as error:
        raise ValueError("a damaged ELF file") from error
    return ""


def _build_id_note(notes: bytes, order: str) -> str:
    position = 0
    while position + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(f"{order}III", notes, position)
        name_end = position + 12 + name_size
        start = position + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[position + 12 : name_end] == b"GNU\0":
            return notes[start : start + size].hex()
        position = start + (size + 3 & ~3)
    return ""


def _ask_debuginfod(build_id: str) -> Path | None:
    """Have debuginfod-find(1) fetch it; it tells its own progress and errors on standard error."""
    reader, writer = os.pipe()
    child = os.posix_spawnp(
        "debuginfod-find",
        ["debuginfod-find", "debuginfo", build_id],
        {"DEBUGINFOD_PROGRESS": "1", **os.environ},
        file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)],
    )
    os.close(writer)
    with open(reader, encoding="utf-8", errors="surrogateescape") as pipe:
        printed = pipe.read()
    _, status = os.waitpid(child, 0)
    return Path(printed.strip()) if status == 0 and printed.strip() else None


def how_to_get(release: str, build_id: str, *, root: Path = Path("/")) -> str:
    """What to install, by the distribution of this machine (os-release(5))."""
    words: set[str] = set()
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / name).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition("=")
            if key in ("ID", "ID_LIKE"):
                words.update(value.strip("\"'").split())
        break
    if "ubuntu" in words:
        text = f"Install linux-image-{release}-dbgsym, from ddebs.ubuntu.com"
    elif "debian" in words:
        text = f"Install linux-image-{release}-dbg: apt install linux-image-{release}-dbg"
    elif words & {"fedora", "rhel", "centos"}:
        text = f"Run: dnf debuginfo-install kernel-{release}"
    elif words & {"suse", "opensuse", "sles"}:
        # SUSE's releases end in the flavour: 6.4.0-150600.23-default
        flavour = release.rpartition("-")[2] or "default"
        text = f"Run: zypper install kernel-{flavour}-debuginfo, from the debug repository"
    elif "arch" in words:
        text = "Run: debuginfod-find, with DEBUGINFOD_URLS=https://debuginfod.archlinux.org"
    else:
        text = f"Install the package with the debug information of kernel {release}"
    if build_id:
        text += f"; or set DEBUGINFOD_URLS and install debuginfod-find (build id {build_id})"
    return text + "."
