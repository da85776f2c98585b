# SPDX-License-Identifier: LGPL-2.1-or-later
"""Will the capture boot, once started, come to save the memory?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kdump_service.kernel.cmdline import split_words
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.unit_files import UnitFiles
from kdump_service.service.problems import Problem, found

__all__ = ["capture_unit_problems", "command_line_problems", "root_problems"]

_TARGET = "kdump-capture.target"
_SERVICE = "kdump-capture.service"


def capture_unit_problems(root: Path) -> Iterator[Problem]:
    """The units of the capture boot, and the program that they start."""
    files = UnitFiles(root)
    for unit in (_TARGET, _SERVICE):
        if files.is_masked(unit):
            yield found(
                "capture-unit-missing",
                f"{unit} is masked: the capture boot would save nothing.",
                f"Run: systemctl unmask {unit}",
            )
        elif files.find(unit) is None:
            yield found(
                "capture-unit-missing",
                f"There is no {unit}: the capture boot would save nothing.",
                "Install kdump-service again.",
            )
    match = re.search(r"^ExecStart\s*=\s*[-@:+!|]*(/\S+)", files.text(_SERVICE), re.MULTILINE)
    if match and not (root / match[1].lstrip("/")).exists():
        yield found(
            "capture-unit-missing",
            f"{match[1]}, which {_SERVICE} starts, does not exist.",
            "Install kdump-service again.",
        )


def command_line_problems(command_line: str) -> Iterator[Problem]:
    """Does the capture kernel's command line lead to the capture?"""
    if not command_line:
        return
    words = split_words(command_line)
    # systemd(1), Kernel Command Line: of several systemd.unit= the last one counts.
    units = [word.partition("=")[2] for word in words if word.startswith("systemd.unit=")]
    if units[-1:] != [_TARGET]:
        started = f"starts {units[-1]}" if units else "starts production"
        yield found(
            "capture-not-started",
            f"The capture kernel's command line {started}, not {_TARGET}.",
            "Correct CommandLineAppend= or CommandLineRemove=: systemd.unit= must stay as it is.",
        )
    inits = [word.partition("=")[2] for word in words if word.startswith("init=")]
    if inits and not re.search(r"(?:^|/)(?:systemd|init)$", inits[-1]):
        yield found(
            "capture-not-started",
            f"The capture kernel's command line has init={inits[-1]}, which starts no units.",
            "Set CommandLineRemove=init.",
        )


def root_problems(kernel_files: KernelFiles) -> Iterator[Problem]:
    """Can the root file system be had without a question?"""
    if kernel_files.root_is_encrypted:
        yield found(
            "root-encrypted",
            "The root file system is encrypted: if the capture boot has to ask for a passphrase, it waits "
            "without a limit.",
            "Have it unlocked without a question, by a TPM or a key file.",
        )
