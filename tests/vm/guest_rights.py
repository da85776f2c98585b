# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run inside a guest, as some user: try all methods and properties of the service. Prints a JSON object.

`guest_rights.py DUMP_PATH`: a polkit agent on our terminal asks whoever sits there. Each entry of what is
printed is "done", or the D-Bus error; "never tried" names the methods that the service has and this does not
know.
"""

import asyncio
import json
import os
import subprocess
import sys

from dbus_next import BusType, Message, MessageFlag, MessageType, PropertyAccess, Variant
from dbus_next.aio import MessageBus

MANAGER, SETTINGS, DUMP = "org.kdump.Kdump1", "org.kdump.Kdump1.Settings", "org.kdump.Kdump1.Dump"
PATH = "/org/kdump/Kdump1"
PROPERTIES = "org.freedesktop.DBus.Properties"


async def main() -> None:
    dump = sys.argv[1]
    bus = await MessageBus(bus_type=BusType.SYSTEM, negotiate_unix_fd=True).connect()
    agent = start_agent() if os.isatty(0) else None
    answers = {}
    tried = set()
    # Who failed once is not asked again: PAM takes two seconds over each wrong password.
    patient = True

    async def attempt(
        name: str, interface: str, member: str, signature: str = "", *body: object, path: str = PATH
    ) -> None:
        nonlocal patient
        reply = await bus.call(
            Message(
                destination="org.kdump.Kdump1",
                path=path,
                interface=interface,
                member=member,
                signature=signature,
                body=list(body),
                flags=MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION if patient else MessageFlag.NONE,
            )
        )
        assert reply is not None
        tried.add(f"{interface}.{member}")
        patient = patient and not str(reply.error_name).endswith("NotAuthorized")
        answers[name] = "done" if reply.message_type is MessageType.METHOD_RETURN else reply.error_name
        if reply.message_type is MessageType.METHOD_RETURN and name == "Open":
            with open(reply.unix_fds[reply.body[0]], "rb") as file:
                answers["bytes of the record"] = len(file.read())

    async def values_of(interface: str, path: str) -> dict[str, Variant]:
        reply = await bus.call(
            Message(
                destination="org.kdump.Kdump1", path=path, interface=PROPERTIES, member="GetAll",
                signature="s", body=[interface],
            )
        )  # fmt: skip
        assert reply is not None
        found: dict[str, Variant] = reply.body[0]
        return found

    for interface, path in ((MANAGER, PATH), (SETTINGS, PATH), (DUMP, dump)):
        await attempt(f"read {interface}", PROPERTIES, "GetAll", "s", interface, path=path)
    await attempt("GetManagedObjects", "org.freedesktop.DBus.ObjectManager", "GetManagedObjects")
    for member in ("Check", "Estimate"):
        await attempt(member, MANAGER, member)
    await attempt("GetSettings", SETTINGS, "GetSettings")
    await attempt("Rehearse", MANAGER, "Rehearse")
    await attempt("Reserve", MANAGER, "Reserve", "sa{sv}", "256M", {"dry-run": Variant("b", True)})
    for member in ("Reload", "Rebuild", "Disarm", "TestCrash"):
        # While it is disarmed, TestCrash refuses with NotReady: whoever gets so far has the right.
        await attempt(member, MANAGER, member)
    served = [
        (path, described)
        for path in (PATH, dump)
        for described in (await bus.introspect("org.kdump.Kdump1", path)).interfaces
        if described.name.startswith(MANAGER)
    ]
    for path, described in served:
        read_only = [each.name for each in described.properties if each.access is PropertyAccess.READ]
        for key in read_only[:1]:
            value = (await values_of(described.name, path))[key]
            body = (described.name, key, Variant(value.signature, value.value))
            await attempt(f"set read-only {described.name}.{key}", PROPERTIES, "Set", "ssv", *body, path=path)
    for key, value in sorted((await values_of(SETTINGS, PATH)).items()):
        same = Variant(value.signature, value.value)
        await attempt(f"set {key}", PROPERTIES, "Set", "ssv", SETTINGS, key, same)
        await attempt(f"reset {key}", SETTINGS, "ResetSetting", "s", key)
    # Not before: each setting would have the kernel loaded anew.
    await attempt("Arm", MANAGER, "Arm")
    await attempt("Open", DUMP, "Open", "s", "record", path=dump)
    await attempt("Keep", DUMP, "Keep", "b", True, path=dump)
    await attempt("Delete", DUMP, "Delete", path=dump)
    methods = {f"{described.name}.{each.name}" for _, described in served for each in described.methods}
    answers["never tried"] = sorted(methods - tried)
    if agent is not None:
        agent.terminate()
    print(json.dumps(answers))


def start_agent() -> subprocess.Popen[bytes]:
    """polkit's agent for this process; it says by closing the pipe that it is registered."""
    ours, its = os.pipe()
    agent = subprocess.Popen(
        ["pkttyagent", "--process", str(os.getpid()), "--notify-fd", str(its)], pass_fds=[its]
    )
    os.close(its)
    os.read(ours, 1)
    os.close(ours)
    return agent


if __name__ == "__main__":
    asyncio.run(main())
