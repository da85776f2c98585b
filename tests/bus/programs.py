# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of the tests, each a process of its own, forked from one that has loaded what they import.

To load the modules of the daemon, or of kdumpctl, takes more processor time than all that most cases have
them do. What is forked begins at the first line of its own module, as by ``python -m``; it shares with others
what was imported, and nothing else. Cases that are marked ``new_interpreter`` get one: they look at the
processor time and the memory that a program takes. So do those that need a terminal.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

__all__ = ["ForkedProgram", "Starter"]

_LOADED = (
    "kdump_service.daemon",
    "kdump_service.bus.client",
    "kdump_service.ctl.acts",
    "kdump_service.ctl.debug",
    "kdump_service.ctl.dump_files",
    "kdump_service.ctl.dump_info",
    "kdump_service.ctl.dump_list",
    "kdump_service.ctl.offline",
    "kdump_service.ctl.parser",
    "kdump_service.ctl.readiness",
    "kdump_service.ctl.rehearse",
    "kdump_service.ctl.reserve",
    "kdump_service.ctl.settings",
    "kdump_service.ctl.watch",
    "kdump_service.reserve.main",
    "kdump_service.service.shrink_unit",
    "tests.builders.boot_trees",
    "tests.builders.machine_disks",
    "tests.builders.machine_root",
)
"""What the programs import. The programs themselves are not among them: each is run as ``__main__``."""
_NUMBER = struct.Struct("<i")


class ForkedProgram:
    """A program that runs, to be used as a subprocess.Popen."""

    def __init__(self, name: str, told: int) -> None:
        self.stdin: IO[str] | None = None
        self.stdout: IO[str] | None = None
        self.stderr: IO[str] | None = None
        self.returncode: int | None = None
        self._name = name
        self._told = os.fdopen(told, "rb", buffering=0)
        self.pid = self._read_number()

    def _read_number(self) -> int:
        number: int = _NUMBER.unpack(self._told.read(_NUMBER.size) or b"")[0]
        return number

    def poll(self) -> int | None:
        """The exit code, or None as long as it runs."""
        with suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self._name, timeout or 0)
            self.returncode = self._read_number()
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


class Starter:
    """Starts programs, which are modules."""

    def __init__(self) -> None:
        self.forks = True
        """Whether what is started next is forked."""
        self._requests: socket.socket | None = None
        """Leads to the process that forks, which is there when it is needed."""

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str]
    ) -> subprocess.Popen[str] | ForkedProgram:
        """Start it, with a pipe for each of its three streams."""
        if not self.forks:
            pipe = subprocess.PIPE
            command = [sys.executable, "-m", module, *arguments]
            return subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        stdin, stdout, stderr = (os.pipe() for _ in range(3))
        handed_over = [stdin[0], stdout[1], stderr[1]]
        program = self._fork(module, arguments, environment, Path.cwd(), handed_over)
        for descriptor in handed_over:
            os.close(descriptor)
        program.stdin = os.fdopen(stdin[1], "w")
        program.stdout, program.stderr = os.fdopen(stdout[0]), os.fdopen(stderr[0])
        return program

    def run(
        self, module: str, *arguments: str, environment: Mapping[str, str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run it in a folder to its end; it has nothing to read. Raises subprocess.TimeoutExpired."""
        command = [sys.executable, "-m", module, *arguments]
        if not self.forks:
            return subprocess.run(
                command, env=environment, cwd=folder, timeout=timeout, check=False,
                stdin=subprocess.DEVNULL, capture_output=True, text=True,
            )  # fmt: skip
        with open(os.devnull) as nothing, TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
            streams = [each.fileno() for each in (nothing, out, errors)]
            program = self._fork(module, arguments, environment, folder, streams)
            try:
                code = program.wait(timeout)
            except BaseException:
                program.kill()
                raise
            for written in (out, errors):
                written.seek(0)
            return subprocess.CompletedProcess(command, code, out.read(), errors.read())

    def _fork(
        self,
        module: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        streams: list[int],
    ) -> ForkedProgram:
        if self._requests is None:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._forker = subprocess.Popen(
                    [sys.executable, "-m", __name__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                )  # fmt: skip
        told, tells = os.pipe()
        request = json.dumps([module, arguments, dict(environment), str(folder)]).encode()
        socket.send_fds(self._requests, [request], [*streams, tells])
        os.close(tells)
        return ForkedProgram(module, told)

    def close(self) -> None:
        """End the process that forks."""
        if self._requests is not None:
            self._requests.close()
            self._forker.wait(timeout=30)
            self._requests = None


def _serve(requests: socket.socket) -> tuple[str, list[str]]:
    """Fork for each request; in what was forked, this returns what to run. Nobody polls."""
    running: dict[int, tuple[int, int]] = {}  # pidfd -> process, where to tell of its end
    while True:
        for ready in select.select([requests.fileno(), *running], [], [])[0]:
            if ready in running:
                pid, told = running.pop(ready)
                status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(BrokenPipeError):  # nobody wants to know
                    os.write(told, _NUMBER.pack(status))
                os.close(told)
                os.close(ready)
                continue
            request, descriptors, *_ = socket.recv_fds(requests, 1 << 20, 4)
            if not request:
                sys.exit()
            *streams, told = descriptors
            pid = os.fork()
            if not pid:
                return _become(request, streams)
            os.write(told, _NUMBER.pack(pid))
            running[os.pidfd_open(pid)] = (pid, told)
            for descriptor in streams:
                os.close(descriptor)


def _become(request: bytes, streams: list[int]) -> tuple[str, list[str]]:
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    module, arguments, environment, folder = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    return module, arguments


def _main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    for module in _LOADED:
        import_module(module)
    gc.freeze()
    try:
        module, arguments = _serve(requests)
    except KeyboardInterrupt:
        return
    requests.detach()  # closed already
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _main()
