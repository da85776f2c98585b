# SPDX-License-Identifier: LGPL-2.1-or-later
"""GRUB whose menu is made by grub-mkconfig: Debian and Ubuntu by a drop-in, others in /etc/default/grub."""

from __future__ import annotations

from collections.abc import Sequence

from kdump_service.kernel.boot_loader import GRUB_MENUS
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import BootLoader, Change, Plan
from kdump_service.reserve.words import edited_assignments, words_in

__all__ = ["DROP_IN", "DROP_IN_HEADER", "defaults_change", "plan_grub", "shell_drop_in", "uses_entries"]

DROP_IN = "/etc/default/grub.d/zz-kdump-service.cfg"
"""Read after all others, such as kdump-tools.cfg, in any locale."""
DROP_IN_HEADER = "# Written by kdumpctl reserve; to take it back: kdumpctl reserve --revert"
_DEFAULTS = "/etc/default/grub"
_ALL, _NORMAL = "GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"
"""GRUB's manual: words of every entry, and of those that are not for recovery."""
_MADE_BY_MKCONFIG = "### BEGIN /etc/grub.d/"


def plan_grub(machine: Machine, words: Sequence[str]) -> Plan | None:
    """The plan where grub-mkconfig makes the menu; None where it does not. Raises ConfigError."""
    defaults = machine.read(_DEFAULTS)
    if defaults is None or uses_entries(machine):
        return None
    menus = [path for path, text in machine.boot_files.texts(GRUB_MENUS) if _MADE_BY_MKCONFIG in text]
    mkconfig = machine.program("grub-mkconfig", "grub2-mkconfig")
    if machine.program("update-grub"):
        commands: tuple[tuple[str, ...], ...] = (("update-grub",),)
    elif mkconfig and menus:
        commands = tuple((mkconfig, "-o", menu) for menu in menus)
    else:
        return None
    notes: list[str] = []
    if _reads_drop_ins(machine, mkconfig):
        text = shell_drop_in((_ALL, _NORMAL), _NORMAL, words)
        change = Change(DROP_IN, machine.read(DROP_IN), text)
        for path in machine.glob("etc/default/grub.d/*.cfg"):
            if path > DROP_IN and words_in(machine.read(path) or ""):
                notes.append(f"{path} is read later and has crashkernel=, too: it wins. Remove that from it.")
    else:
        target = _NORMAL if f"\n{_NORMAL}=" in f"\n{defaults}" else _ALL
        change = defaults_change(defaults, target, words)
    return Plan(BootLoader.GRUB, tuple(words), (change,), commands, tuple(notes))


def defaults_change(defaults: str, target: str, words: Sequence[str]) -> Change:
    """The change of /etc/default/grub. Raises ConfigError."""
    return Change(
        _DEFAULTS, defaults, edited_assignments(_DEFAULTS, defaults, (_ALL, _NORMAL), target, words)
    )


def uses_entries(machine: Machine) -> bool:
    """Whether GRUB's menu is made of Boot Loader Specification entries (blscfg, as on Fedora and RHEL)."""
    return any("\nblscfg" in text for _, text in machine.boot_files.texts(GRUB_MENUS)) and bool(
        machine.glob("boot/loader/entries/*.conf")
    )


def _reads_drop_ins(machine: Machine, mkconfig: str) -> bool:
    # A patch of Debian and Ubuntu: the script itself says whether it has it.
    return bool(mkconfig) and machine.program_says(mkconfig, "default/grub.d/")


def shell_drop_in(names: Sequence[str], target: str, words: Sequence[str]) -> str:
    """A shell file that takes ``crashkernel=`` out of variables, and adds ours to one of them.

    What the variables hold is passed through as it is, whatever quotation marks or patterns it has.
    """
    lines = [
        DROP_IN_HEADER,
        "# What other files ask to be reserved for the crash kernel is replaced by this.",
    ]
    for name in names:
        lines += [
            f"""{name}=$(printf ' %s' "${{{name}:-}}" |""",
            "    sed -e 's/[[:space:]]crashkernel=[^[:space:]]*//g' -e 's/^crashkernel=[^[:space:]]*//' "
            "-e '1s/^[[:space:]]//')",
        ]
    lines.append(f'{target}="${target} {" ".join(words)}"')
    return "\n".join(lines) + "\n"
