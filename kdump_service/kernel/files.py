# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the running kernel says of itself in /proc and /sys, below a root folder that tests can fake."""

from __future__ import annotations

import os
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
    def kexec_load_disabled(self) -> bool:
        """Whether sysctl kernel.kexec_load_disabled forbids loading until the next boot."""
        return self._read("proc/sys/kernel/kexec_load_disabled") == "1"

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
