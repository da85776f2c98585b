# SPDX-License-Identifier: LGPL-2.1-or-later
"""Captures that cannot succeed: the machine comes back all the same, and nothing passes for a whole dump."""

import pytest

from .conftest import MachineFactory

FALLBACK = "/var/lib/kdump-service/crash"
ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"


def test_target_full(machine_factory: MachineFactory) -> None:
    with machine_factory() as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        # Room for KeepFree= (128M) and a part of the image.
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (200 << 20))) /filler && sync")
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert dump.record["state"] == "incomplete"
        assert "target-full" in [problem["reason"] for problem in dump.record["problems"]]
        assert sorted(dump.files) == ["dmesg.txt", "record.json", "vmcore.incomplete"]


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


@pytest.mark.parametrize("blow", ["kill", "panic"])
def test_cut_off_half_way(machine_factory: MachineFactory, blow: str) -> None:
    """The capture process is killed, or the capture kernel panics itself, while the image is written."""
    with machine_factory(agent_in_capture=True) as machine:
        machine.wait_for_boot()
        machine.wait_until_armed()
        machine.crash("sysrq")
        machine.wait_for_boot("capture")
        # By what is stored: the file has its full length from the start.
        machine.wait_until("test $(du -sm /var/crash | cut -f1) -ge 64", timeout_sec=90)
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
