# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entries of the Boot Loader Specification, what kernel-install makes them from, and unified kernel images.

An entry belongs to this system if it says so by its machine id or its name, or starts from the same root.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from kdump_service.errors import ConfigError
from kdump_service.kernel.boot_loader import ENTRIES, GRUB_ENVIRONMENTS
from kdump_service.kernel.cmdline import join_words, split_words
from kdump_service.reserve.grub import defaults_change, uses_entries
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import BootLoader, Change, Plan
from kdump_service.reserve.words import edited_keys, edited_lines

__all__ = [
    "CMDLINE",
    "ENVIRONMENT_HEAD",
    "VENDOR_CMDLINE",
    "notes_on_sources",
    "own_entries",
    "padded_environment",
    "plan_entries",
    "plan_images",
]

CMDLINE, VENDOR_CMDLINE = "/etc/kernel/cmdline", "/usr/lib/kernel/cmdline"
_PRESET = re.compile(r"^\s*\w+_(?:uki|efi_image)=", re.MULTILINE)
_IMAGES = ("boot/EFI/Linux/*.efi", "efi/EFI/Linux/*.efi", "boot/efi/EFI/Linux/*.efi")
_INSTALL_CONF = ("etc/kernel/install.conf", "etc/kernel/install.conf.d/*.conf", "usr/lib/kernel/install.conf",
                 "usr/lib/kernel/install.conf.d/*.conf")  # fmt: skip
ENVIRONMENT_HEAD = "# GRUB Environment Block\n"
_ENVIRONMENT_BYTES = 1024
"""GRUB's environment block is padded to this with # (its manual, section "Environment block")."""


def own_entries(machine: Machine) -> tuple[list[tuple[str, str]], list[str]]:
    """Path and text of this system's entries that start a kernel, and the paths of other systems' entries."""
    ours, others = [], []
    for path, text in machine.boot_files.texts(ENTRIES):
        if not re.search(r"^\s*(?:linux|options)\s", text, re.MULTILINE):
            continue
        if _belongs(machine, path, text):
            ours.append((path, text))
        else:
            others.append(path)
    return ours, others


def _belongs(machine: Machine, path: str, text: str) -> bool:
    stated = re.search(r"^\s*machine-id\s+(\S+)", text, re.MULTILINE)
    if stated and machine.machine_id:
        return stated[1] == machine.machine_id
    name = path.rpartition("/")[2]
    if any(name.startswith(token) for token in machine.entry_tokens):
        return True
    if re.match(r"[0-9a-f]{32}-", name) and machine.machine_id:
        return False  # another system's id
    return machine.is_ours(" ".join(re.findall(r"^\s*options\s+(.*)$", text, re.MULTILINE)))


def plan_entries(machine: Machine, words: Sequence[str]) -> Plan | None:
    """The plan for entries in text files; None if this system has none. Raises ConfigError."""
    ours, others = own_entries(machine)
    if not ours:
        return None
    notes = [f"{path} is left alone: it is another system's." for path in others]
    by_grub = uses_entries(machine)
    # grubby asks for no machine id: where others have entries, they are written here.
    grubby = machine.program("grubby") if by_grub and not others else ""
    changes = [Change(path, text, _entry_with(text, words), grubby) for path, text in ours]
    commands: tuple[tuple[str, ...], ...] = ()
    if grubby:
        joined = " ".join(words)
        commands = ((grubby, "--update-kernel=ALL", "--remove-args=crashkernel", f"--args={joined}"),)
        changes = [_through_environment(change) for change in changes]
        changes += _environment_changes(machine, words, grubby)
    changes += _source_changes(machine, words)
    if by_grub and (defaults := machine.read("/etc/default/grub")) is not None:
        changes.append(defaults_change(defaults, "GRUB_CMDLINE_LINUX", words))
    notes += notes_on_sources(machine)
    kind = BootLoader.GRUB_ENTRIES if by_grub else BootLoader.ENTRIES
    return Plan(kind, tuple(words), tuple(changes), commands, tuple(notes))


def _entry_with(text: str, words: Sequence[str]) -> str:
    if re.search(r"^[ \t]*options[ \t]", text, re.MULTILINE):
        return edited_keys(text, "options", words)
    return text + ("" if text.endswith("\n") else "\n") + f"options {' '.join(words)}\n"


def _through_environment(change: Change) -> Change:
    # Where an entry has $kernelopts, grubby changes GRUB's environment instead.
    if re.search(r"^[ \t]*options[ \t].*\$kernelopts\b", change.before or "", re.MULTILINE):
        return Change(change.path, change.before, change.before, change.writer)
    return change


def _environment_changes(machine: Machine, words: Sequence[str], writer: str) -> list[Change]:
    changes = []
    for path, text in machine.boot_files.texts(GRUB_ENVIRONMENTS):
        if not re.search(r"^kernelopts=", text, re.MULTILINE):
            continue
        options = re.sub(r"^kernelopts=(.*)$", lambda found: f"kernelopts={_line(found[1], words)}", text,
                         flags=re.MULTILINE)  # fmt: skip
        after = padded_environment(options)
        if after is None:
            raise ConfigError(f"{path}: GRUB's environment has no room for {' '.join(words)}")
        changes.append(Change(path, text, after, writer))
    return changes


def padded_environment(text: str) -> str | None:
    """GRUB's environment block, edited, in its full length again; None if that is too small."""
    body = text.rstrip("#")
    padding = _ENVIRONMENT_BYTES - len(body.encode("utf-8", "surrogateescape"))
    return body + "#" * padding if padding >= 0 else None


def _line(line: str, words: Sequence[str]) -> str:
    return edited_lines(line, words).rstrip("\n")


def _source_changes(machine: Machine, words: Sequence[str], *, must_have: bool = False) -> list[Change]:
    """What later kernels are installed with. ``must_have``: make the file where there is none."""
    changes = []
    text = machine.read(CMDLINE)
    vendor = machine.read(VENDOR_CMDLINE)
    if text is not None:
        changes.append(Change(CMDLINE, text, edited_lines(text, words)))
    elif vendor is not None:
        changes.append(Change(CMDLINE, None, edited_lines(vendor, words)))
    elif must_have:
        # As kernel-install does without the file.
        kept = [each for each in split_words(machine.command_line) if not each.startswith(_BOOT_LOADERS_OWN)]
        changes.append(Change(CMDLINE, None, edited_lines(join_words(kept) + "\n", words)))
    return changes


_BOOT_LOADERS_OWN = ("BOOT_IMAGE=", "initrd=")


def notes_on_sources(machine: Machine) -> list[str]:
    """What is to be known of where the command lines of later kernels come from."""
    notes = []
    has_source = machine.exists("etc/default/grub") or any(map(machine.exists, (CMDLINE, VENDOR_CMDLINE)))
    if machine.program("kernel-install") and not has_source:
        notes.append(
            f"There is no {CMDLINE}, so a new kernel is installed with the command line of the one that "
            "runs: reboot before the next one is."
        )
    if machine.exists("etc/kernelstub/configuration"):
        notes.append(
            "kernelstub writes entries anew from what it has: give it the word, too (kernelstub -a)."
        )
    return notes


# Unified kernel images


def plan_images(machine: Machine, words: Sequence[str]) -> Plan | None:
    """The plan where the command line is inside of images that are built here; None where it is not."""
    tokens = machine.entry_tokens
    images = [path for path in machine.glob(*_IMAGES)
              if not tokens or path.rpartition("/")[2].startswith(tuple(tokens))]  # fmt: skip
    presets = [each for each in machine.glob("etc/mkinitcpio.d/*.preset")
               if _PRESET.search(machine.read(each) or "")]  # fmt: skip
    by_install = _install_layout(machine) == "uki" and bool(machine.program("kernel-install"))
    if presets and machine.program("mkinitcpio"):
        commands: tuple[tuple[str, ...], ...] = (("mkinitcpio", "-P"),)
    elif by_install or (images and machine.program("kernel-install")):
        commands = _rebuild_commands(machine)
    else:
        return None
    if not commands:
        return None
    changes = [*_source_changes(machine, words, must_have=True), *_ukify_changes(machine, words)]
    notes = []
    if machine.glob("usr/lib/modules/*/*.efi"):
        notes.append("An image that was built and signed by the vendor keeps its own command line.")
    return Plan(BootLoader.IMAGES, tuple(words), tuple(changes), commands, tuple(notes))


def _install_layout(machine: Machine) -> str:
    layout = ""
    for path in reversed(machine.glob(*_INSTALL_CONF)):
        found = re.findall(r"^\s*layout=(\S+)", machine.read(path) or "", re.MULTILINE)
        if found:
            layout = found[-1]
    return layout


def _rebuild_commands(machine: Machine) -> tuple[tuple[str, ...], ...]:
    if machine.program_says("kernel-install", "add-all"):
        return (("kernel-install", "add-all"),)
    releases = machine.releases.items()
    return tuple(("kernel-install", "add", release, image) for release, image in releases)


def _ukify_changes(machine: Machine, words: Sequence[str]) -> list[Change]:
    """What uki.conf says of the command line, for builders that ask it (ukify(1), Cmdline=)."""
    changes = []
    path = "/etc/kernel/uki.conf"
    text = machine.read(path)
    found = re.search(r"^[ \t]*Cmdline[ \t]*=[ \t]*(.*)$", text or "", re.MULTILINE)
    if text is None or not found:
        return []
    if not found[1].startswith("@"):
        after = text[: found.start(1)] + _line(found[1], words) + text[found.end(1) :]
        changes.append(Change(path, text, after))
    else:
        named = found[1][1:].strip()
        content = machine.read(named)
        if named not in (CMDLINE, VENDOR_CMDLINE) and content is not None and named.startswith("/"):
            changes.append(Change(named, content, edited_lines(content, words)))
    return changes
