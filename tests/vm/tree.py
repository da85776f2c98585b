# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian root file system as a folder, with its kernel, before anything of the project is in it.

mmdebstrap does the work, from the mirrors that the machine's own apt is set up for.
"""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .apt import apt_get, apt_options, apt_sources
from .cache import Cache, digest
from .tool import run_tool

__all__ = ["SUITE", "Tree", "base_tree", "mmdebstrap"]

SUITE = "bookworm"
CLOUD_KERNEL = "linux-image-cloud-amd64"

# What a machine that runs the project has: the service's own dependencies, and what `minbase` lacks to boot
# by itself.
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "udev",
    "dbus",
    "polkitd",
    "libpam-systemd",
    "kmod",
    "initramfs-tools",
    "dracut-core",
    "squashfs-tools",
    "linux-image-cloud-amd64",
    "python3",
    "python3-dbus-next",
    "python3-systemd",
    "python3-pyelftools",
    "python3-lz4",
    "python3-numpy",
    "python3-zstandard",
    "zstd",
    "procps",
    "e2fsprogs",
)

# Nobody reads it in a guest, and each file is one more to copy into each disk.
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*")


@dataclass(frozen=True)
class Tree:
    """A root file system and the kernel that it boots."""

    key: str  # what went into it, hashed
    suite: str
    root: Path
    kernel: Path
    initrd: Path
    release: str  # as uname -r says
    version: str  # of the kernel's Debian package
    lists: Path  # apt's, from when it was made


def mmdebstrap(suite: str, target: Path | None, arguments: Sequence[str]) -> None:
    """Make a root tree in `target` (None: run the hooks, throw it away); its output shows only on failure."""
    sources = apt_sources(suite)
    options = [f"--aptopt={line}" for line in apt_options()]
    command = ["mmdebstrap", "--mode=root", *options, *arguments, suite, str(target or "/dev/null")]
    if sources:
        command.append("-")
    done = subprocess.run(
        command,
        check=False,
        input="\n".join(sources) + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-40:])
        raise RuntimeError(f"mmdebstrap of {suite} ended with status {done.returncode}:\n{last}")


def _release(root: Path, kernel_package: str) -> str:
    """Of the kernel that this package stands for."""
    found = [path.name.removeprefix("vmlinuz-") for path in root.glob("boot/vmlinuz-*")]
    return next(name for name in found if ("-cloud-" in name) == (kernel_package == CLOUD_KERNEL))


def base_tree(
    cache: Cache, suite: str = SUITE, extra_packages: Sequence[str] = (), kernel_package: str = CLOUD_KERNEL
) -> Tree:
    """The tree of `suite` with `PACKAGES` and `extra_packages`: about 40 s and 350 MB the first time, and a
    third of that for further packages on top of it.

    `kernel_package` takes the cloud kernel's place, so that a tree has one kernel. If others are among the
    extra packages, it is still the one that is booted.
    """
    packages = [kernel_package if name == CLOUD_KERNEL else name for name in PACKAGES]
    key = digest(suite, *packages, *extra_packages, *LEFT_OUT)

    def bootstrap(folder: Path) -> None:
        root = folder / "root"
        left_out = [f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT]
        include = f"--include={','.join(packages)}"
        options = ("--variant=minbase", "--skip=cleanup/apt/lists", "--dpkgopt=force-unsafe-io")
        mmdebstrap(suite, root, [*options, *left_out, include])
        # apt's lists are for what comes on top of the tree, not for a guest.
        (root / "var/lib/apt/lists").rename(folder / "lists")
        (root / "var/lib/apt/lists").mkdir()
        _boot_files(folder, kernel_package)

    def add_packages(folder: Path) -> None:
        base = base_tree(cache, suite, kernel_package=kernel_package)
        run_tool("cp", "-a", base.root, base.lists, folder)
        apt_get(folder / "root", folder / "lists", "install", *extra_packages)
        apt_get(folder / "root", folder / "lists", "clean")
        _boot_files(folder, kernel_package)

    entry = cache.entry(
        "tree",
        key,
        add_packages if extra_packages else bootstrap,
        doing=f"Debian {suite} root tree with {', '.join(extra_packages) or 'the usual packages'}",
    )
    release = _release(entry / "root", kernel_package)
    admin = f"--admindir={entry}/root/var/lib/dpkg"
    version = run_tool("dpkg-query", admin, "-W", "-f", "${Version}", f"linux-image-{release}")
    return Tree(
        key=key,
        suite=suite,
        root=entry / "root",
        kernel=entry / "vmlinuz",
        initrd=entry / "initrd.img",
        release=release,
        version=version,
        lists=entry / "lists",
    )


def _boot_files(folder: Path, kernel_package: str) -> None:
    """Put kernel and initrd beside the tree too, so that QEMU's paths do not depend on the release."""
    release = _release(folder / "root", kernel_package)
    shutil.copy(folder / f"root/boot/vmlinuz-{release}", folder / "vmlinuz")
    shutil.copy(folder / f"root/boot/initrd.img-{release}", folder / "initrd.img")
