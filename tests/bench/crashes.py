# SPDX-License-Identifier: LGPL-2.1-or-later
"""One crash of one machine, with one of two contestants armed, and what it took: all seen from outside.

The machine is a whole Debian that was booted by systemd, and it is up when it dies. Times are the host's,
from the panic's line on the console on:

- *capture kernel*: its first line on the console, if it is not told to be quiet;
- *first page*: QEMU has seen more bytes written to the disk of /var/crash than log, notes and bitmaps take
  (`target_disk.allowance`);
- *reboot*: QEMU resets the machine;
- *production*: the first line of the kernel that comes after it, so with what the firmware takes.

No contestant is asked for any of these, and neither can look better by what it says.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.vm.cache import Cache
from tests.vm.channel import ConsoleLine
from tests.vm.disk import Disk
from tests.vm.lab import Lab
from tests.vm.machine import CommandFailed, Machine, MachineLost

from . import kdump_tools
from .target_disk import FSTAB, SETTINGS, TargetDisk, WriteWatch, allowance

__all__ = ["KDUMP_TOOLS", "OURS", "Contestant", "Crash", "CrashCase", "contestants", "crash_once"]

OURS, KDUMP_TOOLS = "kdump-service", "kdump-tools"

# Three times what the slower one takes with 256M on two cores that are not quite idle. A capture that is
# short of memory crawls, and is none that anybody waits for.
CAPTURE_SEC = 120.0
ARMED_SEC = 120.0

PANIC = r"Kernel panic - not syncing"
KERNEL = r"Linux version \d"
STEPS = {
    "first process": r"Run /init as init process",
    "systemd": r"systemd\[1\]: systemd \d+\S* running in system mode",
    "capture program": r"Starting kdump-tools|kdump: Kernel .* crashed",
    "log saved": r"saved dmesg content|kdump: Kernel log saved",
    "pages chosen": r"kdump: Level \d+ keeps",
    "saved": r"saved vmcore|kdump: Dump saved",
}
"""Lines on the console on the way, of either; those that are not there are left out."""

STEPS_OF_KERNEL = {
    "first process": STEPS["first process"],
    "target mounted": r"EXT4-fs \(vdb\): mounted filesystem",
    "systemd": r"systemd \d+\S* running in system mode",
    "capture unit starts": r"Starting kdump-capture\.service",
    "capture unit is up": r"Started kdump-capture\.service",
}
"""The same in our capture boot's own journal, since its console is quiet: seconds since its kernel began."""

START_TIMES = "InactiveExitTimestampMonotonic ActiveEnterTimestampMonotonic CPUUsageNSec"
CHAPTERS = ("memory_total_kib", "memory_available_at_start_kib", "memory_available_low_water_kib")


@dataclass(frozen=True)
class Judgement:
    """What lay on the disk of /var/crash afterwards."""

    failure: str
    """Why it is no complete dump; empty if it is one."""
    dump_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Contestant:
    """What is armed."""

    name: str
    disk: Callable[[], Disk]
    files: dict[str, bytes]
    unit: str
    """Whose start arms."""
    images: str
    """Glob of the initramfs of the capture boot."""
    judge: Callable[[Path], Judgement]
    """Looks at a copy of /var/crash."""
    forget_image: str
    """Shell command that takes the built image away."""
    build_image: str
    """Shell command that builds it, and ends when it is built."""
    armed_with: str = ""
    """A shell command that fails if it is not armed with what is to be measured."""


@dataclass(frozen=True)
class CrashCase:
    """A machine to crash."""

    memory_mib: int
    crashkernel_mib: int

    def __str__(self) -> str:
        return f"{self.memory_mib / 1024:g} GiB, crashkernel={self.crashkernel_mib}M"


@dataclass(frozen=True)
class Crash:
    """One of them; all times in seconds."""

    contestant: str
    case: CrashCase
    failure: str
    """Empty if the dump is complete and production came back."""
    seconds: dict[str, float]
    """From the panic to: capture-kernel, first-page, reboot, production; those that came."""
    cpu_seconds: dict[str, float]
    """The same in what QEMU took of the host's processors: where it is much less, others had them."""
    steps: dict[str, float]
    """From the panic to what was said on the console."""
    host_load: float
    """The host's load average (1 minute) afterwards; the machine itself adds 1 to 2."""
    arming_seconds: float = 0.0
    """What the start of the unit that arms took."""
    arming_cpu_seconds: float = 0.0
    """What it has taken of the machine's emulated processors, also for what it does after that, by the end of
    the boot."""
    armed_seconds: float = 0.0
    """Age of the production kernel when it was armed."""
    image_bytes: int = 0
    dump_bytes: int = 0
    details: dict[str, Any] = field(default_factory=dict)


def crash_once(
    contestant: Contestant, case: CrashCase, work: Path, target: TargetDisk, keep: Path | None = None
) -> Crash:
    """Boot a machine, crash it, and see what comes; with `keep`, console and files of /var/crash go there.

    Raises MachineLost if the machine does not get as far as to its crash, or QEMU ends.
    """
    watch = WriteWatch(target.folder)
    machine = Machine(
        contestant.disk(),
        work,
        memory_mib=case.memory_mib,
        crashkernel=f"{case.crashkernel_mib}M",
        command_line=SETTINGS,
        files={"/etc/fstab": FSTAB.encode(), **contestant.files},
        qemu_arguments=[*target.renew(), *watch.qemu_arguments],
    )
    with watch, machine:
        try:
            armed = _arm(machine, contestant)
        except CommandFailed as error:
            failure = f"not armed: {str(error).splitlines()[0]}"
            return Crash(contestant.name, case, failure, {}, {}, {}, _host_load())
        asked = machine.crash("sysrq")
        panic = machine.wait_for_console(PANIC, since=asked).at
        seconds: dict[str, float] = {}
        failure = _follow(machine, panic, seconds)
    first = watch.written_beyond(allowance(case.memory_mib), panic)
    if first is not None and first - panic < seconds.get("reboot", CAPTURE_SEC):
        seconds["first-page"] = first - panic
    files = target.take_out()
    judged = contestant.judge(files)
    if keep is not None:
        _keep(machine, watch, files, keep / f"{len(list(keep.glob('*.console')))}-{contestant.name}", panic)
    return Crash(
        contestant.name,
        case,
        failure or judged.failure,
        {name: round(value, 3) for name, value in seconds.items()},
        {name: round(watch.cpu_seconds(panic, panic + value), 3) for name, value in seconds.items()},
        _steps(machine, panic, seconds),
        host_load=_host_load(),
        dump_bytes=judged.dump_bytes,
        details=judged.details,
        **armed,
    )


def _host_load() -> float:
    return round(os.getloadavg()[0], 2)


def _arm(machine: Machine, contestant: Contestant) -> dict[str, Any]:
    """Wait until it is armed and the boot is over; what arming took."""
    machine.wait_for_boot()
    machine.wait_until_armed(ARMED_SEC)
    machine.run("systemctl is-system-running --wait", check=False, timeout_sec=ARMED_SEC)
    if contestant.armed_with:
        machine.run(contestant.armed_with)
    properties = "".join(f" -p {name}" for name in START_TIMES.split())
    shown = machine.run(f"systemctl show {contestant.unit}{properties}").stdout
    times = dict(re.findall(r"(\w+)=(\d+)", shown))
    began, ended, cpu = (int(times[name]) for name in START_TIMES.split())
    sizes = machine.run(f"stat -L -c %s {contestant.images} | sort -n | tail -n 1").stdout
    return {
        "arming_seconds": round((ended - began) / 1e6, 3),
        "arming_cpu_seconds": round(cpu / 1e9, 3),
        "armed_seconds": round(ended / 1e6, 3),
        "image_bytes": int(sizes),
    }


def _follow(machine: Machine, panic: float, seconds: dict[str, float]) -> str:
    """Watch the machine until production's kernel is back, and fill in `seconds`; why it is not, if so."""
    since, deadline = panic, panic + CAPTURE_SEC
    while True:
        try:
            line = machine.wait_for_console(
                f"{KERNEL}|{PANIC}",
                # Lines that came in one piece have one time: a kernel's first line is not its successor's.
                since=since + 1e-6,
                timeout_sec=max(deadline - time.monotonic(), 0),
            )
        except MachineLost as error:
            if not machine.running:
                raise
            return str(error).splitlines()[0]
        if re.search(PANIC, line.text):
            return f"the capture kernel did not come, or died: {line.text.strip()}"
        resets = [each.at for each in machine.events if each.name == "SHUTDOWN" and each.at > panic]
        reset = next(iter(resets), None)
        if reset is not None:
            seconds |= {"reboot": reset - panic, "production": line.at - panic}
            return ""
        if "capture-kernel" in seconds:
            return "there was a second kernel, but no reset of the machine"
        # None if the capture boot is quiet.
        seconds["capture-kernel"] = line.at - panic
        since = line.at


def _steps(machine: Machine, panic: float, seconds: dict[str, float]) -> dict[str, float]:
    """When the capture boot said what; before the reboot, since production says much the same."""
    until = panic + seconds.get("reboot", CAPTURE_SEC)
    lines: list[ConsoleLine] = [each for each in machine.console.lines if panic < each.at < until]
    found = {
        name: next((each.at - panic for each in lines if re.search(pattern, each.text)), None)
        for name, pattern in STEPS.items()
    }
    return {name: round(value, 3) for name, value in found.items() if value is not None}


def _keep(machine: Machine, watch: WriteWatch, files: Path, keep: Path, panic: float) -> None:
    """Console and what was written when as texts, in seconds from the panic; the files of /var/crash."""
    keep.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{line.at - panic:9.3f} {line.text}\n" for line in machine.console.lines if line.at >= panic]
    keep.with_suffix(".console").write_text("".join(lines))
    writes = [f"{at - panic:9.3f} {size_bytes}\n" for at, size_bytes in watch.writes(panic)]
    keep.with_suffix(".writes").write_text("".join(writes))
    shutil.move(files, keep.with_suffix(".files"))


def judge_ours(folder: Path) -> Judgement:
    """By the record; the file is looked at as well."""
    records = list(folder.glob("*/record.json"))
    if len(records) != 1:
        return Judgement(f"{len(records)} dumps")
    record = json.loads(records[0].read_text())
    [*sizes] = (each.stat().st_size for each in records[0].parent.glob("vmcore*"))
    failure = "" if record["state"] == "complete" and sizes else f"the dump is {record['state']}"
    details = {name: record[name] for name in CHAPTERS}
    details |= {"stages": record["stage_seconds"], "uptime_at_start": record["capture_uptime_seconds"]}
    details |= {"problems": [each["message"] for each in record["problems"]]}
    details |= {"kernel_steps": _steps_of_kernel(records[0].with_name("capture.journal"))}
    return Judgement(failure, sum(sizes), details)


def _steps_of_kernel(journal: Path) -> dict[str, float]:
    if not journal.exists():
        return {}
    command = ["journalctl", f"--file={journal}", "--output=short-monotonic", "--no-pager"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    steps = {}
    for name, pattern in STEPS_OF_KERNEL.items():
        if found := re.search(rf"^\[ *([\d.]+)\].*{pattern}", text, re.MULTILINE):
            steps[name] = round(float(found[1]), 3)
    return steps


def judge_kdump_tools(folder: Path) -> Judgement:
    """By its file: its own message is the same whether makedumpfile succeeded or not."""
    dumps = [path for path in folder.glob("*/dump.*") if path.stat().st_size]
    if len(dumps) != 1:
        return Judgement(f"{len(dumps)} dumps")
    whole = kdump_tools.flattened_is_whole(dumps[0])
    return Judgement("" if whole else "the dump is cut off", dumps[0].stat().st_size)


# The capture kernel of the other one inherits the words of the running kernel.
OUR_SETTINGS = f"[Kernel]\nCommandLineAppend={SETTINGS}\n"


def contestants(lab: Lab, cache: Cache) -> tuple[Contestant, Contestant]:
    """This project and Debian's kdump-tools."""
    return (
        Contestant(
            OURS,
            lambda: lab.disk,
            {"/etc/kdump-service.conf.d/bench.conf": OUR_SETTINGS.encode()},
            "kdump.service",
            "/var/lib/kdump-service/images/*.img",
            judge_ours,
            "rm /var/lib/kdump-service/images/*",
            'systemctl start "$(systemd-escape --template=kdump-build-image@.service "$(uname -r)")"',
            "grep -q /var/lib/kdump-service/images/ /run/kdump-service/armed.json",
        ),
        Contestant(
            KDUMP_TOOLS,
            functools.cache(lambda: kdump_tools.kdump_tools_disk(cache)),
            {},
            kdump_tools.UNIT,
            "/var/lib/kdump/initrd.img",
            judge_kdump_tools,
            "rm /var/lib/kdump/initrd.img*",
            'kdump-config unload && kdump-config symlinks "$(uname -r)"',
        ),
    )
