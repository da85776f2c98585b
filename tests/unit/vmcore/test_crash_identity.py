# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crashes told by logs in the kernel's own forms. Logs of real crashes are looked at in tests/vm."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from kdump_service.vmcore.crash_identity import CrashIdentity, CrashKind, identify
from kdump_service.vmcore.printk import LogRecord

CRASHES = Path(__file__).parent / "data" / "crashes"


def _lines(name: str) -> list[str]:
    return (CRASHES / f"{name}.txt").read_text().splitlines(keepends=True)


def _identify(name: str) -> CrashIdentity:
    return identify(_lines(name))


# name, kind, title, task, pid, cpu, taint, innermost functions, where the registers were
TOLD = [
    (
        "x86-6.1-null-dereference",
        CrashKind.OOPS,
        "BUG: kernel NULL pointer dereference",
        ("bash", 612, 1, "OE"),
        ("ring_fill", "ring_refill", "trigger_store", "kernfs_fop_write_iter"),
        "ring_fill",
    ),
    (
        "x86-6.12-null-dereference",
        CrashKind.OOPS,
        "BUG: kernel NULL pointer dereference",
        ("bash", 731, 0, "OE"),
        ("ring_fill", "ring_refill", "trigger_store", "kernfs_fop_write_iter"),
        "ring_fill",
    ),
    (
        "arm64-6.1-null-dereference",
        CrashKind.OOPS,
        "Unable to handle kernel NULL pointer dereference",
        ("bash", 702, 3, "OE"),
        ("ring_fill", "ring_refill", "trigger_store", "kernfs_fop_write_iter"),
        "ring_fill",
    ),
    (
        "x86-6.12-general-protection",
        CrashKind.OOPS,
        "general protection fault, probably for non-canonical address",
        ("swapper/2", 0, 2, ""),
        ("call_timer_fn", "__run_timers", "run_timer_softirq", "handle_softirqs"),
        "call_timer_fn",
    ),
    (
        "x86-6.1-list-bug",
        CrashKind.BUG,
        "kernel BUG at lib/list_debug.c:56!",
        ("kworker/3:2", 1290, 3, "PO"),
        ("__list_del_entry_valid.cold", "item_release", "release_work_fn"),
        "__list_del_entry_valid.cold",
    ),
    (
        "arm64-4.19-bug",
        CrashKind.BUG,
        "kernel BUG at mm/slub.c:3938!",
        ("rmmod", 498, 0, "OE"),
        ("kfree", "ring_exit", "__arm64_sys_delete_module"),
        "kfree",
    ),
    (
        "x86-4.19-sysrq",
        CrashKind.SYSRQ,
        "BUG: unable to handle kernel NULL pointer dereference",
        ("bash", 498, 0, ""),
        ("sysrq_handle_crash", "__handle_sysrq.cold.7", "write_sysrq_trigger"),
        "sysrq_handle_crash",
    ),
    (
        "x86-6.1-sysrq",
        CrashKind.SYSRQ,
        "sysrq triggered crash",
        ("kdump-victim", 333, 1, ""),
        ("panic", "sysrq_handle_crash", "__handle_sysrq.cold", "write_sysrq_trigger"),
        "",
    ),
    (
        "x86-5.10-soft-lockup",
        CrashKind.SOFT_LOCKUP,
        "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [insmod:2204]",
        ("insmod", 2204, 1, "OE"),
        ("crc_step", "crc_all", "looper_init", "do_one_initcall"),
        "crc_step",
    ),
    (
        "x86-6.1-hard-lockup",
        CrashKind.HARD_LOCKUP,
        "NMI watchdog: Watchdog detected hard LOCKUP on cpu 2",
        ("fcping", 1931, 2, "E"),
        ("native_queued_spin_lock_slowpath", "_raw_spin_lock_irqsave", "qla_command_done"),
        "native_queued_spin_lock_slowpath",
    ),
    (
        "x86-6.1-rcu-stall",
        CrashKind.RCU_STALL,
        "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
        ("poller", 777, 2, "O"),
        ("delay_tsc", "poll_device", "poll_ioctl"),
        "delay_tsc",
    ),
    (
        "x86-6.1-hung-task",
        CrashKind.HUNG_TASK,
        "INFO: task kworker/u8:3:2811 blocked for more than 120 seconds.",
        ("kworker/u8:3", 2811, None, "W"),
        ("__schedule", "schedule", "io_schedule", "folio_wait_bit_common", "write_cache_pages"),
        "",
    ),
    (
        "x86-6.1-out-of-memory",
        CrashKind.OUT_OF_MEMORY,
        "Out of memory: system-wide panic_on_oom is enabled",
        ("stress", 902, 1, ""),
        ("dump_header", "out_of_memory.cold"),
        "",
    ),
    (
        "x86-6.1-machine-check",
        CrashKind.MACHINE_CHECK,
        "mce: [Hardware Error]: CPU 6: Machine Check Exception: 5 Bank 7: be00000001010091",
        ("swapper/6", 0, 6, "M"),
        ("intel_idle", "cpuidle_enter_state"),
        "intel_idle",
    ),
    (
        "arm64-6.12-serror",
        CrashKind.HARDWARE_ERROR,
        "Asynchronous SError Interrupt",
        ("swapper/1", 0, 1, "M"),
        ("cpu_do_idle",),
        "cpu_do_idle",
    ),
    (
        "x86-6.1-nmi",
        CrashKind.NMI,
        "NMI: Not continuing",
        ("swapper/0", 0, 0, ""),
        ("native_safe_halt", "default_idle"),
        "native_safe_halt",
    ),
    (
        "x86-6.1-warning",
        CrashKind.WARNING,
        "WARNING: at lib/refcount.c:28 refcount_warn_saturate",
        ("rmmod", 544, 0, "OE"),
        ("refcount_warn_saturate", "ring_put", "ring_exit"),
        "refcount_warn_saturate",
    ),
    (
        "x86-5.4-warning",  # panic() comes before the registers: the trace is panic()'s own
        CrashKind.WARNING,
        "WARNING: at lib/refcount.c:28 refcount_warn_saturate",
        ("rmmod", 1544, 3, "OE"),
        ("refcount_warn_saturate", "ring_put", "ring_exit"),
        "refcount_warn_saturate",
    ),
    (
        "x86-6.12-stack-overflow",
        CrashKind.STACK_OVERFLOW,
        "BUG: TASK stack guard page was hit",
        ("ls", 1820, 1, ""),
        ("memset_orig", "overlay_lookup", "lower_lookup", "overlay_lookup"),
        "memset_orig",
    ),
    (
        "x86-6.1-init-died",
        CrashKind.INIT_DIED,
        "Attempted to kill init! exitcode=0x00000100",
        ("init", 1, 0, ""),
        ("panic", "do_exit.cold", "do_group_exit"),
        "",
    ),
    (
        "x86-6.1-no-root",
        CrashKind.NO_ROOT,
        "VFS: Unable to mount root fs on unknown-block(0,0)",
        ("swapper/0", 1, 0, ""),
        ("panic", "mount_block_root", "prepare_namespace"),
        "",
    ),
]


@pytest.mark.parametrize(
    ("name", "kind", "title", "who", "functions", "pc_function"), TOLD, ids=[told[0] for told in TOLD]
)
def test_what_the_log_tells(
    name: str,
    kind: CrashKind,
    title: str,
    who: tuple[str, int, int | None, str],
    functions: tuple[str, ...],
    pc_function: str,
) -> None:
    found = _identify(name)
    assert (found.kind, found.title) == (kind, title)
    assert (found.task, found.pid, found.cpu, found.taint) == who
    assert found.call_trace[: len(functions)] == functions
    assert found.pc_function == pc_function
    assert re.fullmatch("[0-9a-f]{16}", found.signature)
    panics = [line for line in _lines(name) if "] Kernel panic" in line]
    assert found.panic_message == (panics[-1].partition("] ")[2].strip() if panics else "")


@pytest.mark.parametrize("name", [told[0] for told in TOLD])
def test_form_of_the_lines_does_not_matter(name: str) -> None:
    """Bare text, text with callers, and records tell the same."""
    lines = _lines(name)
    known = identify(lines)
    prefix = re.compile(r"\[ *(\d+)\.(\d+)\](?:\[ *([TC]\d+)\])? ")
    stamps = [match for line in lines if (match := prefix.match(line))]
    bare = [line[stamp.end() :] for line, stamp in zip(lines, stamps, strict=True)]
    caller = [f"[{stamp[1]:>5}.{stamp[2]}][{stamp[3] or 'T44':>6}] " for stamp in stamps]
    with_caller = [prefix + text for prefix, text in zip(caller, bare, strict=True)]
    records = [
        LogRecord(number, int(stamp[1] + stamp[2]) * 1000, 4, 0, text.rstrip("\n"), stamp[3] or "")
        for number, (stamp, text) in enumerate(zip(stamps, bare, strict=True))
    ]
    assert identify(with_caller) == identify(records) == known
    if known.kind is not CrashKind.HUNG_TASK:  # of which only the times tell which were found at once
        assert identify(bare) == known


def test_modules_without_flags_over_several_records() -> None:
    modules = _identify("x86-6.1-null-dereference").modules
    assert modules[:3] == ("kdump_test", "intel_rapl_msr", "intel_rapl_common")
    assert modules[-4:] == ("mbcache", "jbd2", "virtio_blk", "crc32c_intel")
    assert _identify("x86-5.10-soft-lockup").modules == ("looper", "virtio_blk", "ext4")
    assert _identify("x86-6.1-list-bug").modules == ("foo", "nvidia")


def test_hardware_name() -> None:
    assert _identify("x86-6.1-null-dereference-again").hardware_name == (
        "Dell Inc. PowerEdge R640/0H28RR, BIOS 2.19.1 06/04/2023"
    )


def test_name_of_a_task_with_blanks_and_many_taints() -> None:
    found = _identify("x86-6.1-null-dereference-again")
    assert (found.task, found.pid, found.taint) == ("refill daemon", 4711, "SWOE")


# --- which of several is the crash --------------------------------------------------------------------------


def test_log_without_a_crash() -> None:
    found = identify(
        ["[    0.000000] Linux version 6.1.0-13-amd64\n", "[    1.000000] Run /init as init process\n"]
    )
    assert found == CrashIdentity(CrashKind.UNKNOWN)
    assert identify([]) == found


def test_earlier_trouble_is_not_the_crash() -> None:
    before = _lines("x86-6.1-null-dereference") + _lines("x86-5.10-soft-lockup")[:16]
    found = identify(before + _lines("x86-6.1-sysrq"))
    assert found == _identify("x86-6.1-sysrq")


def test_oops_after_an_earlier_oops() -> None:
    first = _lines("x86-6.1-list-bug")
    assert identify(first + _lines("x86-6.12-null-dereference")) == _identify("x86-6.12-null-dereference")


def test_panic_long_after_a_report_of_its_kind() -> None:
    message = "Timeout: Not all CPUs entered broadcast exception handler"
    old = ["[   10.000000] mce: [Hardware Error]: CPU 1: Machine Check: 0 Bank 9: 8c00004000010090\n"]
    new = [
        f"[90000.000000] Kernel panic - not syncing: {message}\n",
        "[90000.000001] CPU: 0 PID: 0 Comm: swapper/0 Tainted: G   M               6.1.0-13-amd64 #1\n",
    ]
    found = identify(old + new)
    assert found.kind is CrashKind.MACHINE_CHECK
    assert found.title == message


def test_init_that_died_of_an_oops() -> None:
    message = "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009"
    oops = _lines("x86-6.1-null-dereference")
    of_init = [line.replace("PID: 612 Comm: bash", "PID: 1 Comm: init") for line in oops]
    found = identify([*of_init, f"[   31.999999] {message}\n"])
    assert (found.kind, found.pid, found.pc_function) == (CrashKind.OOPS, 1, "ring_fill")
    assert found.panic_message == message
    # An oops of another task is not why init died.
    assert identify([*oops, f"[   31.999999] {message}\n"]).kind is CrashKind.INIT_DIED


def test_unknown_panic_is_told_by_its_message() -> None:
    known = "VFS: Unable to mount root fs on unknown-block(0,0)"
    found = identify([line.replace(known, "Out of coffee at 12") for line in _lines("x86-6.1-no-root")])
    assert (found.kind, found.title) == (CrashKind.PANIC, "Out of coffee at 12")


def test_programs_cannot_pretend() -> None:
    """What came through /dev/kmsg has another facility than the kernel's own."""
    told = LogRecord(1, 0, 0, 1, "Kernel panic - not syncing: said a program")
    assert identify([told]).kind is CrashKind.UNKNOWN
    assert identify([LogRecord(1, 0, 0, 0, told.text)]).kind is CrashKind.PANIC


def test_sanitizer() -> None:
    lines = [
        line.replace("WARNING: CPU: 0 PID: 544 at lib/refcount.c:28", "BUG: KASAN: slab-use-after-free in")
        for line in _lines("x86-6.1-warning")
    ]
    found = identify(lines)
    assert (found.kind, found.title) == (
        CrashKind.SANITIZER,
        "BUG: KASAN: slab-use-after-free in refcount_warn_saturate",
    )


def test_warning_as_newer_kernels_print_it() -> None:
    old = "WARNING: CPU: 0 PID: 544 at lib/refcount.c:28 refcount_warn_saturate+0xba/0x110"
    new = "WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xba/0x110, CPU#0: rmmod/544"
    found = identify([line.replace(old, new) for line in _lines("x86-6.1-warning")])
    assert found.title == "WARNING: lib/refcount.c:28 at refcount_warn_saturate"


def test_lockup_that_another_processor_reports() -> None:
    """The detector by buddies: the one that is stuck tells of itself by an NMI."""
    lines = _lines("x86-6.1-hard-lockup")
    lines[0] = "[  512.600231] watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 2\n"
    lines[1:1] = [
        "[  512.600232] CPU: 0 PID: 1 Comm: init Not tainted 6.12.6-amd64 #1\n",
        "[  512.600232] Sending NMI from CPU 0 to CPUs 2:\n",
        "[  512.600232] NMI backtrace for cpu 2\n",
    ]
    found = identify(lines)
    assert (found.task, found.cpu) == ("fcping", 2)
    assert found.signature == _identify("x86-6.1-hard-lockup").signature


# --- the signature ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        # another boot, machine, build, task, caller, and compiler's suffixes; another version; architecture
        (
            "x86-6.1-null-dereference",
            "x86-6.1-null-dereference-again",
            "x86-6.12-null-dereference",
            "arm64-6.1-null-dereference",
        ),
        ("x86-5.10-soft-lockup", "x86-5.10-soft-lockup-again"),  # elsewhere in the same loop
        ("x86-5.4-warning", "x86-6.1-warning"),
        ("x86-4.19-sysrq", "x86-6.1-sysrq"),
    ],
    ids=lambda names: names[0],
)
@pytest.mark.promise("same-bug")
def test_same_bug_has_the_same_signature(names: tuple[str, ...]) -> None:
    assert len({_identify(name).signature for name in names}) == 1


def test_other_bugs_have_other_signatures() -> None:
    names = {told[0] for told in TOLD} - {
        "x86-6.12-null-dereference",
        "arm64-6.1-null-dereference",
        "x86-5.4-warning",
        "x86-4.19-sysrq",
    }
    assert len({_identify(name).signature for name in names}) == len(names)


def _changed(name: str, *changes: tuple[str, str]) -> str:
    text = "".join(_lines(name))
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return identify(text.splitlines()).signature


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("x86-6.1-null-dereference", [("ring_fill", "ring_drain")]),
        ("x86-6.1-null-dereference", [("ring_refill", "ring_flush")]),
        ("x86-6.1-null-dereference", [("kernel NULL pointer dereference,", "bad page fault for")]),
        ("x86-6.1-list-bug", [("lib/list_debug.c", "mm/slub.c")]),
        ("x86-6.1-hung-task", [("write_cache_pages", "ext4_bio_write_page")]),
        ("x86-6.1-hard-lockup", [("qla_command_done", "qla_command_abort")]),
        ("x86-5.10-soft-lockup", [("looper_init", "puller_init")]),
        ("x86-6.1-machine-check", [("Bank 7", "Bank 4")]),
        ("x86-6.1-init-died", [("0x00000100", "0x0000000b")]),
        ("x86-6.12-stack-overflow", [("lower_lookup", "upper_lookup")]),
        ("x86-6.1-warning", [("ring_put", "ring_get")]),
    ],
)  # fmt: skip
def test_what_makes_it_another_bug(name: str, changes: list[tuple[str, str]]) -> None:
    assert _changed(name, *changes) != _identify(name).signature


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("x86-6.1-null-dereference", [("+0x1a/0x30", "+0x1c/0x38"), ("000010", "0000ff"), ("612", "9")]),
        ("x86-6.1-null-dereference", [("vfs_write", "vfs_writev"), (" ksys_write", " __x64_sys_writev")]),
        ("x86-6.1-list-bug", [("list_debug.c:56", "list_debug.c:59"), ("lib/", "/build/linux-6.1/lib/")]),
        ("x86-6.12-general-protection", [("0xdead000000000122", "0x6b6b6b6b6b6b6b6b")]),
        ("x86-6.12-general-protection", [("default_idle", "acpi_idle_enter")]),
        ("x86-6.1-hung-task", [("io_schedule", "schedule_timeout"), ("kworker/u8:3", "kworker/u16:0")]),
        ("x86-6.1-rcu-stall", [("rcu_preempt", "rcu_sched"), ("delay_tsc", "ioread32")]),
        ("x86-6.1-nmi", [("native_safe_halt", "copy_page"), ("reason 21", "reason 31")]),
        ("x86-6.1-out-of-memory", [("handle_mm_fault", "do_read_fault"), ("stress", "bash")]),
        ("x86-6.1-machine-check", [("CPU 6", "CPU 1"), ("intel_idle", "memcpy"), ("be0000000", "ba0000000")]),
        ("x86-6.1-init-died", [("Comm: init", "Comm: systemd"), ("#1 ", "#2 ")]),
        ("x86-6.1-no-root", [("(0,0)", "(8,1)")]),
        ("x86-6.12-stack-overflow", [("memset_orig+0x4/0xb0", "lower_lookup+0x4/0x60")]),
        ("x86-6.1-warning", [("PID: 544", "PID: 9"), ("CPU: 0", "CPU: 6"), ("count.c:28", "count.c:3")]),
    ],
)  # fmt: skip
def test_what_does_not(name: str, changes: list[tuple[str, str]]) -> None:
    assert _changed(name, *changes) == _identify(name).signature


def test_no_signature_where_the_place_is_unknown() -> None:
    lines = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000\n",
        "Oops: 0010 [#1] PREEMPT SMP NOPTI\n",
    ]
    found = identify(lines)
    assert (found.kind, found.signature) == (CrashKind.OOPS, "")


def test_jump_to_nowhere_is_known_by_who_jumped() -> None:
    lines = _lines("x86-6.1-null-dereference")
    jumped = [
        re.sub(r"RIP: 0010:ring_fill.*", "RIP: 0010:0x0", line) for line in lines if "? ring_fill" not in line
    ]
    found = identify(jumped)
    assert (found.pc_function, found.call_trace[0]) == ("", "ring_refill")


def test_damaged_text_never_stops_it() -> None:
    chance = random.Random(3)
    names = sorted(path.stem for path in CRASHES.glob("*.txt"))
    for _ in range(150):
        lines = _lines(chance.choice(names))
        for _ in range(5):
            at = chance.randrange(len(lines))
            lines[at] = chance.choice(
                [lines[at][chance.randrange(40) :], "\x00\ufffd" * 2000, "", "Tainted: A A " * 900]
            )
        identify(lines)
