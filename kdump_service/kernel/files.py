# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the running kernel says of itself in /proc and /sys, below a root folder that tests can fake."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["KernelFiles"]


class KernelFiles:
    """Readers of the kernel's own files.

    Each property reads anew, so the answer is true at the time of asking. A file that the kernel does
    not have (because the feature is not built in) gives the documented default; any other failure is an
    OSError.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def _read(self, path: str) -> str | None:
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="surrogateescape").strip()
        except FileNotFoundError:
            return None

    def _crash_attribute(self, name: str) -> str | None:
        # The attributes moved from /sys/kernel/kexec_crash_* to /sys/kernel/kexec/crash_* with best-effort
        # links left behind; the new place is asked first (Linux 7.0, Documentation/ABI).
        value = self._read(f"sys/kernel/kexec/crash_{name}")
        return self._read(f"sys/kernel/kexec_crash_{name}") if value is None else value

    @property
    def supports_crash_kernel(self) -> bool:
        """Whether this kernel was built with CONFIG_CRASH_DUMP."""
        return self._crash_attribute("loaded") is not None

    @property
    def crash_loaded(self) -> bool:
        """Whether a crash kernel is loaded now."""
        return self._crash_attribute("loaded") == "1"

    @property
    def crash_size_bytes(self) -> int:
        """Memory reserved by ``crashkernel=``, in bytes; 0 if none is.

        Ask seldom. The kernel takes the lock of kexec for the answer (crash_get_memory_size): during a load
        it is OSError with EBUSY, and a panic in that very moment finds the lock taken (__crash_kexec).
        """
        return int(self._crash_attribute("size") or 0)

    @property
    def kexec_loading_disabled(self) -> str:
        """Which sysctl forbids loading until the next boot, as ``kernel.NAME is VALUE``; empty if none does.

        Documentation/admin-guide/sysctl/kernel.rst; the limit of loads is of Linux 6.3, -1 means none.
        """
        for name, value in (("kexec_load_disabled", "1"), ("kexec_load_limit_panic", "0")):
            if self._read(f"proc/sys/kernel/{name}") == value:
                return f"sysctl kernel.{name} is {value}"
        return ""

    @property
    def lockdown(self) -> str:
        """The active lockdown level: ``none``, ``integrity`` or ``confidentiality``; empty if unknown."""
        text = self._read("sys/kernel/security/lockdown") or ""
        return next((word.strip("[]") for word in text.split() if word.startswith("[")), "")

    @property
    def secure_boot(self) -> bool:
        """Whether the firmware verified what it booted (UEFI 2.10, section 3.3: SecureBoot)."""
        path = "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
        try:
            content = (self.root / path).read_bytes()
        except OSError:  # no UEFI, or a firmware that does not answer: then nothing is known of Secure Boot
            return False
        return content[4:5] == b"\x01"  # four bytes of attributes stand before the value

    @property
    def command_line(self) -> str:
        """The running kernel's command line."""
        return self._read("proc/cmdline") or ""

    @property
    def release(self) -> str:
        """The running kernel's release, as ``uname -r`` prints it."""
        return self._read("proc/sys/kernel/osrelease") or os.uname().release

    @property
    def host_name(self) -> str:
        """The machine's name, as ``uname -n`` prints it."""
        return self._read("proc/sys/kernel/hostname") or os.uname().nodename

    @property
    def boot_id(self) -> str:
        """The id of this boot as the journal writes it: 32 hexadecimal digits."""
        return (self._read("proc/sys/kernel/random/boot_id") or "").replace("-", "")

    @property
    def root_is_encrypted(self) -> bool:
        """Whether a dm-crypt device lies below the root file system; False where that cannot be found out.

        Device-mapper names the owner of a device in its UUID, ``CRYPT-`` for cryptsetup (Documentation/ABI,
        sysfs-block-dm).
        """
        for fields in self._mounts():
            if fields[4] == "/":
                # btrfs and others have an anonymous device number; then its source is asked.
                source = fields[fields.index("-") + 2]
                return self._lies_on_crypt(fields[2]) or self._lies_on_crypt(self._device_number(source))
        return False

    @property
    def mount_points(self) -> list[str]:
        """Where something is mounted. From the kernel's list: no file system is asked, so none can hang."""
        return [
            re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]) for fields in self._mounts()
        ]

    def _mounts(self) -> list[list[str]]:
        # proc(5): id, parent, major:minor, root, mount point, options, optional fields, -, type, source ...
        lines = (self._read("proc/self/mountinfo") or "").splitlines()
        return [line.split() for line in lines]

    def _device_number(self, path: str) -> str:
        try:
            number = (self.root / path.lstrip("/")).stat().st_rdev
        except OSError:  # no device: a network file system, an image's overlay
            return ""
        return f"{os.major(number)}:{os.minor(number)}"

    def _lies_on_crypt(self, number: str) -> bool:
        folder = self.root / "sys/dev/block" / number
        if not number or not folder.is_dir():
            return False
        if (self._read(f"sys/dev/block/{number}/dm/uuid") or "").startswith("CRYPT-"):
            return True
        below = [each.name for each in folder.glob("slaves/*")]
        numbers = [self._read(f"sys/dev/block/{number}/slaves/{name}/dev") or "" for name in below]
        return any(self._lies_on_crypt(each) for each in numbers)

    @property
    def has_vmcore(self) -> bool:
        """Whether this is a capture boot: the crashed kernel's memory is in /proc/vmcore."""
        return self.vmcore.exists()

    @property
    def vmcore(self) -> Path:
        """The crashed kernel's memory as an ELF core; only a capture boot has it."""
        return self.root / "proc/vmcore"

    def meminfo_kib(self) -> dict[str, int]:
        """/proc/meminfo as a mapping of name to KiB (entries without a unit are counts)."""
        lines = (self._read("proc/meminfo") or "").splitlines()
        pairs = (line.split(":", 1) for line in lines if ":" in line)
        return {name: int(value.split()[0]) for name, value in pairs}

    def peak_resident_kib(self) -> int:
        """The calling process's largest resident set so far, in KiB; 0 if the kernel does not say."""
        for line in (self._read("proc/self/status") or "").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
        return 0

    def uptime_sec(self) -> float:
        """Seconds since this kernel started."""
        return float((self._read("proc/uptime") or "0").split()[0])
