# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which kernel command lines the boot loader's configuration holds, as far as its files are text.

Two kinds of files are told apart: those that the boot loader itself reads at the next boot, and those from
which packages and administrators make the former anew (``update-grub``, ``kernel-install``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdump_service.kernel.mounts import Mount, holder_of

__all__ = [
    "BOOT_LOADER_PATHS",
    "ENTRIES",
    "GRUB_ENVIRONMENTS",
    "GRUB_MENUS",
    "BootLoaderFiles",
    "BootText",
]

# grub-mkconfig writes the first two; the others are links or copies of the vendor.
GRUB_MENUS = (
    "boot/grub/grub.cfg",
    "boot/grub2/grub.cfg",
    "boot/efi/EFI/*/grub.cfg",
    "efi/EFI/*/grub.cfg",
)
# Boot Loader Specification, type 1 entries, on ESP or XBOOTLDR partition.
ENTRIES = ("boot/loader/entries/*.conf", "efi/loader/entries/*.conf", "boot/efi/loader/entries/*.conf")
# Fedora 28 to 33 and RHEL 8 name $kernelopts in entries, and keep its value here.
GRUB_ENVIRONMENTS = ("boot/grub/grubenv", "boot/grub2/grubenv")
_OTHER_MENUS = ("boot/extlinux/extlinux.conf", "boot/syslinux/syslinux.cfg", "boot/firmware/cmdline.txt",
                "boot/cmdline.txt", "boot/firmware/current/cmdline.txt", "etc/zipl.conf")  # fmt: skip
# grub-mkconfig's sources; grub.d of /etc/default is of Debian and Ubuntu. The scripts are read, too: some
# administrators write whole entries into 40_custom.
_GRUB_SOURCES = ("etc/default/grub", "etc/default/grub.d/*.cfg", "etc/grub.d/*")
# kernel-install(8), and what some tools keep beside it (sdbootutil of openSUSE, Pop!_OS's kernelstub).
_ENTRY_SOURCES = ("etc/kernel/cmdline", "usr/lib/kernel/cmdline", "etc/kernelstub/configuration")

BOOT_LOADER_PATHS = (
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/boot/grub2/grubenv",
    "/boot/loader/entries/",
    "/efi/loader/entries/",
    "/boot/extlinux/extlinux.conf",
    "/etc/default/grub",
    "/etc/default/grub.d/",
    "/etc/kernel/cmdline",
)
"""Files and folders to be watched; folders end in a slash."""

_LARGEST_FILE_BYTES = 4 << 20


@dataclass(frozen=True)
class BootText:
    """A line or file that becomes a kernel command line, or part of one."""

    file: str
    """Path on the machine."""
    text: str


class BootLoaderFiles:
    """Readers below a root folder. What is mounted by an automounter at first use is left alone.

    Bytes that are no UTF-8 are kept as lone surrogates (PEP 383), so that a text can be written back.
    """

    def __init__(self, root: Path, mounts: list[Mount]) -> None:
        """``mounts``: where not to look if it may hang; none has every folder looked at."""
        self._root = root
        self._mounts = mounts

    def next_boot(self) -> list[BootText]:
        """The command lines among which the boot loader chooses; none where its files are not known."""
        lines = [line for file, text in self.texts(GRUB_MENUS) for line in _grub_lines(file, text)]
        variables = "".join(text for _, text in self.texts(GRUB_ENVIRONMENTS))
        menus = "".join(text for _, text in self.texts(GRUB_MENUS))
        for file, text in self.texts(ENTRIES):
            found = re.findall(r"^\s*options\s+(.*)$", text, re.MULTILINE)
            if found or re.search(r"^\s*linux\s", text, re.MULTILINE):
                lines.append(BootText(file, _expanded(" ".join(found), variables + menus)))
        for file, text in self.texts(_OTHER_MENUS):
            lines += [BootText(file, line) for line in _plain_lines(file, text)]
        return lines

    def sources(self) -> list[BootText]:
        """The files from which what :meth:`next_boot` reads is made anew; without comments."""
        found = []
        if any(True for _ in self.texts(("etc/default/grub",))):
            found += [BootText(file, _uncommented(text)) for file, text in self.texts(_GRUB_SOURCES)]
        return found + [BootText(file, _uncommented(text)) for file, text in self.texts(_ENTRY_SOURCES)]

    def texts(self, patterns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Path on the machine and text of each file that one of the patterns means."""
        for pattern in patterns:
            folder = "/" + pattern.partition("*")[0].rpartition("/")[0]
            holder = holder_of(folder, self._mounts)
            if holder is not None and holder.may_hang:
                continue
            for path in sorted(self._root.glob(pattern)):
                if path.is_file():
                    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                        yield f"/{path.relative_to(self._root)}", file.read(_LARGEST_FILE_BYTES)


def _grub_lines(file: str, text: str) -> list[BootText]:
    """Entries of a menu: ``linux /vmlinuz root=...``, linux16 and linuxefi in older ones."""
    return [
        BootText(file, _expanded(line, text))
        for line in re.findall(r"^\s*linux(?:16|efi)?\s+(\S.*)$", text, re.MULTILINE)
    ]


def _plain_lines(file: str, text: str) -> list[str]:
    if file.endswith("cmdline.txt"):
        # /boot/cmdline.txt of newer Raspberry Pi OS is a note that the file has moved.
        return [] if "DO NOT EDIT" in text else [text.strip()]
    return re.findall(r"^\s*(?:append|parameters\s*=)\s*(.*)$", text, re.MULTILINE | re.IGNORECASE)


def _expanded(line: str, definitions: str) -> str:
    """Put in what ``$kernelopts``, ``${extra}`` and the like stand for, where a line ``name=...`` says so."""

    def value(match: re.Match[str]) -> str:
        name = re.escape(match[1] or match[2])
        found = re.findall(rf"^\s*(?:set\s+)?{name}=(.*)$", definitions, re.MULTILINE)
        return " ".join(each.strip("\"' ") for each in found)

    return re.sub(r"\$(?:\{(\w+)\}|(\w+))", value, line)


def _uncommented(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
