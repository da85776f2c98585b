# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names on the bus. ``dbus/org.kdump.Kdump1.xml`` documents what stands behind them."""

__all__ = [
    "ACTION_ARM",
    "ACTION_CONFIGURE",
    "ACTION_CRASH",
    "ACTION_DELETE_DUMPS",
    "ACTION_READ_DUMPS",
    "BUS_NAME",
    "DUMP_INTERFACE",
    "FREE",
    "INTERFACE",
    "OBJECT_PATH",
    "SETTINGS_INTERFACE",
    "dump_path",
]

BUS_NAME = "org.kdump.Kdump1"
OBJECT_PATH = "/org/kdump/Kdump1"
INTERFACE = "org.kdump.Kdump1"
SETTINGS_INTERFACE = "org.kdump.Kdump1.Settings"
DUMP_INTERFACE = "org.kdump.Kdump1.Dump"
_DUMPS_PATH = f"{OBJECT_PATH}/dump"

ACTION_ARM = "org.kdump.Kdump1.arm"
"""This and the next are polkit actions of dbus/org.kdump.Kdump1.policy."""
ACTION_CONFIGURE = "org.kdump.Kdump1.configure"
ACTION_CRASH = "org.kdump.Kdump1.crash"
ACTION_READ_DUMPS = "org.kdump.Kdump1.read-dumps"
ACTION_DELETE_DUMPS = "org.kdump.Kdump1.delete-dumps"
FREE = ""
"""Instead of an action: everybody may."""


def dump_path(name: str) -> str:
    """Object path of the dump in the folder ``name``; bytes that are no letter or digit become _ and hex."""
    escaped = (chr(byte) if chr(byte).isalnum() and byte < 0x80 else f"_{byte:02x}" for byte in name.encode())
    return f"{_DUMPS_PATH}/{''.join(escaped)}"
