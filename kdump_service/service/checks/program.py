# SPDX-License-Identifier: LGPL-2.1-or-later
"""Is what the daemon runs what is installed?"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdump_service import __version__
from kdump_service.errors import ImageUnreadable
from kdump_service.file_identity import FileIdentity
from kdump_service.service.problems import Problem, found

__all__ = ["loaded_modules", "program_problems"]

_PACKAGE = "kdump_service"
_VERSION = re.compile(r"^__version__ = \"(.+)\"$", re.MULTILINE)


def loaded_modules() -> tuple[FileIdentity, ...]:
    """The files of this package's modules that are loaded now, as they are now. A file that is gone by now is
    not among them."""
    found_files = []
    for name, module in sorted(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if path and name.partition(".")[0] == _PACKAGE:
            try:
                found_files.append(FileIdentity.of(Path(path)))
            except ImageUnreadable:  # an upgrade that is under way; the rest will tell
                continue
    return tuple(found_files)


def program_problems(loaded: Sequence[FileIdentity]) -> Iterator[Problem]:
    """Whether the files are still what they were when :func:`loaded_modules` looked at them."""
    changed = next((file for file in loaded if not _is_the_same(file)), None)
    if changed is None:
        return
    installed = _installed_version()
    versions = f"version {__version__} runs, {installed} is installed" if installed != __version__ else ""
    yield found(
        "program-replaced",
        f"Files of kdump-service were replaced since its daemon started ({versions or changed.path}).",
        "Run: systemctl restart kdump.service (what is loaded stays loaded)",
    )


def _is_the_same(file: FileIdentity) -> bool:
    try:
        return FileIdentity.of(Path(file.path)) == file
    except ImageUnreadable:
        return False


def _installed_version() -> str:
    """What the installed files say; "nothing" if they are gone."""
    package = Path(__file__).parents[2]
    try:
        match = _VERSION.search((package / "__init__.py").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return "nothing"
    return match[1] if match else "another"
