# SPDX-License-Identifier: LGPL-2.1-or-later
"""What systemd's files say: whether a unit is there, masked or enabled; settings with drop-ins; fstab(5).

The files are read, nobody is asked: PID 1 may be busy with a job that hangs.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["UnitFiles"]

# systemd.unit(5), "System Unit Search Path", in falling order of weight.
_UNIT_FOLDERS = (
    "etc/systemd/system.control",
    "run/systemd/system.control",
    "run/systemd/transient",
    "run/systemd/generator.early",
    "etc/systemd/system",
    "etc/systemd/system.attached",
    "run/systemd/system",
    "run/systemd/system.attached",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
    "run/systemd/generator.late",
)
# What is there after the next boot, too; generators make theirs anew.
_MOUNT_FOLDERS = tuple(
    folder for folder in _UNIT_FOLDERS if not folder.startswith("run/") or "generator" in folder
)
_ENABLED_IN = ("etc/systemd/system", "run/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
# systemd-system.conf(5): the file itself in these places, then drop-ins sorted by name.
_CONFIG_FOLDERS = ("usr/lib/systemd", "usr/local/lib/systemd", "run/systemd", "etc/systemd")


class UnitFiles:
    """Readers below a root folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folders = [folder for folder in _UNIT_FOLDERS if (root / folder).is_dir()]

    def find(self, unit: str) -> Path | None:
        """The file that counts for a unit; None if there is none, or if it is masked."""
        for folder in self._folders:
            path = self._root / folder / unit
            if path.is_symlink() and str(path.readlink()) == "/dev/null":
                return None
            if path.is_symlink() or path.is_file():
                # An empty file masks, too (systemctl(1), mask).
                return None if path.is_file() and path.stat().st_size == 0 else path
        return None

    def is_masked(self, unit: str) -> bool:
        """Whether a link to /dev/null or an empty file stands in the unit's place."""
        paths = [self._root / folder / unit for folder in self._folders]
        first = next((path for path in paths if path.is_symlink() or path.is_file()), None)
        return first is not None and self.find(unit) is None

    def is_enabled(self, unit: str) -> str:
        """The link that starts a unit at boot, as a path of the machine; empty if there is none."""
        for folder in _ENABLED_IN:
            for wants in sorted((self._root / folder).glob("*.[wr]*s")):
                link = wants / unit
                if (
                    wants.suffix in (".wants", ".requires")
                    and link.is_symlink()
                    and self.find(unit) is not None
                ):
                    return f"/{link.relative_to(self._root)}"
        return ""

    def text(self, unit: str) -> str:
        """What the unit's file says, without its drop-ins; empty if there is no such unit."""
        path = self.find(unit)
        try:
            return "" if path is None else path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:  # a link whose target is gone
            return ""

    def setting(self, file: str, key: str) -> str:
        """The value of a key in ``journald.conf`` and the like, drop-ins included; or empty."""
        value = ""
        paths = [self._root / folder / file for folder in _CONFIG_FOLDERS]
        drop_ins = {}
        for folder in _CONFIG_FOLDERS:
            for path in (self._root / folder / f"{file}.d").glob("*.conf"):
                drop_ins[path.name] = path
        main = [path for path in paths if path.is_file()][-1:]
        for path in (*main, *(drop_ins[name] for name in sorted(drop_ins))):
            if path.is_symlink() and str(path.readlink()) == "/dev/null":
                continue
            text = path.read_text(encoding="utf-8", errors="replace")
            for found in re.findall(rf"^\s*{key}\s*=\s*(.*?)\s*$", text, re.MULTILINE):
                value = found
        return value

    def mounts_at_boot(self) -> set[str]:
        """The mount points that fstab(5) and mount units know: what a capture boot can mount."""
        points = self._fstab()
        for folder in _MOUNT_FOLDERS:
            for path in (self._root / folder).glob("*.mount"):
                if not path.is_file():
                    continue
                text = path.read_text(encoding="utf-8", errors="replace")
                points.update(re.findall(r"^\s*Where\s*=\s*(\S.*?)\s*$", text, re.MULTILINE))
        return points

    def _fstab(self) -> set[str]:
        """The mount point of each line of /etc/fstab that mounts something."""
        try:
            text = (self._root / "etc/fstab").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return set()
        points = set()
        for line in text.splitlines():
            fields = line.split()
            if len(fields) >= 3 and not fields[0].startswith("#") and fields[1].startswith("/"):
                point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[1])
                points.add(point.rstrip("/") or "/")
        return points
