# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Debian root file system as a folder, with its kernel, before anything of the project is in it.

mmdebstrap does the work, from the mirrors that the machine's own apt is set up for.
"""

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, digest

__all__ = ["ROLLING", "SUITE", "Tree", "base_tree", "mmdebstrap"]

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

# Settings of the machine's apt that say how far its mirrors' dates can be trusted. A mirror frozen in time
# needs them.
DATE_SETTINGS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")

# Suites that get new versions all the time, and so have neither updates nor security fixes beside them.
ROLLING = ("sid", "unstable")


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


def _machine_suite() -> str:
    release = Path("/etc/os-release").read_text()
    match = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    return match[1] if match else SUITE


def apt_sources(suite: str) -> list[str]:
    """One-line apt sources of `suite`, its updates and security fixes, from where this machine gets its own.

    A suite other than the machine's is looked for on the same mirrors. No answer (a machine that is not
    Debian) means that mmdebstrap's own choice is as good as any.
    """
    own = _machine_suite()
    listed = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    wanted = re.compile(rf"{re.escape(own)}(-updates|-security)?")
    rows = (line.split() for line in listed.stdout.splitlines())
    sources = {
        f"deb {uri} {suite}{release.removeprefix(own)} {component}"
        for uri, release, component in rows
        if wanted.fullmatch(release) and component == "main" and (release == own or suite not in ROLLING)
    }
    return sorted(sources)


def _apt_options() -> list[str]:
    options = []
    for name in DATE_SETTINGS:
        shown = subprocess.run(
            ["apt-config", "shell", "VALUE", name], check=False, capture_output=True, text=True
        ).stdout
        if match := re.match(r"VALUE='(\w+)'", shown):
            options.append(f'--aptopt={name} "{match[1]}"')
    return options


def mmdebstrap(suite: str, target: Path | None, arguments: Sequence[str]) -> None:
    """Make a root tree in `target` (None: run the hooks, throw it away); its output shows only on failure."""
    sources = apt_sources(suite)
    command = ["mmdebstrap", "--mode=root", *_apt_options(), *arguments, suite, str(target or "/dev/null")]
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
    """The tree of `suite` with `PACKAGES` and `extra_packages`: about 40 s and 400 MB the first time.

    `kernel_package` takes the cloud kernel's place, so that a tree has one kernel. If others are among the
    extra packages, it is still the one that is booted.
    """
    packages = [kernel_package if name == CLOUD_KERNEL else name for name in PACKAGES]
    packages += extra_packages
    key = digest(suite, *packages)

    def build(folder: Path) -> None:
        root = folder / "root"
        mmdebstrap(suite, root, ["--variant=minbase", f"--include={','.join(packages)}"])
        # Beside the tree too, so that QEMU's paths do not depend on the release.
        release = _release(root, kernel_package)
        shutil.copy(root / f"boot/vmlinuz-{release}", folder / "vmlinuz")
        shutil.copy(root / f"boot/initrd.img-{release}", folder / "initrd.img")

    entry = cache.entry(
        "tree", key, build, doing=f"Debian {suite} root tree ({len(packages)} packages named)"
    )
    release = _release(entry / "root", kernel_package)
    version = subprocess.run(
        [
            "dpkg-query",
            f"--admindir={entry}/root/var/lib/dpkg",
            "-W",
            "-f",
            "${Version}",
            f"linux-image-{release}",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return Tree(
        key=key,
        suite=suite,
        root=entry / "root",
        kernel=entry / "vmlinuz",
        initrd=entry / "initrd.img",
        release=release,
        version=version,
    )
