# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes an initramfs of a folder.

As squashfs: the archive holds what is outside of /usr, and /usr as one compressed file, which is mounted.
What is unpacked into memory is then small, and pages of programs can be dropped and read again. Measured with
Debian 12 (research of the project): a Python capture that needs 160M with an archive completes in 128M and
less like this; erofs with LZ4 is a third larger, and did worse.

Two archives stand one behind the other: the first as it is, since squashfs is compressed; the second,
compressed, has the few programs that mount it, which are deleted afterwards.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import lz4.block
except ImportError:
    lz4 = None

from kdump_service.errors import ImageNotBuilt
from kdump_service.image.archive import Archive
from kdump_service.image.layout import TARGET_FILE, TARGET_POINT
from kdump_service.image.modules import module_files
from kdump_service.process import run

__all__ = ["Packed", "pack"]

_SQUASHFS = "kdump/usr.squashfs"
_SQUASHFS_SEC = 600.0
_LEVEL = "9"
"""Measured on 64 MB: 0.7 s and 24.4 MB; level 3 0.3 s and 26.4 MB, level 15 5.8 s and 22.8 MB, 19 10 s and
22.6 MB."""
_BASE_MODULES = ("loop", "squashfs")
_USR_LINKS = ("bin", "lib", "sbin")
_PROGRAMS = ("sh", "mount", "sleep")
_DEADLINE_SEC = 600
"""Until systemd is there, whose own limit (JobTimeoutSec= of kdump-capture.target) is as long."""

_LZ4_MAGIC = bytes.fromhex("02214c18")
_LZ4_BLOCK_BYTES = 8 << 20
"""The legacy format of lz4(1), the only one that the kernel unpacks (lib/decompress_unlz4.c)."""

_MODPROBE = "kdump/early/modprobe"
"""Not where the kernel looks for it: what is built in asks for modules while it starts (keys, ciphers, TCP),
none of which is in the early archive, and each question costs a process or more."""
_TABLE = "kdump/early.fstab"
# One program for three file systems, since each costs as much as its mount. As fstab(5).
_TABLE_TEXT = """\
proc /proc proc
devtmpfs /dev devtmpfs
sysfs /sys sysfs
"""

# Runs as PID 1. What fails here, but for drivers that the machine may do without, ends it, and so the kernel:
# panic= on its command line reboots the machine. The drivers and the target are not left to udev, which is a
# third of a boot's time; where the target cannot be mounted like this (its disk comes late), udev and systemd
# do it.
#
# A driver can wait for ever for hardware that the crash left as it was, and modprobe then cannot be killed: a
# process beside counts the time. It is gone a second after systemd is there, not when the time is over: as
# long as it lives, the early programs that it runs stay in memory, though deleted (2 MiB, nearly all of it
# the C library). sysrq-trigger obeys whatever kernel.sysrq says (Documentation/admin-guide/sysrq.rst). On
# a quiet console, too, what is critical shows.
_INIT = """\
#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
set -e
PATH=/usr/bin:/usr/sbin
mount -a -T /{table}
(
    left={seconds}
    while [ "$left" -gt 0 ]; do
        sleep 1 || exit 0
        [ ! -d /run/systemd/system ] || exit 0
        left=$((left - 1))
    done
    echo "<2>kdump-service: no systemd after {seconds} seconds, rebooting" > /dev/kmsg || :
    echo b > /proc/sysrq-trigger
) &
# A module can ask for others while it starts (a file system for its checksum).
read -r modprobe < /proc/sys/kernel/modprobe && echo /{modprobe} > /proc/sys/kernel/modprobe || :
# Some may be for hardware that is not there; what is missed shows at the next step.
/{modprobe} -q -a {modules} || :
[ -z "$modprobe" ] || echo "$modprobe" > /proc/sys/kernel/modprobe || :
# The shell stays in the folder below the mount, and so can empty it.
cd /usr
mount -t squashfs -o ro,loop /{squashfs} /usr
if [ -r /{target} ]; then
    read -r device kind options < /{target}
    mount -t "$kind" -o "$options" "$device" {point} 2>/dev/null &
fi
rm -rf ./* /kdump/early
cd /
exec {init}
"""


@dataclass(frozen=True)
class Packed:
    """What became of a folder."""

    packing: str
    unpacked_bytes: int
    peak_bytes: int


def pack(
    tree: Path, release: str, drivers: Iterable[str], output: Path, work: Path, *, lz4_unpacks: bool
) -> Packed:
    """Write ``tree`` as an initramfs for kernels of ``release`` to ``output``; ``work`` is for files in
    between.

    ``drivers`` are loaded before anything else. ``lz4_unpacks`` if the kernel is known to unpack LZ4 between
    other archives.

    Raises ImageNotBuilt, ProgramFailed or OSError.
    """
    # The system's own program, not one of the administrator's PATH.
    merged = all((tree / name).is_symlink() for name in _USR_LINKS)
    if shutil.which("mksquashfs") is not None and merged:
        # A library that is missing costs time, not the image.
        as_lz4 = lz4_unpacks and lz4 is not None
        return _pack_squashfs(tree, release, drivers, output, work, as_lz4=as_lz4)
    return _pack_plain(tree, output)


def _pack_plain(tree: Path, output: Path) -> Packed:
    """One compressed archive. gzip: each kernel of a distribution can unpack it (CONFIG_RD_GZIP)."""
    unpacked = 0
    with open(output, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as stream:
        archive = Archive(stream)  # type: ignore[arg-type]
        for path in _walk(tree):
            archive.copy(str(path.relative_to(tree)), path)
            unpacked += path.lstat().st_size
        archive.close()
    return Packed("cpio", unpacked, unpacked + output.stat().st_size)


def _pack_squashfs(
    tree: Path, release: str, drivers: Iterable[str], output: Path, work: Path, *, as_lz4: bool
) -> Packed:
    squashfs = work / "usr.squashfs"
    run(
        ["mksquashfs", str(tree / "usr"), str(squashfs), "-noappend", "-quiet", "-no-progress", "-all-root",
         "-no-xattrs", "-comp", "zstd", "-Xcompression-level", _LEVEL, "-mkfs-time", "0", "-all-time", "0"],
        timeout_sec=_SQUASHFS_SEC,
    )  # fmt: skip
    init = os.readlink(tree / "init")  # noqa: PTH115
    early, early_bytes = _early_archive(tree, release, drivers, work, "/" + init.lstrip("/"))
    outer_bytes = 0
    with open(output, "wb") as file:
        archive = Archive(file)
        for path in _walk(tree):
            relative = path.relative_to(tree)
            if relative.parts[0] != "usr" and str(relative) != "init":
                archive.copy(str(relative), path)
                outer_bytes += path.lstat().st_size
        archive.folder("usr")
        archive.copy(_SQUASHFS, squashfs)
        archive.close()
        file.write(_lz4(early) if as_lz4 else gzip.compress(early, 9, mtime=0))
        # The next archive, with the settings, begins here. Four zeros at least: no more blocks of LZ4.
        file.write(bytes(4 + (-file.tell() - 4) % 512))
    unpacked = squashfs.stat().st_size + outer_bytes
    # The kernel unpacks a block of LZ4 beside the files.
    block_bytes = _LZ4_BLOCK_BYTES if as_lz4 else 0
    return Packed("squashfs", unpacked, unpacked + early_bytes + block_bytes + output.stat().st_size)


def _early_archive(
    tree: Path, release: str, drivers: Iterable[str], work: Path, init: str
) -> tuple[bytes, int]:
    """What runs before /usr is there; and how many bytes its files take."""
    output = io.BytesIO()
    archive = Archive(output)
    size = 0
    places: dict[str, Path] = {}
    for path in sorted(_early_programs()):
        places |= {step: tree / step.lstrip("/") for step in _with_links(tree, path)}
    *_, modprobe = _with_links(tree, _program("modprobe"))
    places[_MODPROBE] = tree / modprobe.lstrip("/")
    for step, source in places.items():
        archive.copy(step, source)
        size += source.lstat().st_size
    modules = module_files(release, [*_BASE_MODULES, *drivers])
    folder = _module_folder(release, modules, work / "early")
    for module in _walk(folder):
        if module.is_file():
            archive.copy(str(module.relative_to(folder)), module)
            size += module.stat().st_size
    archive.file(_TABLE, _TABLE_TEXT.encode())
    script = _INIT.format(
        table=_TABLE,
        modprobe=_MODPROBE,
        squashfs=_SQUASHFS,
        target=TARGET_FILE,
        point=TARGET_POINT,
        seconds=_DEADLINE_SEC,
        init=init,
        modules=" ".join(module.name.partition(".")[0] for module in modules),
    )
    archive.file("init", script.encode(), 0o755)
    archive.close()
    return output.getvalue(), size


def _lz4(archive: bytes) -> bytes:
    """Emulated, the kernel unpacks 10 MB from it in 0.17 s, from gzip in 0.27 s; it is a sixth larger."""
    file = [_LZ4_MAGIC]
    for start in range(0, len(archive), _LZ4_BLOCK_BYTES):
        part = archive[start : start + _LZ4_BLOCK_BYTES]
        block = lz4.block.compress(part, mode="high_compression", compression=12, store_size=False)
        file += [len(block).to_bytes(4, "little"), block]
    return b"".join(file)


def _early_programs() -> set[str]:
    """Programs and libraries of the early archive, but for modprobe(8), which has a place of its own."""
    programs = {_program(name) for name in _PROGRAMS}
    return programs.union(*(_libraries_of(path) for path in (*programs, _program("modprobe"))))


def _program(name: str) -> str:
    path = shutil.which(name, path="/usr/bin:/usr/sbin:/bin:/sbin")
    if path is None:
        raise ImageNotBuilt(f"there is no program {name}")
    return path


def _module_folder(release: str, modules: Iterable[Path], folder: Path) -> Path:
    """A folder tree with these kernel modules and an index of them alone, for modprobe(8)."""
    base = folder / "usr/lib/modules" / release
    for module in modules:
        copy = base / str(module).partition(f"/modules/{release}/")[2]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(module, copy)
    base.mkdir(parents=True, exist_ok=True)
    for name in ("modules.builtin", "modules.order"):
        (base / name).touch()  # depmod complains where they are missing
    run(["depmod", "-b", str(folder / "usr"), release], timeout_sec=60)
    return folder


def _libraries_of(program: str) -> set[str]:
    """As the dynamic loader finds them, and itself."""
    return set(re.findall(r"(/\S+) \(0x", run(["ldd", program], timeout_sec=20)))


def _with_links(tree: Path, path: str) -> Iterator[str]:
    """The path below /usr, and what its links lead to, as paths in the image."""
    current = path
    for _ in range(10):
        parent, name = os.path.split(current)
        # /bin, /lib and /lib64 are links into /usr.
        in_usr = "/" + os.path.relpath((tree / parent.lstrip("/")).resolve(), tree.resolve())
        current = f"{in_usr}/{name}"
        place = tree / current.lstrip("/")
        if not os.path.lexists(place):
            raise ImageNotBuilt(f"{path} did not get into the image")
        yield current
        if not place.is_symlink():
            return
        target = os.readlink(place)  # noqa: PTH115
        current = target if target.startswith("/") else os.path.normpath(f"{in_usr}/{target}")
    raise ImageNotBuilt(f"{path}: too many links")


def _walk(tree: Path) -> Iterator[Path]:
    """All below a folder, in a fixed order, folders before what is in them."""
    for folder, folders, files in os.walk(tree):
        folders.sort()
        for name in sorted([*folders, *files]):
            yield Path(folder) / name
