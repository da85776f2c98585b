# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was there before we changed it, kept in /var/lib, and the plan that brings it back.

It is written before the first file changes, so that whatever happens meanwhile there is a way back. A second
change keeps the memory of the time before the first one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdump_service.errors import ConfigError
from kdump_service.kernel.crashkernel import requested
from kdump_service.record import write_atomically
from kdump_service.reserve.entries import CMDLINE, VENDOR_CMDLINE, notes_on_sources, own_entries
from kdump_service.reserve.grub import DROP_IN_HEADER
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import Change, Plan, change_from_json
from kdump_service.reserve.words import edited_lines, replaced_words, words_in

__all__ = ["WAY_BACK_FILE", "Kept", "correct", "forget", "keep", "kept", "plan_way_back", "restore_kept"]

WAY_BACK_FILE = "var/lib/kdump-service/reservation.json"
_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """What we did to the boot loader's files."""

    boot_loader: str
    words: tuple[str, ...]
    """What we have put in."""
    changes: tuple[Change, ...]
    commands: tuple[tuple[str, ...], ...]


def kept(root: Path) -> Kept | None:
    """What is kept; None if nothing is. Raises ConfigError if it cannot be read."""
    path = root / WAY_BACK_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["version"] != _VERSION:
            raise ValueError(f"version {document['version']}")
        return Kept(
            str(document["boot_loader"]),
            tuple(map(str, document["words"])),
            tuple(change_from_json(each) for each in document["changes"]),
            tuple(tuple(map(str, command)) for command in document["commands"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"/{WAY_BACK_FILE} cannot be read: {error}") from error


def keep(root: Path, plan: Plan) -> None:
    """Remember what the files of the plan are now, unless that is of our own doing. Raises ConfigError."""
    earlier = kept(root)
    changes = {change.path: change for change in (earlier.changes if earlier else ())}
    for change in plan.changes:
        old = changes.get(change.path)
        if old is not None and old.after == change.before:
            changes[change.path] = dataclasses.replace(change, before=old.before)
        else:
            changes[change.path] = change
    _write(root, Kept(plan.boot_loader, plan.words, tuple(changes.values()), plan.commands))


def _write(root: Path, what: Kept) -> None:
    document = {
        "version": _VERSION,
        "boot_loader": what.boot_loader,
        "words": what.words,
        "changes": [{"path": each.path, "before": each.before, "after": each.after} for each in what.changes],
        "commands": what.commands,
    }
    path = root / WAY_BACK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(document, indent=1))
    except OSError as error:
        raise ConfigError(f"/{WAY_BACK_FILE} cannot be written: {error.strerror}") from error


def restore_kept(root: Path, what: Kept | None) -> None:
    """Make what is kept what it was. Raises ConfigError."""
    if what is None:
        forget(root)
    else:
        _write(root, what)


def correct(root: Path, texts: Mapping[str, str | None]) -> None:
    """Note what programs made of files, which may differ from what was expected. Raises ConfigError."""
    what = kept(root)
    if what is not None:
        changes = [dataclasses.replace(each, after=texts.get(each.path, each.after)) for each in what.changes]
        _write(root, dataclasses.replace(what, changes=tuple(changes)))


def forget(root: Path) -> None:
    """There is nothing to bring back any more."""
    try:
        (root / WAY_BACK_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"/{WAY_BACK_FILE} cannot be removed: {error.strerror}") from error


def plan_way_back(root: Path) -> Plan:
    """How to make the files what they were. Raises ConfigError if others have changed what we would have to
    bring back: nothing is done then."""
    what = kept(root)
    if what is None:
        raise ConfigError(
            "there is nothing to take back: crashkernel= was not set by kdumpctl reserve",
            "Remove it where you set it.",
        )
    machine = Machine(root)
    changes, notes, conflicts = [], [], []
    for change in what.changes:
        now = machine.read(change.path)
        if now == change.before:
            continue
        if now and words_in(now) == list(what.words) and _would_come_back(machine, change):
            changes.append(Change(change.path, now, edited_lines(now, ())))
            notes.append(
                f"{change.path} stays, without crashkernel=: else that of the running kernel is taken."
            )
        elif now == change.after:
            changes.append(Change(change.path, now, change.before))
        elif now is None:
            notes.append(f"{change.path} is gone, and stays so.")
        else:
            restored = _without_ours(now, change, what.words)
            if restored is None:
                conflicts.append(change.path)
            elif restored != now:
                changes.append(Change(change.path, now, restored))
    if conflicts:
        raise ConfigError(
            f"{', '.join(conflicts)}: somebody else has changed it since, so nothing is taken back",
            f"Edit it by hand; what was there before is in /{WAY_BACK_FILE}.",
        )
    changes += _newer_entries(machine, what)
    if requested(machine.command_line):
        notes += notes_on_sources(machine)
    commands = tuple(command for command in what.commands if command[0] != "grubby")
    return Plan(what.boot_loader, (), tuple(changes), commands if changes else (), tuple(notes))


def _would_come_back(machine: Machine, change: Change) -> bool:
    """Whether kernel-install, without the file that we made, takes the running kernel's crashkernel= anew."""
    made_by_us = change.path == CMDLINE and change.before is None and not machine.exists(VENDOR_CMDLINE)
    return made_by_us and bool(requested(machine.command_line))


def _without_ours(now: str, change: Change, ours: Sequence[str]) -> str | None:
    """A file that others have changed, too, with our words taken out of it; None if that cannot be done."""
    if not words_in(now):
        return now
    if (change.after or "").startswith(DROP_IN_HEADER):
        return None
    before = _by_line(change.before)
    if len(words_in(now)) == len(ours):
        return replaced_words(now, ours, [word for words in before for word in words])
    if len(set(before)) > 1:
        return None  # which of them was where?
    return replaced_words(now, ours, before[0] if before else ())


def _by_line(text: str | None) -> list[tuple[str, ...]]:
    """The words of each line that has some."""
    return [tuple(words) for line in (text or "").splitlines() if (words := words_in(line))]


def _newer_entries(machine: Machine, what: Kept) -> list[Change]:
    """Entries of kernels that came since got our words from the files that we changed."""
    known = {change.path for change in what.changes}
    sources = sorted(
        what.changes, key=lambda change: change.path != CMDLINE
    )  # what new entries are made from
    before = next((lines[0] for change in sources if (lines := _by_line(change.before))), ())
    changes = []
    for path, text in own_entries(machine)[0]:
        if path not in known and words_in(text) == list(what.words):
            after = replaced_words(text, what.words, before)
            if after is not None and after != text:
                changes.append(Change(path, text, after))
    return changes
