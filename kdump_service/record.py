# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: what is known of one crash, as JSON beside its dump.

Written by the capture boot, first when it starts and again when it ends; read by the production boot.
A record is the only thing that both share besides the configuration, so it is versioned: readers take
fields that they do not know as absent ones, and refuse only a larger ``schema``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kdump_service import __version__
from kdump_service.quantity import parse_utc

__all__ = [
    "JOURNAL_FILE",
    "LARGEST_RECORD_BYTES",
    "LOG_FILE",
    "RECORD_FILE",
    "SCHEMA",
    "TEST_CRASH_MARK",
    "DumpFile",
    "DumpRecord",
    "DumpState",
    "ImagePart",
    "Problem",
]

SCHEMA = 1
RECORD_FILE = "record.json"
LOG_FILE = "dmesg.txt"
JOURNAL_FILE = "capture.journal"
"""Of a capture boot that has no file system of its own, beside the dump."""
TEST_CRASH_MARK = "kdump-service: the crash that follows was asked for"
"""A line of the kernel's log."""
LARGEST_RECORD_BYTES = 1 << 20
_LONGEST_TEXT = 8 << 10
"""Of one text, in characters. A line of the kernel's log has at most 2 KiB (PRINTK_MESSAGE_MAX)."""
_HIGHEST_NUMBER = (1 << 63) - 1
"""What the journal's and the bus's numbers hold."""
_HIGHEST_SMALL_NUMBER = (1 << 31) - 1
_SMALL_NUMBERS = frozenset({"crash_pid", "crash_cpu", "dump_level"})
_TIMES = frozenset({"crash_time", "saved_time"})


class DumpState(StrEnum):
    """How far a dump got."""

    CAPTURING = "capturing"
    """The capture boot began; found after a reboot, it means that the capture was cut off."""
    COMPLETE = "complete"
    """All of the memory was written, read back and found right."""
    INCOMPLETE = "incomplete"
    """The image is readable up to a point; its name says so too."""
    FAILED = "failed"
    """There is no image."""


@dataclass(frozen=True)
class Problem:
    """Something that went wrong in a stage of the capture."""

    stage: str
    reason: str
    """Stable word, as KdumpError.reason."""
    message: str


@dataclass(frozen=True)
class DumpFile:
    """One file of the dump folder."""

    name: str
    size_bytes: int
    """Length of the file."""
    stored_bytes: int
    """What it occupies on the file system: holes count nothing."""


@dataclass(frozen=True)
class ImagePart:
    """A piece of the image file, and its SHA-256 in hexadecimal, computed while it was written."""

    name: str
    offset: int
    length: int
    sha256: str


@dataclass
class DumpRecord:
    """One crash."""

    name: str
    """Name of the dump folder, and the crash's id."""
    state: DumpState = DumpState.CAPTURING
    schema: int = SCHEMA
    tool_version: str = __version__
    crash_time: str = ""
    """UTC, from CRASHTIME of VMCOREINFO; by the crashed kernel's clock, whole seconds."""
    saved_time: str = ""
    """UTC, when the capture ended."""
    seconds_to_saved: float = 0.0
    """From the panic to the end of the capture; as exact as crash_time, so within a second."""
    host: str = ""
    boot_id: str = ""
    """Id of the boot that crashed, as in the journal."""
    machine: str = ""
    """Architecture, as uname -m."""
    kernel_release: str = ""
    kernel_build_id: str = ""
    panic_message: str = ""
    """The kernel's own line, as in ``Kernel panic - not syncing: sysrq triggered crash``."""
    crash_kind: str = ""
    """A word of vmcore.crash_kind.CrashKind: panic, oops, sysrq, soft-lockup ..."""
    crash_title: str = ""
    """What the kernel detected, without addresses."""
    crash_task: str = ""
    """Name of the task that ran, or that hung."""
    crash_pid: int | None = None
    crash_cpu: int | None = None
    taint: str = ""
    """Letters of the kernel's taint flags, without G."""
    modules: list[str] = field(default_factory=list)
    call_trace: list[str] = field(default_factory=list)
    """Functions, innermost first."""
    hardware_name: str = ""
    signature: str = ""
    """16 hexadecimal digits: the same for the same bug."""
    test: bool = False
    """Whether an administrator asked for the crash, to see it captured."""
    armed_identity: str = ""
    """SHA-256 of kernel, image, command line and target that were armed: what this dump is a proof of."""
    environment: str = ""
    """What the capture boot ran in, as ``Environment=`` has it: initramfs or rootfs. Empty if it did not
    know, and in records of versions that did not write it down."""
    armed_uptime_seconds: float = 0.0
    """Age of the kernel that crashed when it was armed with that, to within the time that a load takes;
    loading the same once more does not count. 0 if it is not known."""
    kernel_log_records: int = 0
    """Records of the kernel's log that were saved."""
    format: str = ""
    compression: str = ""
    vmcore_bytes: int = 0
    """Length of /proc/vmcore."""
    contents: str = ""
    """What was configured, as ``Contents=``."""
    dump_level: int = 0
    """Of the image that was written."""
    pages: int = 0
    """Frames in the image."""
    zero_pages: int = 0
    """Of these, pages of zeros."""
    lost_pages: int = 0
    """Frames that could not be read."""
    excluded_pages: dict[str, int] = field(default_factory=dict)
    """Frames left out, by class: free, cache, cache-private, user, hwpoison, offline."""
    predicted_bytes: int = 0
    """What the image was expected to take at most, before it was written."""
    read_back_bytes: int = 0
    """Of the image's file, what was read back from the medium, and compared with what had been written."""
    read_back_cached_bytes: int = 0
    """The same where nobody knows whether it came from the medium or from a cache on the way."""
    image_parts: list[ImagePart] = field(default_factory=list)
    """The integrity manifest of the image."""
    files: list[DumpFile] = field(default_factory=list)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    capture_uptime_seconds: float = 0.0
    """Age of the capture kernel when the capture began."""
    memory_total_kib: int = 0
    """MemTotal of the capture boot."""
    memory_available_at_start_kib: int = 0
    memory_available_low_water_kib: int = 0
    """Smallest MemAvailable seen during the capture."""
    peak_resident_kib: int = 0
    """Largest resident set of a process of the capture, but for those that compress pages."""
    problems: list[Problem] = field(default_factory=list)

    def take(self, document: dict[str, Any]) -> None:
        """Become the record of this JSON object. Raises ValueError."""
        vars(self).update(vars(self.from_document(document)))

    @property
    def stored_bytes(self) -> int:
        """Room that the dump's files occupy."""
        return min(sum(file.stored_bytes for file in self.files), _HIGHEST_NUMBER)

    def to_json(self) -> str:
        """The record as text, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> DumpRecord:
        """Read a record. Raises ValueError if it is not one.

        Records lie in places that others may have written to, and outlive disks. So each value has the type
        and the range that the bus and the journal carry, and texts are fit to be printed, when this returns.
        """
        try:
            return cls.from_document(json.loads(text))
        except RecursionError:
            raise ValueError("not a record: nested too deeply") from None

    @classmethod
    def from_document(cls, document: Any) -> DumpRecord:
        """The record of a JSON object. Raises ValueError."""
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        schema = document.get("schema")
        if not isinstance(schema, int) or schema > SCHEMA:
            raise ValueError(f"schema {schema!r:.40} is not known to version {__version__}")
        if not document.get("name") or "state" not in document:
            raise ValueError("not a record: without a name or a state")
        record: DumpRecord = _dataclass_of(cls, document)
        return record

    @classmethod
    def read(cls, folder: Path) -> DumpRecord:
        """The record of a dump folder that is trusted. Raises OSError or ValueError."""
        with open(folder / RECORD_FILE, encoding="utf-8") as file:
            return cls.from_json(file.read(LARGEST_RECORD_BYTES))


def _printable(text: str) -> str:
    """The text without what would end a D-Bus connection (NUL, half a surrogate pair) or steer a terminal."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)
    return text[:_LONGEST_TEXT]


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: {value!r:.40} is not a text")
    # The same names come again in each record: modules, functions.
    return sys.intern(_printable(value))


def _number(name: str, value: object) -> int:
    highest = _HIGHEST_SMALL_NUMBER if name in _SMALL_NUMBERS else _HIGHEST_NUMBER
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= highest:
        raise ValueError(f"{name}: {value!r:.40} is not a number from 0 to {highest}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name}: {value!r:.40} is not a number")
    if not 0 <= value <= _HIGHEST_NUMBER:  # which is false for NaN, too
        raise ValueError(f"{name}: {value!r:.40} is not a duration")
    return float(value)


def _time(value: str) -> str:
    """A time that can be computed with; empty, as where none is known, if it is none."""
    try:
        parse_utc(value)
    except ValueError:
        return ""
    return value


def _typed(kind: str, name: str, value: object) -> Any:
    """The value of a field of this annotation. Raises ValueError."""
    if kind == "str":
        return _time(_text(name, value)) if name in _TIMES else _text(name, value)
    if kind == "int":
        return _number(name, value)
    if kind == "int | None":
        return None if value is None else _number(name, value)
    if kind == "float":
        return _seconds(name, value)
    if kind == "bool" and isinstance(value, bool):
        return value
    if kind == "DumpState":
        return DumpState(_text(name, value))
    if kind.startswith("dict[str, ") and isinstance(value, dict):
        of = kind.removeprefix("dict[str, ").removesuffix("]")
        return {_text(name, key): _typed(of, name, each) for key, each in value.items()}
    if kind.startswith("list[") and isinstance(value, list):
        of = kind.removeprefix("list[").removesuffix("]")
        return [_typed(of, name, each) for each in value]
    if kind in _PARTS and isinstance(value, dict):
        return _dataclass_of(_PARTS[kind], value)
    raise ValueError(f"{name}: {value!r:.40} is not of type {kind}")


_PARTS: dict[str, Any] = {each.__name__: each for each in (DumpFile, ImagePart, Problem)}


def _dataclass_of(cls: Any, document: dict[str, Any]) -> Any:
    """An object of this dataclass; keys that it does not have are of a newer version, and passed over."""
    values = {
        spec.name: _typed(str(spec.type), spec.name, document[spec.name])
        for spec in dataclasses.fields(cls)
        if spec.name in document
    }
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"not a record: {error}") from error
