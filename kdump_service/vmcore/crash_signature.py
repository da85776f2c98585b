# SPDX-License-Identifier: LGPL-2.1-or-later
"""The signature of a crash: the same when the same bug strikes again, another one for another bug.

"Again" is on another boot, another machine, or in another build of the same source. So it is made of:

* the kind;
* what was detected: the class of the fault, or the message without numbers, addresses, devices and tasks;
* functions of the call trace, without offsets, without what compilers append, and without those that every
  crash shares. Which ones depends on what a place in the code says about the bug:

  - after a fault, a BUG() or a panic: where it happened and the next three callers;
  - for a task that hangs: the same, above the functions that sleep;
  - for a processor that is stuck waiting for a lock or for another processor: the same, above the functions
    that wait; for one that runs in a loop, where the clock strikes by chance: the outermost function that is
    no mere dispatcher;
  - for a stack that is full: the functions that occur in the trace again and again, else the outermost;
  - for what has no place in the code (a request by sysrq, an NMI, a machine check, no memory): none.

Where there should be a place but the log tells none, there is no signature: the rest would be the same for
different bugs.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

from kdump_service.vmcore.crash_kind import CrashKind

__all__ = ["PRINTS_STACK", "comparable", "place", "plain_function", "shown", "signature"]

_DIGITS = 16
_FRAMES = 4

_NO_PLACE = {
    CrashKind.SYSRQ,
    CrashKind.NMI,
    CrashKind.MACHINE_CHECK,
    CrashKind.HARDWARE_ERROR,
    CrashKind.OUT_OF_MEMORY,
}
_STUCK = {CrashKind.SOFT_LOCKUP, CrashKind.HARD_LOCKUP, CrashKind.RCU_STALL}
_NO_WORDS = {CrashKind.SYSRQ, CrashKind.HUNG_TASK, CrashKind.STACK_OVERFLOW, *_STUCK}
"""Their titles tell only the kind, the time and the victim."""
_NOTHING_WITHOUT_PLACE = {CrashKind.OOPS, CrashKind.DOUBLE_FAULT, *_NO_WORDS} - _NO_PLACE

# The same fault has different words on different architectures and versions.
_FAULTS = (
    ("null-dereference", re.compile(r".*NULL pointer dereference")),
    ("general-protection", re.compile(r".*general protection fault")),
    (
        "page-fault",
        re.compile(
            r".*kernel paging request|.*page fault for address|Unable to handle kernel|BUG: unable to"
        ),
    ),
)
_MACHINE_CHECK = re.compile(r"Bank (\d+): [0-9a-f]{12}([0-9a-f]{4})")
"""The unit that reported, and what: MCi_STATUS ends with the error code (Intel SDM 3B, chapter 16)."""

# --- functions ----------------------------------------------------------------------------------------------

# Large expressions, each for some kinds of crashes only: compiled, and kept, when re is asked for them first.

PRINTS_STACK = re.compile(
    r"(__)?dump_stack(_lvl|_print_info)?|show_stack|(__)?show_regs|dump_backtrace|show_trace_log_lvl"
)
_REPORTS = (
    PRINTS_STACK.pattern
    + r"|_*v?panic(_saved_regs)?|nmi_panic(_self_stop)?|check_panic_on_warn|_*crash_kexec|machine_kexec"
    r"|oops_(begin|end|exit)|_*die(_body|_addr|_kernel_fault)?|__warn(_printk)?|warn_slowpath_\w+|_*report_bug"
    r"|handle_bug|fixup_bug|(do_|handle_)?invalid_op|do_error_trap|do_trap|no_context|_*bad_area\w*"
    r"|page_fault_oops|kernelmode_fixup_or_oops|(handle_)?_*bad_stack|(early_)?(bug|brk)_handler"
    r"|call_(el1_)?break_hook|_*do_kernel_fault|print_report|print_address_description\w*|_*k[acm]san_\w+"
    r"|__(asan|hwasan|ubsan|msan|tsan)_\w+|__sanitizer_\w+|ubsan_epilogue|handle_ubsan_failure"
    r"|check_memory_region\w*|rust_helper_BUG|_R\w*(rust_begin_unwind|panicking)\w*|kfence_\w+"
    # by which the compiler calls
    r"|__x86_(indirect|return)_thunk\w*|srso_\w*thunk\w*|retbleed_\w+|__fentry__"
    # by which the processor enters
    r"|(asm_)?(exc|sysvec|common_interrupt|call)_\w+|(__|asm_)?common_interrupt|__sysvec_\w+|\w*page_fault"
    r"|do_user_addr_fault|(do_)?general_protection|apic_timer_interrupt|smp_\w+_interrupt|(exit|enter)ing_irq"
    r"|ret_from_(intr|exception)|sysenter_\w+|int_ret_from_sys_call|system_call\w*|stub_\w+"
    r"|entry_\w+|_*do_(syscall|fast_syscall|int80)_\w+|x64_sys_call"
    r"|(do_)?el[01]\w*|invoke_syscall|do_mem_abort|do_(translation|page|alignment|sea|tag_check)_fault"
    r"|do_debug_exception|call_on_irq_stack|do_interrupt_handler|_*irq_(exit|enter)\w*|irqentry_\w+"
)
"""What every crash has in its trace: what reports it, and the ways into the kernel."""
_LOWEST = (
    r"ret_from_fork\w*|kthread|worker_thread|process_one_work|process_scheduled_works|kthread_worker_fn"
    r"|handle_softirqs|_*do_softirq\w*|__softirq\w*|run_ksoftirqd|smpboot_thread_fn|start_secondary"
    r"|secondary_startup\w*|__secondary_switched|cpu_startup_entry|do_idle|cpuidle_idle_call"
    r"|x86_64_start_\w+|start_kernel|rest_init|arch_call_rest_init|kernel_init"
)
_SLEEPS = (
    r"__switch_to|context_switch|_*schedule(_\w+)?|io_schedule\w*|preempt_schedule\w*|_*mutex_lock\w*"
    r"|_*rt_mutex_\w+|_*rwsem_\w+|_*down(_\w+)?|percpu_(down|rwsem)\w*|_*wait_(for|on|event)_\w+"
    r"|do_wait_(for_common|intr)\w*|out_of_line_wait_on_\w+|bit_wait\w*|folio_wait_\w+|wait_woken"
)
_WAITS = (
    r"(native_|__pv_)?queued_(spin|read|write)_lock_slowpath|((do|_*)_?raw)?_*(spin|read|write)_(try)?lock\w*"
    r"|kvm_wait|pv_wait\w*|smp_call_function\w*|csd_lock_wait\w*|on_each_cpu\w*|osq_lock"
    r"|(mutex|rwsem)_spin_on_owner|stop_machine\w*|multi_cpu_stop"
)
_DELAYS = r"delay_(tsc|halt\w*|loop)|__(const_)?[un]?delay|cpu_relax|native_pause|rep_nop"
_DISPATCHES = (
    r"_*(compat_)?sys_\w+|_*(compat_)?SYSC_\w+|do_vfs_\w+|_*sock_(sendmsg|recvmsg|write_iter|read_iter|ioctl)\w*"
    r"|_*(vfs|ksys|do)_(read|write|ioctl|open|iter|readv|writev|pread|pwrite)\w*|new_sync_\w+"
    r"|proc_reg_\w+|full_proxy_\w+|kernfs_fop_\w+|sysfs_kf_\w+|seq_(read|write)\w*|simple_attr_\w+"
    r"|(param|module|kobj|dev|class|drv|bus)_attr_\w+|_*handle_sysrq|do_one_initcall|do_init_module|load_module"
    r"|init_module_from_file|idempotent_init_module|call_timer_fn|expire_timers|_*run_timers?\w*|_*run_hrtimer"
    r"|_*hrtimer_\w+|_*tasklet_\w+|net_rx_action|_*napi_\w+|blk_(complete_reqs|done_softirq)|rcu_core\w*"
    r"|rcu_do_batch|\w*handle_(domain_|irq_)?(irq|event|desc)\w*|gic_\w+|_*run_irq_\w+|irq_thread\w*"
    r"|task_work_run|_*fput|do_signal|exit_to_user\w*|syscall_exit\w*|do_(group_)?exit|get_signal"
)
_SYSTEM_CALL = r"_*(?:x64|ia32|x32|arm64|se|do)_(?:compat_)?sys_(.*)|ksys_(.*)|(?:compat_)?SyS_(.*)"

# Of GCC (.isra, .constprop, .part, .cold) and Clang (.llvm, .__uniq).
_COMPILER_SUFFIX = re.compile(r"\.(?:isra|constprop|part|cold|llvm|__uniq|lto_priv|localalias)\b.*")
_RUST_CRATE = re.compile(r"Cs[0-9A-Za-z]+_")
"""In a mangled name: the crate's disambiguator, which is another one in each build (RFC 2603)."""


def plain_function(name: str) -> str:
    """The function's name in the source: without what compilers add."""
    name = _COMPILER_SUFFIX.sub("", name)
    return _RUST_CRATE.sub("C", name) if name.startswith("_R") else name


def place(kind: CrashKind, call_trace: Sequence[str], all_frames: Sequence[str] = ()) -> list[str]:
    """The functions that stand for the bug, see above.

    ``call_trace`` is the crashed context's, innermost first; ``all_frames`` those of all contexts, which a
    stack that is full has run through.
    """
    if kind in _NO_PLACE:
        return []
    names = _significant(call_trace)
    if kind is CrashKind.STACK_OVERFLOW:
        return _again_and_again(_significant(all_frames)) or _outermost(_significant(all_frames))
    if kind is CrashKind.HUNG_TASK:
        names = _above(names, _SLEEPS)
    elif kind in _STUCK:
        above = _above(names, _WAITS)
        if len(above) == len(names):
            return _outermost(_above(names, _DELAYS))
        names = above
    return names[:_FRAMES]


def _significant(frames: Sequence[str]) -> list[str]:
    names: list[str] = []
    for frame in frames:
        name = plain_function(frame)
        if call := re.fullmatch(_SYSTEM_CALL, name):
            name = "sys_" + next(filter(None, call.groups()), "")
        if not re.fullmatch(_REPORTS, name) and names[-1:] != [name]:
            names.append(name)
    # All have the lowest functions; but if there are no others, it was there.
    return [name for name in names if not re.fullmatch(_LOWEST, name)] or names


def _above(names: list[str], innermost: str) -> list[str]:
    """Without those of the expression at the inner end; all, if there is nothing else."""
    for number, name in enumerate(names):
        if not re.fullmatch(innermost, name):
            return names[number:]
    return names


def _outermost(names: list[str]) -> list[str]:
    """The lowest function that is no mere dispatcher."""
    return [name for name in names if not re.fullmatch(_DISPATCHES, name)][-1:] or names[:1]


def _again_and_again(names: Sequence[str]) -> list[str]:
    """The cycle of a recursion, wherever the stack happened to end in it."""
    counts = Counter(names)
    most = max(counts.values(), default=0)
    return sorted(name for name, count in counts.items() if most > 2 and count >= most / 2)


# --- words --------------------------------------------------------------------------------------------------

_OFFSET = re.compile(r"\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")
_POINTER = r"\(?(?:0x)?(?:[0-9a-f]{12,16}\b|\((?:null|ptrval|_+ptrval_+)\))\)?:?"
_ADDRESS = re.compile(
    r" \(stack is [^)]*\)"
    r"|,? (?:address:|at virtual address) (?:0x)?[0-9a-f]+\b"
    r"|,? at 0x[0-9a-f]+$"
    rf"|,?(?: (?:address:|at virtual address|for address:|at|addr))? +{_POINTER}"
)
_WHO = re.compile(r"CPU: \d+ PID: -?\d+ |, CPU#\d+: .*")
_COMPARABLE = (
    (re.compile(r"\[[\w-]+(?: [0-9a-f]+)?\]|\bby task .*"), ""),  # module and its build id; task
    (re.compile(r"[^ ]*/\d+(?:/0x[0-9a-f]+)?"), "*"),  # task/pid, as of "scheduling while atomic"
    (re.compile(r"(?:[\w.-]*/)*([\w-]+\.(?:[chS]|rs)):\d+!?"), r"\1"),  # file and line
    (re.compile(r"\(device [^)]*\)|\b(?:x?[svh]d)[a-z]+\d*\b|\b(?:nvme|dm-|md|loop|eth|mmcblk)\d\w*"), "*"),
    (re.compile(r"(?<!exitcode=)\b(?:0x)?[0-9a-f]*\d[0-9a-f]*\b"), "*"),
    (re.compile(r"\s+"), " "),
)


def shown(title: str) -> str:
    """For people: without addresses and offsets, nor who was hit, which has fields of its own."""
    title = _OFFSET.sub("", title)
    return " ".join(_ADDRESS.sub("", _WHO.sub("", title)).split())


def comparable(title: str) -> str:
    """The class of the fault, or the words, without whatever is another one next time."""
    for fault, pattern in _FAULTS:
        if pattern.match(title):
            return fault
    if check := _MACHINE_CHECK.search(title):
        return f"bank {check[1]}, code {check[2]}"
    title = shown(title)
    for pattern, replacement in _COMPARABLE:
        title = pattern.sub(replacement, title)
    return title.strip()


def signature(kind: CrashKind, title: str, call_trace: Sequence[str], all_frames: Sequence[str] = ()) -> str:
    """16 hexadecimal digits; empty where the log does not tell enough."""
    functions = place(kind, call_trace, all_frames)
    if not functions and kind in _NOTHING_WITHOUT_PLACE:
        return ""
    parts = [kind.value, "" if kind in _NO_WORDS else comparable(title), *functions]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "backslashreplace")).hexdigest()[:_DIGITS]
