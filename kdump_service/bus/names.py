# SPDX-License-Identifier: LGPL-2.1-or-later
"""Names on the bus. ``dbus/org.kdump.Kdump1.xml`` documents what stands behind them."""

__all__ = ["ACTION_ARM", "BUS_NAME", "INTERFACE", "OBJECT_PATH"]

BUS_NAME = "org.kdump.Kdump1"
OBJECT_PATH = "/org/kdump/Kdump1"
INTERFACE = "org.kdump.Kdump1"

ACTION_ARM = "org.kdump.Kdump1.arm"
"""polkit action of dbus/org.kdump.Kdump1.policy."""
