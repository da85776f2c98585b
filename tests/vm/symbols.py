# SPDX-License-Identifier: LGPL-2.1-or-later
"""What belongs to exactly a tree's kernel: its vmlinux with debugging information, and modules for it."""

import subprocess
import tempfile
from pathlib import Path

from .cache import Cache, digest, digest_tree
from .tree import Tree, mmdebstrap

__all__ = ["MODULES", "kernel_module", "vmlinux"]

MODULES = Path(__file__).parent / "modules"


def vmlinux(cache: Cache, tree: Tree) -> Path:
    """The tree's kernel as ELF with DWARF: 600 MB, from Debian's -dbg package of the same version."""
    package = f"linux-image-{tree.release}-dbg"

    def build(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="kdump-dbg-", dir=cache.folder) as temporary:
            # An empty tree of that suite serves as the apt that knows its packages. The machine's own may be
            # another's.
            download = (
                f"cd {temporary} && APT_CONFIG=$MMDEBSTRAP_APT_CONFIG"
                f" apt-get -qq -o APT::Sandbox::User=root download {package}={tree.version}"
            )
            try:
                mmdebstrap(tree.suite, None, ["--variant=custom", f"--customize-hook={download}"])
            except RuntimeError as error:
                raise RuntimeError(
                    f"{package} {tree.version} cannot be had; if the mirror has a newer kernel by now, "
                    f"remove {tree.root.parent} to have the tree made anew"
                ) from error
            package_file = next(Path(temporary).glob("*.deb"))
            _unpack(package_file, "./usr/lib/debug/*vmlinux*", folder / "vmlinux")

    key = digest(tree.release, tree.version)
    return cache.entry("symbols", key, build, doing=f"symbols of {tree.release} {tree.version}") / "vmlinux"


def _unpack(package: Path, pattern: str, target: Path) -> None:
    """The one file of a Debian package that fits the pattern, and is no link to another that does.

    Unpacking the whole would write four times as much. Debian 13 has vmlinux in boot/, and a link to it below
    lib/modules/; in 7.2 it is the other way round.
    """
    with (
        target.open("wb") as output,
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as data,
    ):
        subprocess.run(["tar", "-xO", "--wildcards", pattern], check=True, stdin=data.stdout, stdout=output)
    if data.returncode != 0:
        raise RuntimeError(f"dpkg-deb --fsys-tarfile {package}: status {data.returncode}")
    if not target.stat().st_size:
        raise RuntimeError(f"{package} holds no file like {pattern}, but links only")


def kernel_module(cache: Cache, tree: Tree, name: str) -> Path:
    """`modules/<name>` built for the tree's kernel, with debugging information; about 40 s the first time."""
    source = MODULES / name

    def build(folder: Path) -> None:
        # In a throw-away tree of the same suite: its compiler is the kernel's, whatever the machine has.
        headers = f"linux-headers-{tree.release}"
        make = f"make -C /usr/src/{headers} M=/module modules"
        mmdebstrap(
            tree.suite,
            None,
            [
                "--variant=minbase",
                f"--include=make,{headers}",
                f'--customize-hook=cp -r {source} "$1/module"',
                f'--customize-hook=chroot "$1" {make}',
                f'--customize-hook=cp "$1/module/{name}.ko" {folder}',
            ],
        )

    key = digest(tree.key, tree.release, digest_tree(source))
    entry = cache.entry("module", key, build, doing=f"module {name} for {tree.release}")
    return entry / f"{name}.ko"
