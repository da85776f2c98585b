# SPDX-License-Identifier: LGPL-2.1-or-later
"""The configuration: one table of settings, read from files in systemd's syntax, frozen when read.

Files, in rising order of weight: built-in defaults, ``/etc/kdump-service.conf``, then drop-ins
``kdump-service.conf.d/*.conf`` of ``/usr/lib``, ``/run`` and ``/etc`` sorted by file name, where a name in
``/etc`` hides the same name in ``/run`` and that one the one in ``/usr/lib`` (systemd.syntax(7),
systemd.unit(5)). An empty assignment resets a setting to its default.

Arming reads strictly: a value that cannot be used is reported as ``file:line: Key=: reason``. The capture
boot reads what arming wrote as JSON, and forgives: no typo may cost a dump.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kdump_service.dump_options import COMPRESSION_LEVELS, COMPRESSIONS_OF, CONTENTS, MOST_LEVEL, DumpOptions
from kdump_service.errors import ConfigError
from kdump_service.quantity import parse_bytes

__all__ = ["CAPTURE_SETTINGS_FILE", "SETTINGS", "Config", "Setting", "example_file", "read_config"]

CAPTURE_SETTINGS_FILE = "var/lib/kdump-service/capture.json"
"""Written when arming, read in the capture boot."""
MAIN_FILE = "etc/kdump-service.conf"
DROP_IN_FOLDERS = ("usr/lib/kdump-service.conf.d", "run/kdump-service.conf.d", "etc/kdump-service.conf.d")


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    if "\0" in text or any(part == ".." for part in PurePosixPath(text).parts):
        raise ValueError(f"{text!r} must not contain '..'")
    return str(PurePosixPath(text))


def _local_target(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{scheme}:// targets are not supported: write a folder, as in /var/crash")
    path = _absolute_path(rest if separator else text)
    if path == "/":
        raise ValueError("the root folder itself is no target: write a folder, as in /var/crash")
    return path


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is not one of {', '.join(allowed)}")
        return text

    return parse


def _number(lowest: int, highest: int) -> Callable[[str], str]:
    """A whole number, kept as text: an empty one means that another setting decides."""

    def parse(text: str) -> str:
        try:
            value = int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
        if not lowest <= value <= highest:
            raise ValueError(f"{value} is not between {lowest} and {highest}")
        return str(value)

    return parse


def _kernel_words(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} contains a control character")
    if text.count('"') % 2:
        raise ValueError(f"{text!r} has an opening quotation mark without its closing one")
    return " ".join(text.split())


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    section: str
    key: str
    """As it stands in the file, without the ``=``."""
    attribute: str
    """Name of the field of Config."""
    parse: Callable[[str], Any]
    """Turns the file's text into a value; raises ValueError with a sentence that has no subject."""
    default: Any
    unit: str
    """What the value counts in: ``bytes``, ``path``, ``words``, or empty."""
    help: str
    accumulates: bool = False
    """Further assignments add words instead of replacing the value."""


_COMPRESSIONS = sorted({name for names in COMPRESSIONS_OF.values() for name in names})
_LOWEST_LEVEL = min(lowest for lowest, _, _ in COMPRESSION_LEVELS.values())
_HIGHEST_LEVEL = max(highest for _, highest, _ in COMPRESSION_LEVELS.values())

SETTINGS: tuple[Setting, ...] = (
    Setting("Kernel", "Kernel", "kernel", _absolute_path, "", "path",
            "Kernel to load for a crash. Empty: the running kernel's own image."),
    Setting("Kernel", "CommandLine", "command_line", _kernel_words, "", "words",
            "Command line of the capture kernel to start from. Empty: the running kernel's, without what a "
            "capture boot must not inherit."),
    Setting("Kernel", "CommandLineAppend", "command_line_append", _kernel_words, "", "words",
            "Words to add at the end of the capture kernel's command line.", accumulates=True),
    Setting("Kernel", "CommandLineRemove", "command_line_remove", _kernel_words, "", "words",
            "Names of words to leave out of the capture kernel's command line.", accumulates=True),
    Setting("Image", "Image", "image", _absolute_path, "", "path",
            "Initramfs to load for a crash. Empty: the running kernel's own initramfs."),
    Setting("Dump", "Contents", "contents", _one_of(*CONTENTS), "kernel", "",
            "log: the kernel's log, no memory. kernel: memory that the kernel itself uses. user: that, and "
            "the memory of processes. everything: also the page cache and free memory."),
    Setting("Dump", "DumpLevel", "dump_level", _number(0, MOST_LEVEL), "", "",
            "What to leave out, as makedumpfile -d counts it; instead of Contents=. Sum of: 1 zeros, 2 page "
            "cache without private data, 4 all page cache, 8 memory of processes, 16 free memory."),
    Setting("Dump", "Format", "format", _one_of(*COMPRESSIONS_OF), "kdump", "",
            "kdump: each page compressed, opens in crash and drgn. elf: opens in crash, drgn and gdb."),
    Setting("Dump", "Compression", "compression", _one_of("auto", *_COMPRESSIONS), "auto", "",
            "With Format=kdump: zstd (auto), zlib, none. With Format=elf: none (auto), or lz4, to be "
            "unpacked with lz4 -d first."),
    Setting("Dump", "CompressionLevel", "compression_level", _number(_LOWEST_LEVEL, _HIGHEST_LEVEL), "", "",
            "Higher is smaller and slower: -7 to 19 for zstd, 1 to 9 for zlib. Empty: fast."),
    Setting("Dump", "Threads", "threads", _number(1, 1024), "", "",
            "Processes that read and compress. Empty: one for each processor of the capture boot."),
    Setting("Target", "Target", "target", _local_target, "/var/crash", "path",
            "Folder that receives one folder for each crash."),
    Setting("Store", "KeepFree", "keep_free_bytes", parse_bytes, 128 << 20, "bytes",
            "Room that a dump leaves free on the target's file system, so that production can start."),
    Setting("Action", "OnSuccess", "on_success", _one_of("reboot", "poweroff", "halt"), "reboot", "",
            "What the machine does when the dump is saved."),
    Setting("Action", "OnFailure", "on_failure", _one_of("reboot", "poweroff", "halt"), "reboot", "",
            "What the machine does when the dump could not be saved whole."),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The settings in force; each field is a row of SETTINGS."""

    kernel: str = ""
    command_line: str = ""
    command_line_append: str = ""
    command_line_remove: str = ""
    image: str = ""
    contents: str = "kernel"
    dump_level: str = ""
    format: str = "kdump"
    compression: str = "auto"
    compression_level: str = ""
    threads: str = ""
    target: str = "/var/crash"
    keep_free_bytes: int = 128 << 20
    on_success: str = "reboot"
    on_failure: str = "reboot"

    @property
    def level(self) -> int | None:
        """The dump level that DumpLevel= or Contents= asks for; None if no memory is wanted."""
        return int(self.dump_level) if self.dump_level else CONTENTS[self.contents]

    def dump_options(self, *, processors: int) -> DumpOptions:
        """How to write the image. Raises ConfigError for settings that do not go together."""
        options = DumpOptions(
            level=self.level or 0,
            format=self.format,
            compression=self.compression,
            compression_level=int(self.compression_level) if self.compression_level else None,
            threads=int(self.threads) if self.threads else processors,
        )
        options.check()
        return options

    def to_json(self) -> dict[str, str | int]:
        """The settings as a JSON object, for the capture boot."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> tuple[Config, list[str]]:
        """Read what :meth:`to_json` wrote. A bad value becomes its default and a sentence in the list."""
        values: dict[str, Any] = {}
        problems = []
        for setting in SETTINGS:
            if setting.attribute not in document:
                continue
            value = document[setting.attribute]
            if isinstance(value, bool) or not isinstance(value, type(setting.default)):
                problems.append(f"{setting.key}=: {value!r} is not a {type(setting.default).__name__}")
                continue
            try:
                if value != setting.default:
                    value = setting.parse(str(value))
            except ValueError as error:
                problems.append(f"{setting.key}=: {error}")
                continue
            values[setting.attribute] = value
        config = cls(**values)
        try:
            config.dump_options(processors=1)
        except ConfigError as error:
            problems.append(str(error))
            config = dataclasses.replace(config, compression="auto", compression_level="")
        return config, problems


@dataclass
class _Merge:
    """Assignments so far, in the order of weight."""

    values: dict[str, Any] = field(default_factory=dict)
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
            return
        try:
            value = setting.parse(text)
        except ValueError as error:
            self.errors.append(f"{where}: {key}=: {error}")
            return
        if setting.accumulates and self.values.get(setting.attribute):
            value = f"{self.values[setting.attribute]} {value}"
        self.values[setting.attribute] = value


_BY_NAME = {(setting.section, setting.key): setting for setting in SETTINGS}


def _logical_lines(text: str) -> Iterable[tuple[int, str]]:
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
    for number, line in _logical_lines(text):
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


def read_config(root: Path = Path("/")) -> tuple[Config, list[ConfigError]]:
    """Read all files below ``root``.

    Returns the configuration and one error for each line that could not be used; those settings have the
    value that the other lines give them. The caller decides whether errors are fatal.
    """
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
        config = dataclasses.replace(config, compression="auto", compression_level="")
    return config, [ConfigError(text, hint) for text in merge.errors]


def example_file() -> str:
    """The shipped /etc/kdump-service.conf: every setting commented out, with its default and help."""
    lines = [
        "# Settings of kdump-service. Lines that begin with # show the defaults.",
        "# Better than editing this file: a drop-in, /etc/kdump-service.conf.d/NAME.conf.",
        "# Afterwards: systemctl reload kdump.service",
    ]
    section = ""
    for setting in SETTINGS:
        if setting.section != section:
            section = setting.section
            lines += ["", f"[{section}]"]
        default = setting.default
        if setting.unit == "bytes":
            default = f"{setting.default >> 20}M"
        lines += ["", *(f"# {line}" for line in _wrap(setting.help)), f"#{setting.key}={default}"]
    return "\n".join(lines) + "\n"


def _wrap(text: str) -> list[str]:
    import textwrap  # noqa: PLC0415  (only the build of the example file needs it)

    return textwrap.wrap(text, 96)
