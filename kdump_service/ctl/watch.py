# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl watch: a line for everything that the service announces, until ^C."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kdump_service.bus.client import Client, Signal
from kdump_service.bus.names import INTERFACE, SETTINGS_INTERFACE
from kdump_service.ctl.output import json_text
from kdump_service.ctl.progress import ProgressLine, bar
from kdump_service.ctl.session import on_bus
from kdump_service.ctl.text import printable
from kdump_service.errors import ServiceUnreachable
from kdump_service.quantity import format_bytes

__all__ = ["Watch", "run"]

_PROGRESS_STEP = 0.25
"""Where there is no terminal for one line that changes, every quarter has a line."""


def run(arguments: argparse.Namespace) -> int:
    """The verb; ends when the bus does. Raises KdumpError."""

    async def follow(client: Client) -> None:
        watch = Watch()
        line = ProgressLine()
        await client.subscribe()
        try:
            signal = Signal("owner", values={"Running": True})
            while True:
                # Who comes anew announces what changes, not what is: ask.
                known = await _ask(client) if signal.kind == "owner" else {}
                line.clear()
                if arguments.json:
                    print(json_text({"time": round(time.time(), 3), **dataclasses.asdict(signal),
                                     "properties": known}, "short"), flush=True)  # fmt: skip
                else:
                    for text in watch.lines(signal, known, with_progress=not line.shown):
                        print(f"{datetime.now():%H:%M:%S} {text}", flush=True)
                    line.tell(watch.activity, watch.progress)
                signal = await client.next_signal()
        finally:
            line.clear()

    on_bus(follow)
    return 0


async def _ask(client: Client) -> dict[str, Any]:
    """The manager's properties; none while there is no service."""
    try:
        return await client.properties()
    except ServiceUnreachable:
        return {}


class Watch:
    """Knows what was said last, so that only what is new is said."""

    def __init__(self) -> None:
        self._properties: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._running: bool | None = None

    @property
    def activity(self) -> str:
        """What the service does now."""
        return printable(str(self._properties.get("Activity", "")))

    @property
    def progress(self) -> float:
        """How far it is; -1 if that is not known."""
        return float(self._properties.get("Progress", -1.0))

    def lines(
        self, signal: Signal, known: Mapping[str, Any] | None = None, *, with_progress: bool = True
    ) -> list[str]:
        """What to say. ``known``: of kind ``owner``, the properties that the service has."""
        match signal.kind:
            case "owner":
                return self._owner(known or {})
            case "added":
                values = signal.values
                self._names[signal.path] = printable(str(values.get("Name", "")))
                size = format_bytes(values["StoredBytes"]) if values.get("StoredBytes") else ""
                facts = [printable(str(values.get(key, ""))) for key in ("State", "Kind", "PanicMessage")]
                told = ", ".join(filter(None, (*facts, size)))
                return [f"new dump {self._names[signal.path]}: {told}"]
            case "removed":
                return [f"dump {self._name(signal.path)} is gone"]
            case _ if signal.interface == INTERFACE:
                return self._manager(signal.values, with_progress=with_progress)
            case _ if signal.interface == SETTINGS_INTERFACE:
                return [f"setting {key}={printable(str(value))}" for key, value in signal.values.items()]
            case _:
                changes = ", ".join(f"{key}: {_shown(value)}" for key, value in signal.values.items())
                return [f"dump {self._name(signal.path)}: {changes}"] if changes else []

    def _owner(self, known: Mapping[str, Any]) -> list[str]:
        running = bool(known)
        was, self._running = self._running, running
        if not running:
            self._properties = {}
            return (
                [] if was is False else ["the service is not running" if was is None else "the service ended"]
            )
        said = ["the service is back"] if was is False else []
        self._properties = {}
        return said + self._manager(known, with_progress=False)

    def _manager(self, values: Mapping[str, Any], *, with_progress: bool) -> list[str]:
        before, self._properties = self._properties, {**self._properties, **values}
        now = self._properties
        lines = []
        if any(before.get(key) != now.get(key) for key in ("State", "Reason", "Ready")):
            ready = {True: ", ready", False: ", not ready"}.get(now.get("Ready"), "")  # type: ignore[arg-type]
            reason = f" ({printable(now['Reason'])})" if now.get("Reason") else ""
            lines.append(f"state {printable(str(now.get('State', '')))}{ready}{reason}")
        old = {tuple(problem) for problem in before.get("Problems", [])}
        new = [tuple(problem) for problem in now.get("Problems", [])]
        for code, severity, what, _ in (each for each in new if each not in old):
            lines.append(f"{printable(severity)}: {printable(code)}: {printable(what)}")
        gone = {problem[0] for problem in old} - {problem[0] for problem in new}
        lines += [f"no longer: {printable(code)}" for code in sorted(gone)]
        for key, words in (("Image", "image"), ("Kernel", "kernel"), ("ProvenLevel", "proven")):
            if before and before.get(key) != now.get(key):
                lines.append(f"{words} {printable(str(now.get(key))) or '(none)'}")
        if with_progress:
            lines += self._activity_lines(before)
        return lines

    def _activity_lines(self, before: Mapping[str, Any]) -> list[str]:
        earlier = float(before.get("Progress", -1.0))
        if self.activity and self.activity != printable(str(before.get("Activity", ""))):
            return [self.activity]
        if (
            self.activity
            and self.progress >= 0
            and self.progress // _PROGRESS_STEP > earlier // _PROGRESS_STEP
        ):
            return [f"{self.activity}: {bar(self.progress)}"]
        return []

    def _name(self, path: str) -> str:
        """The dump's name; of one that was there before, what its path says of it."""
        return self._names.get(path) or printable(_unescaped(path.rpartition("/")[2]))


def _unescaped(text: str) -> str:
    """The inverse of what the object's path does to the name: each byte but letters and digits as _XX."""
    parts = text.encode().split(b"_")
    result = parts[0]
    for part in parts[1:]:
        try:
            result += bytes.fromhex(part[:2].decode()) + part[2:]
        except ValueError:
            result += b"_" + part
    return result.decode("utf-8", "backslashreplace")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))
