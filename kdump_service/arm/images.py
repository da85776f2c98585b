# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find the kernel and the initramfs to load for a crash."""

from __future__ import annotations

import re
from pathlib import Path

from kdump_service.config import Config
from kdump_service.errors import ImageMissing

__all__ = [
    "candidate_paths",
    "find_initramfs",
    "find_kernel",
    "memory_bytes_of",
    "release_in_name",
    "release_of",
]

# Where distributions put a kernel: Debian, Ubuntu, Fedora, RHEL and SUSE (x86) name it vmlinuz-RELEASE; SUSE
# elsewhere, and s390x, Image- or image-; riscv and arm64 builds vmlinux-. Below /usr/lib/modules/RELEASE it
# stands where kernel-install(8) expects it.
_KERNELS = (
    "boot/vmlinuz-{release}",
    "usr/lib/modules/{release}/vmlinuz",
    "lib/modules/{release}/vmlinuz",
    "boot/Image-{release}",
    "boot/image-{release}",
    "boot/vmlinux-{release}",
)
# Debian and Ubuntu: initrd.img-; Fedora and RHEL: initramfs-; SUSE: initrd-.
_INITRAMFSES = (
    "boot/initrd.img-{release}",
    "boot/initramfs-{release}.img",
    "boot/initrd-{release}",
    "usr/lib/modules/{release}/initrd",
    "usr/lib/modules/{release}/initramfs.img",
)


def _first(root: Path, patterns: tuple[str, ...], release: str, configured: str, what: str, key: str) -> Path:
    if configured:
        path = root / configured.lstrip("/")
        if not path.is_file():
            raise ImageMissing(f"{what} {configured} does not exist", f"Correct {key}= or remove it.")
        return path
    candidates = [root / pattern.format(release=release) for pattern in patterns]
    for path in candidates:
        if path.is_file():
            return path
    tried = ", ".join(f"/{path.relative_to(root)}" for path in candidates)
    raise ImageMissing(
        f"no {what} of the running kernel {release} was found (tried {tried})",
        f"Install the package of the running kernel, reboot into an installed one, or set {key}=.",
    )


def find_kernel(root: Path, release: str, config: Config) -> Path:
    """The configured kernel, else the one that runs now. Raises ImageMissing."""
    return _first(root, _KERNELS, release, config.kernel, "kernel image", "Kernel")


def find_initramfs(root: Path, release: str, config: Config) -> Path:
    """The configured initramfs, else the system's own for this release. Raises ImageMissing."""
    return _first(root, _INITRAMFSES, release, config.image, "initramfs", "Image")


def candidate_paths(release: str, config: Config) -> list[str]:
    """Where :func:`find_kernel` and :func:`find_initramfs` look, as absolute paths: what happens there may
    change what it finds."""
    kernels = [config.kernel] if config.kernel else [f"/{each.format(release=release)}" for each in _KERNELS]
    images = [config.image] if config.image else [f"/{each.format(release=release)}" for each in _INITRAMFSES]
    return [*kernels, *images]


def release_in_name(path: str) -> str:
    """The release that distributions put into a file's name; empty if there is none."""
    match = re.search(
        r"/modules/([^/]+)/|(?:vmlinu[xz]|[iI]mage|initrd(?:\.img)?|initramfs)-(\d[^/]*?)(?:\.img)?$", path
    )
    return (match[1] or match[2]) if match else ""


def release_of(path: Path) -> str:
    """The release that an x86 kernel image states of itself; empty for others.

    Documentation/arch/x86/boot.rst: the magic number HdrS at 0x202; at 0x20e the place of the text, counted
    from 0x200, which begins with the release.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(0x8000)
    except OSError:
        return ""  # what is wrong with the file, image-stale says
    if head[0x202:0x206] != b"HdrS":
        return ""
    start = int.from_bytes(head[0x20E:0x210], "little") + 0x200
    words = head[start : start + 128].split(b"\0")[0].decode("ascii", "replace").split()
    return words[0] if words else ""


def memory_bytes_of(path: Path) -> int:
    """How much memory a kernel image says that it needs to start; 0 for kinds that do not tell.

    Documentation/arch/x86/boot.rst: init_size at 0x260, since protocol 2.10;
    Documentation/arch/arm64/booting.rst: image_size at 0x10, with the magic number ARM\\x64 at 0x38.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(0x264)
    except OSError:
        return 0  # what is wrong with the file, image-stale says
    if head[0x202:0x206] == b"HdrS" and int.from_bytes(head[0x206:0x208], "little") >= 0x20A:
        return int.from_bytes(head[0x260:0x264], "little")
    if head[0x38:0x3C] == b"ARM\x64":
        return int.from_bytes(head[0x10:0x18], "little")
    return 0
