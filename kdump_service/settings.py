# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of settings: one row for each key of ``kdump-service.conf``.

The configuration, its JSON for the capture boot, the properties on the bus, the shipped example file and the
manual are made from these rows, or compared with them by a test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from kdump_service.dump_options import COMPRESSION_LEVELS, COMPRESSIONS_OF, CONTENTS, DUMP_FORMATS, MOST_LEVEL
from kdump_service.quantity import parse_bytes, parse_seconds

__all__ = ["SETTINGS", "SETTINGS_BY_KEY", "Setting", "example_file"]

_MOST = (1 << 63) - 1
"""Largest number of bytes or seconds: what D-Bus and JSON readers take, signed or not."""
_LONGEST_PATH_BYTES = 4095
"""PATH_MAX of linux/limits.h, without the NUL."""


class Setting(NamedTuple):
    """One row of the table."""

    section: str
    key: str
    """As it stands in the file, without the ``=``; also the name of the property on the bus."""
    attribute: str
    """Name of the field of Config."""
    parse: Callable[[str], Any]
    """Turns the file's text into a value; raises ValueError with a sentence that has no subject."""
    default: Any
    unit: str
    """What the value counts in or is: ``bytes``, ``seconds``, ``path``, ``words``, or empty."""
    help: str
    signature: str = "s"
    """D-Bus type of the value."""
    minimum: int | None = None
    """Of a number; parse() refuses less."""
    maximum: int | None = None
    allowed: tuple[str, ...] = ()
    """The words that it may be; empty if it is free."""
    accumulates: bool = False
    """Further assignments add words instead of replacing the value."""

    def to_text(self, value: Any) -> str:
        """How to write ``value`` behind ``Key=``, in its normal form.

        Raises ValueError, with a sentence for whoever asked for the value, if it is none for this setting.
        """
        if isinstance(value, bool) or not isinstance(value, type(self.default)):
            raise ValueError(f"{value!r} is not of type {type(self.default).__name__}")
        text = str(value).strip()
        if not text.isprintable():
            raise ValueError(f"{text!r} contains a control character")
        if text.endswith("\\"):
            raise ValueError(f"{text!r} ends with a backslash, which joins lines in a configuration file")
        return text if text == self.default else str(self.parse(text))

    def to_value(self, text: str) -> Any:
        """What a file with ``Key=text`` sets; an empty assignment resets. Raises ValueError."""
        return self.parse(text) if text else self.default


def _absolute_path(text: str) -> str:
    if not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    if not text.isprintable():
        raise ValueError(f"{text!r} contains a control character")
    if any(part == ".." for part in PurePosixPath(text).parts):
        raise ValueError(f"{text!r} must not contain '..'")
    if len(text.encode()) > _LONGEST_PATH_BYTES:
        raise ValueError(f"a path of {len(text.encode())} bytes is too long")
    return str(PurePosixPath("/", text.lstrip("/")))


def _local_target(text: str) -> str:
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "file":
        raise ValueError(f"{scheme}:// targets are not supported: write a folder, as in /var/crash")
    path = _absolute_path(rest if separator else text)
    if path == "/":
        raise ValueError("the root folder itself is no target: write a folder, as in /var/crash")
    return path


def _kernel_words(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} contains a control character")
    if text.count('"') % 2:
        raise ValueError(f"{text!r} has an opening quotation mark without its closing one")
    return " ".join(text.split())


def _module_names(text: str) -> str:
    for word in text.split():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", word):
            raise ValueError(f"{word!r} is not the name of a kernel module")
    return " ".join(text.split())


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a whole number") from None


def _words(
    section: str, key: str, attribute: str, default: str, allowed: tuple[str, ...], text: str
) -> Setting:
    """A setting that is one of a few words."""

    def parse(word: str) -> str:
        if word not in allowed:
            raise ValueError(f"{word!r} is not one of {', '.join(allowed)}")
        return word

    return Setting(section, key, attribute, parse, default, "", text, allowed=allowed)


def _number(
    section: str, key: str, attribute: str, default: int, lowest: int, highest: int, text: str,
    *, signature: str = "u", unit: str = "", read: Callable[[str], int] = _whole_number,
) -> Setting:  # fmt: skip
    """A setting that is a whole number between two others."""

    def parse(digits: str) -> int:
        value = read(digits)
        if not lowest <= value <= highest:
            raise ValueError(f"{value} is not between {lowest} and {highest}")
        return value

    return Setting(section, key, attribute, parse, default, unit, text, signature, lowest, highest)


_COMPRESSIONS = sorted({name for names in COMPRESSIONS_OF.values() for name in names})
_LOWEST_LEVEL = min(lowest for lowest, _, _ in COMPRESSION_LEVELS.values())
_HIGHEST_LEVEL = max(highest for _, highest, _ in COMPRESSION_LEVELS.values())
_ACTIONS = ("reboot", "poweroff", "halt")

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
    _words("Kernel", "Shrink", "shrink", "no", ("no", "yes"),
           "yes: what captures of this kernel were measured not to need of the memory that crashkernel= "
           "reserves is given back to production, until the next boot."),
    Setting("Image", "Image", "image", _absolute_path, "", "path",
            "Initramfs to load for a crash. Empty: Environment= decides."),
    _words("Image", "Environment", "environment", "initramfs", ("initramfs", "rootfs"),
           "initramfs: a small image of our own, which needs nothing of the crashed system but its target. "
           "rootfs: the system's own initramfs and root file system; also taken where no image can be "
           "built."),
    Setting("Image", "ExtraDrivers", "extra_drivers", _module_names, "", "words",
            "Names of kernel modules that the small image has to hold besides those of the target's "
            "devices.", accumulates=True),
    _words("Dump", "Contents", "contents", "kernel", tuple(CONTENTS),
           "log: the kernel's log, no memory. kernel: memory that the kernel itself uses. user: that, and "
           "the memory of processes. everything: also the page cache and free memory."),
    _number("Dump", "DumpLevel", "dump_level", -1, -1, MOST_LEVEL,
            "What to leave out, as makedumpfile -d counts it; instead of Contents=. Sum of: 1 zeros, 2 page "
            "cache without private data, 4 all page cache, 8 memory of processes, 16 free memory. "
            "-1: Contents= decides.", signature="i"),
    _words("Dump", "Format", "format", "kdump", DUMP_FORMATS,
           "kdump: each page compressed, opens in crash and drgn. elf: opens in crash, drgn and gdb."),
    _words("Dump", "Compression", "compression", "auto", ("auto", *_COMPRESSIONS),
           "With Format=kdump: zstd (auto), zlib, none. With Format=elf: none (auto), or lz4, to be "
           "unpacked with lz4 -d first."),
    _number("Dump", "CompressionLevel", "compression_level", 0, _LOWEST_LEVEL, _HIGHEST_LEVEL,
            "Higher is smaller and slower: -7 to 19 for zstd, 1 to 9 for zlib. 0: fast.", signature="i"),
    _number("Dump", "Threads", "threads", 0, 0, 1024,
            "Processes that read and compress. 0: one for each processor of the capture boot."),
    _words("Dump", "PlainCopy", "plain_copy", "no", ("no", "yes"),
           "Where the dump engine cannot run, all memory can still be copied as it is. no: only if that "
           "holds no more than is asked for, as with Contents=everything. yes: always."),
    Setting("Target", "Target", "target", _local_target, "/var/crash", "path",
            "Folder that receives one folder for each crash."),
    _number("Target", "StallTimeoutSec", "stall_timeout_sec", 60, 10, 600,
            "For how long the target may not answer; then the capture goes on without it. A disk that wakes "
            "up takes ten seconds, a cluster that fails over may take minutes.",
            unit="seconds", read=parse_seconds),
    _number("Store", "KeepFree", "keep_free_bytes", 128 << 20, 0, _MOST,
            "Room that a dump leaves free on the target's file system, so that production can start. While "
            "less is free, the oldest dumps are deleted, but never the newest nor one that is to be kept.",
            signature="t", unit="bytes", read=parse_bytes),
    _number("Store", "MaxUse", "max_use_bytes", 0, 0, _MOST,
            "Room that all dumps together may occupy; above it, the oldest are deleted, but never the newest "
            "nor one that is to be kept. 0: no limit.",
            signature="t", unit="bytes", read=parse_bytes),
    _number("Store", "MaxDumps", "max_dumps", 0, 0, 1_000_000,
            "How many dumps stay; the oldest are deleted, under the same rules. 0: no limit."),
    _number("Store", "MaxAgeSec", "max_age_sec", 0, 0, _MOST,
            "For how long a dump stays, as in 30d or 12h; older ones are deleted, under the same rules. "
            "0: for ever.", signature="t", unit="seconds", read=parse_seconds),
    _words("Action", "OnSuccess", "on_success", "reboot", _ACTIONS,
           "What the machine does when the dump is saved."),
    _words("Action", "OnFailure", "on_failure", "reboot", _ACTIONS,
           "What the machine does when the dump could not be saved whole."),
    _number("Action", "CrashLoopLimit", "crash_loop_limit", 3, 0, 1000,
            "As many crashes within an hour are told to the journal as a crash loop. 0: none is noticed."),
)  # fmt: skip

SETTINGS_BY_KEY = {setting.key: setting for setting in SETTINGS}


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
        if setting.unit == "bytes" and default:
            default = f"{default >> 20}M"
        lines += ["", *(f"# {line}" for line in _wrap(setting.help)), f"#{setting.key}={default}"]
    return "\n".join(lines) + "\n"


def _wrap(text: str) -> list[str]:
    import textwrap  # noqa: PLC0415  (only the build of the example file needs it)

    return textwrap.wrap(text, 96)
