# SPDX-License-Identifier: LGPL-2.1-or-later
"""The target: mounted, writable, a folder, nobody else's, with room.

What the kernel's list of mounts and the files in /etc say costs nothing and cannot hang
(:func:`mount_problems`). What only the file system itself knows is asked by coreutils in a process of its
own, with a time limit (:func:`ask_target`): a dead NFS server or disk must not hang the daemon.
"""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from kdump_service.config import Config
from kdump_service.errors import ProgramFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import holder_of
from kdump_service.kernel.unit_files import UnitFiles
from kdump_service.process import run
from kdump_service.quantity import format_bytes
from kdump_service.service.problems import Problem, Severity, found
from kdump_service.store.own_files import within

__all__ = ["TargetFacts", "ask_target", "free_bytes_at", "mount_problems", "target_problems"]

ANSWER_SEC = 5.0
"""What a target is given to answer: a disk that sleeps needs up to two or three seconds to spin up."""

_ROOM_SEC = 0.5
"""What a local file system is given to say how much room it has, which it knows without its disk."""
_LEAST_BYTES = 1 << 20
"""Less is not even room for a kernel log of usual size (CONFIG_LOG_BUF_SHIFT: 128 KiB to 1 MiB as text)."""


@dataclass(frozen=True)
class TargetFacts:
    """What the target's file system answered."""

    path: str
    """Its true path, without symbolic links."""
    mode: int | None = None
    """st_mode; None if there is nothing yet: the capture makes the folder."""
    owner: int = 0
    """User id of the owner."""
    free_bytes: int | None = None
    """For programs that are not root's, which is what the capture goes by."""
    trouble: str = ""
    """Why it could not be asked, as one sentence without its full stop; empty if it was."""
    silent: bool = False
    """It did not answer in time."""


def ask_target(path: str) -> TargetFacts:
    """Ask the file system that holds ``path``. Returns within seven seconds, whatever it does."""
    deadline = time.monotonic() + ANSWER_SEC
    facts = TargetFacts(path)
    try:
        real = _asked(["realpath", "-m", "--", path], deadline).removesuffix("\n")
        facts = replace(facts, path=real)
        try:
            mode, owner = _asked(["stat", "-L", "-c", "%f %u", "--", real], deadline).split()
            facts = replace(facts, mode=int(mode, 16), owner=int(owner))
        except ProgramFailed as error:
            if not _is_missing(error):
                raise
        for folder in (real, *map(str, PurePosixPath(real).parents)):
            try:
                size, blocks = _asked(["stat", "-f", "-c", "%S %a", "--", folder], deadline).split()
            except ProgramFailed as error:
                if not _is_missing(error):
                    raise
                continue
            return replace(facts, free_bytes=int(size) * int(blocks))
    except ProgramFailed as error:
        late = time.monotonic() >= deadline or "cannot be killed" in str(error)
        return replace(facts, trouble=str(error), silent=late)
    return facts


def free_bytes_at(path: str) -> int | None:
    """Room for programs that are not root's where ``path`` is or would be; None if nobody says so at once.

    For local file systems; of others :func:`ask_target` asks.
    """

    def look() -> int:
        for place in (Path(path), *Path(path).parents):
            try:
                status = os.statvfs(place)
            except FileNotFoundError:
                continue
            return status.f_bavail * status.f_frsize
        raise FileNotFoundError(path)

    try:
        return within(_ROOM_SEC, Path(path), look)
    except OSError:
        return None  # the next check asks anew, and tells of what is wrong


def _is_missing(error: ProgramFailed) -> bool:
    return str(error).endswith(": No such file or directory")  # process.run fixes the language


def _asked(command: list[str], deadline: float) -> str:
    return run(command, timeout_sec=max(deadline - time.monotonic(), 0.01))


def mount_problems(kernel_files: KernelFiles, target: str) -> Iterator[Problem]:
    """What can be said of a path without asking its file system."""
    mounts = kernel_files.mounts
    holder = holder_of(target, mounts)
    if holder is None:
        return
    unit_files = UnitFiles(kernel_files.root)
    known_points = unit_files.mounts_at_boot()
    parents = {str(parent) for parent in (PurePosixPath(target), *PurePosixPath(target).parents)}
    expected = max((point for point in known_points if point in parents), key=len, default="/")
    if len(expected) > len(holder.point):
        yield found(
            "target-missing-mount",
            f"{expected}, which is to hold {target}, is not mounted: a dump would go to the file system of "
            f"{holder.point}, and be hidden when it is.",
            f"Run: systemctl start {shlex.quote(expected)}",
        )
    if holder.in_memory:
        yield found(
            "target-volatile",
            f"{target} lies on {holder.point}, a {holder.kind}: what is written there is gone after the "
            "reboot.",
            "Set Target= to a folder on a disk.",
        )
    elif parents & {"/tmp", "/var/tmp"}:
        yield found(
            "target-volatile",
            f"{target} lies where programs keep what they need for a while: files there are deleted by age, "
            "and this service sees none but its own (PrivateTmp=).",
            "Set Target= to another folder.",
            Severity.WARNING,
        )
    elif holder.read_only:
        yield found(
            "target-read-only",
            f"{holder.point}, which holds {target}, is mounted read-only.",
            f"If it was not meant to be, see journalctl -k for errors of its disk. Else: mount -o remount,rw "
            f"{holder.point}, and correct /etc/fstab.",
        )
    if holder.needs_network:
        yield found(
            "target-needs-network",
            f"{holder.point}, which holds {target}, is a {holder.kind} file system; the capture boot starts "
            "no network of its own.",
            "Set Target= to a folder on a local disk, or prove that it works: kdumpctl test",
        )
    elif holder.point != "/" and holder.point not in known_points and not holder.in_memory:
        yield found(
            "target-mounted-by-hand",
            f"{holder.point}, which holds {target}, is not in /etc/fstab and has no mount unit: the capture "
            "boot cannot mount it.",
            "Add a line for it to /etc/fstab, then run: systemctl daemon-reload",
        )
    if holder.point != "/" and kernel_files.is_encrypted(holder):
        yield found(
            "target-encrypted",
            f"{holder.point}, which holds {target}, is encrypted: the capture boot opens it only if that "
            "needs no question.",
            "Have it unlocked by a TPM or a key file (crypttab(5)).",
        )


def target_problems(
    config: Config, facts: TargetFacts, predicted_bytes: int | None, our_user: int
) -> Iterator[Problem]:
    """What the target's own answers mean. ``predicted_bytes``: what a dump would take at most."""
    target = config.target
    if facts.silent:
        yield found(
            "target-unreachable",
            f"{target} did not answer within {ANSWER_SEC:g} seconds.",
            "Check its disk or server: journalctl -k. While it does not answer, a capture cannot write "
            "there.",
        )
        return
    if facts.trouble.endswith(": Not a directory"):
        yield found("target-not-folder", f"A part of {target} is no folder.", "Correct Target=.")
        return
    if facts.trouble:
        yield found("target-unreachable", f"{target} cannot be asked: {facts.trouble}.", "Check Target=.")
        return
    if facts.mode is not None and not stat.S_ISDIR(facts.mode):
        yield found(
            "target-not-folder",
            f"{target} is no folder.",
            "Move it out of the way, or correct Target=.",
        )
        return
    yield from _exposure(target, facts, our_user)
    if facts.free_bytes is not None:
        yield from _room(config, facts.free_bytes, predicted_bytes)


def _exposure(target: str, facts: TargetFacts, our_user: int) -> Iterator[Problem]:
    if facts.mode is None:
        return
    if facts.owner != our_user:
        yield found(
            "target-exposed",
            f"{target} belongs to user {facts.owner}, who can remove or replace the folders of dumps.",
            f"Run: chown root: {shlex.quote(target)}",
        )
    elif facts.mode & stat.S_IWOTH:
        sticky = facts.mode & stat.S_ISVTX
        yield found(
            "target-exposed",
            f"Everybody can make folders in {target}"
            + ("." if sticky else ", and remove or replace those of dumps."),
            f"Run: chmod 0755 {shlex.quote(target)}",
            Severity.NOTE if sticky else None,
        )


def _room(config: Config, free_bytes: int, predicted_bytes: int | None) -> Iterator[Problem]:
    room = max(free_bytes - config.keep_free_bytes, 0)
    keep = f"KeepFree={config.keep_free_bytes >> 20}M"
    if room < _LEAST_BYTES:
        yield found(
            "target-full",
            f"{config.target} has {format_bytes(free_bytes)} free, which {keep} leaves to production: not "
            "even the kernel's log could be saved.",
            "Make room (kdumpctl list, kdumpctl delete), or lower KeepFree=.",
            Severity.FATAL,
        )
    elif predicted_bytes is not None and config.level is not None and room < predicted_bytes:
        yield found(
            "target-full",
            f"{config.target} has {format_bytes(room)} for a dump ({format_bytes(free_bytes)} free, less "
            f"{keep}); one now could take up to {format_bytes(predicted_bytes)}.",
            "Make room (kdumpctl list, kdumpctl delete), lower KeepFree=, or set Contents=kernel.",
        )
