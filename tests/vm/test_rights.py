# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, on the system bus with the real polkitd and logind: the table of the manual, tried out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from .lab import Lab
from .machine import Machine

HERE = Path(__file__).parent
TOOLS = "/usr/local/lib/kdump-test"
ADMINISTRATOR_PASSWORD = "moon and stars"
DUMP = "20260102T030405Z-kdump-test"
DUMP_PATH = "/org/kdump/Kdump1/dump/20260102T030405Z_2dkdump_2dtest"

FREE = ("read org.kdump", "GetManagedObjects", "Check", "Estimate", "GetSettings")
DENIED = "org.kdump.Kdump1.Error.NotAuthorized"
READ_ONLY = "org.freedesktop.DBus.Error.PropertyReadOnly"


@pytest.fixture(scope="module")
def machine(lab_base: Lab) -> Iterator[Machine]:
    """An armed machine with an administrator, an ordinary user, and a dump."""
    tools = {
        f"{TOOLS}/{name}": (HERE / name).read_bytes() for name in ("guest_session.py", "guest_rights.py")
    }
    # With the small image, Rebuild would build one, which takes minutes in here.
    with lab_base.restored(files=tools, environment="rootfs") as machine:
        machine.run(
            "useradd --create-home --shell /bin/sh --groups sudo alice"
            " && useradd --create-home --shell /bin/sh bob"
            # What polkit asks about is the session. The user's own systemd in it is ten seconds of work here.
            " && systemctl mask --runtime user@.service"
            f" && printf 'alice:{ADMINISTRATOR_PASSWORD}\\nbob:nothing\\n' | chpasswd"
        )
        yield machine
    lab_base.clean_up([machine])


def make_dump(machine: Machine) -> None:
    """A folder as the capture leaves it, and a service that knows of it; if nobody has left it there."""
    if machine.run(f"test -e /var/crash/{DUMP}", check=False).status == 0:
        return
    machine.run(
        "python3 -c 'from kdump_service.record import *; from pathlib import Path;"
        " from kdump_service.atomic_file import write_atomically;"
        f' folder = Path("/var/crash/{DUMP}"); folder.mkdir(mode=0o700, parents=True, exist_ok=True);'
        f' record = DumpRecord(name="{DUMP}", state=DumpState.COMPLETE, crash_time="2026-01-02T03:04:05Z");'
        " write_atomically(folder / RECORD_FILE, record.to_json())"
        "' && systemctl restart kdump.service"
    )
    machine.wait_until_armed()
    machine.wait_until(f"busctl tree --list org.kdump.Kdump1 | grep -q {DUMP_PATH}")


def local_session(user: str, password: str) -> str:
    """In a session at the machine's own seat, which is the active one."""
    return (
        "systemd-run --quiet --pipe --wait --collect -p PAMName=login -p TTYPath=/dev/tty1"
        f" -p User={user} --"
        f" python3 {TOOLS}/guest_session.py '--password={password}' "
    )


WHO = {
    "root": "",
    "administrator": local_session("alice", ADMINISTRATOR_PASSWORD),
    "user": local_session("bob", "a guess"),
    "remote": f"python3 {TOOLS}/guest_session.py --remote-user=bob '--password=a guess' ",
}


@pytest.mark.promise("rights", "only-the-right-person")
@pytest.mark.guest(seconds=60)
@pytest.mark.parametrize("who", WHO)
def test_who_may_do_what(machine: Machine, who: str) -> None:
    make_dump(machine)
    said = machine.run(f"{WHO[who]}python3 {TOOLS}/guest_rights.py {DUMP_PATH}", timeout_sec=1200).stdout
    # The agent's colours may stand before it.
    answers, _ = json.JSONDecoder().raw_decode(said, said.index('{"'))
    assert answers.pop("never tried") == []
    # One of the manager and one of the dump: of the settings there is none.
    fixed = [name for name in answers if name.startswith("set read-only ")]
    assert [answers.pop(name) for name in fixed] == [READ_ONLY] * 2
    acts = {name: answer for name, answer in answers.items() if not name.startswith(FREE)}
    assert {name: answers[name] for name in answers if name.startswith(FREE)} == dict.fromkeys(
        [name for name in answers if name.startswith(FREE)], "done"
    )
    assert len(acts) >= 7 + 2 * 15 + 3
    if who in ("root", "administrator"):
        assert acts.pop("TestCrash") == "org.kdump.Kdump1.Error.NotReady"
        # What captures in the root file system cannot be rehearsed: who is told so has the right.
        assert acts.pop("Rehearse") == "org.kdump.Kdump1.Error.CannotRehearse"
        assert acts.pop("bytes of the record") > 100
        assert acts == dict.fromkeys(acts, "done")
    else:
        assert acts == dict.fromkeys(acts, DENIED)
        assert machine.run(f"ls /var/crash/{DUMP}").stdout == "record.json\n"
        read = machine.run(f"runuser -u bob -- cat /var/crash/{DUMP}/record.json", check=False)
        assert "Permission denied" in read.stderr


@pytest.mark.promise("rights")
@pytest.mark.guest(seconds=1)
def test_policy_of_sessions(machine: Machine) -> None:
    """What polkit itself says of each action, by kind of session."""
    told = machine.run("pkaction --verbose | grep -A 8 '^org.kdump.Kdump1'").stdout
    defaults: dict[str, list[str]] = {}
    for line in told.splitlines():
        if line.startswith("org.kdump.Kdump1."):
            action = line.rstrip(":").removeprefix("org.kdump.Kdump1.")
        elif "implicit" in line:
            defaults.setdefault(action, []).append(line.split()[-1])
    assert sorted(defaults) == ["arm", "configure", "crash", "delete-dumps", "read-dumps"]
    assert all(answer.startswith("auth_admin") for answers in defaults.values() for answer in answers)
    assert defaults["crash"] == ["auth_admin"] * 3  # asked for each time
