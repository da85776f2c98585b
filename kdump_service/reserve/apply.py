# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make what is planned, or leave all as it was."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from kdump_service.errors import ConfigError, KdumpError, ProgramFailed
from kdump_service.reserve import way_back
from kdump_service.reserve.files import put_text
from kdump_service.reserve.machine import Machine
from kdump_service.reserve.plan import Plan
from kdump_service.reserve.words import words_in

__all__ = ["COMMAND_SEC", "Run", "apply_plan"]

logger = logging.getLogger(__name__)

COMMAND_SEC = 600.0
"""For each program: a slow machine builds an initramfs and an image for each of its kernels."""

_TRY_AGAIN = "When that is mended: kdumpctl reserve --revert"

Run = Callable[[Sequence[str]], object]
"""Runs a program to its end. Raises ProgramFailed."""


def apply_plan(root: Path, plan: Plan, run: Run) -> list[str]:
    """Change the files, run the programs, and look whether the boot loader has it; returns what to say of it.

    Raises ConfigError if a file cannot be written or is not what the plan was made for, ProgramFailed if a
    program fails; the files are then as they were, and so is what programs made of them. Where that cannot be
    had, the error says so, and the way back is kept.
    """
    machine = Machine(root)
    for change in plan.changes:
        if machine.read(change.path) != change.before:
            raise ConfigError(f"{change.path}: somebody else is changing it", "Try again.")
    taking_back = not plan.words
    before = way_back.kept(root)
    if plan.changes:
        way_back.keep(root, plan)
    started: list[Sequence[str]] = []
    try:
        for change in plan.changes:
            if not change.writer and change.after != change.before:
                put_text(root, change.path, change.after)
        for command in plan.commands:
            started.append(command)
            run(command)
        made = {change.path: machine.read(change.path) for change in plan.changes if change.writer}
        for path, text in made.items():
            if "kernelopts" not in (text or "") and words_in(text or "") != list(plan.words):
                raise ProgramFailed(f"{plan.commands[0][0]}: {path} does not have {' '.join(plan.words)}")
    except KdumpError as error:
        failures = _restore(root, plan, before, started, run)
        if not failures:
            raise
        message = f"{error}; and not all may be as it was before: {'; '.join(failures)}"
        raise type(error)(message, f"{error.hint} {_TRY_AGAIN}".lstrip()) from error
    if taking_back:
        way_back.forget(root)
    elif plan.changes:
        way_back.finish(root, made)
    return _doubts(machine, plan)


def _restore(
    root: Path, plan: Plan, before: way_back.Kept | None, started: Sequence[Sequence[str]], run: Run
) -> list[str]:
    """Make the files what they were, and run what was started once more, so that what it makes is; returns
    what failed. What is kept stays the way back then."""
    machine = Machine(root)
    failures = []
    for change in plan.changes:
        try:
            if machine.read(change.path) != change.before:
                put_text(root, change.path, change.before)
        except KdumpError as error:
            logger.error("%s is not as it was before: %s", change.path, error)
            failures.append(str(error))
    if all(change.after == change.before for change in plan.changes):
        started = ()  # it would be the same again
    # The one that failed, too: of several images, it may have made some.
    for command in filter(way_back.makes_from_files, started):
        try:
            run(command)
        except KdumpError as error:
            logger.error("What %s makes may not be as it was before: %s", shlex.join(command), error)
            failures.append(str(error))
    if not failures:
        try:
            way_back.restore_kept(root, before)
        except KdumpError as error:
            logger.error("What is kept of the time before is not as it was: %s", error)
            failures.append(str(error))
    return failures


def _doubts(machine: Machine, plan: Plan) -> list[str]:
    """What does not look as it should in the files that the boot loader itself reads."""
    lines = machine.boot_files.next_boot()
    if not plan.words or not lines or any(words_in(line.text) == list(plan.words) for line in lines):
        return []
    files = ", ".join(sorted({line.file for line in lines}))
    return [f"Look into it before you reboot: {files} does not have {' '.join(plan.words)}."]
