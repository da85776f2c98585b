# SPDX-License-Identifier: LGPL-2.1-or-later
"""dracut collects what goes into the image: it knows each distribution's systemd, udev and kernel modules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from kdump_service.errors import ImageNotBuilt
from kdump_service.image.modules import module_files
from kdump_service.kernel.free_room import MAKE_ROOM, no_room_in
from kdump_service.process import run

__all__ = ["DRACUT", "DRACUT_MODULE", "collect", "dracut_is_installed"]

DRACUT = "usr/bin/dracut"
DRACUT_MODULE = "usr/lib/dracut/modules.d/99kdump-service/module-setup.sh"
_DRACUT_SEC = 1200.0


def dracut_is_installed(root: Path) -> bool:
    """Whether an image can be built at all: dracut, and our module for it."""
    return (root / DRACUT).exists() and (root / DRACUT_MODULE).exists()


def collect(release: str, drivers: Iterable[str], files: Iterable[str], work: Path) -> Path:
    """Have dracut put these files and drivers, systemd and udev into a folder below ``work``; that folder.

    Raises ImageNotBuilt, ProgramFailed or OSError.
    """
    listed = work / "files"
    listed.write_text("".join(f"{path}\n" for path in files), errors="surrogateescape")
    temporary = work / "dracut"
    temporary.mkdir()
    (work / "no-settings").mkdir()
    said = run(
        ["env", f"KDUMP_SERVICE_FILES={listed}", "dracut", "--force", "--quiet", "--kver", release,
         # Neither the settings of the host's own initramfs nor the devices of its root have a say here.
         "--conf", "/dev/null", "--confdir", str(work / "no-settings"), "--no-hostonly",
         "--no-hostonly-cmdline", "--no-early-microcode", "--nofscks", "--nomdadmconf", "--nolvmconf",
         "--no-compress", "--nostrip", "--reproducible", "--keep", "--tmpdir", str(temporary),
         "--drivers", " ".join(drivers), "--modules", "kdump-service", str(work / "archive")],
        timeout_sec=_DRACUT_SEC, name="dracut", complaints_too=True,
    )  # fmt: skip
    # dracut goes on without a file that it cannot copy, and says that all is well.
    if missed := no_room_in(said):
        raise ImageNotBuilt(missed, MAKE_ROOM)
    (work / "archive").unlink()
    trees = list(temporary.glob("dracut*/initramfs"))
    # dracut goes on when a module of it fails, and says that all is well.
    if len(trees) != 1 or not (trees[0] / "usr/bin/kdump-service").exists():
        raise ImageNotBuilt("dracut left kdump-service out of the image", f"Look at /{DRACUT_MODULE}.")
    _leave_out_other_modules(trees[0], release, drivers)
    return trees[0]


def _leave_out_other_modules(tree: Path, release: str, drivers: Iterable[str]) -> None:
    """dracut's modules bring drivers of their own; systemd loads some of them at its start, for nothing."""
    wanted = {module.name for module in module_files(release, drivers)}
    for path in tree.glob("usr/lib/modules/*/kernel/**/*.ko*"):
        if path.name not in wanted:
            path.unlink()
