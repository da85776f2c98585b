# SPDX-License-Identifier: LGPL-2.1-or-later
"""Opens a dump with tools that are none of ours: crash, drgn and gdb, each in a process of its own."""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

__all__ = ["CrashReport", "DebuggerFailed", "DrgnReport", "GdbReport", "OpenDump", "vmcoreinfo"]

HERE = Path(__file__).parent
# Innermost functions of the CPU that leaves for the capture kernel; the others were stopped by an NMI.
DOORS = {"crash_setup_regs", "__crash_kexec", "crash_kexec"}
TIMEOUT_SEC = 180.0  # crash needs 10 s for a dump of 1 GiB on two idle cores


class DebuggerFailed(AssertionError):
    """A debugger could not make sense of the dump; the message ends with what it said."""


@dataclass(frozen=True)
class DrgnReport:
    """What drgn says; `planted_pids` are those of the tasks with the asked-for name."""

    panic_message: str
    comm: str
    pid: int
    stack: list[str]  # function names, innermost first
    stack_text: str
    tasks: int
    planted_pids: list[int]
    unreadable: str  # "" if the whole task list could be read
    release: str
    nodename: str
    version: str


@dataclass(frozen=True)
class CrashReport:
    """What crash says: `sys` as key and value, the functions of `bt` innermost first, all of its text.

    Debian 12's crash (8.0.2) does not find the tasks of its own kernel but those that run on a CPU: the count
    of tasks is a question for drgn.
    """

    sys: dict[str, str]
    stack: list[str]
    log: list[str]  # lines of the kernel log, oldest first
    ps: str  # of the tasks of the asked-for name
    text: str

    @property
    def panic_message(self) -> str:
        return self.sys.get("PANIC", "").strip('"')


@dataclass(frozen=True)
class GdbReport:
    """What gdb says: it reads the kernel's own mapping, but not stacks, which need page tables."""

    banner: str
    release: str
    threads: int  # one for each CPU
    crashed_frames: list[str]  # of the CPU that called the capture kernel, as far as they can be read
    registers: dict[str, int]  # of the same CPU
    text: str


def vmcoreinfo(vmcore: Path) -> dict[str, str]:
    """The crashed kernel's own description of itself, from the ELF notes of the dump."""
    with vmcore.open("rb") as file:
        for segment in ELFFile(file).iter_segments("PT_NOTE"):
            data: bytes = segment.data()
            start = data.find(b"OSRELEASE=")
            if start >= 0:
                text = data[start:].split(b"\0", 1)[0].decode(errors="replace")
                return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    raise DebuggerFailed(f"{vmcore}: no VMCOREINFO note")


class OpenDump:
    """A dump on the host with the symbols of the kernel that died in it."""

    def __init__(
        self,
        vmcore: Path,
        vmlinux: Path,
        modules: Sequence[Path] = (),
        *,
        crash_command: Sequence[str] = ("crash",),
    ) -> None:
        """`crash_command` names another crash than the machine's, which may be too old for the kernel."""
        self.vmcore = vmcore
        self.vmlinux = vmlinux
        self.modules = list(modules)
        self.crash_command = list(crash_command)

    def drgn(self, planted: str) -> DrgnReport:
        """Ask drgn, of the Python that runs this."""
        script = HERE / "drgn_report.py"
        done = _run("drgn", [sys.executable, script, self.vmcore, self.vmlinux, planted, *self.modules])
        return DrgnReport(**json.loads(done.stdout))

    def crash(self, planted: str) -> CrashReport:
        """Ask crash: sys, bt, log, ps of the planted name."""
        requests = {"sys": "sys", "bt": "bt", "log": "log", "ps": f"ps {planted}"}
        script = "".join(f"!echo =={name}\n{request}\n" for name, request in requests.items())
        with tempfile.NamedTemporaryFile("w", prefix="kdump-crash-") as file:
            file.write(f"{script}!echo ==end\nexit\n")
            file.flush()
            done = _run("crash", [*self.crash_command, "-s", "-i", file.name, self.vmlinux, self.vmcore])
        parts = re.split(r"^==(\w+)\n", done.stdout, flags=re.MULTILINE)
        answers = dict(zip(parts[1::2], parts[2::2], strict=False))
        if "end" not in answers:
            raise DebuggerFailed(f"crash stopped half way:\n{_tail(done)}")
        rows = (line.split(":", 1) for line in answers["sys"].splitlines() if ":" in line)
        return CrashReport(
            sys={key.strip(): value.strip() for key, value in rows},
            stack=_crash_stack(answers["bt"]),
            log=answers["log"].splitlines(),
            ps=answers["ps"],
            text=done.stdout,
        )

    def gdb(self) -> GdbReport:
        """Ask gdb, which knows nothing of KASLR: the symbols are moved by what VMCOREINFO says."""
        offset = int(vmcoreinfo(self.vmcore).get("KERNELOFFSET", "0"), 16)
        # Not as the executable: gdb would read the kernel's variables from that file, at the addresses it was
        # linked for.
        requests = [
            "set pagination off",
            "set print elements 0",
            f"symbol-file -o {offset:#x} {self.vmlinux}",
            f"core-file {self.vmcore}",
            "echo ==banner\\n",
            'printf "%s", linux_banner',
            "echo ==release\\n",
            'printf "%s\\n", init_uts_ns.name.release',
            "echo ==threads\\n",
            "thread apply all -c -- backtrace",
            "echo ==registers\\n",
            "thread apply all -c -- info registers",
        ]
        words = [word for request in requests for word in ("-ex", request)]
        # -n: nobody's own settings; the status is that of the last request, and a stack that ends early is no
        # failure.
        done = _run("gdb", ["gdb", "-n", "-q", "-batch", *words], statuses=(0, 1))
        parts = re.split(r"^==(\w+)\n", done.stdout, flags=re.MULTILINE)
        answers = dict(zip(parts[1::2], parts[2::2], strict=False))
        if not answers.get("banner"):
            raise DebuggerFailed(f"gdb cannot read linux_banner:\n{_tail(done)}")
        stacks = {
            number: re.findall(r"^#\d+ +(?:0x\w+ in )?(\w+)", text, re.MULTILINE)
            for number, text in _by_thread(answers.get("threads", "")).items()
        }
        crashed = next((number for number, stack in stacks.items() if DOORS & set(stack[:3])), "")
        registers = re.findall(
            r"^(r\w+) +(0x\w+)", _by_thread(answers.get("registers", "")).get(crashed, ""), re.MULTILINE
        )
        return GdbReport(
            banner=answers["banner"].strip(),
            release=answers.get("release", "").strip(),
            threads=len(stacks),
            crashed_frames=stacks.get(crashed, []),
            registers={name: int(value, 16) for name, value in registers},
            text=done.stdout + done.stderr,
        )


def _crash_stack(text: str) -> list[str]:
    """Functions in crash's `bt`; the one that faulted has no frame line, but is named with its registers."""
    lines = re.findall(r"^ *#\d+ \[\w+\] (\S+) at|\[exception RIP: (\w+)", text, re.MULTILINE)
    return [frame or faulted for frame, faulted in lines]


def _by_thread(text: str) -> dict[str, str]:
    """The answers to `thread apply all`, by gdb's number of the thread."""
    parts = re.split(r"^Thread (\d+) .*:\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=False))


def _run(
    name: str, command: Sequence[str | Path], *, statuses: Sequence[int] = (0,)
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SEC,
        )
    except subprocess.TimeoutExpired as error:
        raise DebuggerFailed(f"{name} did not end within {TIMEOUT_SEC:.0f} s") from error
    if done.returncode not in statuses:
        raise DebuggerFailed(f"{name} ended with status {done.returncode}:\n{_tail(done)}")
    return done


def _tail(done: subprocess.CompletedProcess[str]) -> str:
    return "\n".join((done.stdout + done.stderr).splitlines()[-40:])
