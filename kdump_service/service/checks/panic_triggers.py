# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makes the kernel panic, and what comes between the panic and the crash kernel."""

from __future__ import annotations

from collections.abc import Iterator

from kdump_service.kernel.cmdline import same_parameter, split_words, word_name
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.problems import Problem, found

__all__ = ["panic_problems"]

_SYSRQ_ALL = 1
_SYSRQ_DUMP = 8
"""Documentation/admin-guide/sysrq.rst: the bit of dumps, among them the crash (drivers/tty/sysrq.c,
sysrq_crash_op)."""


def panic_problems(kernel_files: KernelFiles) -> Iterator[Problem]:
    """All that /proc/sys/kernel and the kernel's own parameters say."""
    yield from _oops(kernel_files)
    yield from _silent_triggers(kernel_files)
    yield from _sysrq(kernel_files)
    yield from _notifiers(kernel_files)


def _oops(kernel_files: KernelFiles) -> Iterator[Problem]:
    # Documentation/admin-guide/sysctl/kernel.rst, panic_on_oops. An oops in an interrupt or of PID 1 is a
    # panic all the same (kernel/exit.c: make_task_dead).
    if kernel_files.sysctl("kernel/panic_on_oops") == 0:
        yield found(
            "panic-on-oops-off",
            "kernel.panic_on_oops is 0: after most faults the kernel ends a process and runs on, and saves "
            "no memory.",
            "If a fault is to be captured: sysctl kernel.panic_on_oops=1, and for good a file in "
            "/etc/sysctl.d.",
        )


def _silent_triggers(kernel_files: KernelFiles) -> Iterator[Problem]:
    """Sysctls that make a panic of what another sysctl keeps from being noticed.

    Documentation/admin-guide/sysctl/kernel.rst: watchdog switches both lockup detectors, soft_watchdog and
    nmi_watchdog one each, watchdog_thresh=0 both off; hung_task_timeout_secs=0 means no checking.
    """
    for trigger, event, detectors in (
        ("softlockup_panic", "a soft lockup", ("watchdog", "soft_watchdog", "watchdog_thresh")),
        ("hardlockup_panic", "a hard lockup", ("watchdog", "nmi_watchdog", "watchdog_thresh")),
        ("hung_task_panic", "a hung task", ("hung_task_timeout_secs",)),
    ):
        if not kernel_files.sysctl(f"kernel/{trigger}"):
            continue
        off = next((name for name in detectors if kernel_files.sysctl(f"kernel/{name}") == 0), "")
        if off:
            yield found(
                "trigger-without-detector",
                f"kernel.{trigger} asks for a panic at {event}, but kernel.{off} is 0: nothing notices one.",
                f"Run: sysctl kernel.{off}={_USUAL[off]}"
                + (
                    " (in a virtual machine it may have no counters to use)." if off == "nmi_watchdog" else ""
                ),
            )
    # kernel/rcu/update.c: rcupdate.rcu_cpu_stall_suppress, a parameter of what is always built in.
    suppressed = kernel_files.module_parameter("rcupdate", "rcu_cpu_stall_suppress")
    if kernel_files.sysctl("kernel/panic_on_rcu_stall") and suppressed not in ("", "0"):
        yield found(
            "trigger-without-detector",
            "kernel.panic_on_rcu_stall asks for a panic at an RCU stall, but "
            f"rcupdate.rcu_cpu_stall_suppress is {suppressed}: nothing would notice one.",
            "Run: echo 0 > /sys/module/rcupdate/parameters/rcu_cpu_stall_suppress",
        )


# Defaults of kernel/watchdog.c and lib/Kconfig.debug (DEFAULT_HUNG_TASK_TIMEOUT).
_USUAL = {
    "watchdog": 1,
    "soft_watchdog": 1,
    "nmi_watchdog": 1,
    "watchdog_thresh": 10,
    "hung_task_timeout_secs": 120,
}


def _sysrq(kernel_files: KernelFiles) -> Iterator[Problem]:
    mask = kernel_files.sysctl("kernel/sysrq")
    if mask is not None and mask != _SYSRQ_ALL and not mask & _SYSRQ_DUMP:
        yield found(
            "sysrq-crash-off",
            f"kernel.sysrq is {mask}: Alt+SysRq+C, on a keyboard or a serial console, does not crash a "
            "machine that hangs.",
            f"If that is wanted: sysctl kernel.sysrq={mask | _SYSRQ_DUMP}",
        )


def _notifiers(kernel_files: KernelFiles) -> Iterator[Problem]:
    # Documentation/admin-guide/kernel-parameters.txt: crash_kexec_post_notifiers "increases risks of kdump
    # failure". The kernel sets it itself where the crash kernel could not work without: in guests of Hyper-V
    # (drivers/hv/hv_common.c), hosts of SEV-SNP (arch/x86/virt/svm/sev.c), with fadump (powerpc).
    if kernel_files.module_parameter("kernel", "crash_kexec_post_notifiers") != "Y":
        return
    name = "crash_kexec_post_notifiers"
    words = split_words(kernel_files.command_line)
    asked_for = any(same_parameter(word_name(word), name) for word in words)
    by_kernel = (
        (kernel_files.root / "sys/bus/vmbus").is_dir()
        or kernel_files.module_parameter("kvm_amd", "sev_snp") == "Y"
        or (kernel_files.root / "sys/kernel/fadump").is_dir()
    )
    if asked_for or not by_kernel:
        yield found(
            "panic-notifiers-first",
            f"{name} is set: after a panic, code of drivers and hypervisors runs before the crash kernel is "
            "started, and can hang or reset the machine.",
            f"Remove {name} from the kernel command line and reboot, unless it is needed.",
        )
