# SPDX-License-Identifier: LGPL-2.1-or-later
"""Change one setting so that it is in force, or nothing has changed.

Validate -> write the drop-in -> read all files -> load. Where the machine was armed before and would not be
with the change, or where a file that counts more has the key, too, file and kernel are put back.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdump_service.config import ConfigFiles, read_config_files
from kdump_service.drop_in import DropIn
from kdump_service.errors import CannotArm, ConfigError
from kdump_service.service.manager import Manager
from kdump_service.service.state import ArmState, SettingState
from kdump_service.settings import SETTINGS, SETTINGS_BY_KEY, Setting

__all__ = ["SettingsEditor"]

logger = logging.getLogger(__name__)


class SettingsEditor:
    """Sets and resets; not for two threads at a time."""

    def __init__(self, root: Path, manager: Manager) -> None:
        self._root = root
        self._manager = manager
        self._drop_in = DropIn(root)

    def states(self) -> list[SettingState]:
        """All settings as they are in force, in the order of the table. Looks at no file."""
        files = self._manager.config_files
        waits = {"Kernel": self._not_loaded(), "Image": self._not_loaded() or self._manager.not_in_image}
        not_written = self._manager.not_for_capture
        if not_written:
            not_written = f"The capture boot cannot be told: {not_written}"
        return [
            SettingState(
                setting,
                getattr(files.config, setting.attribute),
                files.origins.get(setting.key, ""),
                waits.get(setting.section, not_written),
            )
            for setting in SETTINGS
        ]

    def _not_loaded(self) -> str:
        """Why what is loaded is not what the settings ask for; empty if it is."""
        status = self._manager.status()
        if status.state is not ArmState.ARMED:
            return f"The crash kernel is not loaded: {status.explanation or status.state}"
        if not self._manager.armed_as_configured:
            return f"What was loaded before is still in use: {status.explanation}"
        return ""

    def set_value(self, key: str, value: Any) -> None:
        """Set ``key`` in the service's own file. Raises ConfigError or CannotArm; then nothing changed."""
        setting = _setting(key)
        try:
            text = setting.to_text(value)
            wanted = setting.to_value(text)
        except ValueError as error:
            raise ConfigError(f"{key}=: {error}") from error

        def check(files: ConfigFiles) -> None:
            if getattr(files.config, setting.attribute) != wanted:
                where = files.origins.get(key, "another file")
                raise ConfigError(
                    f"{where}: {key}= is set there, which counts more than what is set over D-Bus",
                    "Change it there, or remove that line.",
                )

        self._change(lambda: self._drop_in.set_value(setting, text), check)
        logger.info("%s=%s was set over D-Bus", key, text)

    def reset_value(self, key: str) -> None:
        """Take ``key`` out of the service's own file. Raises as :meth:`set_value`."""
        setting = _setting(key)
        self._change(lambda: self._drop_in.reset_value(setting), lambda files: None)
        logger.info("%s= was reset over D-Bus", key)

    def _change(self, write: Callable[[], object], check: Callable[[ConfigFiles], None]) -> None:
        text_before = self._drop_in.content()
        files_before = self._manager.config_files
        armed_before = self._manager.armed_as_configured
        told_before = not self._manager.not_for_capture
        write()
        try:
            files = read_config_files(self._root)
            if files.errors:
                raise ConfigError("\n".join(str(each) for each in files.errors), files.errors[0].hint)
            check(files)
        except ConfigError:
            self._drop_in.restore(text_before)
            raise
        try:
            self._manager.take(files)
        except CannotArm as error:
            if armed_before:
                self._undo(text_before, files_before)
                raise
            # It was not armed before, perhaps for this very setting: it stays, for the day when it is.
            logger.info("the setting is kept, although the machine is not armed: %s", error)
        if told_before and self._manager.not_for_capture:
            why = self._manager.not_for_capture
            self._undo(text_before, files_before)
            raise ConfigError(f"the capture boot cannot be told of it: {why}")

    def _undo(self, text_before: str | None, files_before: ConfigFiles) -> None:
        self._drop_in.restore(text_before)
        try:
            self._manager.take_back(files_before)
        except CannotArm as error:
            logger.error("what was loaded before cannot be loaded again: %s", error.explanation())


def _setting(key: str) -> Setting:
    setting = SETTINGS_BY_KEY.get(key)
    if setting is None:
        raise ConfigError(f"there is no setting {key!r:.60}", "To see all of them: kdumpctl config show")
    return setting
