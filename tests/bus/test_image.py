# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon has the capture image built when it is wanted; what builds waits for the test."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.builders.machine_disks import put_image, small_image_machine
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.bus.conftest import Monitor, PrivateBus, RunningDaemon

pytestmark = pytest.mark.usefixtures("polkit")

CHANGES = "type='signal',interface='org.freedesktop.DBus.Properties'"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    """A machine that can have a small image, and has none."""
    made = small_image_machine(tmp_path / "machine", built=False)
    for number in range(1, 6):
        os.mkfifo(made.path / f"build-{number}")
    return made


class _Builder:
    """What stands for the unit that builds."""

    def __init__(self, machine: MachineRoot) -> None:
        self._root = machine.path
        self._ended = 0

    def ends(self, error: str = "") -> None:
        """Let the next build end, well or with this error; waits until it has begun."""
        self._ended += 1
        (self._root / f"build-{self._ended}").write_text(f"{error}\n")

    @property
    def begun(self) -> list[str]:
        """The kernels for which a build has begun, and which were asked for whatever is there."""
        path = self._root / "builds"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def builder(machine: MachineRoot) -> _Builder:
    return _Builder(machine)


@pytest.fixture
def daemon(bus: PrivateBus, machine: MachineRoot) -> Iterator[RunningDaemon]:
    running = RunningDaemon(bus, machine)
    yield running
    running.process.kill()  # a build that waits for the test would hold up the end
    running.stop()


def _until_problem(monitor: Monitor, code: str) -> list[list[str]]:
    while True:
        rows: list[list[str]] = monitor.until_changed("Problems")
        if code in [row[0] for row in rows]:
            return rows


def _until_no_problem(monitor: Monitor) -> None:
    while monitor.until_changed("Problems") != []:
        pass


@pytest.mark.promise("image-is-current")
def test_image_is_built_and_armed(
    bus: PrivateBus, daemon: RunningDaemon, machine: MachineRoot, builder: _Builder
) -> None:
    assert (daemon.read("State"), daemon.read("Reason")) == ("armed", "image-building")
    assert daemon.read("Image").endswith(f"initrd.img-{RELEASE}")
    assert daemon.read("Ready") is True
    with bus.monitor(CHANGES) as monitor:
        builder.ends()
        _until_no_problem(monitor)
    assert (daemon.read("State"), daemon.read("Reason")) == ("armed", "")
    assert "/var/lib/kdump-service/images/" in daemon.read("Image")
    assert builder.begun == [RELEASE]
    assert "rootfstype=ramfs" in daemon.read("CommandLine").split()


def test_machine_with_a_current_image_builds_nothing(bus: PrivateBus, machine: MachineRoot) -> None:
    put_image(machine)
    running = RunningDaemon(bus, machine)
    assert running.call("Check") == []
    assert running.read("Reason") == ""
    running.call("Arm")
    running.stop()
    assert _Builder(machine).begun == []


@pytest.mark.promise("image-is-current", "upgrade-stays-armed")
def test_image_of_another_version_serves_until_one_was_built_and_one_is(
    bus: PrivateBus, machine: MachineRoot
) -> None:
    """An upgrade may change what an image has to be: one is built, and until then the old one is armed."""
    old = put_image(machine, b"of another schema", schema=0, built="2026-11-01T04:00:00Z")
    running, builder = RunningDaemon(bus, machine), _Builder(machine)
    assert (running.read("State"), running.read("Reason")) == ("armed", "image-outdated")
    assert running.read("Image").endswith(old.name)
    with bus.monitor(CHANGES) as monitor:
        builder.ends()
        _until_no_problem(monitor)
    assert not running.read("Image").endswith(old.name)
    running.stop()
    running = RunningDaemon(bus, machine)
    assert (running.read("State"), running.read("Reason"), running.call("Check")) == ("armed", "", [])
    running.stop()
    assert builder.begun == [RELEASE]


def test_one_build_at_a_time_and_questions_are_answered_meanwhile(
    bus: PrivateBus, daemon: RunningDaemon, builder: _Builder
) -> None:
    for verb in ("Arm", "Reload", "Arm"):
        daemon.call(verb)
    assert daemon.kdumpctl("status").returncode == 0
    assert [row[0] for row in daemon.call("Check")] == ["image-building"]
    with bus.monitor(CHANGES) as monitor:
        builder.ends()
        _until_no_problem(monitor)
    assert builder.begun == [RELEASE]


def test_progress_of_a_build_is_told(
    bus: PrivateBus, daemon: RunningDaemon, machine: MachineRoot, builder: _Builder
) -> None:
    with bus.monitor(CHANGES) as monitor:

        def until_progress(wanted: float) -> None:
            """Between, the service may check something, of which there is no progress."""
            while monitor.until_changed("Progress") != wanted:
                pass

        daemon.call("Check")
        for content, progress in (
            ('{"stage": "proving", "done": 0.75}', 0.75), ("nonsense", -1), ('{"done": 0.5}', 0.5),
            ('{"done": 7}', -1), ('{"done": 1}', 1),
        ):  # fmt: skip
            machine.write("run/kdump-service/build.new", content).rename(
                machine.path / "run/kdump-service/build.json"
            )
            until_progress(progress)
        builder.ends()
        until_progress(-1)
        _until_no_problem(monitor)


@pytest.mark.promise("build-fails")
def test_failure_is_a_problem_and_is_not_tried_again(
    bus: PrivateBus, daemon: RunningDaemon, builder: _Builder
) -> None:
    with bus.monitor(CHANGES) as monitor:
        builder.ends("10 MiB are free")
        [row] = _until_problem(monitor, "image-not-built")
    assert row[1] == "warning"
    assert "10 MiB are free" in row[2]
    assert daemon.read("Explanation") == "10 MiB are free. Make room in /var."
    assert daemon.read("State") == "armed"
    log = daemon.wait_for_journal("Capture image not built")
    assert "10 MiB are free. Make room in /var." in log
    daemon.call("Arm")
    daemon.call("Reload")
    assert [row[0] for row in daemon.call("Check")] == ["image-not-built"]
    assert builder.begun == [RELEASE]


def test_rebuild_tries_again(bus: PrivateBus, daemon: RunningDaemon, builder: _Builder) -> None:
    with bus.monitor(CHANGES) as monitor:
        builder.ends("10 MiB are free")
        _until_problem(monitor, "image-not-built")
        with ThreadPoolExecutor(1) as other:
            rebuilt = other.submit(daemon.call, "Rebuild")  # returns when it is built and loaded
            while monitor.until_changed("Activity") != "building-image":
                pass
            builder.ends()
            rebuilt.result()
        _until_no_problem(monitor)
    assert builder.begun == [RELEASE, f"{RELEASE} anew"]


def test_rebuild_that_fails_tells_the_newest_reason(
    bus: PrivateBus, daemon: RunningDaemon, builder: _Builder
) -> None:
    with bus.monitor(CHANGES) as monitor, ThreadPoolExecutor(1) as other:
        builder.ends("10 MiB are free")
        _until_problem(monitor, "image-not-built")
        rebuilt = other.submit(daemon.kdumpctl, "rebuild")
        builder.ends("it was killed")
        assert "it was killed" in rebuilt.result().stderr
        while "it was killed" not in str(monitor.until_changed("Problems")):
            pass
    assert daemon.read("Explanation").startswith("it was killed")
    assert daemon.read("State") == "armed"
    daemon.call("Arm")
    assert builder.begun == [RELEASE, f"{RELEASE} anew"]


def test_rebuild_that_fails_beside_a_current_image(
    bus: PrivateBus, machine: MachineRoot, builder: _Builder
) -> None:
    image = put_image(machine)
    running = RunningDaemon(bus, machine)
    with ThreadPoolExecutor(1) as other:
        rebuilt = other.submit(running.kdumpctl, "rebuild")
        builder.ends("it was killed")
        assert "it was killed" in rebuilt.result().stderr
    assert (running.call("Check"), running.read("Image"), running.read("State")) == ([], str(image), "armed")
    running.stop()


def test_daemon_ends_during_a_build(bus: PrivateBus, machine: MachineRoot, builder: _Builder) -> None:
    """systemd ends whoever waits for the unit that builds, too: that says nothing about the image."""
    os.mkfifo(machine.path / "why-stopped")
    running = RunningDaemon(bus, machine, "restarted")
    with bus.monitor(CHANGES) as monitor:
        running.process.send_signal(signal.SIGTERM)
        with open(machine.path / "why-stopped", "w"):
            builder.ends("systemctl start: exit status -15: no message")
            while monitor.until_changed("Activity") != "":
                pass
    assert "not built" not in running.stop()


def test_configuration_changes_during_a_build(
    bus: PrivateBus, daemon: RunningDaemon, machine: MachineRoot, builder: _Builder
) -> None:
    """What is built first is not wanted any more, so the next is built at once, even if the first fails."""
    assert daemon.set("ExtraDrivers", "s", "xfs").returncode == 0
    with bus.monitor(CHANGES) as monitor:
        builder.ends("made to fail")
        machine.write("drivers", "xfs")  # of what is built from now on
        builder.ends()
        _until_no_problem(monitor)
    assert daemon.read("Reason") == ""
    assert builder.begun == [RELEASE] * 2


def test_image_that_is_never_the_one_that_is_wanted(
    bus: PrivateBus, daemon: RunningDaemon, builder: _Builder
) -> None:
    assert daemon.set("ExtraDrivers", "s", "xfs").returncode == 0
    with bus.monitor(CHANGES) as monitor:
        for _ in range(3):
            builder.ends()
        [row] = _until_problem(monitor, "image-not-built")
    assert "again and again" in row[2]
    assert builder.begun == [RELEASE] * 3


def test_disarmed_machine_stays_so_when_the_image_is_there(
    bus: PrivateBus, daemon: RunningDaemon, machine: MachineRoot, builder: _Builder
) -> None:
    daemon.call("Disarm")
    with bus.monitor(CHANGES) as monitor:
        builder.ends()
        while monitor.until_changed("Activity") != "":
            pass
    assert (daemon.read("State"), daemon.read("Reason")) == ("not-armed", "disarmed")
    assert [row[0] for row in daemon.call("Check")] == ["disarmed"]
    assert builder.begun == [RELEASE]
    daemon.call("Arm")
    assert (daemon.read("State"), daemon.read("Reason")) == ("armed", "")


@pytest.mark.promise("root-serves")
def test_machine_without_dracut_says_what_to_install(bus: PrivateBus, machine: MachineRoot) -> None:
    shutil.rmtree(machine.path / "usr/lib/dracut")
    running = RunningDaemon(bus, machine)
    [row] = running.call("Check")
    assert (row[0], row[1]) == ("image-tools-missing", "note")
    assert "dracut-core" in json.dumps(row)
    assert running.read("Ready") is True
    running.stop()
    assert _Builder(machine).begun == []
