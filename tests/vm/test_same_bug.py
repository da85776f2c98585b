# SPDX-License-Identifier: LGPL-2.1-or-later
"""Several crashes: which are the same bug, and what the journal says of each; and a crash on request."""

import json
from typing import Any

import pytest

from .conftest import MachineFactory, RestoredFactory
from .machine import Machine

CRASH_RECORDED = "55792e44a9564d9080aa469de63bb5bc"


def listed(machine: Machine) -> list[dict[str, Any]]:
    """The crashes that the service knows, oldest first."""
    machine.wait_until_armed()
    dumps: list[dict[str, Any]] = json.loads(machine.run("kdumpctl list --json=short").stdout)
    return dumps


def entries(machine: Machine, message_id: str) -> list[dict[str, str]]:
    """Entries of the journal of this boot with that id."""
    command = f"journalctl -b -u kdump.service MESSAGE_ID={message_id} -o json --no-pager | grep ."
    return [json.loads(line) for line in machine.wait_until(command).stdout.splitlines()]


@pytest.mark.promise("same-bug", "journal-tells", "only-the-right-person")
@pytest.mark.guest(boots=4, captures=3)
@pytest.mark.part("captures")
def test_two_crashes_of_one_bug_and_one_of_another(machine_factory: MachineFactory) -> None:
    with machine_factory(cpus=1) as machine:
        machine.wait_for_boot()
        told = []
        for how in ("null_dereference", "sysrq", "null_dereference"):
            machine.wait_until_armed()
            machine.run("sync")  # or production's own journal is lost with what was not written yet
            machine.crash(how)
            machine.wait_for_boot()
            [entry] = entries(machine, CRASH_RECORDED)
            told.append(entry)
        first, other, again = listed(machine)
        assert first["Signature"] == again["Signature"] != other["Signature"]
        assert all(len(dump["Signature"]) == 16 for dump in (first, other, again))
        assert (first["SameBug"], other["SameBug"]) == ([again["Name"]], [])
        assert [entry.get("KDUMP_SAME_BUG", "0") for entry in told] == ["0", "0", "1"]
        assert [entry["KDUMP_SIGNATURE"] for entry in told] == [
            dump["Signature"] for dump in (first, other, again)
        ]
        when = first["CrashTime"].replace("T", " ").removesuffix("Z")
        assert when in machine.run(f"TZ=UTC kdumpctl info {again['Name']}").stdout
        machine.run("journalctl --update-catalog")  # as a package does when it is installed
        catalog = machine.run(f"journalctl -b -x MESSAGE_ID={CRASH_RECORDED} --no-pager").stdout
        assert "kdumpctl info" in catalog
        # The capture boots kept their journals: each is a boot of its own, between two of production.
        boots = machine.run("journalctl --list-boots --no-pager | grep -v IDX").stdout.splitlines()
        assert len(boots) == 7
        assert "Dump saved" in machine.run("journalctl -b -1 --no-pager -u kdump-capture.service").stdout

        # What is deleted stays on the list, as missing.
        machine.run(f"kdumpctl delete {first['Name']}")
        assert machine.run(f"test -e /var/crash/{first['Name']}", check=False).status == 1
        assert [dump["Presence"] for dump in listed(machine)] == ["missing", "present", "present"]
        assert "missing" in machine.run("kdumpctl list").stdout
        machine.run("systemctl restart kdump.service")
        assert [dump["Presence"] for dump in listed(machine)] == ["missing", "present", "present"]

        # Nobody without the right reads a byte of one that is there.
        machine.run("useradd bob")
        for command in (f"kdumpctl dump {again['Name']} -o /tmp/stolen", f"cat /var/crash/{again['Name']}/*"):
            denied = machine.run(f"runuser -u bob -- sh -c '{command}'", check=False)
            assert denied.status != 0, denied
            assert denied.stdout == ""
        assert machine.run("test -s /tmp/stolen", check=False).status == 1
        taken = machine.run(
            f"kdumpctl dump {again['Name']} -o /run/taken && cmp /run/taken /var/crash/{again['Name']}/vmcore"
        )
        assert taken.status == 0


@pytest.mark.promise("on-request", "test-proves")
@pytest.mark.guest(boots=1, captures=1)
def test_crash_on_request(restored: RestoredFactory) -> None:
    """kdumpctl test: proof that this kernel, image and target carry a dump, until one of them changes."""
    with restored() as machine:
        assert machine.status()["ProvenLevel"] == "unproven"
        machine.crash_by("kdumpctl test --yes")
        machine.wait_for_boot()
        [dump] = listed(machine)
        assert dump["Test"] is True
        assert dump["State"] == "complete"
        status = machine.status()
        assert status["ProvenLevel"] == "tested"
        assert status["LastCrash"].endswith(dump["Name"].replace("-", "_2d"))
        machine.run("systemctl restart kdump.service")
        machine.wait_until_armed()
        assert machine.status()["ProvenLevel"] == "tested"
        machine.run("kdumpctl config set CommandLineAppend quiet")
        assert machine.status()["ProvenLevel"] == "unproven"
