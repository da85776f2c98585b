# SPDX-License-Identifier: LGPL-2.1-or-later
"""The one configuration file that the service writes: what was set over the bus.

The administrator's files are never touched. This one is small, and written anew, whole, at each change; a key
that stands in it outweighs /etc/kdump-service.conf and drop-ins whose names sort before it.
"""

from __future__ import annotations

import stat
from pathlib import Path

from kdump_service.atomic_file import write_atomically
from kdump_service.config import logical_lines
from kdump_service.errors import ConfigError
from kdump_service.settings import SETTINGS, SETTINGS_BY_KEY, Setting

__all__ = ["DROP_IN_FILE", "DropIn"]

DROP_IN_FILE = "etc/kdump-service.conf.d/90-kdumpctl.conf"

_HEADER = """\
# Written by kdump-service: settings that were changed with kdumpctl config set, or by another program over
# D-Bus. It is written anew at each change, so what is added here by hand may get lost. To overrule it, use a
# file with a name that sorts after this one; to undo it: kdumpctl config reset KEY
"""


class DropIn:
    """``/etc/kdump-service.conf.d/90-kdumpctl.conf`` below a root folder."""

    def __init__(self, root: Path) -> None:
        self._path = root / DROP_IN_FILE
        self.name = f"/{DROP_IN_FILE}"
        """As the administrator knows it."""

    def content(self) -> str | None:
        """The file as it is, to be restored; None if there is none. Raises ConfigError."""
        try:
            kind = self._path.lstat().st_mode
            if not stat.S_ISREG(kind):
                raise ConfigError(
                    f"{self.name}: {_what(self._path, kind)} stands where the service keeps settings",
                    f"Remove it: rm {self.name}",
                )
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read: {error.strerror}") from error

    def set_value(self, setting: Setting, text: str) -> None:
        """Have the file say ``Key=text``, with :meth:`Setting.to_text`'s text. Raises ConfigError."""
        self._write({**self._values(), setting.key: text})

    def reset_value(self, setting: Setting) -> bool:
        """Take the key out; returns whether it was there. Raises ConfigError."""
        values = self._values()
        if setting.key not in values:
            return False
        del values[setting.key]
        self._write(values)
        return True

    def restore(self, content: str | None) -> None:
        """Make the file what :meth:`content` said. Raises ConfigError."""
        try:
            if content is None:
                self._path.unlink(missing_ok=True)
            else:
                self._replace(content)
        except OSError as error:
            raise self._unwritable(error) from error

    def _values(self) -> dict[str, str]:
        """Key -> text of what stands in the file. Lines that are none of ours are passed over."""
        values: dict[str, str] = {}
        section = ""
        for _, line in logical_lines(self.content() or ""):
            key, separator, text = (part.strip() for part in line.partition("="))
            if line.startswith("["):
                section = line.strip("[]")
                continue
            setting = SETTINGS_BY_KEY.get(key)
            if not separator or setting is None or setting.section != section:
                continue
            if setting.accumulates and text and values.get(key):
                text = f"{values[key]} {text}"
            try:
                setting.to_value(text)
            except ValueError:
                continue  # somebody's edit by hand, which reading the files has complained of
            values[key] = text
        return values

    def _write(self, values: dict[str, str]) -> None:
        try:
            if values:
                self._replace(_file_text(values))
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _replace(self, content: str) -> None:
        if not self._path.parent.is_dir():
            self._path.parent.mkdir(parents=True)
            self._path.parent.chmod(0o755)  # whatever the umask: settings are no secret
        write_atomically(self._path, content, mode=0o644)
        self._path.chmod(0o644)

    def _unwritable(self, error: OSError) -> ConfigError:
        return ConfigError(
            f"{self.name} cannot be written: {error.strerror}",
            "Make /etc writable, or put the setting where /etc is made from. Until the next boot, it may "
            "stand in a file of /run/kdump-service.conf.d.",
        )


def _file_text(values: dict[str, str]) -> str:
    lines = [_HEADER.rstrip()]
    section = ""
    for setting in SETTINGS:
        if setting.key not in values:
            continue
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        if setting.accumulates and values[setting.key]:
            lines.append(f"{setting.key}=")  # what other files say is not to be added to
        lines.append(f"{setting.key}={values[setting.key]}")
    return "\n".join(lines) + "\n"


def _what(path: Path, mode: int) -> str:
    if stat.S_ISLNK(mode):
        return f"a link to {path.readlink()}"
    return "a folder" if stat.S_ISDIR(mode) else "no regular file"
