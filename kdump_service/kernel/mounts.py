# SPDX-License-Identifier: LGPL-2.1-or-later
"""The kernel's list of mounts. Reading it asks no file system, so nothing here can hang."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

__all__ = ["Mount", "holder_of", "parse_mounts"]

# Network file systems, by the type that the kernel lists (Documentation/filesystems; systemd's own list is in
# src/basic/mountpoint-util.c, fstype_is_network).
_NETWORK_KINDS = frozenset(
    {"afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs2", "glusterfs", "lustre", "ncp", "ncpfs", "nfs",
     "nfs4", "ocfs2", "orangefs", "pvfs2", "smb3", "smbfs", "sshfs"}
)  # fmt: skip
_NETWORK_FUSE = frozenset(
    {"fuse.ceph", "fuse.cephfs", "fuse.curlftpfs", "fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs",
     "fuse.mount.davfs"}
)  # fmt: skip


class Mount(NamedTuple):
    """One line of /proc/PID/mountinfo (proc(5))."""

    device: str
    """``major:minor``; btrfs and others have one that belongs to no device."""
    point: str
    options: frozenset[str]
    """Of this mount; another mount namespace may have others."""
    kind: str
    """Type of the file system."""
    source: str
    super_options: frozenset[str]
    """Of the file system itself, wherever it is mounted."""
    root: str = "/"
    """Which of its folders is mounted there: another than / for bind mounts and subvolumes of btrfs."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there: by this mount's options, or since the file system is so.

        ext4 says rw and emergency_ro after an error, or shutdown (measured with Linux 6.18).
        """
        return "ro" in self.options or not self.super_options.isdisjoint({"ro", "emergency_ro", "shutdown"})

    @property
    def needs_network(self) -> bool:
        """Whether another machine holds the data."""
        return self.kind in _NETWORK_KINDS or self.kind in _NETWORK_FUSE

    @property
    def in_memory(self) -> bool:
        """Whether the data is gone after a reboot."""
        return self.kind in ("tmpfs", "ramfs")

    @property
    def may_hang(self) -> bool:
        """Whether another machine or a process answers for it: then one that asks may wait for ever."""
        return (
            self.needs_network
            or self.kind in ("autofs", "9p", "virtiofs")
            or self.kind == "fuseblk"
            or self.kind.startswith("fuse.")
            or self.kind == "fuse"
        )


def _unescaped(text: str) -> str:
    """Space, tab, newline and backslash are written as octal numbers (fs/proc_namespace.c: mangle)."""
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), text)


def parse_mounts(text: str) -> list[Mount]:
    """Read the content of a mountinfo file, in its order: later mounts cover earlier ones."""
    mounts = []
    # Not splitlines() and split(): users choose names, and the kernel escapes no form feeds and the like.
    for line in text.split("\n"):
        # id, parent, major:minor, root, mount point, options, optional fields, -, type, source, super options
        head, separator, tail = line.partition(" - ")
        before, after = head.split(" "), tail.split(" ")
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        mounts.append(
            Mount(
                device=before[2],
                point=_unescaped(before[4]),
                options=frozenset(before[5].split(",")),
                kind=after[0],
                source=_unescaped(after[1]),
                super_options=frozenset(after[2].split(",")),
                root=_unescaped(before[3]),
            )
        )
    return mounts


def holder_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount that holds ``path``, by names alone; None if not even the root is listed."""
    pure = PurePosixPath(path)
    parents = {str(parent) for parent in (pure, *pure.parents)}
    holder = None
    for mount in mounts:
        if mount.point in parents and (holder is None or len(mount.point) >= len(holder.point)):
            holder = mount
    return holder
