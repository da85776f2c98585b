# SPDX-License-Identifier: LGPL-2.1-or-later
"""A plan: which files change, and how; what runs afterwards; what the administrator is told. No behaviour."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["BootLoader", "Change", "Plan", "change_from_json"]


class BootLoader:
    """Words for what was recognised; several may be joined by ``+``. Empty: nothing."""

    GRUB = "grub"
    GRUB_ENTRIES = "grub-entries"
    """GRUB with entries of the Boot Loader Specification, as on Fedora and RHEL."""
    ENTRIES = "entries"
    """Such entries with another boot loader, which is systemd-boot in most cases."""
    IMAGES = "unified-images"
    """The command line is inside of signed images, which are built anew."""
    U_BOOT_MENU = "u-boot-menu"
    EXTLINUX = "extlinux"
    RASPBERRY_PI = "raspberry-pi"


@dataclass(frozen=True)
class Change:
    """One file. Texts are as :func:`os.fsdecode` has them, so that any bytes survive."""

    path: str
    """On the machine, absolute."""
    before: str | None
    """None: there is no such file."""
    after: str | None
    """None: the file goes."""
    writer: str = ""
    """The program of the plan that makes the change; empty: we write the file."""

    def diff(self) -> str:
        """As diff -u prints it."""
        old, new = ((text or "").splitlines(keepends=True) for text in (self.before, self.after))
        names = (
            "/dev/null" if self.before is None else f"a{self.path}",
            "/dev/null" if self.after is None else f"b{self.path}",
        )
        lines = []
        for line in difflib.unified_diff(old, new, *names):
            lines.append(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
        return "".join(lines)


@dataclass(frozen=True)
class Plan:
    """What is to be done, all of it or nothing.

    Where the programs alone have to run again, its changes change nothing.
    """

    boot_loader: str
    """Words of :class:`BootLoader`; empty if none was recognised: then nothing is done."""
    words: tuple[str, ...]
    """``crashkernel=`` words that every command line is to have; none when taking back."""
    changes: tuple[Change, ...] = ()
    commands: tuple[tuple[str, ...], ...] = ()
    """Run one after the other, when the files are changed."""
    notes: tuple[str, ...] = ()
    """Sentences for the administrator."""
    as_wanted: tuple[Change, ...] = ()
    """Files of the boot loader that have the words already: nothing is done to them."""

    def diff(self) -> str:
        """All changes, as diff -u prints them."""
        return "".join(change.diff() for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        """For the daemon."""
        return {
            "boot_loader": self.boot_loader,
            "words": list(self.words),
            "diff": self.diff(),
            "files": [change.path for change in self.changes],
            "commands": [list(command) for command in self.commands],
            "notes": list(self.notes),
        }


def change_from_json(document: Mapping[str, Any]) -> Change:
    """Read one that was kept. Raises KeyError or TypeError."""
    texts: Sequence[Any] = (document["before"], document["after"])
    if not isinstance(document["path"], str) or any(
        not isinstance(text, (str, type(None))) for text in texts
    ):
        raise TypeError("not a change of a file")
    return Change(document["path"], document["before"], document["after"])
