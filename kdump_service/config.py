# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: the settings of :mod:`kdump_service.settings`, read from files in systemd's syntax.

Files, in rising order of weight: built-in defaults, ``/etc/kdump-service.conf``, then drop-ins
``kdump-service.conf.d/*.conf`` of ``/usr/lib``, ``/run`` and ``/etc`` sorted by file name, where a name in
``/etc`` hides the same name in ``/run`` and that one the one in ``/usr/lib`` (systemd.syntax(7),
systemd.unit(5)). An empty assignment resets a setting to its default.

Arming reads strictly: a value that cannot be used is reported as ``file:line: Key=: reason``. The capture
boot reads what arming wrote as JSON, and forgives: no typo may cost a dump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdump_service.dump_options import CONTENTS, DumpOptions
from kdump_service.errors import ConfigError
from kdump_service.settings import SETTINGS, Setting

__all__ = [
    "DROP_IN_FOLDERS",
    "MAIN_FILE",
    "SETTINGS",
    "Config",
    "ConfigFiles",
    "Setting",
    "logical_lines",
    "read_config",
    "read_config_files",
]

MAIN_FILE = "etc/kdump-service.conf"
DROP_IN_FOLDERS = ("usr/lib/kdump-service.conf.d", "run/kdump-service.conf.d", "etc/kdump-service.conf.d")
"""Later ones hide files of the same name in earlier ones."""
_LATER = ("plain_copy", "stall_timeout_sec")
"""Settings that came after version 0.1.0."""
_LEVEL_OF_ZEROS = 1
"""The dump level that leaves out pages of zeros alone (makedumpfile(8), -d)."""


@dataclass(frozen=True)
class Config:
    """The settings in force; each field is a row of SETTINGS."""

    kernel: str = ""
    command_line: str = ""
    command_line_append: str = ""
    command_line_remove: str = ""
    shrink: str = "no"
    image: str = ""
    environment: str = "initramfs"
    extra_drivers: str = ""
    contents: str = "kernel"
    dump_level: int = -1
    """-1: Contents= decides."""
    format: str = "kdump"
    compression: str = "auto"
    compression_level: int = 0
    """0: the default of the compression."""
    threads: int = 0
    """0: one for each processor."""
    plain_copy: str = "no"
    target: str = "/var/crash"
    stall_timeout_sec: int = 60
    keep_free_bytes: int = 128 << 20
    max_use_bytes: int = 0
    """Of this and the next two, 0 is no limit."""
    max_dumps: int = 0
    max_age_sec: int = 0
    on_success: str = "reboot"
    on_failure: str = "reboot"
    crash_loop_limit: int = 3
    """Crashes within an hour; 0: none is noticed."""

    @property
    def level(self) -> int | None:
        """The dump level that DumpLevel= or Contents= asks for; None if no memory is wanted."""
        return self.dump_level if self.dump_level >= 0 else CONTENTS[self.contents]

    @property
    def allows_plain_copy(self) -> bool:
        """Whether a copy of all memory, less its pages of zeros, holds nothing that was to be left out."""
        return self.plain_copy == "yes" or (self.level is not None and self.level <= _LEVEL_OF_ZEROS)

    def dump_options(self, *, processors: int) -> DumpOptions:
        """How to write the image. Raises ConfigError for settings that do not go together."""
        options = DumpOptions(
            level=self.level or 0,
            format=self.format,
            compression=self.compression,
            compression_level=self.compression_level or None,
            threads=self.threads or processors,
        )
        options.check()
        return options

    def to_json(self) -> dict[str, str | int]:
        """The settings as a JSON object, for the capture boot. What earlier versions did not know is left out
        where it has its default: else an upgrade would load anew what is loaded already."""
        document = dataclasses.asdict(self)
        for name in _LATER:
            if document[name] == getattr(Config, name):
                del document[name]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> tuple[Config, list[str]]:
        """Read what :meth:`to_json` wrote. A bad value becomes its default and a sentence in the list."""
        values: dict[str, Any] = {}
        problems = []
        for setting in SETTINGS:
            if setting.attribute not in document:
                continue
            try:
                value = _from_json(setting, document[setting.attribute])
            except ValueError as error:
                problems.append(f"{setting.key}=: {error}")
                continue
            values[setting.attribute] = value
        config = cls(**values)
        try:
            config.dump_options(processors=1)
        except ConfigError as error:
            problems.append(str(error))
            config = dataclasses.replace(config, compression="auto", compression_level=0)
        return config, problems


def _from_json(setting: Setting, value: object) -> Any:
    """One value of a JSON document. Raises ValueError."""
    if isinstance(setting.default, int) and isinstance(value, str):
        # Version 0.1.0 wrote these as text; an empty one meant that another setting decides.
        return setting.to_value(value)
    if isinstance(value, bool) or not isinstance(value, type(setting.default)):
        raise ValueError(f"{value!r} is not a {type(setting.default).__name__}")
    return value if value == setting.default else setting.parse(str(value))


@dataclass(frozen=True)
class ConfigFiles:
    """What the configuration files say."""

    config: Config
    errors: list[ConfigError]
    """One for each line that could not be used; the setting has the value that the other lines give it."""
    origins: dict[str, str]
    """Key -> ``FILE:LINE`` that had the last word on it; settings that no file names are absent."""


@dataclass
class _Merge:
    """Assignments so far, in the order of weight."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def assign(self, where: str, section: str, key: str, text: str) -> None:
        setting = _BY_NAME.get((section, key))
        if setting is None:
            known = ", ".join(f"{s.key}=" for s in SETTINGS if s.section == section)
            meant = f"[{section}] has {known}" if known else f"there is no section [{section}]"
            self.errors.append(f"{where}: {key}=: unknown setting; {meant}")
            return
        if not text:
            self.values.pop(setting.attribute, None)
            self.origins[key] = where
            return
        try:
            value = setting.parse(text)
        except ValueError as error:
            self.errors.append(f"{where}: {key}=: {error}")
            return
        if setting.accumulates and self.values.get(setting.attribute):
            value = f"{self.values[setting.attribute]} {value}"
        self.values[setting.attribute] = value
        self.origins[key] = where


_BY_NAME = {(setting.section, setting.key): setting for setting in SETTINGS}


def logical_lines(text: str) -> Iterable[tuple[int, str]]:
    """Lines with their number; a trailing backslash joins the next one (systemd.syntax(7))."""
    pending, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not pending:
            start = number
            if not stripped or stripped[0] in "#;":
                continue
        elif stripped[:1] in ("#", ";"):
            continue  # comments inside a continued line are dropped, the line goes on
        if stripped.endswith("\\"):
            pending += stripped[:-1] + " "
            continue
        yield start, pending + stripped
        pending = ""
    if pending:
        yield start, pending.strip()


def _read_file(merge: _Merge, root: Path, path: Path) -> None:
    name = f"/{path.relative_to(root)}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    except UnicodeDecodeError as error:
        merge.errors.append(f"{name}: not a text file in UTF-8: byte {error.start}")
        return
    except OSError as error:
        merge.errors.append(f"{name}: cannot be read: {error.strerror}")
        return
    section = ""
    for number, line in logical_lines(text):
        where = f"{name}:{number}"
        if line.startswith("["):
            if not line.endswith("]"):
                merge.errors.append(f"{where}: {line!r}: a section is written [Name]")
            section = line.strip("[]")
        elif "=" not in line:
            merge.errors.append(f"{where}: {line!r}: neither Key=value nor [Section]")
        elif not section:
            merge.errors.append(f"{where}: {line!r}: stands before the first [Section]")
        else:
            key, _, value = line.partition("=")
            merge.assign(where, section, key.strip(), value.strip())


def _drop_ins(root: Path) -> list[Path]:
    by_name: dict[str, Path] = {}
    for folder in DROP_IN_FOLDERS:  # later folders hide files of the same name in earlier ones
        try:
            entries = sorted((root / folder).glob("*.conf"))
        except OSError:
            continue
        by_name.update((path.name, path) for path in entries)
    return [by_name[name] for name in sorted(by_name)]


def read_config_files(root: Path = Path("/")) -> ConfigFiles:
    """Read all files below ``root``. The caller decides whether errors are fatal."""
    merge = _Merge()
    for path in (root / MAIN_FILE, *_drop_ins(root)):
        if path.is_symlink() and str(path.readlink()) == "/dev/null":
            continue  # an administrator's way to switch a drop-in off
        _read_file(merge, root, path)
    hint = "Correct the line, then run: systemctl reload kdump.service"
    config = Config(**merge.values)
    try:
        config.dump_options(processors=1)
    except ConfigError as error:
        merge.errors.append(f"[Dump]: {error}")
        config = dataclasses.replace(config, compression="auto", compression_level=0)
    return ConfigFiles(config, [ConfigError(text, hint) for text in merge.errors], merge.origins)


def read_config(root: Path = Path("/")) -> tuple[Config, list[ConfigError]]:
    """The configuration, and one error for each line of it that could not be used."""
    files = read_config_files(root)
    return files.config, files.errors
