# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make demo`: a machine arms itself, dies, saves its memory and comes back; its dump is opened with drgn.

Nothing of it is played: a Debian kernel panics in a virtual machine, and each figure was measured on the way.
Exits with 0 only if all of that held.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

from kdump_service.quantity import format_bytes

from .debuggers import DebuggerFailed, DrgnReport
from .lab import Lab
from .machine import PLANTED_COMMAND, CommandFailed, Machine, MachineLost

REPO = Path(__file__).parents[2]
STEPS_OF_THE_CRASH = (
    # What the console says on the way, in order, as a regular expression.
    r"Kernel panic - not syncing",
    r"Linux version",
    r"kdump: Kernel .* crashed",
    r"kdump: Kernel log saved",
    r"kdump: Dump saved",
)


def say(text: str = "") -> None:
    print(text, flush=True)


def heading(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.strip("\n").splitlines())


def production(machine: Machine) -> None:
    """Until the machine is armed."""
    boot = machine.wait_for_boot()
    say(f"    Linux {boot.release} is up after {boot.uptime_sec:.1f} s (no KVM: the processor is emulated)")
    machine.wait_until_armed()
    say("    $ kdumpctl status")
    say(indented(machine.run("kdumpctl status").stdout))


def crash(machine: Machine) -> float:
    """Until production is back; answers with the host time of the panic."""
    asked = machine.crash("sysrq")
    panicked = 0.0
    for pattern in STEPS_OF_THE_CRASH:
        line = machine.wait_for_console(pattern, since=asked)
        panicked = panicked or line.at
        say(f"    {line.at - panicked:5.1f} s  {line.text.strip()[:150]}")
    return panicked


def back(machine: Machine, panicked: float) -> dict[str, object]:
    """What production knows of the crash; the record of the dump."""
    machine.wait_for_boot()
    say(f"    {time.monotonic() - panicked:5.1f} s  production is up")
    machine.wait_until_armed()
    say(f"    {time.monotonic() - panicked:5.1f} s  and armed again")
    told = machine.wait_until(
        "journalctl --boot --unit=kdump.service --grep='crashed at' --output=cat --no-pager | grep ."
    )
    say("\n    The journal:")
    say(indented(told.stdout))
    say("\n    $ kdumpctl list")
    say(indented(machine.run("kdumpctl list").stdout))
    [dump] = machine.dumps()
    return dump.record


def opened(lab: Lab, machine: Machine) -> DrgnReport:
    """The dump as drgn sees it."""
    [dump] = machine.dumps()
    for name, size in sorted(dump.files.items()):
        stored = next((file["stored_bytes"] for file in dump.record["files"] if file["name"] == name), size)
        say(f"    {dump.path}/{name}: {format_bytes(size)}, {format_bytes(stored)} on disk")
    report = lab.open_dump(machine, dump).drgn(PLANTED_COMMAND)
    say(f"\n    drgn: {report.panic_message}")
    say(f"    drgn: in task {report.comm} (pid {report.pid}) of {report.tasks} tasks")
    say(indented(report.stack_text))
    return report


def main() -> int:
    if os.geteuid() != 0:
        print("make demo makes a root file system for its machine: run it as root", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdump-demo-") as folder:
        lab = Lab(REPO, Path(folder))
        heading("What the machine is made of (kept for the next time)")
        symbols = lab.vmlinux.name
        say(
            f"    {lab.disk.image.name}: Debian {lab.suite}, Linux {lab.tree.release}, {symbols} with symbols"
        )
        try:
            with lab.machine() as machine:
                heading("Production: the service arms the crash kernel")
                production(machine)
                heading(f"Crash: the task {PLANTED_COMMAND} makes the kernel panic")
                panicked = crash(machine)
                saved = machine.wait_for_console(STEPS_OF_THE_CRASH[-1], since=panicked).at - panicked
                record = back(machine, panicked)
                to_production = machine.boots[-1].at - panicked
                heading("The dump, opened with drgn")
                report = opened(lab, machine)
        except (MachineLost, CommandFailed, DebuggerFailed) as error:
            say(f"\nThe demo failed: {error}")
            return 1
        held = {
            "the dump is complete and verified": record["state"] == "complete" and record["problems"] == [],
            "the record names the kernel that crashed": record["kernel_release"] == report.release,
            "the kernel's log was saved first": record["panic_message"] == report.panic_message,
            "the crashed task is the planted one": report.comm == PLANTED_COMMAND,
            "the panic message is right": report.panic_message.endswith("sysrq triggered crash"),
            "the stack leads from the system call to the panic": {
                "panic",
                "write_sysrq_trigger",
                "ksys_write",
            }
            <= set(report.stack),
        }
        heading("What held")
        for what, true in held.items():
            say(f"    {'yes' if true else 'NO '}  {what}")
        say(f"    {saved:.1f} s from panic to saved, {to_production:.1f} s from panic to production")
        memory = {name: value for name, value in record.items() if name.endswith("_kib")}
        say(f"    memory of the capture boot: {json.dumps(memory)}")
        say(f"    the demo took {time.monotonic() - started:.0f} s")
        return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
