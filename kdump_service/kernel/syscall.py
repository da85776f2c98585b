# SPDX-License-Identifier: LGPL-2.1-or-later
"""kexec_file_load(2) through ctypes.

libc has no wrapper for this call. Failures leave as OSError with the kernel's errno; what each errno
means to an administrator is decided in :mod:`kdump_service.arm.loader`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

__all__ = ["KEXEC_FILE_LOAD_NUMBERS", "load_crash_kernel", "unload_crash_kernel"]

# include/uapi/linux/kexec.h
_KEXEC_FILE_UNLOAD = 0x1
_KEXEC_FILE_ON_CRASH = 0x2
_KEXEC_FILE_NO_INITRAMFS = 0x4

# __NR_kexec_file_load by uname(2) machine, from each architecture's asm/unistd*.h (Linux 6.1):
# x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h for arm64 and riscv;
# powerpc and s390 kernel/syscalls/syscall.tbl.
KEXEC_FILE_LOAD_NUMBERS = {
    "x86_64": 320,
    "aarch64": 294,
    "riscv64": 294,
    "ppc64le": 382,
    "s390x": 381,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _kexec_file_load(kernel_fd: int, initrd_fd: int, command_line: bytes | None, flags: int) -> None:
    machine = platform.machine()
    number = KEXEC_FILE_LOAD_NUMBERS.get(machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"kexec_file_load: no system call number known for {machine}")
    # The kernel wants the length with the terminating NUL (kexec_file_load(2), cmdline_len).
    length = 0 if command_line is None else len(command_line) + 1
    result = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(kernel_fd),
        ctypes.c_int(initrd_fd),
        ctypes.c_ulong(length),
        ctypes.c_char_p(command_line),
        ctypes.c_ulong(flags),
    )
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"kexec_file_load: {os.strerror(code)}")


def load_crash_kernel(kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
    """Load kernel and initramfs from open files into the memory reserved for a crash.

    The kernel drops what was loaded there before it reads the new files (kernel/kexec_file.c:
    both live in the same reserved region), so after a failure nothing is loaded.
    """
    flags = _KEXEC_FILE_ON_CRASH
    if initrd_fd is None:
        flags |= _KEXEC_FILE_NO_INITRAMFS
    _kexec_file_load(kernel_fd, -1 if initrd_fd is None else initrd_fd, os.fsencode(command_line), flags)


def unload_crash_kernel() -> None:
    """Free what is loaded for a crash; succeeds also where nothing is."""
    _kexec_file_load(-1, -1, None, _KEXEC_FILE_UNLOAD | _KEXEC_FILE_ON_CRASH)
