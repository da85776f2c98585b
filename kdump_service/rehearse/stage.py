# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the virtual machine boots: the armed image, with a few files more behind it.

The image is the one that is armed, so nothing has to be built, and what has proven itself in it (systemd,
Python) does the work. Its own parts do not change: what is loaded for the crash lies in the added files, byte
for byte."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

from kdump_service.arm.loader import opened_initramfs
from kdump_service.image.archive import Archive
from kdump_service.rehearse.armed import TARGET_UNIT, Armed
from kdump_service.rehearse.inside import HOME

__all__ = ["Stage", "write_stage"]

Stage = Literal["crash", "read"]

_PACKAGE = Path(__file__).parents[1]

_TARGET = """\
[Unit]
Description=Rehearsal of a Capture
DefaultDependencies=no
AllowIsolate=yes
Requires=kdump-rehearsal.service
"""
# Whatever becomes of it, the virtual machine ends: -no-reboot.
_SERVICE = """\
[Unit]
Description=Rehearsal of a Capture: {stage}
DefaultDependencies=no
{needs}SuccessAction=reboot-force
FailureAction=reboot-force
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -I /{home}/inside.py {stage}
StandardOutput=tty
StandardError=tty
TTYPath=/dev/console
"""
_NEEDS: dict[Stage, str] = {
    "crash": "",
    "read": """\
Wants=systemd-udevd.service systemd-udev-trigger.service kdump-target.mount
After=kdump-target.mount
""",
}


def write_stage(armed: Armed, stage: Stage, path: Path) -> None:
    """Write the initramfs of a stage. Raises OSError."""
    files = dict(armed.request.added_files)
    order = {
        "command_line": armed.request.command_line,
        "target_folder": armed.target_folder,
        "target_mount_point": armed.target_mount_point,
    }
    with open(path, "wb") as output:
        with open(armed.request.initramfs.path, "rb") as image:
            shutil.copyfileobj(image, output, 1 << 20)
        output.write(bytes(-output.tell() % 4))
        archive = Archive(output)
        units = "etc/systemd/system"
        archive.file(f"{units}/kdump-rehearsal.target", _TARGET.encode())
        service = _SERVICE.format(stage=stage, needs=_NEEDS[stage], home=HOME)
        archive.file(f"{units}/kdump-rehearsal.service", service.encode())
        archive.file(TARGET_UNIT, files[TARGET_UNIT].encode("utf-8", "surrogateescape"))
        archive.copy(f"{HOME}/inside.py", _PACKAGE / "rehearse/inside.py")
        archive.file(f"{HOME}/order.json", json.dumps(order).encode())
        if stage == "crash":
            archive.copy(f"{HOME}/kernel/syscall.py", _PACKAGE / "kernel/syscall.py")
            archive.copy(f"{HOME}/armed-kernel", Path(armed.request.kernel.path))
            with opened_initramfs(armed.request) as whole:
                archive.file(f"{HOME}/armed-image", whole.read())
        archive.close()
