# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kdump.Kdump1.Settings: each row of the table of settings is a property."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from dbus_next import Variant

from kdump_service.bus.members import Argument, Interface, Method, Property, clean
from kdump_service.bus.names import ACTION_CONFIGURE, FREE, SETTINGS_INTERFACE
from kdump_service.config import Config
from kdump_service.service.state import SettingState
from kdump_service.settings import SETTINGS

__all__ = ["SettingsActs", "settings_interface", "settings_values"]


class SettingsActs(Protocol):
    """What the interface needs of the daemon."""

    def config(self) -> Config:
        """What is in force."""

    def settings(self) -> Sequence[SettingState]:
        """Each setting, in the order of the manual."""

    async def set_setting(self, key: str, value: Any) -> None:
        """Raises KdumpError."""

    async def reset_setting(self, key: str) -> None:
        """Raises KdumpError."""


def settings_values(config: Config) -> dict[str, Any]:
    """All properties, by their names on the bus."""
    return {setting.key: getattr(config, setting.attribute) for setting in SETTINGS}


def settings_interface(acts: SettingsActs) -> Interface:
    """The interface in front of ``acts``."""

    def writer(key: str) -> Callable[[Any], Awaitable[None]]:
        return lambda value: acts.set_setting(key, value)

    last: tuple[Sequence[SettingState], list[dict[str, Variant]]] | None = None

    async def read() -> Mapping[str, Any]:
        return settings_values(acts.config())

    async def get_settings() -> list[dict[str, Variant]]:
        nonlocal last
        states = acts.settings()
        if last is None or last[0] != states:
            last = (states, [_entry(state) for state in states])
        return last[1]

    properties = (
        Property(setting.key, setting.signature, writer(setting.key), ACTION_CONFIGURE)
        for setting in SETTINGS
    )
    methods = (
        Method("GetSettings", get_settings, FREE, gives=Argument("settings", "aa{sv}")),
        Method("ResetSetting", acts.reset_setting, ACTION_CONFIGURE, [Argument("name", "s")]),
    )
    return Interface(
        SETTINGS_INTERFACE,
        {each.name: each for each in properties},
        {each.name: each for each in methods},
        read,
    )


def _entry(state: SettingState) -> dict[str, Variant]:
    setting = state.setting
    entry = {
        "Name": Variant("s", setting.key),
        "Section": Variant("s", setting.section),
        "Type": Variant("s", setting.signature),
        "Value": Variant(setting.signature, clean(state.value)),
        "Default": Variant(setting.signature, setting.default),
        "Source": Variant("s", clean(state.source)),
        "Unit": Variant("s", setting.unit),
        "Help": Variant("s", setting.help),
        "Allowed": Variant("as", list(setting.allowed)),
        "Waits": Variant("s", clean(state.waits)),
    }
    if setting.minimum is not None:
        entry["Minimum"] = Variant("x", setting.minimum)
    if setting.maximum is not None:
        entry["Maximum"] = Variant("x", setting.maximum)
    return entry
