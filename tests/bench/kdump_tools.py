# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian's kdump-tools: a disk with it as Debian ships it, and whether a dump of it is whole."""

from __future__ import annotations

import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

from tests.vm.cache import Cache, digest, digest_tree
from tests.vm.disk import Disk, copy_image, make_file_system, make_root, stage
from tests.vm.machine import Machine
from tests.vm.tree import PACKAGES, SUITE, Tree, base_tree, mmdebstrap

__all__ = ["UNIT", "flattened_is_whole", "kdump_tools_disk", "versions"]

ADDED = "kdump-tools makedumpfile"  # the second is what the first recommends
# By apt outside, as mmdebstrap(1) says. Afterwards and not with the rest: the kernel's hook would have the
# initramfs built while there is no root device to build it for, and fail.
INSTALL = f'APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" apt-get --yes install -oDPkg::Chroot-Directory="$1" {ADDED}'
UNIT = "kdump-tools.service"
FIRST_START_SEC = 900.0  # builds its initramfs: 72 s on two idle cores

# The name that the test's hand in the guest waits for.
NAMESAKE = f"""\
[Unit]
Requires={UNIT}
After={UNIT}

[Service]
Type=oneshot
ExecStart=/bin/true
RemainAfterExit=yes

[Install]
WantedBy=multi-user.target
"""


def _install(root: Path) -> None:
    unit = root / "etc/systemd/system/kdump.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(NAMESAKE)


def _tree(cache: Cache) -> Tree:
    """The tree of the project's disk, and kdump-tools."""
    base = base_tree(cache)
    key = digest(base.key, base.version, INSTALL)

    def build(folder: Path) -> None:
        packages = ",".join(PACKAGES)
        hook = f"--customize-hook={INSTALL}"
        mmdebstrap(SUITE, folder / "root", ["--variant=minbase", f"--include={packages}", hook])

    entry = cache.entry("kdump-tools-tree", key, build, doing="root tree with kdump-tools", keep=1)
    if not (entry / f"root/boot/vmlinuz-{base.release}").exists():
        raise RuntimeError(
            f"{entry} has another kernel than {base.root}: the mirror has moved on; remove both"
        )
    return replace(base, key=key, root=entry / "root")


def versions(cache: Cache) -> str:
    """Of the packages, one a line."""
    administration = _tree(cache).root / "var/lib/dpkg"
    query = [
        "dpkg-query",
        f"--admindir={administration}",
        "-W",
        "-f",
        "${Package} ${Version}\n",
        *ADDED.split(),
    ]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()


def kdump_tools_disk(cache: Cache) -> Disk:
    """The tree of the project's disk and kdump-tools, started once, so that its initramfs is built."""
    tree = _tree(cache)
    with stage(cache, _install) as staged:

        def build(folder: Path) -> None:
            root, image = folder / "root", folder / "fresh.img"
            make_root(tree, staged, root)
            make_file_system(root, image)
            shutil.rmtree(root)
            with Machine(Disk(image, tree), folder / "machine") as machine:
                machine.wait_for_boot()
                machine.wait_until_armed(FIRST_START_SEC)
                machine.poweroff()
            copy_image(machine.image, folder / "disk.img")
            shutil.rmtree(folder / "machine")
            image.unlink()

        key = digest(tree.key, tree.version, digest_tree(staged.root), NAMESAKE)
        entry = cache.entry(
            "kdump-tools-disk", key, build, doing="disk with kdump-tools, started once", keep=1
        )
    return Disk(entry / "disk.img", tree)


# A flattened dump is a header and then pieces, each after its place in the file and its length
# (makedumpfile.h, struct makedumpfile_header and makedumpfile_data_header; big-endian). The end mark is
# written when all went well; kdump-config cannot tell, since the status that it looks at is that of cat.
SIGNATURE = b"makedumpfile\0\0\0\0"
HEADER_BYTES = 4096
PIECE = struct.Struct(">qq")
END = -1


def flattened_is_whole(path: Path) -> bool:
    """Whether makedumpfile got to the end of the file that it wrote."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if not file.read(HEADER_BYTES).startswith(SIGNATURE):
            return False
        while len(piece := file.read(PIECE.size)) == PIECE.size:
            place, length = PIECE.unpack(piece)
            if place == END:
                return bool(length == END)
            if length <= 0 or file.seek(length, 1) > size:
                return False
        return False
