# SPDX-License-Identifier: LGPL-2.1-or-later
"""Tells when something changes that decides whether a crash would be captured. Nothing here polls.

inotify for files and folders, the kernel's own announcements for mounts and hotplug. A path is watched from
the root down: each folder on the way for the next name, so that what does not exist yet is seen when it
appears, and what is renamed, removed and made again, mounted over or replaced by another link is followed.

File systems that may hang (network, FUSE, automounter) are not entered: inotify does not tell of changes by
others there, and a dead server would stop the daemon.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from kdump_service.config import DROP_IN_FOLDERS, MAIN_FILE, Config
from kdump_service.image.recipe import UNIT_SETTINGS_FOLDERS
from kdump_service.kernel.boot_loader import BOOT_LOADER_PATHS
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.inotify import CONTENT, NAMES, Inotify
from kdump_service.kernel.mounts import Mount, holder_of
from kdump_service.kernel.uevents import HotplugSocket

__all__ = ["KINDS", "Watcher"]

logger = logging.getLogger(__name__)

KINDS = ("configuration", "images", "mounts", "target", "hotplug", "boot-loader", "tools")
"""What ``on_change`` is called with: files of the configuration; kernel and initramfs; mounts below which one
of the watched paths lies; the target's folder; memory and processors; the boot loader's files; units, rules
of udev and settings of systemd that the checks look at."""

# A path that ends in a slash is a folder, whose content counts.
_TOOLS = (
    "/etc/default/kdump-tools",
    "/etc/fstab",
    "/etc/systemd/journald.conf",
    "/etc/systemd/system/",
    "/etc/systemd/system/basic.target.wants/",
    "/etc/systemd/system/multi-user.target.wants/",
    "/etc/systemd/system.conf",
    "/etc/udev/rules.d/",
    "/usr/lib/systemd/system/kdump-capture.service",
    "/usr/lib/systemd/system/kdump-capture.target",
    "/var/log/journal/",
)

_PACKAGES = (
    "/var/lib/dpkg/status",
    "/var/lib/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/rpmdb.sqlite",
    "/usr/lib/sysimage/rpm/Packages.db",
    "/var/lib/pacman/local/",
)
"""What changes when packages come, go or are replaced: files of theirs are in the capture image."""

_MOST_LINKS = 40  # as the kernel (include/linux/namei.h: MAXSYMLINKS)


@dataclass
class _Folder:
    """A folder to be watched: which names in it mean what."""

    mask: int = NAMES
    names: dict[str, set[str]] = field(default_factory=dict)
    """Kinds by name; the empty name stands for all."""


class Watcher:
    """Watches from :meth:`start` to :meth:`stop`; lives in one event loop."""

    def __init__(
        self,
        kernel_files: KernelFiles,
        on_change: Callable[[str], None],
        *,
        settle_sec: float = 1.0,
        longest_sec: float = 10.0,
    ) -> None:
        """``on_change`` is called with each kind that changed, when there was no change for ``settle_sec``,
        or after ``longest_sec`` of changes."""
        self._kernel_files = kernel_files
        self._on_change = on_change
        self._settle_sec = settle_sec
        self._longest_sec = longest_sec
        self._paths: dict[str, set[str]] = {}
        self._folders: dict[str, _Folder] = {}
        self._watches: dict[int, set[str]] = {}
        self._all_mounts: list[Mount] = []
        self._told: set[str] = set()
        """Folders of which the journal was told that they cannot be watched."""
        self._mounts: list[Mount] = []
        """Those below which a watched path lies."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        self._hotplug: HotplugSocket | None = None
        self._mount_poll: select.epoll | None = None
        self._mount_file: int | None = None
        self._pending: set[str] = set()
        self._pending_since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._mount_timer: asyncio.TimerHandle | None = None

    def start(self, config: Config, images: Iterable[str]) -> None:
        """Watch what this configuration names, and the files that are loaded. In the running event loop.

        What the process may not have (limits of inotify, no netlink) is told to the journal and left out.
        """
        self._loop = asyncio.get_running_loop()
        try:
            self._inotify = Inotify()
            self._loop.add_reader(self._inotify.fileno(), self._files_changed)
        except OSError as error:
            logger.warning("changes of files are not noticed: %s", error)
        try:
            self._hotplug = HotplugSocket()
            self._loop.add_reader(self._hotplug.fileno(), self._machine_changed)
        except OSError as error:
            logger.warning("changes of memory and processors are not noticed: %s", error)
        self._watch_mounts()
        self.update(config, images)

    def update(self, config: Config, images: Iterable[str]) -> None:
        """Watch what another configuration or another load names."""
        self._paths = {}
        self._want("configuration", (f"/{MAIN_FILE}", *(f"/{folder}/" for folder in DROP_IN_FOLDERS)))
        self._want("images", [self._on_machine(path) for path in images if path])
        self._want("images", _PACKAGES)
        self._want("images", (f"/{folder}/" for folder in UNIT_SETTINGS_FOLDERS))
        self._want("boot-loader", BOOT_LOADER_PATHS)
        self._want("target", (config.target + "/",))
        self._want("tools", _TOOLS)
        self._look()
        self._mounts = self._relevant_mounts()

    def stop(self) -> None:
        """Watch no longer."""
        assert self._loop is not None
        for timer in (self._timer, self._mount_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._mount_timer = None
        for source in (self._inotify, self._hotplug, self._mount_poll):
            if source is not None:
                self._loop.remove_reader(source.fileno())
                source.close()
        if self._mount_file is not None:
            os.close(self._mount_file)
        self._inotify = self._hotplug = self._mount_poll = self._mount_file = None
        self._watches, self._folders, self._pending = {}, {}, set()

    def _want(self, kind: str, paths: Iterable[str]) -> None:
        for path in paths:
            self._paths.setdefault(path, set()).add(kind)

    def _on_machine(self, path: str) -> str:
        root = str(self._kernel_files.root).rstrip("/")
        return path.removeprefix(root) if path.startswith(root + "/") else path

    # Mounts

    def _watch_mounts(self) -> None:
        """proc(5): poll(2) on mountinfo gives POLLPRI when something is mounted or unmounted; it is always
        readable, so the event loop watches an epoll instance that asks for nothing else."""
        assert self._loop is not None
        try:
            path = self._kernel_files.root / self._kernel_files.mounts_file
            self._mount_file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._mount_poll = select.epoll()
            self._mount_poll.register(self._mount_file, select.EPOLLPRI)
            self._loop.add_reader(self._mount_poll.fileno(), self._mounts_changed)
        except OSError as error:  # EPERM: a regular file, in a test's root folder
            logger.warning("changes of mounts are not noticed: %s", error)

    def _mounts_changed(self) -> None:
        assert self._loop is not None
        assert self._mount_poll is not None
        self._mount_poll.poll(0)
        # A host of containers mounts by the dozen.
        if self._mount_timer is None:
            self._mount_timer = self._loop.call_later(self._settle_sec, self._compare_mounts)

    def _compare_mounts(self) -> None:
        self._mount_timer = None
        self._look()
        mounts = self._relevant_mounts()
        if mounts != self._mounts:  # others than those of containers and users
            self._mounts = mounts
            self._changed({"mounts"})

    def _relevant_mounts(self) -> list[Mount]:
        parents = {
            str(parent)
            for path in self._paths
            for parent in (PurePosixPath(path), *PurePosixPath(path).parents)
        }
        return [mount for mount in self._all_mounts if mount.point in parents]

    # Memory and processors

    def _machine_changed(self) -> None:
        assert self._hotplug is not None
        if self._hotplug.read():
            self._changed({"hotplug"})

    # Files

    def _files_changed(self) -> None:
        assert self._inotify is not None
        kinds: set[str] = set()
        look = False
        for event in self._inotify.read():
            if event.overflow:
                kinds.update(*self._paths.values())
                look = True
                continue
            for path in self._watches.get(event.watch, ()):
                folder = self._folders[path]
                if event.folder_gone:
                    look = True
                    continue
                concerned = folder.names.get(event.name, set()) | folder.names.get("", set())
                kinds |= concerned
                # A name on the way may be another folder or link now.
                look = look or event.name in folder.names
        if look:
            self._look()
        if kinds:
            self._changed(kinds)

    def _look(self) -> None:
        """Find the folders that are to be watched now, and watch these and no others."""
        self._all_mounts = self._kernel_files.mounts
        if self._inotify is None:
            return
        self._folders = {}
        watches: dict[int, set[str]] = {}
        for path, kinds in self._paths.items():
            self._walk(path, kinds, watches)
        for watch in set(self._watches) - set(watches):
            self._inotify.forget(watch)
        self._watches = watches

    def _walk(self, path: str, kinds: set[str], watches: dict[int, set[str]]) -> None:
        """Watch each folder from the root to ``path``, through symbolic links; and what it is, if a folder.

        Each is watched before the next name is looked for, so that nothing that appears meanwhile is missed.
        """
        here = PurePosixPath("/")
        rest = list(PurePosixPath(path).parts[1:])
        links = 0
        # The content of what lies beside a folder that is watched is of no interest.
        file_at = 0 if path.endswith("/") else 1
        while self._watch(str(here), NAMES | (CONTENT if len(rest) <= file_at else 0), watches):
            if not rest:
                self._folders[str(here)].names.setdefault("", set()).update(kinds)
                return
            name = rest.pop(0)
            if name == "..":
                here = here.parent
                continue
            self._folders[str(here)].names.setdefault(name, set()).update(kinds)
            try:
                link = os.readlink(self._real(str(here / name)))  # noqa: PTH115  (Path cannot say EINVAL apart)
            except OSError as error:
                if error.errno != errno.EINVAL:  # no such name
                    return
                here /= name  # no link
                continue
            links += 1
            if links > _MOST_LINKS:
                return
            rest[:0] = [part for part in PurePosixPath(link).parts if part != "/"]
            if link.startswith("/"):
                here = PurePosixPath("/")

    def _watch(self, folder: str, mask: int, watches: dict[int, set[str]]) -> bool:
        """Add a watch, if that is possible and harmless."""
        assert self._inotify is not None
        holder = holder_of(folder, self._all_mounts)
        if holder is not None and holder.may_hang:
            return False
        known = self._folders.get(folder)
        if known is not None:
            mask |= known.mask
            if mask == known.mask:
                return True
        try:
            number = self._inotify.watch(self._real(folder), mask)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR) and folder not in self._told:
                self._told.add(folder)
                logger.warning("%s: changes are not noticed: %s", folder, error)
            return False
        if known is None:
            known = self._folders[folder] = _Folder()
        known.mask = mask
        watches.setdefault(number, set()).add(folder)
        return True

    def _real(self, path: str) -> str:
        return str(self._kernel_files.root / path.lstrip("/"))

    # Rest, then tell

    def _changed(self, kinds: set[str]) -> None:
        assert self._loop is not None
        now = self._loop.time()
        if not self._pending:
            self._pending_since = now
        self._pending |= kinds
        if self._timer is not None:
            self._timer.cancel()
        wait_sec = min(self._settle_sec, self._pending_since + self._longest_sec - now)
        self._timer = self._loop.call_later(max(wait_sec, 0), self._tell)

    def _tell(self) -> None:
        kinds, self._pending, self._timer = self._pending, set(), None
        for kind in KINDS:
            if kind in kinds:
                self._on_change(kind)
