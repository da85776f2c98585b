# SPDX-License-Identifier: LGPL-2.1-or-later
"""Captures that cannot succeed: the machine comes back all the same, and nothing passes for a whole dump."""

import pytest

from .conftest import OpenDumpOf, RestoredFactory
from .machine import PLANTED_COMMAND, Environment, Machine

CONFIG = "/etc/kdump-service.conf.d/test.conf"
SLOW = b"[Dump]\nContents=everything\nCompressionLevel=3\n"
FALLBACK = "/var/lib/kdump-service/crash"
ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"

# The small image has a journal of its own, for which there is room here.
JOURNAL = {"initramfs": ["capture.journal"], "rootfs": []}
# Of the capture boot. In production's root it takes twice as long as in the small image.
ENVIRONMENTS = ["initramfs", pytest.param("rootfs", marks=pytest.mark.part("captures"))]


def crash_until_reset(machine: Machine) -> None:
    """Crash, and end the machine when it would come back."""
    machine.end_at_reset()
    asked = machine.crash("sysrq")
    machine.wait_until_off(since=asked)


@pytest.mark.promise("steps-down")
@pytest.mark.guest(captures=1)
@pytest.mark.part("captures")
def test_target_has_room_for_the_kernel_only(restored: RestoredFactory, open_dump: OpenDumpOf) -> None:
    with restored(files={CONFIG: b"[Dump]\nContents=everything\nCompression=none\n"}) as machine:
        # Besides KeepFree= (128M).
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (300 << 20))) /filler && sync")
        crash_until_reset(machine)
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"
        assert dump.record["dump_level"] == 31
        assert [problem["reason"] for problem in dump.record["problems"]] == ["stepped-down"]
        opened = open_dump(machine, dump)
    assert opened.drgn(PLANTED_COMMAND).comm == PLANTED_COMMAND


@pytest.mark.promise("target-full", "steps-down", "never-lose-the-log")
@pytest.mark.guest(captures=1)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_target_full(restored: RestoredFactory, environment: Environment) -> None:
    with restored(environment=environment) as machine:
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (132 << 20))) /filler && sync")
        crash_until_reset(machine)
        [dump] = machine.dumps()
        assert dump.record["state"] == "incomplete"
        assert {problem["reason"] for problem in dump.record["problems"]} == {"target-full"}
        names = [*JOURNAL[environment], "dmesg.txt", "record.json", "vmcore.incomplete"]
        assert sorted(dump.files) == names
        assert dump.record["panic_message"] == "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.promise("target-read-only", "never-lose-the-log")
@pytest.mark.guest(captures=1)
def test_target_read_only(restored: RestoredFactory) -> None:
    """Production's fstab says so, which the small image does not read."""
    with restored(environment="rootfs") as machine:
        machine.put("/etc/fstab", ROOT + b"/var/crash /var/crash none bind,ro 0 0\n")
        machine.run("mkdir -p /var/crash && systemctl daemon-reload && mount /var/crash")
        machine.run("systemctl reload kdump.service && ! touch /var/crash/keep")
        machine.run("sync")
        crash_until_reset(machine)
        assert machine.dumps() == []
        # The crash is not forgotten where its memory could not be saved.
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert sorted(dump.files) == ["dmesg.txt", "record.json"]
        assert "sysrq: Trigger a crash" in machine.get(f"{dump.path}/dmesg.txt").decode()
        assert "target-unusable" in [problem["reason"] for problem in dump.record["problems"]]


@pytest.mark.promise("never-hang", "incomplete-says-so", "no-broken-dump-as-good")
@pytest.mark.guest(captures=1)
@pytest.mark.parametrize(
    "blow",
    [
        pytest.param("kill", marks=pytest.mark.promise("capture-killed")),
        pytest.param("panic", marks=pytest.mark.promise("panic-in-capture")),
    ],
)
def test_cut_off_half_way(restored: RestoredFactory, blow: str) -> None:
    """The capture process is killed, or the capture kernel panics itself, while the image is written."""
    with restored(agent_in_capture=True, files={CONFIG: SLOW}) as machine:
        machine.crash("sysrq")
        machine.wait_for_boot("capture")
        machine.wait_until("test $(du -sm /var/crash | cut -f1) -ge 16")
        if blow == "panic":
            crash_until_reset(machine)
        else:
            machine.end_at_reset()
            machine.spawn("systemctl kill --signal=KILL kdump-capture.service")
            machine.wait_until_off()
        # How the service judges such a record, by what it finds, is in tests/unit/store.
        [dump] = machine.dumps()
        assert dump.record["state"] == "capturing"
        # The first of them has the room for the record that was not written any more.
        names = [".record.json.new", "dmesg.txt", "record.json", "vmcore.incomplete"]
        assert sorted(dump.files) == names
