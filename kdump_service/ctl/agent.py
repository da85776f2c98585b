# SPDX-License-Identifier: LGPL-2.1-or-later
"""A polkit agent on the terminal, so that who has no desktop can type a password (pkttyagent(1)).

systemd's tools do the same. The agent is the fallback: where the session has one of its own, that one asks.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from types import TracebackType

__all__ = ["PasswordAgent"]


class PasswordAgent:
    """pkttyagent, while the context lasts; nothing for root, without a terminal, or without polkit."""

    def __init__(self, *, wanted: bool) -> None:
        at_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
        self._program = shutil.which("pkttyagent") if wanted and at_terminal and os.geteuid() != 0 else None
        self._child: int | None = None

    def __enter__(self) -> None:
        if self._program is None:
            return
        reader, writer = os.pipe()
        try:
            os.set_inheritable(writer, True)
            self._child = os.posix_spawn(
                self._program,
                [self._program, "--process", str(os.getpid()), "--notify-fd", str(writer), "--fallback"],
                os.environ,
                # It asks on /dev/tty. That there is no polkit, or another agent, is worth no word: what the
                # service answers then says what was refused.
                file_actions=[(os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)],
            )
        except OSError as error:
            print(f"kdumpctl: no password can be asked for, going on: {error}", file=sys.stderr)
        finally:
            os.close(writer)
        # It closes its end when it is registered, or when it ends because it cannot be.
        os.read(reader, 1)
        os.close(reader)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            os.kill(self._child, signal.SIGTERM)
            os.waitpid(self._child, 0)
