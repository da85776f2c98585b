# SPDX-License-Identifier: LGPL-2.1-or-later
"""The identity of what is armed: a hash over all that decides what a capture boot will do."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kdump_service.arm.loader import LoadRequest
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.file_identity import content_hashes
from kdump_service.image.layout import TARGET_FILE

__all__ = ["armed_identity"]


def armed_identity(request: LoadRequest, target: str, root: Path = Path("/")) -> str:
    """SHA-256, hexadecimal, over content of kernel and image, command line and target; empty if unknown.

    Where kernel or image is not any more what was loaded, nothing can be said. The target is its path and, as
    the small image mounts it itself, its device and its folder there. Of the other files that are added,
    nothing counts.
    """
    hashes = content_hashes((request.kernel, request.initramfs), root)
    if not all(hashes.values()):
        return ""
    parts = [hashes[request.kernel], hashes[request.initramfs], request.command_line, target]
    added = dict(request.added_files)
    if added:
        settings = CaptureSettings.from_json(added.get(CAPTURE_SETTINGS_FILE, ""))
        parts += [added.get(TARGET_FILE, ""), settings.target_folder]
    text = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(text).hexdigest()
