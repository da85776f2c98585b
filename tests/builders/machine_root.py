# SPDX-License-Identifier: LGPL-2.1-or-later
"""A root folder with the files by which a machine shows itself: /proc, /sys, /boot."""

from __future__ import annotations

from pathlib import Path

RELEASE = "6.1.0-99-amd64"
BOOT_ID = "0123456789abcdef0123456789abcdef"


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

    def write(self, name: str, content: str | bytes) -> Path:
        """Write a file below the root, with its folders."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def set_loaded(self, loaded: bool) -> None:
        """What the kernel says of a loaded crash kernel."""
        self.write("sys/kernel/kexec_crash_loaded", f"{int(loaded)}\n")


class FakeKernel:
    """Stands for kexec_file_load(2), which cannot be had in a test: loads into a MachineRoot.

    As the real one does, it drops what was loaded before it reads the new files.
    """

    def __init__(self, machine: MachineRoot) -> None:
        self._machine = machine
        self.loads: list[tuple[str, str]] = []
        """Content of the kernel file and command line of each successful load."""
        self.failures: list[int] = []
        """errnos that the next loads fail with."""

    def load(self, kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
        """As kdump_service.kernel.syscall.load_crash_kernel."""
        self._machine.set_loaded(False)
        if self.failures:
            code = self.failures.pop(0)
            if code:
                raise OSError(code, "kexec_file_load: made to fail")
        with open(kernel_fd, closefd=False) as file:
            self.loads.append((file.read(), command_line))
        self._machine.set_loaded(True)

    def unload(self) -> None:
        """As kdump_service.kernel.syscall.unload_crash_kernel."""
        self._machine.set_loaded(False)
