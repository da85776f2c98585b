# SPDX-License-Identifier: LGPL-2.1-or-later
"""Runs in the guest whose memory becomes a reference vmcore. Standard library only; two verbs.

`arm` loads the guest's own kernel as its crash kernel. `load` fills memory with pages of every class that a
dump can leave out, says so in /run/loaded, and stays. What a kernel was built without is passed over.
"""

import ctypes
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20
SYS_KEXEC_FILE_LOAD = 320  # arch/x86/entry/syscalls/syscall_64.tbl
KEXEC_FILE_ON_CRASH = 2  # include/uapi/linux/kexec.h
MAP_HUGETLB = 0x40000  # include/uapi/asm-generic/mman-common.h
MADV_PAGEOUT = 21  # the same
LOADED = Path("/run/loaded")
CAPTURE = "/usr/local/lib/kdump-test/reference-capture"

# No time and no random numbers: a page that compresses, and one that does not.
TEXT = b"".join(b"%7d: what a page of text looks like\n" % number for number in range(MIB // 36 + 1))[:MIB]


def arm() -> None:
    """kexec_file_load(2), with the program `CAPTURE` as the capture boot's first process."""
    words = [
        word
        for word in Path("/proc/cmdline").read_text().split()
        if not word.startswith(("crashkernel=", "BOOT_IMAGE="))
    ]
    words += ["nr_cpus=1", "irqpoll", "reset_devices", "panic=5", f"init={CAPTURE}"]
    command_line = " ".join(words).encode() + b"\0"
    release = os.uname().release
    with (
        open(f"/boot/vmlinuz-{release}", "rb") as kernel,
        open(f"/boot/initrd.img-{release}", "rb") as initrd,
    ):
        libc = ctypes.CDLL(None, use_errno=True)
        status = libc.syscall(
            ctypes.c_long(SYS_KEXEC_FILE_LOAD),
            ctypes.c_int(kernel.fileno()),
            ctypes.c_int(initrd.fileno()),
            ctypes.c_ulong(len(command_line)),
            ctypes.c_char_p(command_line),
            ctypes.c_ulong(KEXEC_FILE_ON_CRASH),
        )
    if status != 0:
        raise OSError(ctypes.get_errno(), "kexec_file_load")


def tell(path: str, text: str) -> None:
    """Write into a file of /proc or /sys, if the kernel has it."""
    try:
        Path(path).write_text(text)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)


def shell(script: str) -> None:
    subprocess.run(["/bin/sh", "-c", script], check=False)


def text(_: int) -> bytes:
    return TEXT


def noise(_: int) -> bytes:
    return os.urandom(MIB)


def zeros(_: int) -> bytes:
    return bytes(MIB)


def area(mib: int, content: Callable[[int], bytes], advice: int | None = None, flags: int = 0) -> mmap.mmap:
    """Private memory with that content in each MiB."""
    memory = mmap.mmap(-1, mib * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | flags)
    if advice is not None:
        memory.madvise(advice)
    for number in range(mib):
        memory[number * MIB : (number + 1) * MIB] = content(number)
    return memory


def poison_a_page() -> None:
    """Have the kernel take a page of a child for broken, which ends the child."""
    if child := os.fork():
        os.waitpid(child, 0)
        return
    try:
        area(1, text, mmap.MADV_NOHUGEPAGE).madvise(mmap.MADV_HWPOISON, 0, mmap.PAGESIZE)
    except OSError as error:
        print(f"MADV_HWPOISON: {error}", file=sys.stderr)
    os._exit(0)


def user_pages() -> list[object]:
    """Small, huge, locked, merged, reserved; and in the swap cache."""
    tell("/proc/sys/vm/nr_hugepages", "16")
    tell("/sys/kernel/mm/ksm/pages_to_scan", "4000")
    tell("/sys/kernel/mm/ksm/run", "1")
    # Folios between a page and a huge page, from 6.8 on.
    tell("/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled", "always")
    kept: list[object] = [
        area(48, text),
        area(32, noise),
        area(16, zeros),
        area(32, text, mmap.MADV_HUGEPAGE),
        area(8, noise, mmap.MADV_NOHUGEPAGE),
        area(8, text, mmap.MADV_MERGEABLE),
        area(16, text, None, MAP_HUGETLB),
    ]
    locked = area(8, noise)
    pinned = (ctypes.c_char * len(locked)).from_buffer(locked)
    ctypes.CDLL(None).mlock(ctypes.byref(pinned), ctypes.c_size_t(len(locked)))
    kept += [locked, pinned]

    shell("dd if=/dev/zero of=/swap bs=1M count=32 && chmod 600 /swap && mkswap /swap && swapon /swap")
    swapped = area(16, text, mmap.MADV_NOHUGEPAGE)
    swapped.madvise(MADV_PAGEOUT)
    for at in range(0, 8 * MIB, mmap.PAGESIZE):
        swapped[at]  # only read back, it is in both places
    kept.append(swapped)
    return kept


def file_pages() -> None:
    """Clean and dirty page cache, with buffers and without; tmpfs, in huge pages and small ones."""
    script = """
        mkdir -p /run/small /run/huge
        mount -t tmpfs -o size=80M none /run/small
        mount -t tmpfs -o size=80M,huge=always none /run/huge
        tar -cf - --one-file-system /usr/bin /usr/lib/python3 /usr/share | cat >/dev/null
        for folder in /run/small /run/huge /root; do
            cat /usr/bin/* | head -c 24M >$folder/programs
            head -c 8M /dev/urandom >$folder/noise
        done
    """
    shell(script)


def load() -> None:
    for _ in range(3):
        poison_a_page()
    kept = user_pages()
    file_pages()
    LOADED.write_text("yes\n")
    signal.pause()
    del kept


if __name__ == "__main__":
    {"arm": arm, "load": load}[sys.argv[1]]()
