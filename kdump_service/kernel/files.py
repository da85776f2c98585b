# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the running kernel says of itself in /proc and /sys, below a root folder that tests can fake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from kdump_service.kernel.mounts import Mount, holder_of, parse_mounts

__all__ = ["KernelFiles", "Watchdog"]


class Watchdog(NamedTuple):
    """One of /sys/class/watchdog (Documentation/ABI/testing/sysfs-class-watchdog)."""

    name: str
    identity: str
    """What the driver calls the device."""
    active: bool
    """Whether it runs: something opened it, and has to feed it."""
    timeout_sec: int

    @property
    def outlives_the_kernel(self) -> bool:
        """Whether it resets the machine in a capture boot, too, where nobody feeds it."""
        # drivers/watchdog/softdog.c: a timer of the kernel, which dies with it.
        return self.active and self.identity != "Software Watchdog"


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


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
    def crash_size_file(self) -> Path:
        """Where a smaller :attr:`crash_size_bytes` may be written.

        The kernel gives back the rest until the next boot (crash_shrink_memory): EINVAL for a larger size,
        ENOENT while a crash kernel is loaded, EBUSY while another program loads a kernel.
        """
        moved = self.root / "sys/kernel/kexec/crash_size"
        return moved if moved.exists() else self.root / "sys/kernel/kexec_crash_size"

    @property
    def crash_areas(self) -> int:
        """In how many areas the reservation lies; 2 where there is one above 4 GiB and one below, besides.

        Addresses in /proc/iomem are for CAP_SYS_ADMIN; names are for everybody.
        """
        lines = (self._read("proc/iomem") or "").splitlines()
        return sum(line.endswith(" : Crash kernel") for line in lines)

    @property
    def crash_loads_left(self) -> int | None:
        """How often a crash kernel may still be loaded or unloaded in this boot; None: there is no limit.

        Documentation/admin-guide/sysctl/kernel.rst: kexec_load_disabled, and kexec_load_limit_panic of Linux
        6.3. kexec_load_permitted counts unloading, too.
        """
        if self.kexec_loading_disabled:
            return 0
        limit = self.sysctl("kernel/kexec_load_limit_panic")
        return None if limit is None or limit < 0 else limit

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
    def machine_id(self) -> str:
        """The machine's id (machine-id(5)); empty if it has none yet."""
        return self._read("etc/machine-id") or ""

    def true_path(self, path: str) -> str:
        """A path of the machine without symbolic links; what does not exist is taken as it is named."""
        real = (self.root / path.lstrip("/")).resolve()
        root = self.root.resolve()
        return f"/{real.relative_to(root)}" if real.is_relative_to(root) else str(real)

    @property
    def root_is_encrypted(self) -> bool:
        """Whether a dm-crypt device lies below the root file system; False where that cannot be found out."""
        root = holder_of("/", self.mounts)
        return root is not None and self.is_encrypted(root)

    def is_encrypted(self, mount: Mount) -> bool:
        """Whether a dm-crypt device lies below a file system; False where that cannot be found out.

        Device-mapper names the owner of a device in its UUID, ``CRYPT-`` for cryptsetup (Documentation/ABI,
        sysfs-block-dm).
        """
        # btrfs and others have an anonymous device number; then its source is asked.
        return self._lies_on_crypt(mount.device) or self._lies_on_crypt(self._device_number(mount.source))

    @property
    def mounts(self) -> list[Mount]:
        """What is mounted where. From the kernel's list: no file system is asked, so none can hang."""
        return parse_mounts(self._read(self.mounts_file) or "")

    @property
    def mounts_file(self) -> str:
        """The kernel's list of mounts, below the root folder.

        PID 1's, not our own: a hardened service has a mount namespace of its own, in which all is read-only.
        Where /proc hides PID 1 (hidepid=), our own must do.
        """
        first = "proc/1/mountinfo"
        return first if os.access(self.root / first, os.R_OK) else "proc/self/mountinfo"

    @property
    def mount_points(self) -> list[str]:
        """Where something is mounted."""
        return [mount.point for mount in self.mounts]

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

    def sysctl(self, name: str) -> int | None:
        """A number below /proc/sys, as ``kernel/panic_on_oops``; None if this kernel does not have it."""
        return _number(self._read(f"proc/sys/{name}"))

    def module_parameter(self, module: str, name: str) -> str:
        """A parameter in /sys/module; empty if there is none, or if we may not read it."""
        try:
            return self._read(f"sys/module/{module}/parameters/{name}") or ""
        except PermissionError:
            return ""

    @property
    def watchdogs(self) -> list[Watchdog]:
        """The machine's watchdogs; none where the kernel has no CONFIG_WATCHDOG_SYSFS."""
        found = []
        for folder in sorted((self.root / "sys/class/watchdog").glob("watchdog*")):
            base = f"sys/class/watchdog/{folder.name}"
            timeout_sec = _number(self._read(f"{base}/timeout"))
            if timeout_sec is not None:
                active = self._read(f"{base}/state") == "active"
                identity = self._read(f"{base}/identity") or folder.name
                found.append(Watchdog(folder.name, identity, active, timeout_sec))
        return found

    @property
    def memory_blocks(self) -> int:
        """How many blocks of memory the machine has; 0 where the kernel has no CONFIG_MEMORY_HOTPLUG.

        The ELF header that is loaded for a crash lists added memory, whether it is online or not (kernel/
        crash_core.c walks the resources), so blocks are counted, not the memory in use.
        """
        try:
            with os.scandir(self.root / "sys/devices/system/memory") as entries:
                return sum(entry.name.startswith("memory") for entry in entries)
        except FileNotFoundError:
            return 0

    @property
    def memory_block_bytes(self) -> int:
        """Size of a block of memory, 0 if there are none (Documentation/ABI, sysfs-devices-memory)."""
        return int(self._read("sys/devices/system/memory/block_size_bytes") or "0", 16)

    @property
    def processors_present(self) -> str:
        """The processors that the machine has, as the kernel lists them: ``0-7``."""
        return self._read("sys/devices/system/cpu/present") or ""

    def updates_crash_header(self, what: str) -> bool:
        """Whether the kernel adapts what is loaded when ``memory`` or ``cpu`` are plugged (Linux 6.6)."""
        return self._read(f"sys/devices/system/{what}/crash_hotplug") == "1"

    def uptime_sec(self) -> float:
        """Seconds since this kernel started."""
        return float((self._read("proc/uptime") or "0").split()[0])
