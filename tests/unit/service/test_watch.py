# SPDX-License-Identifier: LGPL-2.1-or-later
"""Real inotify, on folders of the test; what only a real machine announces is asked of the real kernel."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kdump_service.config import Config
from kdump_service.kernel import uevents
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.inotify import CONTENT, NAMES, Inotify
from kdump_service.kernel.uevents import HotplugSocket, is_hotplug
from kdump_service.service.watch import KINDS, Watcher
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.hang import HANG_SEC, until

SETTLE_SEC = 0.05
QUIET_SEC = 0.4


class _Bench:
    def __init__(self, path: Path, settle_sec: float, longest_sec: float) -> None:
        self.machine = MachineRoot(path)
        self.root = path
        self.config = Config()
        self.images = [f"/boot/vmlinuz-{RELEASE}", str(path / f"boot/initrd.img-{RELEASE}")]
        self.heard: list[str] = []
        self._news = asyncio.Event()
        self.watcher = Watcher(KernelFiles(path), self._hear, settle_sec=settle_sec, longest_sec=longest_sec)

    def _hear(self, kind: str) -> None:
        self.heard.append(kind)
        self._news.set()

    async def expect(self, *kinds: str) -> None:
        """These are told of, and no others."""
        deadline = time.monotonic() + HANG_SEC
        while not set(kinds) <= set(self.heard):
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), deadline - time.monotonic())
        await asyncio.sleep(SETTLE_SEC * 3)  # what should not be told of would be by now
        assert set(self.heard) == set(kinds)
        self.heard.clear()

    async def expect_nothing(self) -> None:
        await asyncio.sleep(QUIET_SEC)
        assert self.heard == []


@contextlib.asynccontextmanager
async def _watching(
    path: Path, config: Config | None = None, settle_sec: float = SETTLE_SEC, longest_sec: float = 0.5
) -> AsyncIterator[_Bench]:
    bench = _Bench(path, settle_sec, longest_sec)
    bench.config = config or bench.config
    bench.watcher.start(bench.config, bench.images)
    try:
        yield bench
    finally:
        bench.watcher.stop()


CHANGES: list[tuple[str, Callable[[_Bench], object]]] = [
    ("configuration", lambda b: b.machine.write("etc/kdump-service.conf", "[Dump]\n")),
    ("configuration", lambda b: b.machine.write("etc/kdump-service.conf.d/10-a.conf", "[Dump]\n")),
    ("configuration", lambda b: b.machine.write("run/kdump-service.conf.d/10-a.conf", "[Dump]\n")),
    ("images", lambda b: b.machine.write(f"boot/vmlinuz-{RELEASE}", "another kernel")),
    ("images", lambda b: os.utime(b.root / f"boot/initrd.img-{RELEASE}")),
    ("images", lambda b: (b.root / f"boot/initrd.img-{RELEASE}").unlink()),
    (
        "images",
        lambda b: b.machine.write("usr/lib/systemd/system/kdump-capture.service.d/a.conf", "[Service]\n"),
    ),
    ("boot-loader", lambda b: b.machine.write("boot/grub/grub.cfg", "menu")),
    ("boot-loader", lambda b: b.machine.write("boot/loader/entries/a.conf", "title A")),
    ("boot-loader", lambda b: b.machine.write("etc/default/grub.d/a.cfg", "A=1")),
    ("target", lambda b: (b.root / "var/crash/2026").mkdir(parents=True)),
    ("tools", lambda b: b.machine.write("etc/fstab", "")),
    ("tools", lambda b: (b.root / "var/log/journal").rmdir()),
]


@pytest.mark.parametrize(
    ("kind", "change"), CHANGES, ids=[f"{n}-{kind}" for n, (kind, _) in enumerate(CHANGES)]
)
def test_change_is_told_by_its_kind(tmp_path: Path, kind: str, change: Callable[[_Bench], object]) -> None:
    async def scene() -> None:
        async with _watching(tmp_path) as bench:
            await bench.expect_nothing()
            change(bench)
            await bench.expect(kind)

    asyncio.run(scene())


def test_what_lies_beside_is_not_told_of(tmp_path: Path) -> None:
    async def scene() -> None:
        (tmp_path / "run").mkdir()
        async with _watching(tmp_path) as bench:
            for name in ("etc/passwd", "boot/vmlinuz-other", "run/some.pid", "var/log/messages", "unrelated"):
                bench.machine.write(name, "x")
            await bench.expect_nothing()

    asyncio.run(scene())


def test_replaced_by_rename(tmp_path: Path) -> None:
    """As packages and editors do: the name stays, the file is another."""

    async def scene() -> None:
        async with _watching(tmp_path) as bench:
            for _ in range(3):
                new = bench.machine.write(f"boot/initrd.img-{RELEASE}.new", "rebuilt")
                new.rename(tmp_path / f"boot/initrd.img-{RELEASE}")
                await bench.expect("images")

    asyncio.run(scene())


def test_folder_that_goes_and_comes(tmp_path: Path) -> None:
    folder = tmp_path / "etc/kdump-service.conf.d"

    async def scene() -> None:
        async with _watching(tmp_path) as bench:
            for _ in range(2):
                folder.mkdir()
                await bench.expect("configuration")
                (folder / "a.conf").write_text("[Dump]\n")
                await bench.expect("configuration")
                folder.rename(tmp_path / "etc/elsewhere")
                await bench.expect("configuration")
                (tmp_path / "etc/elsewhere/a.conf").write_text("[Dump]\nContents=log\n")
                await bench.expect_nothing()
                (tmp_path / "etc/elsewhere").rename(folder)
                await bench.expect("configuration")
                (folder / "a.conf").write_text("[Dump]\nContents=user\n")
                await bench.expect("configuration")
                shutil.rmtree(folder)
                await bench.expect("configuration")

    asyncio.run(scene())


def test_parent_of_the_target_is_replaced(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _watching(tmp_path, Config(target="/srv/deep/crash")) as bench:
            (tmp_path / "srv/deep/crash").mkdir(parents=True)
            await bench.expect("target")
            (tmp_path / "srv/deep").rename(tmp_path / "srv/old")
            (tmp_path / "srv/deep/crash").mkdir(parents=True)
            await bench.expect("target")
            (tmp_path / "srv/old/crash/x").mkdir()
            await bench.expect_nothing()
            (tmp_path / "srv/deep/crash/x").mkdir()
            await bench.expect("target")
            (tmp_path / "srv/deep/crash").chmod(0o700)
            await bench.expect("target")
            shutil.rmtree(tmp_path / "srv")
            await bench.expect("target")
            (tmp_path / "srv/deep/crash").mkdir(parents=True)
            await bench.expect("target")

    asyncio.run(scene())


def test_symbolic_links_are_followed_and_watched(tmp_path: Path) -> None:
    async def scene() -> None:
        (tmp_path / "var").mkdir(exist_ok=True)
        (tmp_path / "var/crash").symlink_to("/srv/one")
        for name in ("one", "two"):
            (tmp_path / "srv" / name).mkdir(parents=True)
        async with _watching(tmp_path) as bench:
            (tmp_path / "srv/one/x").mkdir()
            await bench.expect("target")
            (tmp_path / "var/crash").unlink()
            (tmp_path / "var/crash").symlink_to("../srv/two")
            await bench.expect("target")
            (tmp_path / "srv/one/y").mkdir()
            await bench.expect_nothing()
            (tmp_path / "srv/two/y").mkdir()
            await bench.expect("target")
            (tmp_path / "var/crash").unlink()
            (tmp_path / "var/crash").symlink_to("crash")  # to itself
            await bench.expect("target")

    asyncio.run(scene())


def test_another_configuration_is_another_target(tmp_path: Path) -> None:
    async def scene() -> None:
        for name in ("var/crash", "srv/crash"):
            (tmp_path / name).mkdir(parents=True, exist_ok=True)
        async with _watching(tmp_path) as bench:
            bench.watcher.update(Config(target="/srv/crash"), [])
            (tmp_path / "var/crash/x").mkdir()
            bench.machine.write(f"boot/vmlinuz-{RELEASE}", "another kernel")
            await bench.expect_nothing()
            (tmp_path / "srv/crash/x").mkdir()
            await bench.expect("target")

    asyncio.run(scene())


def test_lost_events_mean_that_everything_is_looked_at(tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def scene() -> None:
        (tmp_path / "var/crash").mkdir(parents=True)
        async with _watching(tmp_path) as bench:
            # Nobody reads meanwhile: the loop does not run.
            for number in range(most // 2 + 100):
                path = tmp_path / "var/crash" / str(number % 7)
                path.mkdir()
                path.rmdir()
            (tmp_path / "etc/kdump-service.conf.d").mkdir()
            await bench.expect(*(kind for kind in KINDS if kind not in ("mounts", "hotplug")))
            # What appeared while events were lost is watched.
            bench.machine.write("etc/kdump-service.conf.d/a.conf", "[Dump]\n")
            await bench.expect("configuration")

    asyncio.run(scene())


def test_many_changes_are_told_once(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _watching(tmp_path, settle_sec=1, longest_sec=HANG_SEC) as bench:
            for number in range(50):
                bench.machine.write("etc/kdump-service.conf", f"# {number}\n")
                await asyncio.sleep(0.001)
            await bench.expect("configuration")
            await bench.expect_nothing()

    asyncio.run(scene())


def test_changes_without_end_are_told_all_the_same(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _watching(tmp_path, settle_sec=HANG_SEC, longest_sec=0.5) as bench:
            for _ in range(2):

                def told() -> bool:
                    bench.machine.write("etc/kdump-service.conf", "# again\n")
                    return bench.heard == ["configuration"]

                await until(told)
                bench.heard.clear()

    asyncio.run(scene())


def test_file_systems_that_may_hang_are_not_entered(tmp_path: Path) -> None:
    async def scene() -> None:
        (tmp_path / "srv/nfs/crash").mkdir(parents=True)
        machine = MachineRoot(tmp_path)
        async with _watching(tmp_path, Config(target="/srv/nfs/crash")) as bench:
            machine.set_mounts(
                "1 0 8:0 / / rw - ext4 /dev/vda rw", "2 1 0:9 / /srv/nfs rw - nfs4 server:/x rw"
            )
            bench.watcher.update(bench.config, bench.images)
            (tmp_path / "srv/nfs/crash/x").mkdir()
            await bench.expect_nothing()
            assert not any("nfs" in folder for folder in bench.watcher._folders)
            (tmp_path / "srv/nfs").rename(tmp_path / "srv/other")
            await bench.expect("target")

    asyncio.run(scene())


def test_idle_means_no_wake_up(tmp_path: Path) -> None:
    async def scene() -> None:
        async with _watching(tmp_path) as bench:
            await asyncio.sleep(SETTLE_SEC * 2)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            await asyncio.sleep(1.5)
            slept = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
            assert slept <= 3, "the one sleep of this test, and what the interpreter does"
            assert bench.heard == []

    asyncio.run(scene())


def test_without_inotify_the_rest_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    def refused(_: Inotify) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Inotify, "__init__", refused)

    async def scene() -> None:
        async with _watching(tmp_path) as bench:
            bench.watcher.update(Config(), [])

    asyncio.run(scene())
    assert "Too many open files" in caplog.text


def test_one_inode_under_two_names_and_the_end_of_watches(tmp_path: Path) -> None:
    with Inotify() as inotify:
        watch = inotify.watch(str(tmp_path), NAMES)
        assert inotify.watch(str(tmp_path / "."), NAMES | CONTENT) == watch
        (tmp_path / "n\udcff").mkdir()
        assert [(event.watch, event.name) for event in inotify.read()] == [(watch, "n\udcff")]
        assert list(inotify.read()) == []
        inotify.forget(watch)
        inotify.forget(watch)
        with pytest.raises(FileNotFoundError):
            inotify.watch(str(tmp_path / "missing"), NAMES)
        with pytest.raises(NotADirectoryError):
            (tmp_path / "file").write_text("")
            inotify.watch(str(tmp_path / "file"), NAMES)


# Mounts


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_mounts_of_the_machine(tmp_path: Path) -> None:
    """The real kernel's list: a mount on the target is told of, one elsewhere is not."""
    libc = ctypes.CDLL(None, use_errno=True)
    target, other = tmp_path / "target", tmp_path / "other"
    for folder in (target, other):
        folder.mkdir()

    async def scene() -> None:
        heard: list[str] = []
        watcher = Watcher(KernelFiles(Path("/")), heard.append, settle_sec=SETTLE_SEC)
        watcher.start(Config(target=str(target)), [])
        try:
            assert libc.mount(b"none", os.fsencode(other), b"tmpfs", 0, None) == 0
            await asyncio.sleep(QUIET_SEC)
            assert "mounts" not in heard
            assert libc.mount(b"none", os.fsencode(target), b"tmpfs", 0, None) == 0
            await until(lambda: "mounts" in heard)
            await asyncio.sleep(QUIET_SEC)
            assert heard.count("mounts") == 1
            # The folder that is seen now is watched, not the one below it.
            heard.clear()
            (target / "x").mkdir()
            await until(lambda: "target" in heard)
            heard.clear()
            assert libc.umount2(os.fsencode(target), 0) == 0
            await until(lambda: "mounts" in heard)
        finally:
            libc.umount2(os.fsencode(target), 2)
            libc.umount2(os.fsencode(other), 2)
            watcher.stop()

    asyncio.run(scene())


# Hotplug


def _uevent(head: str, *fields: str) -> bytes:
    return b"\0".join(field.encode() for field in (head, *fields)) + b"\0"


@pytest.mark.parametrize(
    ("message", "concerns"),
    [
        (_uevent("add@/devices/system/memory/memory32", "ACTION=add", "SUBSYSTEM=memory"), True),
        (_uevent("offline@/devices/system/memory/memory32", "ACTION=offline"), True),
        (_uevent("online@/devices/system/cpu/cpu3", "ACTION=online"), True),
        (_uevent("remove@/devices/system/cpu/cpu3", "ACTION=remove"), True),
        (_uevent("add@/devices/system/cpu/cpu3", "ACTION=add", "SYNTH_UUID=0"), False),
        (_uevent("add@/devices/virtual/net/lo", "ACTION=add"), False),
        (_uevent("bind@/devices/system/cpu/cpu3", "ACTION=bind"), False),
        (_uevent("add@/devices/system/cpu", "ACTION=add"), False),
        (b"", False),
        (b"\0\xff", False),
    ],
)
def test_which_announcements_count(message: bytes, concerns: bool) -> None:
    assert is_hotplug(message) is concerns
    if b"SYNTH" not in message:
        assert bool(_run_filter(uevents._filter_program(), message)) is concerns


def _run_filter(program: bytes, message: bytes) -> int:
    """The kernel's own filter, on a pair of sockets that carry the message."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with sender, receiver:
        kept = ctypes.create_string_buffer(program, len(program))
        receiver.setsockopt(
            socket.SOL_SOCKET, 26, struct.pack("HP", len(program) // 8, ctypes.addressof(kept))
        )
        try:
            sender.send(message or b"\0")
        except OSError:  # EPERM: what the receiver's filter drops, the sender is told of
            return 0
        try:
            return len(receiver.recv(8192))
        except BlockingIOError:
            return 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to make the kernel announce devices")
def test_other_devices_do_not_wake_the_process() -> None:
    hotplug = HotplugSocket()
    everything = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 15)
    try:
        everything.bind((0, 1))
        for _ in range(100):
            Path("/sys/class/net/lo/uevent").write_text("add")
        with pytest.raises(BlockingIOError):
            hotplug._socket.recv(8192)
        assert everything.recv(8192).startswith(b"add@/devices/virtual/net/lo")
        # What user space makes up for a processor passes the filter in the kernel, and is dropped then.
        Path("/sys/devices/system/cpu/cpu0/uevent").write_text("change")
        assert not hotplug.read()
    finally:
        hotplug.close()
        everything.close()
