# SPDX-License-Identifier: LGPL-2.1-or-later
"""The three lines out of a machine (console, side channel, QMP), each read by a thread that notes the times.

All of them wake one condition, so that a wait can look at all three at once.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Console", "ConsoleLine", "JsonLines", "Message"]

Message = dict[str, Any]

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[c78=>]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True)
class ConsoleLine:
    """One line of the serial console and when its end came, in seconds of the host's monotonic clock."""

    at: float
    text: str


class Console:
    """The serial console: every line with its time, and the raw bytes in a file."""

    def __init__(
        self, stream: IO[bytes], log: Path, changed: threading.Condition, lines: list[ConsoleLine]
    ) -> None:
        """`lines` has what the same console said before the machine was reset."""
        self.lines = lines
        self._stream = stream
        self._log = log
        self._changed = changed
        self._partial = b""
        self.thread = threading.Thread(target=self._read, name="console", daemon=True)
        self.thread.start()

    def tail(self, count: int = 60) -> str:
        """The last `count` lines, with the unfinished one."""
        with self._changed:
            texts = [line.text for line in self.lines[-count:]]
            if self._partial:
                texts.append(_clean(self._partial))
        return "\n".join(texts)

    def _read(self) -> None:
        with self._log.open("ab", buffering=0) as log:
            while chunk := self._stream.read1(65536):  # type: ignore[attr-defined]
                at = time.monotonic()
                log.write(chunk)
                *ended, partial = (self._partial + chunk).split(b"\n")
                with self._changed:
                    self._partial = partial
                    self.lines += [ConsoleLine(at, _clean(line)) for line in ended]
                    self._changed.notify_all()


def _clean(line: bytes) -> str:
    return ESCAPES.sub("", line.decode(errors="replace"))


class JsonLines:
    """JSON objects, one a line, both ways over a socket; what is no JSON object is dropped."""

    def __init__(
        self, name: str, ours: socket.socket, changed: threading.Condition, receive: Callable[[Message], None]
    ) -> None:
        """`receive` is called with `changed` held, for each message as it comes."""
        self._socket = ours
        self._changed = changed
        self._receive = receive
        self.closed = False
        self.thread = threading.Thread(target=self._read, name=name, daemon=True)
        self.thread.start()

    def send(self, message: Message) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def close(self) -> None:
        self._socket.close()

    def _read(self) -> None:
        pending = b""
        while chunk := self._receive_bytes():
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:
                    continue
                if isinstance(message, dict):
                    with self._changed:
                        self._receive(message)
                        self._changed.notify_all()
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _receive_bytes(self) -> bytes:
        try:
            return self._socket.recv(65536)
        except OSError:  # the machine ended
            return b""
