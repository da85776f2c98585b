# SPDX-License-Identifier: LGPL-2.1-or-later
"""Crashes that end well: a whole dump, read by crash, drgn and gdb, and a machine back in production."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import MachineFactory, OpenDumpOf, RestoredFactory
from .events import GuestDump
from .machine import PLANTED_COMMAND, Crash, Machine

CRASH_RECORDED = "55792e44a9564d9080aa469de63bb5bc"  # as kdump_service/log.py and the catalog say
FILE_MODE, FOLDER_MODE = "600", "700"
CONFIG = "/etc/kdump-service.conf.d/test.conf"
IMAGES = "/var/lib/kdump-service/images"
BUILDS = "journalctl -b --no-pager -o cat -u 'kdump-build-image@*'"


def crashed(machine: Machine, how: Crash, end: str = "guest-reset") -> GuestDump:
    """The whole dump of a machine that is crashed, and ends when it would come back."""
    machine.end_at_reset()
    asked = machine.crash(how)
    machine.wait_until_off(end, since=asked)
    [dump] = machine.dumps()
    assert dump.record["state"] == "complete"
    return dump


def the_image_was_built_with_the_disk(machine: Machine) -> None:
    """Nothing is built that has not changed, and the machine is armed before network and services start."""
    status: dict[str, Any] = json.loads(machine.run("kdumpctl status --json").stdout)
    assert status["Image"].startswith(IMAGES)
    assert "root=" not in status["CommandLine"]
    # journalctl fails where there never was such a unit.
    assert machine.run(BUILDS, check=False).stdout.strip() in ("", "-- No entries --")
    order = machine.run("systemctl show -P ActiveEnterTimestampMonotonic kdump.service basic.target").stdout
    armed, basic = (int(number) for number in order.split())
    assert armed <= basic


def production_tells_of_the_crash(machine: Machine, dump: GuestDump) -> None:
    """In its journal, where the capture's own is one boot of three, and in its list."""
    told = f"journalctl -b -u kdump.service MESSAGE_ID={CRASH_RECORDED} --no-pager -o cat | grep ."
    assert dump.path in machine.wait_until(told).stdout
    assert Path(dump.path).name in machine.run("kdumpctl list").stdout
    boots = machine.run("journalctl --list-boots --no-pager -q").stdout.splitlines()
    assert len([line for line in boots if "BOOT ID" not in line]) == 3
    capture = machine.run("journalctl -b -1 --no-pager -o cat -t kdump-service").stdout
    assert "Dump saved: /var/crash/" in capture


@pytest.mark.promise(
    "sysrq",
    "opens-in-debuggers",
    "small-image",
    "image-is-current",
    "journal-tells",
    "never-lose-the-log",
    "only-the-right-person",
)
@pytest.mark.guest(boots=2, captures=1)
def test_sysrq(machine_factory: MachineFactory, open_dump: OpenDumpOf) -> None:
    """The whole way: from the first boot to a machine that is back, and tells of its crash."""
    with machine_factory(cpus=1) as machine:
        first = machine.wait_for_boot()
        machine.wait_until_armed()
        the_image_was_built_with_the_disk(machine)
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"
        assert dump.record["problems"] == []
        assert dump.record["kernel_release"] == first.release
        assert dump.record["boot_id"] == first.boot_id.replace("-", "")
        assert sorted(dump.files) == ["capture.journal", "dmesg.txt", "record.json", "vmcore"]
        modes = machine.run(f"stat -c %a {dump.path} {dump.path}/*").stdout.split()
        assert modes == [FOLDER_MODE, *4 * [FILE_MODE]]
        log = machine.get(f"{dump.path}/dmesg.txt").decode()
        machine.wait_until_armed()
        production_tells_of_the_crash(machine, dump)
        opened = open_dump(machine, dump)

    drgn = opened.drgn(PLANTED_COMMAND)
    assert drgn.panic_message == "Kernel panic - not syncing: sysrq triggered crash"
    assert drgn.comm == PLANTED_COMMAND
    assert drgn.planted_pids == [drgn.pid]
    assert not drgn.unreadable
    assert {"panic", "sysrq_handle_crash", "write_sysrq_trigger", "ksys_write"} <= set(drgn.stack)
    assert (drgn.release, drgn.nodename) == (first.release, "kdump-test")

    crash = opened.crash(PLANTED_COMMAND)
    assert crash.panic_message == drgn.panic_message
    assert {"panic", "sysrq_handle_crash", "ksys_write"} <= set(crash.stack)
    assert str(drgn.pid) in crash.ps
    assert any("Linux version" in line for line in crash.log)
    assert any("sysrq: Trigger a crash" in line for line in crash.log)
    # The log that was saved first is, to the letter, the one that crash finds in the memory.
    assert log.rstrip("\n").split("\n") == crash.log
    assert dump.record["panic_message"] == crash.panic_message
    identity = {name: dump.record[name] for name in ("crash_kind", "crash_task", "crash_pid")}
    assert identity == {"crash_kind": "sysrq", "crash_task": PLANTED_COMMAND, "crash_pid": drgn.pid}
    assert "write_sysrq_trigger" in dump.record["call_trace"]
    # What belongs to processes is left out.
    assert dump.record["excluded_pages"]["user"] > 1000


@pytest.mark.promise("oops", "elf", "elf-opens-in-gdb")
@pytest.mark.guest(captures=1)
def test_null_dereference(restored: RestoredFactory, open_dump: OpenDumpOf) -> None:
    """An oops; the dump as an ELF core, which gdb opens too; and a machine that is switched off when it is
    saved: OnSuccess= has its way over the unit's reboot."""
    with restored(files={CONFIG: b"[Dump]\nFormat=elf\n[Action]\nOnSuccess=poweroff\n"}) as machine:
        release = machine.boots[0].release
        dump = crashed(machine, "null_dereference", "guest-shutdown")
        opened = open_dump(machine, dump)
    assert dump.record["crash_kind"] == "oops"
    assert dump.record["call_trace"][0] == "kdump_test_null_dereference"
    named = {"kdump_test_null_dereference", "kdump_test_caller", "trigger_set"}
    drgn = opened.drgn(PLANTED_COMMAND)
    assert "NULL pointer dereference" in drgn.panic_message
    assert drgn.comm == PLANTED_COMMAND
    assert named <= set(drgn.stack)
    assert named <= set(opened.crash(PLANTED_COMMAND).stack)
    gdb = opened.gdb()
    assert (gdb.release, gdb.threads) == (release, 2)


@pytest.mark.promise("busy-machine", "elf-lz4")
@pytest.mark.guest(captures=1)
def test_busy_and_lz4(restored: RestoredFactory, open_dump: OpenDumpOf) -> None:
    """A machine that writes, reads, forks and computes when it dies; and the dump in LZ4 frames."""
    with restored(files={CONFIG: b"[Dump]\nFormat=elf\nCompression=lz4\n"}) as machine:
        for number, load in enumerate(
            (
                "dd if=/dev/zero of=/root/junk bs=1M count=100 conv=fsync",
                "find / -xdev -type f -size -64k -exec cat {} +",
                "/bin/true",
                "dd if=/dev/urandom of=/dev/null bs=64k count=1000",
            )
        ):
            machine.run(
                f"systemd-run --unit=load{number} /bin/sh -c 'while :; do {load}; done >/dev/null 2>&1'"
            )
        machine.wait_until("test -s /root/junk")
        dump = crashed(machine, "sysrq")
        assert dump.record["compression"] == "lz4"
        assert sorted(dump.files) == ["capture.journal", "dmesg.txt", "record.json", "vmcore.lz4"]
        opened = open_dump(machine, dump)
    drgn = opened.drgn(PLANTED_COMMAND)
    assert drgn.comm == PLANTED_COMMAND
    assert not drgn.unreadable
    assert opened.crash(PLANTED_COMMAND).panic_message == drgn.panic_message
    assert "__crash_kexec" in opened.gdb().crashed_frames


@pytest.mark.promise("sysrq")
@pytest.mark.guest(boots=3, captures=2)
@pytest.mark.part("captures")
def test_two_in_a_row(machine_factory: MachineFactory, open_dump: OpenDumpOf) -> None:
    with machine_factory() as machine:
        for crashes in (1, 2):
            machine.wait_for_boot()
            machine.wait_until_armed()
            assert len(machine.dumps()) == crashes - 1
            machine.crash("sysrq")
        machine.wait_for_boot()
        dumps = machine.dumps()
        assert [dump.record["state"] for dump in dumps] == ["complete", "complete"]
        assert dumps[0].record["boot_id"] != dumps[1].record["boot_id"]
        opened = open_dump(machine, dumps[1])
    assert opened.drgn(PLANTED_COMMAND).comm == PLANTED_COMMAND
