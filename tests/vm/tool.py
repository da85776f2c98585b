# SPDX-License-Identifier: LGPL-2.1-or-later
"""Programs of the host."""

import subprocess
from pathlib import Path

__all__ = ["run_tool"]


def run_tool(*command: str | Path, text: str = "") -> str:
    """Run a program with `text` on its standard input; what it said, if it fails in a RuntimeError."""
    done = subprocess.run(
        command,
        check=False,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise RuntimeError(f"{shown}: status {done.returncode}\n{done.stdout}")
    return done.stdout
