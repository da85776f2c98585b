# SPDX-License-Identifier: LGPL-2.1-or-later
"""Derive the capture kernel's command line from the running kernel's. Pure functions over text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from kdump_service.config import Config
from kdump_service.errors import BadCommandLine
from kdump_service.kernel.cmdline import join_words, same_parameter, split_words, word_name

__all__ = ["NOT_INHERITED", "WATCHDOG_WORD", "added_words", "capture_command_line", "check_length"]

WATCHDOG_WORD = "systemd.watchdog_sec="
"""kernel-command-line(7): PID 1 feeds the first watchdog, whatever systemd-system.conf(5) says."""

# What a capture boot must not inherit, by reason. A name that ends in * stands for all names that begin so;
# one with = for exactly this word. Meanings: Documentation/admin-guide/kernel-parameters.txt,
# kernel-command-line(7), dracut.cmdline(7), initramfs-tools(7).
NOT_INHERITED: dict[str, tuple[str, ...]] = {
    "describes the boot loader's work, not this boot": (
        "BOOT_IMAGE", "initrd", "bootconfig",
    ),
    "reserves memory again inside the reservation": (
        "crashkernel", "fadump", "fadump_reserve_mem", "cma", "hugetlb_cma", "numa_cma", "cma_pernuma",
        "vmcp_cma", "kvm_cma_resv_ratio", "reserve_mem", "kho", "ramoops.*", "memmap", "mem",
        "movablecore", "kernelcore", "movable_node", "swiotlb", "log_buf_len", "kmemleak", "page_owner",
        "stack_depot*",
    ),
    "asks for huge pages that the reservation cannot hold": (
        "hugepages", "hugepagesz", "default_hugepagesz", "hugetlb_free_vmemmap", "transparent_hugepage*",
    ),
    "would resume from or swap to the crashed system": (
        "resume", "resume_offset", "resumewait", "resumedelay", "noresume", "zswap.*",
    ),
    "debugs the production kernel, and costs memory and time": (
        "slub_debug", "slab_debug", "debug_pagealloc", "page_poison", "init_on_free", "init_on_alloc",
        "kasan*", "kfence.*", "kcsan*", "ftrace*", "trace_event", "trace_options", "trace_buf_size",
        "trace_instance", "alloc_snapshot", "tp_printk", "initcall_debug", "kgdb*", "rd.debug",
        "systemd.log_level", "panic_print", "softlockup_all_cpu_backtrace", "forcefsck",
        "fsck.mode=force",
    ),
    "isolates processors that the capture kernel does not have": (
        "nr_cpus", "maxcpus", "nosmp", "possible_cpus", "isolcpus", "nohz_full", "rcu_nocbs",
        "rcu_nocb_poll", "irqaffinity",
    ),
    "is a production sysctl, or turns a complaint of the capture kernel into its death": (
        "sysctl.*", "panic_on_warn", "panic_on_taint", "hung_task_panic", "softlockup_panic",
        "unknown_nmi_panic", "nmi_watchdog",
    ),
    "the capture boot sets it itself, or has none": (
        "panic", "oops", "reset_devices", "elfcorehdr", "disable_cpu_apicid", "numa", "cgroup_disable",
        "mce", "udev.children*", "rd.udev.children*",
    ),
    "could make the boot wait for ever, or not reboot": (
        "break", "rd.break", "rd.shell", "rd.emergency", "rd.rescue", "systemd.crash_shell",
        "systemd.crash_reboot", "systemd.crash_action", "systemd.confirm_spawn",
        "systemd.service_watchdogs",
    ),
    "would start something else than the capture": (
        "rdinit", "systemd.unit", "rd.systemd.unit", "systemd.wants", "systemd.mask", "systemd.run*",
        "systemd.debug*", "single", "emergency", "rescue", "s", "S", "1", "2", "3", "4", "5", "-b", "-s",
        "systemd.volatile", "systemd.condition-first-boot", "systemd.condition_first_boot",
        "ignition.firstboot",
    ),
    "draws on a screen that the capture does not need": (
        "vga", "splash", "plymouth.*", "vt.global_cursor_default",
    ),
}  # fmt: skip

# The small image has its own root: these describe how to find and mount production's, or what to do there.
_NOT_FOR_THE_SMALL_IMAGE = (
    "root", "rootflags", "rootfstype", "rootwait", "rootdelay", "ro", "rw", "init", "rd.*", "nfsroot", "ip",
    "netroot", "ifname", "bootdev", "luks.*", "cryptdevice", "cryptopts", "zfs", "boot", "overlayroot",
    "fsck.*", "mount.usr*", "usr.*", "roothash", "usrhash", "systemd.verity*",
)  # fmt: skip
# rootfs in memory would be limited to half of it, and the image would lack files without a word
# (init/do_mounts.c: rootfs is ramfs if this is asked for).
#
# Kernels before 6.6 make 12,000 files for their trace events at boot, which nobody will look at: 9 MiB of
# inodes (measured with Debian's 6.1). What they do where the kernel is locked down for confidentiality is
# asked for here, too: none of them (kernel/trace/trace.c). The word may stand several times, and a name that
# does not exist counts for nothing.
#
# A kernel tests its ciphers at each boot, a sixth of the time that it takes to its first process (measured
# likewise); nothing here encrypts. With fips=1 it tests them all the same (crypto/testmgr.c).
_ADDED_FOR_THE_SMALL_IMAGE = (
    "rootfstype=ramfs",
    "initcall_blacklist=tracer_init_tracefs",
    "cryptomgr.notests",
)

# Drivers of displays take memory for what nobody looks at, and reset hardware that a crash may have left in
# any state. The small image has none; production's initramfs may.
_ADDED_FOR_THE_ROOT_FILE_SYSTEM = ("nomodeset",)

# A serial console takes a second for 11 kB at 115200 baud, and a boot prints 40: the capture's own lines are
# enough, and the rest is in its journal. Who wants to see it says so on production's line, too.
_QUIET = "quiet"
_TALKATIVE = ("debug", "ignore_loglevel", "loglevel", "earlyprintk", "earlycon")

# What every capture boot gets.
_ADDED_EVERYWHERE = (
    "reset_devices",  # drivers take devices that nobody has shut down
    "panic=5",  # a panic of the capture kernel, or a hopeless initramfs-tools shell, ends in a reboot
    "oops=panic",  # after an oops nothing can be trusted: reboot rather than hang
    "noresume",  # no initramfs may look for a hibernated system
    "transparent_hugepage=never",  # 2 MiB pages waste what a small reservation has
    "cma=0",  # contiguous areas that the kernel's configuration reserves by default
    "kfence.sample_interval=0",  # the pool of the memory error detector: 2 MiB by default
    "cgroup_disable=memory",  # the memory controller costs memory for each page
    "numa=off",  # per-node structures; the reservation lies on one node anyway
    "novmcoredd",  # device dumps are collected into the reservation itself (CONFIG_PROC_VMCORE_DEVICE_DUMP)
    "udev.children_max=2",  # each worker of udev costs memory; more than the processors gain nothing
    "rd.udev.children_max=2",
    "rd.shell=0",  # dracut: never wait at a prompt ...
    "rd.emergency=reboot",  # ... but reboot
    "systemd.crash_reboot=yes",  # a crash of PID 1 otherwise freezes the machine
    "systemd.unit=kdump-capture.target",  # boot into the capture
)

_ONE_PROCESSOR = (
    "nr_cpus=1"  # each further one costs per-CPU memory, and restarting it can fail after a crash
)
# Firmware announces the crashed kernel's memory as memory that can be added: the capture kernel would fill
# its reservation with descriptors of it, or hand out pages that are still to be dumped.
_NO_MEMORY_HOTPLUG = "acpi_no_memhotplug"
_NO_FIRMWARE_ERRORS = "hest_disable"  # firmware-first error reports concern the crash, not the capture

# By uname -m; the first group is for architectures that are not named.
_ADDED_BY_MACHINE: dict[str, tuple[str, ...]] = {
    "": (_ONE_PROCESSOR,),
    "x86_64": (
        _ONE_PROCESSOR,
        "irqpoll",  # interrupts that the crashed kernel left pending have no handler
        "mce=off",  # other processors' broadcast machine checks must not be waited for; saves their buffers
        _NO_MEMORY_HOTPLUG,
        _NO_FIRMWARE_ERRORS,
    ),
    "aarch64": (_ONE_PROCESSOR, _NO_MEMORY_HOTPLUG, _NO_FIRMWARE_ERRORS),
    # All threads of a core must start, or the boot processor is not found (before Linux 6.9); what
    # kdump-utils settled on.
    "ppc64le": ("nr_cpus=16", "noirqdistrib", "kvm_cma_resv_ratio=0"),
}  # fmt: skip

# Longest line that reaches the capture kernel whole, in bytes without the NUL. COMMAND_LINE_SIZE of each
# architecture's asm/setup.h, less what the kernel itself adds: x86 30 bytes for elfcorehdr= and, in newer
# kernels, 31 for dmcryptkeys= (arch/x86/kernel/kexec-bzimage64.c); elsewhere elfcorehdr= with an address and
# a size, at most 40. arm64 and ppc64le do not refuse a longer line, the capture kernel cuts its end off.
_MOST_BYTES = {
    "x86_64": 2047 - 1 - 30 - 31,
    "aarch64": 2047,
    "ppc64le": 2047 - 40,
    "s390x": 4095,
    "riscv64": 1023 - 40,
}


def _is_not_inherited(word: str, groups: Iterable[tuple[str, ...]]) -> bool:
    name = word_name(word)
    for patterns in groups:
        for pattern in patterns:
            if pattern.endswith("*") and name.replace("-", "_").startswith(pattern[:-1].replace("-", "_")):
                return True
            if word == pattern or same_parameter(pattern, name):
                return True
    return False


def added_words(machine: str, environment: Literal["initramfs", "rootfs"] = "rootfs") -> list[str]:
    """The words that a capture boot needs on this architecture (uname -m) in this environment."""
    return [
        *_ADDED_EVERYWHERE,
        *_ADDED_BY_MACHINE.get(machine, _ADDED_BY_MACHINE[""]),
        *(_ADDED_FOR_THE_SMALL_IMAGE if environment == "initramfs" else _ADDED_FOR_THE_ROOT_FILE_SYSTEM),
    ]


def capture_command_line(
    running: str,
    machine: str,
    config: Config,
    environment: Literal["initramfs", "rootfs"] = "rootfs",
    *,
    watchdog_sec: int = 0,
) -> str:
    """The capture kernel's command line.

    ``CommandLine=`` replaces what the running kernel's line would give, word for word; the words that a
    capture boot needs are added either way, then ``CommandLineRemove=`` takes words out by name, and
    ``CommandLineAppend=`` has the last word. Words for the init program, behind ``--``, are left out: what is
    added would become init's, too.
    """
    words = split_words(config.command_line or running)
    if "--" in words:
        words = words[: words.index("--")]
    added = added_words(machine, environment)
    if watchdog_sec and not any(word.startswith(WATCHDOG_WORD) for word in words):
        added.append(f"{WATCHDOG_WORD}{watchdog_sec}")
    groups = [*NOT_INHERITED.values()]
    if environment == "initramfs":
        if not any(same_parameter(word_name(word), talk) for word in words for talk in _TALKATIVE):
            added.append(_QUIET)
        groups.append(_NOT_FOR_THE_SMALL_IMAGE)
    if not config.command_line:
        words = [word for word in words if not _is_not_inherited(word, groups) and word not in added]
    words += added
    removed = [word_name(word) for word in split_words(config.command_line_remove)]
    words = [word for word in words if not any(same_parameter(word_name(word), name) for name in removed)]
    return join_words(words + split_words(config.command_line_append))


def check_length(command_line: str, machine: str) -> None:
    """Raise BadCommandLine if the capture kernel would not get all of the line."""
    size = len(command_line.encode(errors="surrogateescape"))
    most = _MOST_BYTES.get(machine, min(_MOST_BYTES.values()))
    if size > most:
        raise BadCommandLine(
            f"the capture command line has {size} bytes, and {machine} kernels take {most}",
            "Shorten it with CommandLineRemove= or CommandLine=.",
        )
