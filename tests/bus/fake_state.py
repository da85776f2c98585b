# SPDX-License-Identifier: LGPL-2.1-or-later
"""Plain values as the service has them on the bus, for tests of its client."""

from __future__ import annotations

from typing import Any

__all__ = ["ESTIMATE", "EVIL", "MANAGER", "SETTINGS", "dump"]

EVIL = "evil\x1b[31m\u202e"
"""A task may give itself any name: here one that colours a terminal, and one that turns text around."""

MANAGER: dict[str, Any] = {
    "Version": "0.1.0",
    "State": "armed",
    "Ready": True,
    "Reason": "",
    "Explanation": "",
    "Problems": [["target-nearly-full", "warning", "/var/crash has 1.2 GiB free.", "Make room."]],
    "Loaded": True,
    "ReservedBytes": 256 << 20,
    "RequestedReservation": "crashkernel=256M",
    "KernelRelease": "6.1.0-30-amd64",
    "Kernel": "/boot/vmlinuz-6.1.0-30-amd64",
    "Image": "/boot/initrd.img-6.1.0-30-amd64",
    "CommandLine": "root=UUID=1 ro irqpoll systemd.unit=kdump-capture.target",
    "ProvenLevel": "tested",
    "ProvenTime": "2026-11-20T05:00:00Z",
    "LastCrash": "/",
    "Activity": "",
    "Progress": -1.0,
}

ESTIMATE: dict[str, Any] = {
    "MemoryBytes": 8 << 30,
    "ReservedBytes": 256 << 20,
    "RecommendedBytes": 200 << 20,
    "Basis": "measured",
    "CaptureUsedBytes": 150 << 20,
    "Contents": "kernel",
    "DumpBytes": 1 << 30,
    "TargetFreeBytes": 2 << 30,
}


def _setting(name: str, kind: str, value: Any, default: Any, **more: Any) -> dict[str, Any]:
    values = {"Name": name, "Section": "Dump", "Type": kind, "Value": value, "Default": default, "Source": ""}
    return {**values, "Unit": "", "Help": "Says what it does.", "Allowed": [], "Waits": "", **more}


SETTINGS: list[dict[str, Any]] = [
    _setting("Kernel", "s", "", "", Unit="path"),
    _setting("Contents", "s", "user", "kernel", Source="/etc/kdump-service.conf:5",
             Allowed=["log", "kernel", "user", "everything"]),
    _setting("CompressionLevel", "i", 0, 0, Minimum=-7, Maximum=19),
    _setting("KeepFree", "t", 128 << 20, 128 << 20, Unit="bytes", Minimum=0),
    _setting("MaxAgeSec", "t", 30 * 86400, 0, Unit="seconds", Minimum=0, Waits="the next crash"),
]  # fmt: skip


def dump(name: str, **more: Any) -> dict[str, Any]:
    """The properties of a dump."""
    stamp = f"{name[:4]}-{name[4:6]}-{name[6:11]}:{name[11:13]}:{name[13:16]}"
    return {
        "Name": name,
        "State": "complete",
        "Presence": "present",
        "Folder": f"/var/crash/{name}",
        "CrashTime": stamp,
        "SavedTime": stamp,
        "Host": "web1",
        "BootID": "b" * 32,
        "KernelRelease": "6.1.0-30-amd64",
        "KernelBuildID": "ab" * 20,
        "Machine": "x86_64",
        "PanicMessage": "Kernel panic - not syncing: Fatal exception",
        "Kind": "oops",
        "Title": "BUG: kernel NULL pointer dereference",
        "Task": "modprobe",
        "Pid": 123,
        "Cpu": 2,
        "Taint": "OE",
        "CallTrace": ["victim_write", "vfs_write"],
        "HardwareName": "QEMU",
        "Signature": "0123456789abcdef",
        "SameBug": [],
        "Test": False,
        "Format": "kdump",
        "Compression": "zstd",
        "DumpLevel": 31,
        "StoredBytes": 300 << 20,
        "SecondsToSaved": 9.5,
        "Files": ["dmesg.txt", "vmcore"],
        "Problems": [],
        "Kept": False,
        **more,
    }
