# SPDX-License-Identifier: LGPL-2.1-or-later
"""A private message bus with the real daemon on it. What is faked is the kernel, at the system call."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.machine_root import MachineRoot

_BUS_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>custom</type>
  <listen>unix:abstract={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
  </policy>
</busconfig>
"""

_START_DEADLINE_SEC = 20


class PrivateBus:
    """A dbus-daemon of our own."""

    def __init__(self, folder: Path) -> None:
        config = folder / "bus.conf"
        config.write_text(_BUS_CONFIG.format(socket=folder / "bus.socket"))
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={config}", "--nofork", "--print-address"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()

    def busctl(self, *arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
        """Run systemd's client, which nobody here wrote, as another user if asked to (needs root)."""
        return subprocess.run(
            ["busctl", f"--address={self.address}", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            user=user,
        )

    def close(self) -> None:
        """End the bus."""
        self._process.terminate()
        self._process.wait(timeout=10)


class RunningDaemon:
    """The daemon in a process of its own, on the private bus."""

    def __init__(
        self, bus: PrivateBus, machine: MachineRoot, stop_cause: str = "stopped", *failures: str
    ) -> None:
        self.busctl = bus.busctl
        self.environment = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address}
        self.environment.pop("NOTIFY_SOCKET", None)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.bus.daemon_on_fake_kernel",
                str(machine.path),
                stop_cause,
                *failures,
            ],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The child says so when it has the bus name and has armed: nothing to poll for.
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line != "ready\n":
            raise AssertionError(f"the daemon did not start: {self.process.communicate()[1]}")

    def kdumpctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the client."""
        return subprocess.run(
            [sys.executable, "-m", "kdump_service.ctl.main", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def wait_for_journal(self, text: str) -> str:
        """Read what the daemon logs until a line holds ``text``; returns what was read."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if text in line:
                return "".join(lines)
        raise AssertionError(f"the daemon ended without {text!r}: {''.join(lines)}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Send a signal and wait; returns what the daemon logged."""
        self.process.send_signal(number)
        return self.process.communicate(timeout=30)[1]


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[PrivateBus]:
    """A bus for one test."""
    private_bus = PrivateBus(tmp_path)
    yield private_bus
    private_bus.close()


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    """A machine with 256 MiB reserved and nothing loaded."""
    return MachineRoot(tmp_path / "machine")


class FakePolkit:
    """Stands for polkitd, which needs the system bus: grants or denies by a file, and notes who asked."""

    def __init__(self, bus: PrivateBus, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bus.fake_polkit", str(folder)],
            env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def grant(self, *names: str) -> None:
        """From now on, grant to these unique bus names only; ``*`` is everybody."""
        (self._folder / "granted").write_text("\n".join(names))

    def asked(self) -> list[tuple[str, str]]:
        """Subject and action of each question so far."""
        path = self._folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(line.split()[0], line.split()[1]) for line in lines]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=10)


@pytest.fixture
def polkit(bus: PrivateBus, tmp_path: Path) -> Iterator[FakePolkit]:
    """polkit, granting everything to everybody."""
    fake = FakePolkit(bus, tmp_path)
    fake.grant("*")
    yield fake
    fake.close()


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot, polkit: FakePolkit) -> Iterator[RunningDaemon]:
    """The daemon, armed."""
    running = RunningDaemon(bus, machine)
    yield running
    if running.process.poll() is None:
        running.stop()
