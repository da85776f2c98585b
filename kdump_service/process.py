# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run external programs: no shell, a fixed environment, no standard input, a time limit."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from kdump_service.errors import ProgramFailed

__all__ = ["run"]

# What programs print is parsed, so their language is fixed; PATH is that of a Debian system service.
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "SYSTEMD_COLORS": "0",
    "SYSTEMD_PAGER": "",
}


def run(command: Sequence[str], *, timeout_sec: float) -> str:
    """Run ``command`` and return what it printed on standard output.

    Raises ProgramFailed with the command as it could be typed, its exit status and the last lines that
    it wrote to standard error.
    """
    typed = shlex.join(command)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=_ENVIRONMENT,
            timeout=timeout_sec,
            text=True,
            errors="replace",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ProgramFailed(f"{typed}: not finished after {timeout_sec:g} s") from None
    except OSError as error:
        raise ProgramFailed(f"{typed}: cannot be started: {error.strerror}") from error
    if done.returncode != 0:
        said = " / ".join(done.stderr.strip().splitlines()[-3:]) or "no message"
        raise ProgramFailed(f"{typed}: exit status {done.returncode}: {said}")
    return done.stdout
