# SPDX-License-Identifier: LGPL-2.1-or-later
"""One virtual machine: started, talked to, crashed, waited for.

Every wait is for an event and has a deadline. What the machine itself does wrong (QEMU ends, nobody answers)
is `MachineLost`, never an assertion: the test did not get to its question.
"""

import base64
import itertools
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack

from tests.budget import guests

from .cache import say
from .channel import Console, ConsoleLine, JsonLines, Message
from .disk import (
    AGENT_IN_CAPTURE,
    HOME,
    WORDS,
    Disk,
    copy_image,
    extract,
    list_folder,
    read_file,
    write_files,
)
from .events import Boot, CommandFailed, Completed, GuestDump, MachineLost, Mode, QmpEvent, UnexpectedBoot
from .qemu import OVMF, UEFI_FLASH, Memory, firmware_arguments, machine_arguments, wires
from .stalls import stalls_at_start

__all__ = [
    "PLANTED_COMMAND",
    "SERVICE",
    "STATUS",
    "CommandFailed",
    "Crash",
    "Environment",
    "Machine",
    "MachineLost",
    "MachineOptions",
    "UnexpectedBoot",
]

Crash = Literal["sysrq", "null_dereference", "nmi"]
Environment = Literal["initramfs", "rootfs"]  # of the capture boot
T = TypeVar("T")

PLANTED_COMMAND = "kdump-victim"
"""Name of the task that crashes the kernel, as ps shows it; an NMI hits whoever runs."""

ENVIRONMENT_FILE = "/etc/kdump-service.conf.d/00-environment.conf"
ROOTFS = b"[Image]\nEnvironment=rootfs\n"
SERVICE = "org.kdump.Kdump1 /org/kdump/Kdump1"
STATUS = f"busctl call -j {SERVICE} org.freedesktop.DBus.Properties GetAll s org.kdump.Kdump1"
"""Prints what `kdumpctl status --json` does, in one line: by systemd's client, since under emulation kdumpctl
is five seconds of work."""
CHUNK = 256 << 10  # bytes of a file per message
BOOT_SEC = 600.0  # twenty times what a boot takes under emulation on two idle cores; others may be at work
# Of block_set_io_throttle, whose names have underscores.
_RATES = ("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr")
WAIT_SEC = 360.0
RESETS = ("guest-reset", "host-qmp-system-reset")  # ShutdownCause of QEMU's QMP reference
GRACE_SEC = 15.0  # how much longer than the guest's own limit the host waits for an answer

# Unit files and settings of the project, for what is printed when a case fails.
JOURNAL_COMMAND = (
    "systemctl status --no-pager --full --lines=0 kdump.service;"
    " journalctl --no-pager --no-hostname -o short-monotonic -n 150 -u 'kdump*' --merge"
)


class MachineOptions(TypedDict, total=False):
    """What a case may choose about its machine; each may be left out."""

    memory_mib: int  # 1024
    cpus: int  # 2; 1 is less work for the host, where a case is not about processors or builds
    # These three only where no boot loader is, whose files have the kernel command line.
    crashkernel: str | None  # "256M"; None: the kernel reserves nothing
    command_line: str  # words after the usual ones
    agent_in_capture: bool  # False; True: the capture boot can be talked to
    environment: Environment  # "initramfs", but with agent_in_capture
    files: Mapping[str, bytes]  # guest path -> content, put on the disk before the first boot
    qemu_arguments: Sequence[str]


DIRECT_OPTIONS = {"crashkernel", "command_line", "agent_in_capture"}


class Machine:
    """A machine on its own copy of `disk`, in the folder `work`: switched on by `with`, ended at its end.

    After the exit the copy of the disk is still there, for `extract`.
    """

    def __init__(
        self,
        disk: Disk,
        work: Path,
        module: Callable[[str], Path] | None = None,
        *,
        memory: Memory | None = None,
        **options: Unpack[MachineOptions],
    ) -> None:
        """`module` answers with the kernel module of this name in tests/vm/modules; `memory` in a file is for
        snapshots."""
        self.disk = disk
        self.work = work
        self.image = work / "disk.img"
        self.console_log = work / "console.log"
        self._variables = work / "variables.fd"
        self.memory_mib = options.get("memory_mib", 1024)
        self.cpus = options.get("cpus", 2)
        self._memory = memory
        self._incoming: list[str] = []  # QEMU's arguments to wait for a snapshot
        self.boots: list[Boot] = []
        self.events: list[QmpEvent] = []
        self.crashed_by: Crash | None = None
        self.stalled = False  # whether it has been reset because production's kernel hung at its start
        self.journal = ""  # of the project's units, when a case failed and the machine still answered
        self._files = dict(options.get("files", {}))
        self._qemu_arguments = list(options.get("qemu_arguments", ()))
        self._module = module
        self._agent_in_capture = options.get("agent_in_capture", False)
        # The agent is a unit of production's root.
        if options.get("environment", "rootfs" if self._agent_in_capture else "initramfs") == "rootfs":
            self._files[ENVIRONMENT_FILE] = ROOTFS
        if disk.firmware != "direct" and (given := DIRECT_OPTIONS & options.keys()):
            raise ValueError(f"the files of this disk's boot loader decide, not {', '.join(sorted(given))}=")
        crashkernel = options.get("crashkernel", "256M")
        words = [f"root={disk.root}", *WORDS]
        if crashkernel is not None:
            words.append(f"crashkernel={crashkernel}")
        if self._agent_in_capture:
            words.append(AGENT_IN_CAPTURE)
        self.command_line = " ".join([*words, options.get("command_line", "")]).strip()
        self._changed = threading.Condition()
        self._answers: dict[int, Message] = {}
        self._qmp_answers: dict[int, Message] = {}
        self._ids = itertools.count(1)
        self._seen = 0  # how many of `boots` a wait has already answered with
        self._ending = False
        self._ends_at_reset = False
        self._started_at = 0.0  # host time; of the process that is the machine now
        self._console_lines: list[ConsoleLine] = []
        self._plugged: list[str] = []  # QEMU's arguments for what was plugged in, for after a reset
        self._cleanup = ExitStack()
        self._qemu: subprocess.Popen[bytes] | None = None

    # Life and death

    def __enter__(self) -> Self:
        self.work.mkdir(parents=True, exist_ok=True)
        copy_image(self.disk.image, self.image)
        write_files(self.image, self._files, offset=self.disk.root_offset)
        if self.disk.firmware in UEFI_FLASH:
            shutil.copy(OVMF / UEFI_FLASH[self.disk.firmware][1], self._variables)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, MachineLost):
            self.collect_journal()
        self.stop()

    def start(self) -> None:
        """Switch on; `wait_for_boot` tells when it is up. Also after `poweroff`, on the same disk."""
        self._ending = False
        self._started_at = time.monotonic()
        side, side_theirs = socket.socketpair()
        qmp, qmp_theirs = socket.socketpair()
        self._cleanup.callback(side.close)
        self._cleanup.callback(qmp.close)
        qemu_log = self._cleanup.enter_context((self.work / "qemu.log").open("ab"))
        with side_theirs, qmp_theirs:
            self._qemu = subprocess.Popen(
                [
                    # A test run that is killed takes its machines with it.
                    *("setpriv", "--pdeathsig", "KILL"),
                    *self.qemu_words(self.image, side_theirs.fileno(), qmp_theirs.fileno()),
                    *self._incoming,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=qemu_log,
                pass_fds=(side_theirs.fileno(), qmp_theirs.fileno()),
            )
        guests.RUNNING.add(self._qemu.pid)
        assert self._qemu.stdout is not None
        self.console = Console(self._qemu.stdout, self.console_log, self._changed, self._console_lines)
        self._side = JsonLines("side channel", side, self._changed, self._on_side)
        self._qmp = JsonLines("qmp", qmp, self._changed, self._on_qmp)
        self.execute("qmp_capabilities")

    def qemu_words(self, image: Path, side_fd: int, qmp_fd: int) -> list[str]:
        """QEMU's command line."""
        return [
            *machine_arguments(self.cpus, self.memory_mib, self._memory),
            *self._starter(),
            *wires(image, side_fd, qmp_fd),
            *self._qemu_arguments,
            *self._plugged,
        ]

    def _starter(self) -> list[str]:
        """The arguments by which the kernel gets started: at each reset again."""
        if self.disk.firmware != "direct":
            return firmware_arguments(self.disk.firmware, self._variables)
        tree = self.disk.tree
        return ["-kernel", str(tree.kernel), "-initrd", str(tree.initrd), "-append", self.command_line]

    @property
    def running(self) -> bool:
        """Whether its QEMU process lives (not: whether the guest does)."""
        lives = self._qemu is not None and self._qemu.poll() is None
        if self._qemu is not None and not lives:
            guests.RUNNING.discard(self._qemu.pid)
        return lives

    def stop(self) -> None:
        """Pull the plug, if it is not off already."""
        self._ending = True
        if self._qemu is None:
            return
        self._qemu.kill()  # does nothing to a process that has ended
        self._qemu.wait()
        self._clear_away()

    def _clear_away(self) -> None:
        """What belongs to a process of QEMU that has ended, when all that it said was heard."""
        assert self._qemu is not None
        guests.RUNNING.discard(self._qemu.pid)
        for thread in (self.console.thread, self._side.thread, self._qmp.thread):
            thread.join(timeout=5)
        self._cleanup.close()

    def _start_after_reset(self) -> bool:
        """Start the machine again, if a reset was what ended its process. Memory and clock of a snapshot
        are the past of what now boots."""
        self._clear_away()
        ends = [
            event.data["reason"]
            for event in self.events
            if event.name == "SHUTDOWN" and event.at >= self._started_at
        ]
        if self._ends_at_reset or not ends or ends[-1] not in RESETS:
            return False
        self._memory = None
        self.start()
        return True

    def reboot(self, timeout_sec: float = BOOT_SEC) -> Boot:
        """Ask the guest to reboot, and wait until production is up again."""
        self.spawn("systemctl reboot")
        return self.wait_for_boot(timeout_sec=timeout_sec)

    def poweroff(self, timeout_sec: float = WAIT_SEC) -> None:
        """Ask the guest to switch off, and wait until it has: its file system is clean then."""
        self._ending = True
        self._request({"op": "spawn", "command": "systemctl poweroff"})
        self._wait(lambda: None if self.running else True, timeout_sec, "the power-off", ending=True)
        self.stop()

    def end_at_reset(self) -> None:
        """Have the next reset end the machine: where a case looks at what a capture left, and not at the boot
        after it."""
        self._ends_at_reset = True

    def wait_until_off(
        self, reason: str = "guest-reset", *, since: float = 0, timeout_sec: float = WAIT_SEC
    ) -> None:
        """Wait until the machine is off for this reason, as QEMU's event SHUTDOWN tells it.

        "guest-reset" is that of `end_at_reset`, "guest-shutdown" that of a machine which switched itself off.
        """
        self._ending = True
        event = self.wait_for_event("SHUTDOWN", since=since, timeout_sec=timeout_sec)
        self._wait(lambda: None if self.running else True, timeout_sec, "QEMU's end", ending=True)
        self.stop()
        assert event.data["reason"] == reason

    # Talking to the guest

    def run(self, command: str, *, check: bool = True, timeout_sec: float = WAIT_SEC) -> Completed:
        """Run a shell command in the guest; with `check` any status but 0 is `CommandFailed`."""
        return self._command("run", command, timeout_sec, check)

    def wait_until(self, command: str, *, check: bool = True, timeout_sec: float = WAIT_SEC) -> Completed:
        """Have the guest run a shell command, 10 times a second at most, until it succeeds; it is at work for
        a quarter of the time at most, since others are what is waited for."""
        return self._command("until", command, timeout_sec, check)

    def dumps(self, store: str = "/var/crash") -> list[GuestDump]:
        """The dump folders that have a record, oldest first: as the running guest sees them, or of a machine
        that is off, on its disk."""
        if not self.running:
            return self._dumps_on_disk(store)
        listed = self.run(
            f"find {store} -mindepth 2 -maxdepth 2 -type f -printf '%h\\t%f\\t%s\\n'", check=False
        )
        folders: dict[str, dict[str, int]] = {}
        for line in listed.stdout.splitlines():
            folder, name, size = line.split("\t")
            folders.setdefault(folder, {})[name] = int(size)
        return [
            GuestDump(folder, json.loads(self.get(f"{folder}/record.json")), files)
            for folder, files in sorted(folders.items())
            if "record.json" in files
        ]

    def listing(self, folder: str) -> dict[str, int]:
        """What is in a folder on the disk of a machine that is off: name -> size in bytes, 0 of folders."""
        if self.running:
            raise RuntimeError("the machine still runs")
        return list_folder(self.image, folder, offset=self.disk.root_offset)

    def _dumps_on_disk(self, store: str) -> list[GuestDump]:
        folders = {f"{store}/{name}": self.listing(f"{store}/{name}") for name in sorted(self.listing(store))}
        return [
            GuestDump(folder, json.loads(self.get(f"{folder}/record.json")), files)
            for folder, files in folders.items()
            if "record.json" in files
        ]

    def status(self) -> dict[str, Any]:
        """The properties of the service, as `kdumpctl status --json` prints them."""
        said = json.loads(self.run(STATUS).stdout)
        return {name: value["data"] for name, value in said["data"][0].items()}

    def _command(self, operation: str, command: str, timeout_sec: float, check: bool) -> Completed:
        answer = self._call({"op": operation, "command": command, "timeout_sec": timeout_sec}, timeout_sec)
        done = Completed(command, answer["status"], answer["stdout"], answer["stderr"])
        return done.check() if check else done

    def get(self, path: str) -> bytes:
        """The content of a file in the running guest, or on the disk of one that is off; for small files,
        since it takes some 0.1 s per MB."""
        if not self.running:
            return read_file(self.image, path, offset=self.disk.root_offset)
        parts: list[bytes] = []
        offset = 0
        while True:
            answer = self._call({"op": "read", "path": path, "offset": offset, "size": CHUNK})
            part = base64.b64decode(answer["data"])
            if not part:
                return b"".join(parts)
            parts.append(part)
            offset += len(part)

    def put(self, path: str, content: bytes) -> None:
        """Write a file in the running guest; folders are made, the mode is 0644."""
        for offset in range(0, max(len(content), 1), CHUNK):
            data = base64.b64encode(content[offset : offset + CHUNK]).decode()
            self._call({"op": "write", "path": path, "offset": offset, "data": data})

    def put_module(self, name: str, folder: str) -> None:
        """Write the kernel module `name` of tests/vm/modules, built for this machine's kernel, to a folder of
        the running guest."""
        if self._module is None:
            raise ValueError("this machine was given no modules")
        self.put(f"{folder}/{name}.ko", self._module(name).read_bytes())

    def spawn(self, command: str) -> None:
        """Start a shell command without waiting for word of it: for what ends the kernel."""
        self._request({"op": "spawn", "command": command})

    def _call(self, request: Message, timeout_sec: float = 30) -> Message:
        number = self._request(request)
        boot = self.boots[-1]

        def answered() -> Message | None:
            if self.boots[-1] is not boot:
                raise MachineLost(f"rebooted while it should answer {_shown(request)}")
            return self._answers.pop(number, None)

        answer = self._wait(answered, timeout_sec + GRACE_SEC, f"the answer to {_shown(request)}")
        if "error" in answer:
            raise CommandFailed(f"{_shown(request)}: {answer['error']}")
        return answer

    def _request(self, request: Message) -> int:
        if not self.boots:
            raise RuntimeError("wait_for_boot() comes first")
        number = next(self._ids)
        try:
            self._side.send({"id": number, "boot": self.boots[-1].boot_id, **request})
        except OSError as error:
            raise self._lost(f"cannot send {_shown(request)}: {error}") from error
        return number

    def _on_side(self, message: Message) -> None:
        if "hello" in message:
            self.boots.append(
                Boot(
                    time.monotonic(),
                    message["hello"],
                    message["mode"],
                    message["release"],
                    message["uptime_sec"],
                )
            )
        elif "id" in message:
            self._answers[message["id"]] = message

    # Crashing

    def crash(self, how: Crash = "sysrq") -> float:
        """Make the kernel panic; answers with the host time (seconds, monotonic) of asking for it.

        "sysrq" and "null_dereference" die in the task called `PLANTED_COMMAND`, "nmi" in whatever it
        hits. What must be set for the kernel to panic of it is set; what is armed is the case's business.
        """
        self.crashed_by = how
        victim = f"/{HOME}/{PLANTED_COMMAND}"
        if how == "sysrq":
            command = f"exec {victim} -c 'echo c > /proc/sysrq-trigger'"
        elif how == "null_dereference":
            self.put_module("null_dereference", "/run")
            self.run("insmod /run/null_dereference.ko && echo 1 > /proc/sys/kernel/panic_on_oops")
            command = f"exec {victim} -c 'echo 1 > /sys/module/null_dereference/parameters/trigger'"
        else:
            self.run("echo 1 > /proc/sys/kernel/unknown_nmi_panic")
            self._count_capture()
            at = time.monotonic()
            self.inject_nmi()
            return at
        return self.crash_by(command)

    def crash_by(self, command: str) -> float:
        """Spawn a command of which the kernel panics; answers with the host time of asking for it."""
        self._count_capture()
        at = time.monotonic()
        self.spawn(command)
        return at

    def _count_capture(self) -> None:
        """A crash of the capture kernel is none."""
        if self.boots[-1].mode == "production":
            guests.COUNTED.captures += 1

    def inject_nmi(self) -> None:
        """Send a non-maskable interrupt to every CPU, as a management board would."""
        self.execute("inject-nmi")

    def add_memory(self, mib: int) -> None:
        """Plug a memory module; QEMU's arguments must have slots and maxmem for it."""
        self.execute("object-add", qom_type="memory-backend-ram", id="plugged-memory", size=mib << 20)
        self._plugged += ["-object", f"memory-backend-ram,id=plugged-memory,size={mib}M"]
        self._plug("pc-dimm", id="plugged-module", memdev="plugged-memory")

    def add_processor(self, socket_id: int) -> None:
        """Plug a processor; QEMU's arguments must have maxcpus for it."""
        self._plug("qemu64-x86_64-cpu", id="plugged-processor", socket_id=socket_id, core_id=0, thread_id=0)

    def add_disk(self, image: Path) -> None:
        """Plug a disk with this image; /dev/vdb if it is the first one."""
        self.execute(
            "blockdev-add",
            driver="raw",
            node_name="plugged-image",
            file={"driver": "file", "filename": str(image)},
        )
        self._plugged += ["-blockdev", f"raw,node-name=plugged-image,file.driver=file,file.filename={image}"]
        self._plug("virtio-blk-pci", id="plugged-disk", drive="plugged-image")

    def stop_disk(self) -> None:
        """Let the disk that was plugged answer no more: a byte a second."""
        device = "/machine/peripheral/plugged-disk/virtio-backend"
        self.execute("block_set_io_throttle", id=device, **dict.fromkeys(_RATES, 0) | {"bps": 1})

    def _plug(self, driver: str, **properties: Any) -> None:
        self.execute("device_add", driver=driver, **properties)
        words = [f"{name.replace('_', '-')}={value}" for name, value in properties.items()]
        self._plugged += ["-device", ",".join([driver, *words])]

    def dump_guest_memory(self, path: Path, form: str) -> None:
        """Have QEMU save the running guest's memory on the host, as `virsh dump --memory-only` does."""
        asked = time.monotonic()
        self.execute("dump-guest-memory", paging=False, protocol=f"file:{path}", format=form)
        event = self.wait_for_event("DUMP_COMPLETED", since=asked)
        if event.data["result"]["status"] != "completed":
            raise MachineLost(f"dump-guest-memory: {event.data}")

    # QEMU's monitor

    def execute(self, command: str, timeout_sec: float = WAIT_SEC, **arguments: object) -> Message:
        """Have QEMU's monitor carry out a command (QEMU QMP Reference Manual); answers with what it returns.
        Underscores of names stand for hyphens."""
        number = next(self._ids)
        given = {
            name if name in _RATES else name.replace("_", "-"): value for name, value in arguments.items()
        }
        self._qmp.send({"execute": command, "arguments": given, "id": number})
        answer = self._wait(
            lambda: self._qmp_answers.pop(number, None), timeout_sec, f"QEMU's answer to {command}"
        )
        if "error" in answer:
            raise MachineLost(f"QEMU refused {command}: {answer['error']}")
        returned: Message = answer["return"]
        return returned

    def _on_qmp(self, message: Message) -> None:
        if "event" in message:
            self.events.append(QmpEvent(time.monotonic(), message["event"], message.get("data", {})))
        elif "id" in message:
            self._qmp_answers[message["id"]] = message

    # Waiting

    def wait_until_armed(self, timeout_sec: float = WAIT_SEC) -> None:
        """Wait until a crash kernel is loaded and its service says that it is up."""
        self.wait_until(
            "grep -qx 1 /sys/kernel/kexec_crash_loaded && systemctl is-active --quiet kdump.service",
            timeout_sec=timeout_sec,
        )

    def wait_for_boot(self, mode: Mode = "production", timeout_sec: float = BOOT_SEC) -> Boot:
        """Wait for the next hello that no earlier call has answered with.

        A hello of a capture boot on the way to production is passed over; production where capture was due
        raises `UnexpectedBoot`. A production kernel that hangs in the emulation is started once more, and
        that is said aloud.
        """
        if mode == "capture" and not self._agent_in_capture:
            raise ValueError("nobody says hello in the capture boot unless agent_in_capture=True")
        deadline = time.monotonic() + timeout_sec
        while True:
            left = deadline - time.monotonic()
            boots = self._wait(self._new_boots_or_stall, left, f"a {mode} boot")
            if not boots:
                self.stalled = True
                say("production's kernel hangs in the emulation: the machine is reset, once")
                guests.COUNTED.hangs += 1
                guests.COUNTED.boots += 1
                self.execute("system_reset")
                deadline = time.monotonic() + timeout_sec
                continue
            boot = boots[0]
            self._seen += 1
            if boot.mode == "production":
                guests.COUNTED.boots += 1
            if boot.mode == mode:
                return boot
            if mode == "capture":
                raise UnexpectedBoot(
                    f"production came up where a capture boot was due:\n{self.console.tail()}"
                )

    def _new_boots_or_stall(self) -> list[Boot] | None:
        """None if there is nothing new; no boot in it: the kernel hangs."""
        if len(self.boots) > self._seen:
            return self.boots[self._seen :]
        return [] if not self.stalled and stalls_at_start(self.console.lines, time.monotonic()) else None

    def wait_for_console(
        self, pattern: str, *, since: float = 0, timeout_sec: float = WAIT_SEC
    ) -> ConsoleLine:
        """The first console line since that host time in which the regular expression is found."""
        expression = re.compile(pattern)
        looked = 0

        def found() -> ConsoleLine | None:
            nonlocal looked
            lines = self.console.lines[looked:]
            looked += len(lines)
            return next((line for line in lines if line.at >= since and expression.search(line.text)), None)

        return self._wait(found, timeout_sec, f"a console line like {pattern!r}")

    def wait_for_event(
        self,
        name: str,
        *,
        since: float = 0,
        timeout_sec: float = WAIT_SEC,
        where: Callable[[Message], bool] = lambda data: True,
    ) -> QmpEvent:
        """The first QMP event of that name since that host time, with data that are wanted."""

        def found() -> QmpEvent | None:
            of_the_name = (event for event in self.events if event.name == name and event.at >= since)
            return next((event for event in of_the_name if where(event.data)), None)

        return self._wait(found, timeout_sec, f"the event {name}")

    def _wait(
        self, ready: Callable[[], T | None], timeout_sec: float, what: str, *, ending: bool = False
    ) -> T:
        """Wait until `ready` answers with something; it is asked after each thing the machine said. A machine
        that is reset meanwhile comes back."""
        deadline = time.monotonic() + timeout_sec
        while True:
            with self._changed:
                while self.running or ending:
                    if (answer := ready()) is not None:
                        return answer
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise self._lost(f"no sign of {what} within {timeout_sec:.0f} s")
                    # QEMU's end closes the channels, which wakes us; the second is for the process to become
                    # waitable.
                    self._changed.wait(min(left, 1.0))
            back = self._start_after_reset()
            with self._changed:
                if (answer := ready()) is not None:
                    return answer
            if not back:
                raise self._lost(f"QEMU ended while waiting for {what}")

    def _lost(self, why: str) -> MachineLost:
        qemu_said = (self.work / "qemu.log").read_text(errors="replace").strip()
        said = f"\nQEMU said: {qemu_said}" if qemu_said else ""
        return MachineLost(f"{why}{said}\nlast lines of the console:\n{self.console.tail()}")

    def collect_journal(self) -> None:
        """Put into `journal` what the project's units logged, if the guest can be asked."""
        if not self.running or self._ending or not self.boots:
            return
        try:
            self.journal = self.run(JOURNAL_COMMAND, check=False, timeout_sec=20).stdout
        except (MachineLost, CommandFailed, RuntimeError) as error:
            self.journal = f"(not reachable: {str(error).splitlines()[0]})"

    # The disk of a machine that is off

    def extract(self, guest_path: str, host_path: Path) -> Path:
        """Copy a file out of the disk; only after `poweroff` or `stop`."""
        if self.running:
            raise RuntimeError("the machine still runs")
        extract(self.image, guest_path, host_path, offset=self.disk.root_offset)
        return host_path


def _shown(request: Message) -> str:
    return " ".join(str(request[key]) for key in ("op", "path", "command") if key in request)[:200]
