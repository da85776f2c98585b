# SPDX-License-Identifier: LGPL-2.1-or-later
"""Show a text through a pager, on a terminal, as systemd's tools do (systemctl(1), Environment)."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys

__all__ = ["show"]

_LESS_OPTIONS = "FRSXMK"
"""systemd's: end if all fits on the screen, pass colours on, cut long lines, leave the screen, long prompt,
end at ^C."""


def show(text: str, *, pager: bool = True) -> None:
    """Print a text, and a line break if it has none at its end. Raises OSError."""
    if text and not text.endswith("\n"):
        text += "\n"
    command = _command() if pager and text and sys.stdout.isatty() else []
    if not command:
        sys.stdout.write(text)
        return
    sys.stdout.flush()
    _run(command, text)


def _command() -> list[str]:
    """The pager and its arguments; empty where none is wanted or there is none."""
    secure = _is_secure()
    wanted = os.environ.get("SYSTEMD_PAGER", os.environ.get("PAGER"))
    if wanted is not None and not secure:
        try:
            command = shlex.split(wanted)
        except ValueError:
            command = []
        if not command or command == ["cat"]:
            return []
        if shutil.which(command[0]):
            return command
    elif wanted in ("", "cat"):
        return []
    # more(1) has no mode in which it starts no shell.
    return next(([each] for each in (("less",) if secure else ("less", "more")) if shutil.which(each)), [])


def _is_secure() -> bool:
    """Whether the pager must start no program: who may run kdumpctl by sudo may not run a shell thereby."""
    wish = os.environ.get("SYSTEMD_PAGERSECURE")
    if wish is not None:
        return wish.lower() not in ("0", "no", "false", "off", "n", "f")
    return os.geteuid() == 0 and "SUDO_UID" in os.environ


def _run(command: list[str], text: str) -> None:
    environment = {
        **os.environ,
        "LESS": os.environ.get("SYSTEMD_LESS", _LESS_OPTIONS),
        "LESSCHARSET": os.environ.get("SYSTEMD_LESSCHARSET", "utf-8"),
    }
    if _is_secure():
        environment["LESSSECURE"] = "1"
        environment.pop("LESSOPEN", None)
        environment.pop("LESSCLOSE", None)
    reader, writer = os.pipe()  # neither is inherited; the child gets its own copy below
    # ^C is the pager's, which ends at it or not; this program waits for it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with open(writer, "w", encoding="utf-8", errors="backslashreplace") as pipe:
            try:
                child = os.posix_spawnp(
                    command[0],
                    command,
                    environment,
                    file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)],
                    setsigdef=[signal.SIGINT, signal.SIGPIPE],
                )
            finally:
                os.close(reader)
            try:
                pipe.write(text)
                pipe.flush()
            except BrokenPipeError:
                # The reader has seen enough. The rest shall not be tried again when the pipe is closed.
                os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), pipe.fileno())
        os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGINT, before)
