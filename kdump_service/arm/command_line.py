# SPDX-License-Identifier: LGPL-2.1-or-later
"""Derive the capture kernel's command line from the running kernel's. Pure functions over text."""

from __future__ import annotations

from kdump_service.config import Config
from kdump_service.kernel.cmdline import join_words, same_parameter, split_words, word_name

__all__ = ["NOT_INHERITED", "added_words", "capture_command_line"]

# What a capture boot must not inherit, by reason. A name that ends in * stands for all names that begin so.
# Meanings: Documentation/admin-guide/kernel-parameters.txt, kernel-command-line(7).
NOT_INHERITED: dict[str, tuple[str, ...]] = {
    "describes the boot loader's work, not this boot": ("BOOT_IMAGE", "initrd"),
    "reserves memory again inside the reservation": (
        "crashkernel", "fadump", "fadump_reserve_mem", "cma", "hugetlb_cma", "numa_cma", "cma_pernuma",
        "reserve_mem", "ramoops.*", "memmap", "mem", "movablecore", "kernelcore", "movable_node",
        "swiotlb", "log_buf_len", "trace_buf_size", "kmemleak", "page_owner", "stack_depot*",
    ),
    "asks for huge pages that the reservation cannot hold": (
        "hugepages", "hugepagesz", "default_hugepagesz", "hugetlb_free_vmemmap", "transparent_hugepage*",
    ),
    "would resume from or swap to the crashed system": (
        "resume", "resume_offset", "resumewait", "resumedelay", "noresume", "zswap.*",
    ),
    "debugs the production kernel, and costs memory and time": (
        "slub_debug", "slab_debug", "debug_pagealloc", "page_poison", "init_on_free", "init_on_alloc",
        "kasan*", "kfence.*", "kcsan*", "ftrace*", "trace_event", "trace_options", "tp_printk",
        "initcall_debug",
        "kgdb*", "rd.debug", "rd.break", "systemd.debug_shell", "systemd.debug-shell",
        "systemd.log_level", "systemd.confirm_spawn",
    ),
    "isolates processors that the capture kernel does not have": (
        "nr_cpus", "maxcpus", "nosmp", "possible_cpus", "isolcpus", "nohz_full", "rcu_nocbs", "irqaffinity",
        "rcu_nocb_poll",
    ),
    "turns a complaint of the capture kernel into its death": (
        "panic_on_warn", "panic_on_taint", "panic_on_rcu_stall", "panic_print", "hung_task_panic",
        "softlockup_panic", "hardlockup_panic", "unknown_nmi_panic", "softlockup_all_cpu_backtrace",
    ),
    "the capture boot has its own": (
        "panic", "kexec_load_disabled", "reset_devices", "irqpoll", "elfcorehdr",
        "systemd.crash_reboot", "rd.shell", "rd.emergency", "nokaslr", "kaslr", "disable_cpu_apicid",
    ),
    "would start something else than the capture": (
        "systemd.unit", "rd.systemd.unit", "systemd.wants", "systemd.run*", "single", "emergency", "rescue",
        "s", "S", "1", "2", "3", "4", "5", "-b", "-s", "-z", "systemd.mask", "systemd.volatile",
        "systemd.condition-first-boot", "systemd.condition_first_boot", "ignition.firstboot",
        "fastboot", "forcefsck", "fsck.mode", "splash",
    ),
    "locks the capture out of its own console": ("vga", "plymouth.*", "vt.global_cursor_default"),
}  # fmt: skip

# What every capture boot gets.
_ADDED_EVERYWHERE = (
    "nr_cpus=1",  # each further processor costs per-CPU memory, and restarting it can fail after a crash
    "reset_devices",  # drivers take devices that nobody has shut down
    "panic=5",  # a panic of the capture kernel, or a hopeless initramfs-tools shell, ends in a reboot
    "oops=panic",  # after an oops nothing can be trusted: reboot rather than hang
    "noresume",  # no initramfs may look for a hibernated system
    "transparent_hugepage=never",  # 2 MiB pages waste what a small reservation has
    "cgroup_disable=memory",  # the memory controller costs memory for each page
    "numa=off",  # per-node structures; the reservation lies on one node anyway
    "novmcoredd",  # device dumps are collected into the reservation itself (CONFIG_PROC_VMCORE_DEVICE_DUMP)
    "rd.shell=0",  # dracut: never wait at a prompt ...
    "rd.emergency=reboot",  # ... but reboot
    "systemd.crash_reboot=yes",  # a crash of PID 1 otherwise freezes the machine
    "systemd.unit=kdump-capture.target",  # boot into the capture
)

# By uname -m.
_ADDED_BY_MACHINE = {
    "x86_64": (
        "irqpoll",  # interrupts that the crashed kernel left pending have no handler
        "mce=off",  # a machine check while reading poisoned old memory would end the capture
    ),
    "ppc64le": ("irqpoll",),
}


def _is_not_inherited(name: str) -> bool:
    for names in NOT_INHERITED.values():
        for pattern in names:
            if pattern.endswith("*") and name.replace("-", "_").startswith(pattern[:-1].replace("-", "_")):
                return True
            if same_parameter(pattern, name):
                return True
    return False


def added_words(machine: str) -> list[str]:
    """The words that a capture boot needs on this architecture (uname -m)."""
    return [*_ADDED_EVERYWHERE, *_ADDED_BY_MACHINE.get(machine, ())]


def capture_command_line(running: str, machine: str, config: Config) -> str:
    """The capture kernel's command line.

    ``CommandLine=`` replaces what the running kernel's line would give, word for word; the words that a
    capture boot needs are added either way, then ``CommandLineRemove=`` takes words out by name, and
    ``CommandLineAppend=`` has the last word. Words for the init program, behind ``--``, are not inherited.
    """
    if config.command_line:
        words = split_words(config.command_line)
    else:
        inherited = split_words(running)
        if "--" in inherited:
            inherited = inherited[: inherited.index("--")]
        words = [word for word in inherited if not _is_not_inherited(word_name(word))]
    words += added_words(machine)
    removed = [word_name(word) for word in split_words(config.command_line_remove)]
    words = [word for word in words if not any(same_parameter(word_name(word), name) for name in removed)]
    return join_words(words + split_words(config.command_line_append))
