# SPDX-License-Identifier: LGPL-2.1-or-later
"""Boot loaders of small boards: U-Boot with extlinux.conf, and the Raspberry Pi's firmware."""

from __future__ import annotations

from collections.abc import Sequence

from kdump_service.reserve.grub import shell_drop_in
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import BootLoader, Change, Plan
from kdump_service.reserve.words import edited_assignments, edited_keys, edited_lines, words_in

__all__ = ["EXTLINUX_MENUS", "plan_extlinux", "plan_raspberry_pi"]

_U_BOOT_DROP_IN = "/etc/u-boot-menu/conf.d/zz-kdump-service.conf"
_U_BOOT_DEFAULTS = "/etc/default/u-boot"
_PARAMETERS = "U_BOOT_PARAMETERS"
_U_BOOT_SOURCES = (
    "etc/default/u-boot",
    "usr/share/u-boot-menu/conf.d/*.conf",
    "etc/u-boot-menu/conf.d/*.conf",
)
EXTLINUX_MENUS = ("/boot/extlinux/extlinux.conf", "/extlinux/extlinux.conf")
_FIRMWARE = ("/boot/firmware/current/cmdline.txt", "/boot/firmware/cmdline.txt", "/boot/cmdline.txt")


def plan_extlinux(machine: Machine, words: Sequence[str]) -> Plan | None:
    """The plan where extlinux.conf is the menu; None where it is not. Raises ConfigError."""
    if machine.program("u-boot-update"):
        return _plan_u_boot_menu(machine, words)
    changes = []
    for path in EXTLINUX_MENUS:
        text = machine.read(path)
        if text is not None:
            changes.append(Change(path, text, edited_keys(text, "append", words, all_lines=machine.is_ours)))
    if not any(words_in(change.after or "") for change in changes):
        return None
    return Plan(BootLoader.EXTLINUX, tuple(words), tuple(changes))


def _plan_u_boot_menu(machine: Machine, words: Sequence[str]) -> Plan | None:
    """u-boot-update(8): where nothing sets its variable, it takes /etc/kernel/cmdline, else "ro quiet"."""
    commands = (("u-boot-update",),)
    cmdline = machine.read("/etc/kernel/cmdline")
    sources = [path for path in machine.glob(*_U_BOOT_SOURCES) if path != _U_BOOT_DROP_IN]
    is_set = any(f"\n{_PARAMETERS}=" in "\n" + (machine.read(path) or "") for path in sources)
    if not is_set and cmdline is not None:
        change = Change("/etc/kernel/cmdline", cmdline, edited_lines(cmdline, words))
        return Plan(BootLoader.U_BOOT_MENU, tuple(words), (change,), commands)
    if machine.program_says("u-boot-update", "/etc/u-boot-menu/conf.d/"):
        text = shell_drop_in((_PARAMETERS,), _PARAMETERS, words)
        if not is_set:
            text = text.replace(f"${{{_PARAMETERS}:-}}", f"${{{_PARAMETERS}:-ro quiet}}")
        change = Change(_U_BOOT_DROP_IN, machine.read(_U_BOOT_DROP_IN), text)
    else:
        before = machine.read(_U_BOOT_DEFAULTS)
        wanted = words if is_set else ("ro", "quiet", *words)
        after = edited_assignments(_U_BOOT_DEFAULTS, before or "", (_PARAMETERS,), _PARAMETERS, wanted)
        change = Change(_U_BOOT_DEFAULTS, before, after)
    return Plan(BootLoader.U_BOOT_MENU, tuple(words), (change,), commands)


def plan_raspberry_pi(machine: Machine, words: Sequence[str]) -> Plan | None:
    """The plan where the firmware reads the command line from a file; None where it does not."""
    changes = []
    for path in _FIRMWARE:
        text = machine.read(path)
        # /boot/cmdline.txt of newer systems is a note that the file has moved.
        if text is None or "DO NOT EDIT" in text or "root=" not in text or not machine.is_ours(text):
            continue
        changes.append(Change(path, text, edited_lines(text, words)))
    if not changes:
        return None
    return Plan(BootLoader.RASPBERRY_PI, tuple(words), tuple(changes))
