# SPDX-License-Identifier: LGPL-2.1-or-later
"""Make what is planned, or leave all as it was."""

from __future__ import annotations

import logging
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

Run = Callable[[Sequence[str]], object]
"""Runs a program to its end. Raises ProgramFailed."""


def apply_plan(root: Path, plan: Plan, run: Run) -> list[str]:
    """Change the files, run the programs, and look whether the boot loader has it; returns what to say of it.

    Raises ConfigError if a file cannot be written or is not what the plan was made for, ProgramFailed if a
    program fails; the files are then as they were.
    """
    machine = Machine(root)
    for change in plan.changes:
        if machine.read(change.path) != change.before:
            raise ConfigError(f"{change.path}: somebody else is changing it", "Try again.")
    taking_back = not plan.words
    before = way_back.kept(root)
    if plan.changes and not taking_back:
        way_back.keep(root, plan)
    try:
        for change in plan.changes:
            if not change.writer:
                put_text(root, change.path, change.after)
        for command in plan.commands:
            run(command)
        made = {change.path: machine.read(change.path) for change in plan.changes if change.writer}
        for path, text in made.items():
            if "kernelopts" not in (text or "") and words_in(text or "") != list(plan.words):
                raise ProgramFailed(f"{plan.commands[0][0]}: {path} does not have {' '.join(plan.words)}")
    except KdumpError:
        _restore(root, plan, before)
        raise
    if taking_back:
        way_back.forget(root)
    elif made:
        way_back.correct(root, made)
    return _doubts(machine, plan)


def _restore(root: Path, plan: Plan, before: way_back.Kept | None) -> None:
    machine = Machine(root)
    for change in plan.changes:
        try:
            if machine.read(change.path) != change.before:
                put_text(root, change.path, change.before)
        except KdumpError as error:
            logger.error("%s is not as it was before: %s", change.path, error)
            return  # what is kept is the way back
    way_back.restore_kept(root, before)


def _doubts(machine: Machine, plan: Plan) -> list[str]:
    """What does not look as it should in the files that the boot loader itself reads."""
    lines = machine.boot_files.next_boot()
    if not plan.words or not lines or any(words_in(line.text) == list(plan.words) for line in lines):
        return []
    files = ", ".join(sorted({line.file for line in lines}))
    return [f"Look into it before you reboot: {files} does not have {' '.join(plan.words)}."]
