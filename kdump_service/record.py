# SPDX-License-Identifier: LGPL-2.1-or-later
"""The record: what is known of one crash, as JSON beside its dump.

Written by the capture boot, first when it starts and again when it ends; read by the production boot.
A record is the only thing that both share besides the configuration, so it is versioned: readers take
fields that they do not know as absent ones, and refuse only a larger ``schema``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from kdump_service import __version__

__all__ = [
    "FALLBACK_FOLDER",
    "RECORD_FILE",
    "SCHEMA",
    "DumpFile",
    "DumpRecord",
    "DumpState",
    "ImagePart",
    "Problem",
    "sync_folder",
    "write_atomically",
]

SCHEMA = 1
RECORD_FILE = "record.json"
FALLBACK_FOLDER = "var/lib/kdump-service/crash"
"""Takes the record where the target cannot be written."""
_LARGEST_RECORD_BYTES = 1 << 20
_JSON_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "int | None": (int, type(None)),
    "list[str]": list,
    "dict[str, int]": dict,
    "DumpState": str,
}


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
    """Largest resident set of the capture process."""
    problems: list[Problem] = field(default_factory=list)

    @property
    def stored_bytes(self) -> int:
        """Room that the dump's files occupy."""
        return sum(file.stored_bytes for file in self.files)

    def to_json(self) -> str:
        """The record as text, one field a line."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> DumpRecord:
        """Read a record. Raises ValueError if it is not one."""
        document: Any = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("not a JSON object")
        if not isinstance(document.get("schema"), int) or document["schema"] > SCHEMA:
            raise ValueError(f"schema {document.get('schema')!r} is not known to version {__version__}")
        values: dict[str, Any] = {}
        for spec in dataclasses.fields(cls):
            if spec.name not in document:
                continue
            value = document[spec.name]
            kind = _JSON_TYPES.get(str(spec.type))
            if kind is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ValueError(f"{spec.name}: {value!r} is not of type {spec.type}")
            values[spec.name] = value
        try:
            values["state"] = DumpState(values["state"])
            values["files"] = [DumpFile(**each) for each in values.get("files", [])]
            values["image_parts"] = [ImagePart(**each) for each in values.get("image_parts", [])]
            values["problems"] = [Problem(**each) for each in values.get("problems", [])]
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a record: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> DumpRecord:
        """The record of a dump folder. Raises OSError or ValueError."""
        with open(folder / RECORD_FILE, encoding="utf-8") as file:
            return cls.from_json(file.read(_LARGEST_RECORD_BYTES))


def write_atomically(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Write a file so that after a crash either the old or the new content is there, whole and on disk."""
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode
    )
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
