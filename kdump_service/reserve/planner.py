# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which boot loaders a machine has, and one plan for all of them.

Where the files of two are there, both are changed: which one the firmware starts is not told by files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kdump_service.reserve.boards import plan_extlinux, plan_raspberry_pi
from kdump_service.reserve.entries import plan_entries, plan_images
from kdump_service.reserve.grub import plan_grub
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import Change, Plan
from kdump_service.reserve.way_back import AGAIN, kept

__all__ = ["make_plan"]

_MANAGED = {
    "run/ostree-booted": "This system makes its boot entries anew with each deployment. As root: rpm-ostree "
    "kargs --append-if-missing={words}, and --delete=crashkernel=OLD if there is one.",
    "etc/NIXOS": "This system makes its boot entries from its configuration: add it to boot.kernelParams.",
}
"""Where what is changed in files would be lost with the next update."""
_PLANNERS = (plan_grub, plan_entries, plan_images, plan_extlinux, plan_raspberry_pi)

_HOW_TO_ADD = (
    "Boot loaders have the kernel's command line in their menus, often made from another file: for GRUB it "
    "is GRUB_CMDLINE_LINUX in /etc/default/grub, and grub-mkconfig makes the menu; for systemd-boot and "
    "unified images /etc/kernel/cmdline and loader/entries/*.conf; for LILO, zipl and syslinux a line append "
    "or parameters; in virtual machines and clouds it may be a setting outside of the machine.",
    "It is done when /proc/cmdline has the words after a reboot.",
)


def make_plan(root: Path, words: Sequence[str]) -> Plan:
    """What to do so that each later boot has these words, and no other ``crashkernel=``. Raises ConfigError.

    ``words`` are whole words with names, validated. Without a boot loader that we know, a plan of notes only.
    """
    machine = Machine(root)
    managed = [text.format(words=" ".join(words)) for path, text in _MANAGED.items() if machine.exists(path)]
    if managed:
        return Plan("", tuple(words), notes=(*managed, _HOW_TO_ADD[-1]))
    parts = [plan for planner in _PLANNERS if (plan := planner(machine, words)) is not None]
    if not parts:
        told = f"Add to the kernel's command line: {' '.join(words)}"
        return Plan("", tuple(words), notes=(told, *_HOW_TO_ADD))
    changes: dict[str, Change] = {}
    for part in parts:
        for change in part.changes:
            changes.setdefault(change.path, change)
    needed = tuple(change for change in changes.values() if change.before != change.after)
    commands = tuple(command for part in parts for command in part.commands)
    notes = [note for part in parts for note in part.notes]
    if commands and not needed and (earlier := kept(root)) is not None and earlier.unfinished:
        needed = tuple(changes.values())
        notes.append(AGAIN)
    return Plan(
        "+".join(part.boot_loader for part in parts),
        tuple(words),
        needed,
        commands if needed else (),
        tuple(dict.fromkeys(notes)),
        tuple(change for change in changes.values() if change not in needed),
    )
