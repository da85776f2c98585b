# SPDX-License-Identifier: LGPL-2.1-or-later
"""Captures that cannot succeed: the machine comes back all the same, and nothing passes for a whole dump."""

import functools

import pytest

from .conftest import MachineFactory, OpenDumpOf
from .machine import PLANTED_COMMAND

CONFIG = "/etc/kdump-service.conf.d/test.conf"
SLOW = b"[Dump]\nContents=everything\nCompressionLevel=12\n"
FALLBACK = "/var/lib/kdump-service/crash"
ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"


@pytest.fixture
def machine_factory(machine_factory: MachineFactory) -> MachineFactory:
    """Machines whose capture boot mounts production's root: what the small image does is in
    test_capture_image."""
    return functools.partial(machine_factory, environment="rootfs", cpus=1)


@pytest.mark.slow
def test_target_has_room_for_the_kernel_only(machine_factory: MachineFactory, open_dump: OpenDumpOf) -> None:
    everything = b"[Dump]\nContents=everything\nCompression=none\n"
    with machine_factory(files={CONFIG: everything}) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        # Besides KeepFree= (128M).
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (300 << 20))) /filler && sync")
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"
        assert dump.record["dump_level"] == 31
        assert [problem["reason"] for problem in dump.record["problems"]] == ["stepped-down"]
        opened = open_dump(machine, dump)
    assert opened.drgn(PLANTED_COMMAND).comm == PLANTED_COMMAND


def test_target_full(machine_factory: MachineFactory) -> None:
    with machine_factory() as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (132 << 20))) /filler && sync")
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "failed"
        assert [problem["reason"] for problem in dump.record["problems"]] == ["target-full"]
        assert sorted(dump.files) == ["dmesg.txt", "record.json"]
        assert dump.record["panic_message"] == "Kernel panic - not syncing: sysrq triggered crash"


@pytest.mark.slow
def test_target_read_only(machine_factory: MachineFactory) -> None:
    files = {"/etc/fstab": ROOT + b"/var/crash /var/crash none bind,ro 0 0\n", "/var/crash/keep": b""}
    with machine_factory(files=files) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.run("! touch /var/crash/keep")
        machine.crash("sysrq")
        machine.wait_for_boot()
        assert machine.dumps() == []
        # The crash is not forgotten where its memory could not be saved.
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert sorted(dump.files) == ["dmesg.txt", "record.json"]
        assert "sysrq: Trigger a crash" in machine.get(f"{dump.path}/dmesg.txt").decode()
        assert "target-unusable" in [problem["reason"] for problem in dump.record["problems"]]


@pytest.mark.parametrize("blow", ["kill", pytest.param("panic", marks=pytest.mark.slow)])
def test_cut_off_half_way(machine_factory: MachineFactory, blow: str) -> None:
    """The capture process is killed, or the capture kernel panics itself, while the image is written."""
    with machine_factory(agent_in_capture=True, files={CONFIG: SLOW}) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.crash("sysrq")
        machine.wait_for_boot("capture")
        machine.wait_until("test $(du -sm /var/crash | cut -f1) -ge 16")
        if blow == "kill":
            machine.spawn("systemctl kill --signal=KILL kdump-capture.service")
        else:
            machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "capturing"
        assert sorted(dump.files) == ["dmesg.txt", "record.json", "vmcore.incomplete"]
        machine.wait_until_armed()
        # The service judges such a record by what it finds.
        assert "incomplete" in machine.run("kdumpctl list").stdout
