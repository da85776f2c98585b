# SPDX-License-Identifier: LGPL-2.1-or-later
"""Find the kernel and the initramfs to load for a crash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdump_service.config import Config
from kdump_service.errors import ImageMissing

__all__ = ["CaptureImages", "find_images"]

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


@dataclass(frozen=True)
class CaptureImages:
    """What is loaded for a crash."""

    kernel: Path
    initramfs: Path


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


def find_images(root: Path, release: str, config: Config) -> CaptureImages:
    """The configured images, else those of the kernel that runs now. Raises ImageMissing."""
    return CaptureImages(
        kernel=_first(root, _KERNELS, release, config.kernel, "kernel image", "Kernel"),
        initramfs=_first(root, _INITRAMFSES, release, config.image, "initramfs", "Image"),
    )
