# SPDX-License-Identifier: LGPL-2.1-or-later
"""What belongs to exactly a tree's kernel: its vmlinux with debugging information, and modules for it."""

import fnmatch
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from .apt import apt_get, download
from .cache import Cache, digest, digest_tree
from .tool import run_tool
from .tree import Tree

__all__ = ["MODULES", "kernel_module", "vmlinux"]

MODULES = Path(__file__).parent / "modules"


def vmlinux(cache: Cache, tree: Tree) -> Path:
    """The tree's kernel as ELF with DWARF: 600 MB, from Debian's -dbg package of the same version.

    With gdb's index of it, by which crash and gdb open a dump in a third of the time.
    """
    package = f"linux-image-{tree.release}-dbg"

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="kdump-dbg-", dir=cache.folder) as temporary:
            try:
                [package_file] = download(
                    tree.root, tree.lists, [f"{package}={tree.version}"], Path(temporary)
                )
            except RuntimeError as error:
                raise RuntimeError(
                    f"{package} {tree.version} cannot be had; if the mirror has a newer kernel by now, "
                    f"remove {tree.root.parent} to have the tree made anew"
                ) from error
            plain = Path(temporary) / "vmlinux"
            _unpack(package_file, "./usr/lib/debug/*vmlinux*", plain)
            _add_index(plain, folder / "vmlinux")

    key = digest("with an index", tree.release, tree.version)
    return cache.entry("symbols", key, build, doing=f"symbols of {tree.release} {tree.version}") / "vmlinux"


def _unpack(package: Path, pattern: str, target: Path) -> None:
    """The one file of a Debian package that fits the pattern, and is no link to another that does.

    Unpacking the whole would write four times as much. Debian 13 has vmlinux in boot/, and a link to it below
    lib/modules/; in 7.2 it is the other way round.
    """
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as data:
        assert data.stdout is not None
        with tarfile.open(fileobj=data.stdout, mode="r|") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isfile() else None
                if content and fnmatch.fnmatch(member.name, pattern):
                    with target.open("wb") as output:
                        shutil.copyfileobj(content, output, 1 << 20)
                    # What comes behind it is nine tenths of the package, and need not be unpacked.
                    data.kill()
                    return
    raise RuntimeError(f"{package} holds no file like {pattern}")


def _add_index(plain: Path, indexed: Path) -> None:
    """Write the program with gdb's index in it, as gdb-add-index(1) would.

    Run by root, that has objcopy give /dev/null the mode of the program.
    """
    index = plain.with_name("vmlinux.gdb-index")
    run_tool("gdb", "-nx", "-batch", "-ex", f"save gdb-index {plain.parent}", plain)
    run_tool(
        *("objcopy", "--add-section", f".gdb_index={index}"),
        *("--set-section-flags", ".gdb_index=readonly", plain, indexed),
    )


def kernel_module(cache: Cache, tree: Tree, name: str) -> Path:
    """`modules/<name>` built for the tree's kernel, with debugging information; about 40 s the first time."""
    source = MODULES / name

    def build(folder: Path) -> None:
        # In a throw-away copy of the tree: its suite's compiler is the kernel's, whatever the machine has.
        root = folder / "root"
        run_tool("cp", "-a", tree.root, root)
        headers = f"linux-headers-{tree.release}"
        apt_get(root, tree.lists, "install", "make", f"{headers}={tree.version}")
        shutil.copytree(source, root / "module")
        run_tool("chroot", root, "make", "-C", f"/usr/src/{headers}", "M=/module", "modules")
        shutil.copy(root / f"module/{name}.ko", folder)
        shutil.rmtree(root)

    key = digest(tree.key, tree.release, digest_tree(source))
    entry = cache.entry("module", key, build, doing=f"module {name} for {tree.release}")
    return entry / f"{name}.ko"
