# SPDX-License-Identifier: LGPL-2.1-or-later
"""reserve over the bus, with the real daemon and the unit's own code: the method, its right, kdumpctl."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders.boot_trees import BootTree, debian_grub
from tests.builders.machine_root import MachineRoot
from tests.bus.conftest import FakePolkit, PrivateBus, RunningDaemon

NAME = ("org.kdump.Kdump1", "/org/kdump/Kdump1", "org.kdump.Kdump1")
NOBODY = 65534
DROP_IN = "etc/default/grub.d/zz-kdump-service.cfg"
KDUMPCTL = [sys.executable, "-m", "kdump_service.ctl.main"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")


@pytest.fixture
def tree(machine: MachineRoot) -> BootTree:
    """Debian with GRUB, on the machine."""
    (machine.path / "boot/grub/grub.cfg").unlink()
    return debian_grub(BootTree(machine.path))


@pytest.fixture
def daemon(
    bus: PrivateBus, machine: MachineRoot, tree: BootTree, polkit: FakePolkit
) -> Iterator[RunningDaemon]:
    running = RunningDaemon(bus, machine, module="tests.bus.fake_reserving_daemon")
    yield running
    running.stop()


def _files(tree: BootTree) -> dict[str, bytes]:
    kept = tree.all_files().items()
    return {name: text for name, text in kept if name.startswith(("etc/", "boot/"))}


# The method


@pytest.mark.promise("reserve-and-revert")
def test_plan_and_act(daemon: RunningDaemon, tree: BootTree) -> None:
    before = _files(tree)
    plan = daemon.call("Reserve", "sa{sv}", "256M", "1", "dry-run", "b", "true")
    assert {key: value["type"] for key, value in plan.items()} == {
        "BootLoader": "s", "Words": "s", "Files": "as", "Diff": "s", "Commands": "as", "Notes": "as",
        "Applied": "b",
    }  # fmt: skip
    assert plan["Applied"]["data"] is False
    assert _files(tree) == before
    done = daemon.call("Reserve", "sa{sv}", "256M", "0")
    assert (done["Applied"]["data"], done["Diff"]) == (True, plan["Diff"])
    assert "crashkernel=256M" in tree.read("boot/grub/grub.cfg")
    daemon.call("Reserve", "sa{sv}", "", "1", "revert", "b", "true")
    assert _files(tree) == before


def test_the_activity_is_told(daemon: RunningDaemon, bus: PrivateBus) -> None:
    with bus.monitor("type='signal',member='PropertiesChanged'") as monitor:
        daemon.call("Reserve", "sa{sv}", "256M", "0")
        while monitor.until_changed("Activity") != "reserving":
            pass


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("256M; id", "0"), "the kernel does not take this for crashkernel="),
        (("64T", "0"), "the kernel of this machine would reserve nothing"),
        (("256M", "1", "path", "s", "/etc/passwd"), "'path' is no option of Reserve"),
        (("256M", "1", "dry-run", "s", "yes"), "is no option of Reserve"),
        (("", "1", "revert", "b", "true"), "there is nothing to take back"),
    ],
)
def test_what_is_refused(
    daemon: RunningDaemon, tree: BootTree, arguments: tuple[str, ...], error: str
) -> None:
    before = _files(tree)
    done = daemon.busctl("call", *NAME, "Reserve", "sa{sv}", *arguments)
    assert done.returncode != 0
    assert error in done.stderr
    assert _files(tree) == before


@needs_root
def test_it_takes_the_right_to_configure(daemon: RunningDaemon, tree: BootTree, polkit: FakePolkit) -> None:
    polkit.grant()
    before = _files(tree)
    for option in ("dry-run", "revert"):
        done = daemon.busctl(
            "call", *NAME, "Reserve", "sa{sv}", "256M", "1", option, "b", "true", user=NOBODY
        )
        assert "do not have the right org.kdump.Kdump1.configure" in done.stderr
    assert _files(tree) == before
    polkit.grant("*")
    done = daemon.busctl("call", *NAME, "Reserve", "sa{sv}", "256M", "0", user=NOBODY)
    assert done.returncode == 0, done.stderr
    assert _files(tree) != before


# kdumpctl


def _kdumpctl(daemon: RunningDaemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return daemon.kdumpctl("reserve", *arguments)


def test_kdumpctl_shows_and_does(daemon: RunningDaemon, tree: BootTree) -> None:
    before = _files(tree)
    shown = _kdumpctl(daemon, "256M", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"+++ b/{DROP_IN}\n" in shown.stdout
    assert "Then run:\n    update-grub\n" in shown.stdout
    assert shown.stdout.endswith("To be reserved: 256 MiB.\n")
    assert _files(tree) == before
    done = _kdumpctl(daemon, "256M")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        shown.stdout
        + "\nDone. It counts from the next boot on: reboot when it suits. Then see: kdumpctl status\n"
    )
    again = _kdumpctl(daemon, "256M")
    assert (again.returncode, again.stdout.splitlines()[0]) == (
        0,
        "Nothing has to change: every command line is as it is to be.",
    )
    back = _kdumpctl(daemon, "--revert", "--yes")
    assert (back.returncode, _files(tree)) == (0, before), back.stderr
    assert back.stdout.endswith(
        "Done: it is as it was before. It counts from the next boot on: reboot when it suits.\n"
    )


def test_kdumpctl_takes_what_is_recommended(daemon: RunningDaemon) -> None:
    estimate = daemon.call("Estimate")
    done = _kdumpctl(daemon, "--json=short", "--dry-run")
    wanted = estimate["RecommendedBytes"]["data"] >> 20
    assert json.loads(done.stdout)["Words"] == f"crashkernel={wanted}M"
    assert json.loads(_kdumpctl(daemon, "auto", "--json", "--dry-run").stdout)["Applied"] is False


def test_kdumpctl_with_cma(daemon: RunningDaemon, tree: BootTree) -> None:
    done = _kdumpctl(daemon, "64M", "--cma", "--yes")
    assert done.returncode == 0, done.stderr
    assert "crashkernel=64M,cma crashkernel=64M\n" in tree.read("boot/grub/grub.cfg")
    assert "A kernel that does not know ,cma reserves the last word only" in done.stdout
    assert _kdumpctl(daemon, "64M", "--cma=128M").returncode == 0
    assert "crashkernel=128M,cma crashkernel=64M\n" in tree.read("boot/grub/grub.cfg")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("nonsense",), 46, "the kernel does not take this for crashkernel=: 'nonsense': a size is missing"),
        (("256M", "--revert"), 46, "what is taken back has no size"),
        (("--revert",), 10, "there is nothing to take back"),
        (("256M", "512M"), 2, "unrecognized arguments"),
    ],
)
def test_kdumpctl_says_what_is_wrong(
    daemon: RunningDaemon, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = _kdumpctl(daemon, *arguments)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr


def test_kdumpctl_when_a_program_fails(daemon: RunningDaemon, tree: BootTree) -> None:
    before = _files(tree)
    fails = tree.write("update-grub-fails", "")
    done = _kdumpctl(daemon, "256M")
    assert (done.returncode, _files(tree)) == (50, before)
    failed = "update-grub: exit status 1: made to fail"
    # Once from the new files, and once more from those of before.
    assert done.stderr.startswith(f"kdumpctl: {failed}; and not all may be as it was before: {failed}")
    assert "kdumpctl reserve --revert" in done.stderr
    fails.unlink()
    back = _kdumpctl(daemon, "--revert", "--yes")
    assert (back.returncode, _files(tree)) == (0, before), back.stderr
    assert "Then run:\n    update-grub\n" in back.stdout
    assert _kdumpctl(daemon, "--revert").returncode == 10


def test_kdumpctl_and_an_unknown_boot_loader(daemon: RunningDaemon, tree: BootTree) -> None:
    for path in (tree.path / "etc/default").rglob("*"):
        if path.is_file():
            path.unlink()
    before = _files(tree)
    done = _kdumpctl(daemon, "256M", "--yes")
    assert (done.returncode, _files(tree)) == (5, before)
    assert "Add to the kernel's command line: crashkernel=256M\n" in done.stdout


@pytest.mark.parametrize(("typed", "code"), [("y", 0), ("yes", 0), ("", 46), ("n", 46), ("sure", 46)])
def test_kdumpctl_asks_on_a_terminal(daemon: RunningDaemon, tree: BootTree, typed: str, code: int) -> None:
    before = _files(tree)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*KDUMPCTL, "reserve", "256M"], env={**daemon.environment, "TERM": "dumb", "NO_COLOR": "1"},
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    text = b""
    while b"[y/N]" not in text:
        text += os.read(master, 4096)
    assert b"+GRUB_CMDLINE_LINUX_DEFAULT=" in text
    assert _files(tree) == before
    os.write(master, typed.encode() + b"\n")
    try:
        while os.read(master, 4096):
            pass
    except OSError:
        pass  # the other side is closed
    os.close(master)
    assert process.wait(timeout=30) == code
    assert (_files(tree) != before) is (code == 0)


def test_a_drop_in_cannot_colour_a_terminal(daemon: RunningDaemon, tree: BootTree) -> None:
    path = Path(DROP_IN)
    tree.write(str(path), "# \x1b[31mevil\n")
    done = _kdumpctl(daemon, "256M", "--dry-run")
    assert "\x1b" not in done.stdout
    assert r"-# \x1b[31mevil" in done.stdout
