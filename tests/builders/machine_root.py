# SPDX-License-Identifier: LGPL-2.1-or-later
"""A root folder with the files by which a machine shows itself: /proc, /sys, /boot."""

from __future__ import annotations

import errno
from pathlib import Path

RELEASE = "6.1.0-99-amd64"
BOOT_ID = "0123456789abcdef0123456789abcdef"

_CAPTURE_SERVICE = "[Service]\nExecStart=/usr/bin/kdump-service capture\n"
_GRUB_MENU = """set default="0"
menuentry 'Debian GNU/Linux' --class gnu-linux {
\tlinux\t/boot/vmlinuz-6.1.0-99-amd64 root=/dev/vda ro quiet crashkernel=256M
\tinitrd\t/boot/initrd.img-6.1.0-99-amd64
}
menuentry 'Debian GNU/Linux, recovery mode' {
\tlinux\t/boot/vmlinuz-6.1.0-99-amd64 root=/dev/vda ro single
}
"""
_GRUB_DEFAULTS = """# If you change this file, run update-grub afterwards.
GRUB_TIMEOUT=5
GRUB_CMDLINE_LINUX_DEFAULT="quiet crashkernel=256M"
GRUB_CMDLINE_LINUX=""
"""
# A machine that panics whenever it can, and whose detectors run.
_SYSCTLS = {
    "panic_on_oops": 1,
    "sysrq": 1,
    "watchdog": 1,
    "soft_watchdog": 1,
    "nmi_watchdog": 1,
    "watchdog_thresh": 10,
    "softlockup_panic": 1,
    "hardlockup_panic": 1,
    "hung_task_panic": 1,
    "hung_task_timeout_secs": 120,
    "panic_on_rcu_stall": 1,
    "kexec_load_disabled": 0,
}


class MachineRoot:
    """Makes the folder; attributes of the kernel can be changed as the kernel would."""

    def __init__(self, path: Path, *, crash_size: int | None = 256 << 20, loaded: bool = False) -> None:
        self.path = path
        uuid = f"{BOOT_ID[:8]}-{BOOT_ID[8:12]}-{BOOT_ID[12:16]}-{BOOT_ID[16:20]}-{BOOT_ID[20:]}"
        self.write("proc/sys/kernel/random/boot_id", uuid + "\n")
        self.write("proc/sys/kernel/osrelease", RELEASE + "\n")
        self.write("proc/sys/kernel/hostname", "testhost\n")
        self.write(
            "proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-{RELEASE} root=/dev/vda ro quiet crashkernel=256M\n"
        )
        self.write("proc/uptime", "12.34 20.00\n")
        self.write("proc/meminfo", "MemTotal:  220680 kB\nMemAvailable:  150000 kB\nHugePages_Total:  0\n")
        self.write("proc/self/status", "Name:\tpython3\nVmHWM:\t   21000 kB\n")
        self.write(f"boot/vmlinuz-{RELEASE}", "kernel")
        self.write(f"boot/initrd.img-{RELEASE}", "initramfs")
        if crash_size is not None:
            self.write("sys/kernel/kexec_crash_size", f"{crash_size}\n")
            self.set_loaded(loaded)
        # As those without CAP_SYS_ADMIN see it.
        areas = "  00000000-00000000 : Crash kernel\n" if crash_size else ""
        self.write("proc/iomem", f"00000000-00000000 : System RAM\n{areas}")
        self._write_what_makes_it_ready()
        self.set_environment("rootfs")

    def set_environment(self, name: str) -> None:
        """What the capture boot is to run in, by a vendor's drop-in."""
        self.write("usr/lib/kdump-service.conf.d/50-environment.conf", f"[Image]\nEnvironment={name}\n")

    def _write_what_makes_it_ready(self) -> None:
        """All that service.readiness looks at, as it is on a machine without any problem."""
        self.set_mounts("1 0 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw")
        self.write("etc/fstab", "# what is mounted at boot\n/dev/vda / ext4 errors=remount-ro 0 1\n")
        for name, value in _SYSCTLS.items():
            self.set_sysctl(name, value)
        self.write("sys/module/kernel/parameters/crash_kexec_post_notifiers", "N\n")
        self.write("sys/module/rcupdate/parameters/rcu_cpu_stall_suppress", "0\n")
        self.write("proc/modules", "ext4 1011712 1 - Live 0x0000000000000000\n")
        self.write(f"usr/lib/modules/{RELEASE}/modules.dep", "")
        self.write("usr/lib/systemd/system/kdump-capture.target", "[Unit]\n")
        self.write("usr/lib/systemd/system/kdump-capture.service", _CAPTURE_SERVICE)
        self.write("usr/bin/kdump-service", "#!/usr/bin/python3 -I\n")
        self.write("boot/grub/grub.cfg", _GRUB_MENU)
        self.write("etc/default/grub", _GRUB_DEFAULTS)
        (self.path / "var/log/journal").mkdir(parents=True, exist_ok=True)
        self.write("sys/devices/system/memory/block_size_bytes", "8000000\n")
        self.set_memory_blocks(8)
        self.write("sys/devices/system/cpu/present", "0-1\n")

    def set_mounts(self, *lines: str) -> None:
        """Lines of mountinfo."""
        self.write("proc/self/mountinfo", "".join(f"{line}\n" for line in lines))

    def set_sysctl(self, name: str, value: int) -> None:
        """A file of /proc/sys/kernel."""
        self.write(f"proc/sys/kernel/{name}", f"{value}\n")

    def set_memory_blocks(self, count: int) -> None:
        """The machine has this many blocks of 128 MiB."""
        folder = self.path / "sys/devices/system/memory"
        for block in folder.glob("memory*"):
            (block / "online").unlink()
            block.rmdir()
        for number in range(count):
            self.write(f"sys/devices/system/memory/memory{number}/online", "1\n")

    def add_watchdog(self, name: str, *, identity: str, timeout_sec: int, active: bool = True) -> None:
        """A device of /sys/class/watchdog."""
        for attribute, value in (
            ("identity", identity),
            ("state", "active" if active else "inactive"),
            ("timeout", str(timeout_sec)),
            ("nowayout", "0"),
        ):
            self.write(f"sys/class/watchdog/{name}/{attribute}", value + "\n")

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the root, with its folders."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def set_loaded(self, loaded: bool) -> None:
        """What the kernel says of a loaded crash kernel."""
        self.write("sys/kernel/kexec_crash_loaded", f"{int(loaded)}\n")


class FakeCrashSize:
    """Stands for ``store`` of /sys/kernel/kexec_crash_size: what the kernel does with a size that is written.

    As kernel/crash_core.c has it since Linux 6.5, for one area; and for two, of which the lower is
    ``low_bytes`` and stays.
    """

    def __init__(self, machine: MachineRoot, low_bytes: int = 0) -> None:
        self._machine = machine
        self._path = machine.path / "sys/kernel/kexec_crash_size"
        self.low_bytes = low_bytes
        self.written: list[int] = []
        self.failure = 0
        """errno of each write, if it is not 0."""
        self.takes_more = 0
        """So many bytes more are given back than was asked for: as if another program had done so."""

    def store(self, text: str) -> None:
        """Raises OSError as write(2) does."""
        wanted = -(-int(text, 0) // 4096) * 4096
        self.written.append(int(text, 0))
        size = int(self._path.read_text())
        if self.failure:
            raise OSError(self.failure, "made to fail")
        if (self._machine.path / "sys/kernel/kexec_crash_loaded").read_text() == "1\n":
            raise OSError(errno.ENOENT, "No such file or directory")
        if wanted > size:
            raise OSError(errno.EINVAL, "Invalid argument")
        assert wanted > self.low_bytes, "the area below 4 GiB would be shrunk, too"
        self._path.write_text(f"{wanted - self.takes_more}\n")

    def write(self, descriptor: int, data: bytes) -> int:
        """Instead of :func:`os.write`, which to this file would be a write to the kernel."""
        assert Path(f"/proc/self/fd/{descriptor}").readlink() == self._path.resolve()
        self.store(data.decode())
        return len(data)


class FakeKernel:
    """Stands for kexec_file_load(2), which cannot be had in a test: loads into a MachineRoot.

    As the real one does, it drops what was loaded before it reads the new files, but not where it lets nobody
    load (kernel/kexec_file.c).
    """

    def __init__(self, machine: MachineRoot) -> None:
        self._machine = machine
        self.loads: list[tuple[str, str]] = []
        """Content of the kernel file and command line of each successful load."""
        self.failures: list[int] = []
        """errnos that the next loads fail with."""

    def load(self, kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
        """As kdump_service.kernel.syscall.load_crash_kernel."""
        code = self.failures.pop(0) if self.failures else 0
        if code not in (errno.EPERM, errno.EBUSY):
            self._machine.set_loaded(False)
        if code:
            raise OSError(code, "kexec_file_load: made to fail")
        with open(kernel_fd, closefd=False) as file:
            self.loads.append((file.read(), command_line))
        self._machine.set_loaded(True)

    def unload(self) -> None:
        """As kdump_service.kernel.syscall.unload_crash_kernel."""
        self._machine.set_loaded(False)
