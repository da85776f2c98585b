# SPDX-License-Identifier: LGPL-2.1-or-later
"""What was there before we changed it, kept in /var/lib, and the plan that brings it back.

It is written before the first file changes, so that whatever happens meanwhile there is a way back. A second
change keeps the memory of the time before the first one, also of files that others edited in between, and of
loader entries that came with our words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdump_service.atomic_file import write_atomically
from kdump_service.errors import ConfigError
from kdump_service.folders import STATE_FOLDER
from kdump_service.kernel.crashkernel import requested
from kdump_service.reserve.boards import EXTLINUX_MENUS
from kdump_service.reserve.entries import (
    CMDLINE,
    ENVIRONMENT_HEAD,
    VENDOR_CMDLINE,
    notes_on_sources,
    own_entries,
    padded_environment,
)
from kdump_service.reserve.grub import DROP_IN_HEADER
from kdump_service.reserve.labels import restored_labels
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import Change, Plan, change_from_json
from kdump_service.reserve.words import edited_lines, replaced_words, words_in

__all__ = [
    "AGAIN",
    "WAY_BACK_FILE",
    "Kept",
    "finish",
    "forget",
    "keep",
    "kept",
    "makes_from_files",
    "plan_way_back",
    "restore_kept",
]

WAY_BACK_FILE = f"{STATE_FOLDER}/reservation.json"
AGAIN = "No file has to change; the programs run again, since the last time not all ended well."
_VERSION = 1


@dataclass(frozen=True)
class Kept:
    """What we did to the boot loader's files."""

    boot_loader: str
    words: tuple[str, ...]
    """What we have put in."""
    changes: tuple[Change, ...]
    """Between what was there before the first time, and what we left the last time. With two equal texts: a
    file that had the words already, which are somebody else's then."""
    commands: tuple[tuple[str, ...], ...]
    earlier_words: tuple[tuple[str, ...], ...] = ()
    """What we have put in before ``words``. An entry made from the running kernel's command line has it, and
    so has a file that we did not come to."""
    unfinished: bool = False
    """Not all that was to be done was done, so what programs make may not agree with the files."""

    @property
    def ours(self) -> tuple[tuple[str, ...], ...]:
        """All that we have put in, the newest first."""
        return tuple(dict.fromkeys((self.words, *self.earlier_words)))


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
            tuple(tuple(map(str, words)) for words in document.get("earlier_words", ())),
            bool(document.get("unfinished", False)),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"/{WAY_BACK_FILE} cannot be read: {error}") from error


def keep(root: Path, plan: Plan) -> None:
    """Remember what the files of the plan are now, without what is of our own doing, and that something is
    going on. Raises ConfigError."""
    earlier = kept(root)
    if not plan.words:  # what is taken back stays known until it is
        if earlier is not None:
            _write(root, dataclasses.replace(earlier, unfinished=True))
        return
    changes = {change.path: change for change in (earlier.changes if earlier else ())}
    for change in plan.changes:
        changes[change.path] = _since_the_first(change, earlier)
    for change in plan.as_wanted:
        if change.path not in changes:
            changes[change.path] = _since_the_first(change, earlier)
    _write(
        root,
        Kept(
            plan.boot_loader,
            plan.words,
            tuple(changes.values()),
            plan.commands,
            tuple(words for words in (earlier.ours if earlier else ()) if words != plan.words),
            unfinished=True,
        ),
    )


def _since_the_first(change: Change, earlier: Kept | None) -> Change:
    """The change as it would be, had we never changed the file before. What others did to it stays."""
    now = change.before
    if earlier is None or now is None:
        return change
    old = next((each for each in earlier.changes if each.path == change.path), None)
    if old is None:
        if change.path in EXTLINUX_MENUS:
            restored: str | None = restored_labels(now, Change(change.path, None, None), earlier.ours)[0]
        else:
            restored = _as_its_source_was(now, earlier)
        return change if restored is None else dataclasses.replace(change, before=restored)
    if now == old.before or _is_as_we_left_it(now, old, earlier):
        return dataclasses.replace(change, before=old.before)
    before = _without_ours(now, old, earlier)
    if before is None:
        before = _by_parts_without_ours(now, old, earlier)
    return dataclasses.replace(change, before=before)


def _write(root: Path, what: Kept) -> None:
    document = {
        "version": _VERSION,
        "boot_loader": what.boot_loader,
        "words": what.words,
        "changes": [{"path": each.path, "before": each.before, "after": each.after} for each in what.changes],
        "commands": what.commands,
        "earlier_words": what.earlier_words,
        "unfinished": what.unfinished,
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


def finish(root: Path, texts: Mapping[str, str | None]) -> None:
    """Note that all is done, and what programs made of files, which may differ from what was expected. Raises
    ConfigError."""
    what = kept(root)
    if what is not None:
        changes = [dataclasses.replace(each, after=texts.get(each.path, each.after)) for each in what.changes]
        _write(root, dataclasses.replace(what, changes=tuple(changes), unfinished=False))


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
        if change.before in (now, change.after):
            continue
        if now and tuple(words_in(now)) in what.ours and _would_come_back(machine, change):
            changes.append(Change(change.path, now, edited_lines(now, ())))
            notes.append(
                f"{change.path} stays, without crashkernel=: else that of the running kernel is taken."
            )
        elif now is None:
            notes.append(f"{change.path} is gone, and stays so.")
        elif _is_as_we_left_it(now, change, what):
            changes.append(Change(change.path, now, change.before))
        else:
            restored = _without_ours(now, change, what)
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
    commands = tuple(filter(makes_from_files, what.commands))
    if what.unfinished and commands and not changes:
        ours = [change.path for change in what.changes if change.before != change.after]
        changes = [Change(path, text := machine.read(path), text) for path in ours]
        notes.append(AGAIN)
    return Plan(what.boot_loader, (), tuple(changes), commands if changes else (), tuple(notes))


def makes_from_files(command: Sequence[str]) -> bool:
    """Whether a program makes what it makes from files that we bring back, so that it has to run then.

    grubby does not: it puts its words into files, which we bring back ourselves.
    """
    return command[0] != "grubby"


def _would_come_back(machine: Machine, change: Change) -> bool:
    """Whether kernel-install, without the file that we made, takes the running kernel's crashkernel= anew."""
    made_by_us = change.path == CMDLINE and change.before is None and not machine.exists(VENDOR_CMDLINE)
    return made_by_us and bool(requested(machine.command_line))


def _is_as_we_left_it(now: str, change: Change, what: Kept) -> bool:
    """Whether nobody but us has changed it. Where we were killed, it has words of an earlier time yet."""
    return any(
        text == change.after for text in (now, *(_replaced(now, each, what.words) for each in what.ours))
    )


def _without_ours(now: str, change: Change, what: Kept) -> str | None:
    """A file that others have changed, too, with our words taken out of it; None if that cannot be done."""
    if not words_in(now):
        return now
    if change.path in EXTLINUX_MENUS:
        text, others = restored_labels(now, change, what.ours)
        return None if others else text
    if (change.after or "").startswith(DROP_IN_HEADER):
        return None
    before = _by_line(change.before)
    for ours in what.ours:
        if len(words_in(now)) == len(ours):
            restored = _replaced(now, ours, [word for words in before for word in words])
        elif len(set(before)) > 1:
            continue  # which of them was where?
        else:
            restored = _replaced(now, ours, before[0] if before else ())
        if restored is not None:
            return restored
    return None


def _by_parts_without_ours(now: str, change: Change, what: Kept) -> str | None:
    """The same where that cannot be done as a whole: what is not as we left it is somebody else's."""
    if change.path in EXTLINUX_MENUS:
        return restored_labels(now, change, what.ours)[0]
    was, left = change.before or "", change.after or ""
    if DROP_IN_HEADER in left and DROP_IN_HEADER in now:
        # A part of it alone is no shell that could be kept.
        return was + now.replace(left, "") if left in now else change.before
    old, new = was.splitlines(keepends=True), left.splitlines(keepends=True)
    back = dict(zip(new, old, strict=True)) if len(old) == len(new) else {}
    before = next(iter(_by_line(was)), ())
    lines = []
    for line in now.splitlines(keepends=True):
        edited = (replaced_words(line, ours, before) for ours in what.ours)
        lines.append(back.get(line) or next((text for text in edited if text is not None), line))
    whole = _whole("".join(lines))
    return change.before if whole is None else whole


def _replaced(text: str, ours: Sequence[str], others: Sequence[str]) -> str | None:
    new = replaced_words(text, ours, others)
    return new if new is None else _whole(new)


def _whole(text: str) -> str | None:
    # GRUB itself writes into its environment at each boot, so that it is seldom as we left it.
    return padded_environment(text) if text.startswith(ENVIRONMENT_HEAD) else text


def _by_line(text: str | None) -> list[tuple[str, ...]]:
    """The words of each line that has some."""
    return [tuple(words) for line in (text or "").splitlines() if (words := words_in(line))]


def _as_its_source_was(text: str, what: Kept) -> str | None:
    """A file that came since, and got our words from those that we changed, with the words that these had;
    None if it has others than ours."""
    ours = tuple(words_in(text))
    return replaced_words(text, ours, _words_of_sources(what)) if ours in what.ours else None


def _words_of_sources(what: Kept) -> Sequence[str]:
    """What later files would have without us; nothing where it is not known which of ours they came from."""
    for change in what.changes:
        if change.path == CMDLINE and change.before is not None:
            return words_in(change.before)
    # Without that file, new entries have the command line of the kernel that runs, whose entry may be any.
    # What has somebody else's words to this day has given ours to none.
    changed = [change for change in what.changes if change.before not in (None, change.after)]
    entries = [change for change in changed if "/loader/entries/" in change.path]
    had = {tuple(words_in(change.before or "")) for change in entries or changed}
    return had.pop() if len(had) == 1 else ()


def _newer_entries(machine: Machine, what: Kept) -> list[Change]:
    """Entries of kernels that came since got our words from the files that we changed."""
    known = {change.path for change in what.changes}
    changes = []
    for path, text in own_entries(machine)[0]:
        after = None if path in known else _as_its_source_was(text, what)
        if after is not None and after != text:
            changes.append(Change(path, text, after))
    return changes
