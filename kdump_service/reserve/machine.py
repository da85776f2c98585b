# SPDX-License-Identifier: LGPL-2.1-or-later
"""What planning asks of the machine: files below a root folder, which programs it has, whose an entry is."""

from __future__ import annotations

import re
from pathlib import Path

from kdump_service.errors import ConfigError
from kdump_service.kernel.boot_loader import BootLoaderFiles
from kdump_service.kernel.cmdline import split_words
from kdump_service.kernel.files import KernelFiles

__all__ = ["Machine"]

_PROGRAM_FOLDERS = ("usr/sbin", "usr/bin", "sbin", "bin", "usr/local/sbin", "usr/local/bin")


class Machine:
    """Readers; every answer is looked up anew."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._kernel_files = KernelFiles(root)
        # Who changes the boot loader's files has to look at them, whatever mounts them.
        self.boot_files = BootLoaderFiles(root, [])

    def read(self, path: str) -> str | None:
        """The text of a file; None if there is none. Raises ConfigError if it cannot be read."""
        try:
            content = (self.root / path.lstrip("/")).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigError(f"/{path.lstrip('/')}: cannot be read: {error.strerror}") from error
        return content.decode("utf-8", "surrogateescape")

    def exists(self, path: str) -> bool:
        """Whether there is such a file or folder."""
        return (self.root / path.lstrip("/")).exists()

    def glob(self, *patterns: str) -> list[str]:
        """Absolute paths of what is there, sorted."""
        found = {path for pattern in patterns for path in self.root.glob(pattern)}
        return sorted(f"/{path.relative_to(self.root)}" for path in found)

    def program(self, *names: str) -> str:
        """The first of these programs that is installed; empty if none is."""
        for name in names:
            if any((self.root / folder / name).exists() for folder in _PROGRAM_FOLDERS):
                return name
        return ""

    def program_says(self, name: str, word: str) -> bool:
        """Whether a program's file, script or not, has this word in it."""
        for folder in _PROGRAM_FOLDERS:
            path = self.root / folder / name
            if path.is_file():
                return word.encode() in path.read_bytes()
        return False

    @property
    def machine_id(self) -> str:
        """Of /etc/machine-id; empty if there is none yet."""
        text = (self.read("etc/machine-id") or "").strip()
        return text if re.fullmatch(r"[0-9a-f]{32}", text) else ""

    @property
    def entry_tokens(self) -> list[str]:
        """With what the names of this system's loader entries and images begin (kernel-install(8))."""
        token = (self.read("etc/kernel/entry-token") or "").strip()
        return [each for each in (token, self.machine_id) if each]

    @property
    def command_line(self) -> str:
        """The running kernel's."""
        return self._kernel_files.command_line

    @property
    def root_words(self) -> list[str]:
        """What the running system says of its root file system."""
        return _root_words(self.command_line)

    def is_ours(self, command_line: str) -> bool:
        """Whether a command line starts this system, as far as ``root=`` and ``rootflags=`` tell.

        Where either side has none, it does.
        """
        theirs, mine = _root_words(command_line), self.root_words
        return not theirs or not mine or theirs == mine

    @property
    def releases(self) -> dict[str, str]:
        """Release -> path of the kernel image of each kernel that is installed."""
        found: dict[str, str] = {}
        for folder in self.glob("usr/lib/modules/*", "lib/modules/*"):
            release = folder.rpartition("/")[2]
            for image in (f"usr/lib/modules/{release}/vmlinuz", f"boot/vmlinuz-{release}"):
                if self.exists(image):
                    found.setdefault(release, f"/{image}")
        return found


def _root_words(command_line: str) -> list[str]:
    return [word for word in split_words(command_line) if word.startswith(("root=", "rootflags=subvol"))]
