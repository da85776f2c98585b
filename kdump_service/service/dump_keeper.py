# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dumps as the daemon knows them: looked at seldom, since a target may be slow, and handed out often."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from kdump_service.config import Config
from kdump_service.errors import DumpMissing
from kdump_service.quantity import parse_utc
from kdump_service.record import DumpRecord
from kdump_service.store import dump_folder, history, retention
from kdump_service.store.dumps import Presence, StoredDump

__all__ = ["MOST_OF_SAME_BUG", "DumpKeeper"]

MOST_OF_SAME_BUG = 50
"""Names that a dump has beside it: all of them, of a thousand crashes by one bug, made a message of 28 MB."""


class DumpKeeper:
    """What is known of the store. Acts run in one thread; reading :attr:`dumps` may be done in any."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.dumps: tuple[StoredDump, ...] = ()
        """Oldest first; replaced as a whole."""

    @property
    def newest(self) -> str:
        """Name of the newest dump; empty if there is none."""
        return self.dumps[-1].name if self.dumps else ""

    @property
    def records(self) -> list[DumpRecord]:
        """Of all dumps, oldest first."""
        return [dump.record for dump in self.dumps]

    def refresh(self, target: str) -> None:
        """Look at the store anew. Takes seconds if the target does not answer."""
        self.dumps = tuple(history.catalogue(self._root, target))

    def same_bugs(self) -> dict[str, list[str]]:
        """Name of each dump -> names of the others with its signature, oldest first, the newest of them."""
        by_signature: dict[str, list[str]] = defaultdict(list)
        for dump in self.dumps:
            if dump.record.signature:
                by_signature[dump.record.signature].append(dump.name)
        return {
            dump.name: [
                name
                for name in by_signature.get(dump.record.signature, [])[-MOST_OF_SAME_BUG - 1 :]
                if name != dump.name
            ][-MOST_OF_SAME_BUG:]
            for dump in self.dumps
        }

    def open_file(self, name: str, what: str) -> int:
        """A descriptor for reading. Raises DumpMissing, InvalidArgument or TargetUnusable."""
        return dump_folder.open_file(self._find(name), what)

    def delete(self, name: str) -> None:
        """Raises DumpMissing or TargetUnusable."""
        dump_folder.delete(self._root, self._find(name))

    def keep(self, name: str, kept: bool) -> None:
        """Raises DumpMissing or TargetUnusable."""
        dump_folder.keep(self._root, self._find(name), kept)

    def apply_limits(
        self, config: Config, advance: Callable[[int, int], None] = lambda done, total: None
    ) -> bool:
        """Delete what the settings of [Store] ask for; returns whether anything was.

        ``advance`` is told how many are done, and of how many.
        """
        limits = retention.Limits(
            config.max_use_bytes, config.max_dumps, config.max_age_sec, config.keep_free_bytes
        )
        return bool(retention.apply(self._root, config.target, limits, advance=advance))

    def seconds_to_next_expiry(self, config: Config, now: float | None = None) -> float | None:
        """When MaxAgeSec= asks for the next dump; None if for none that is there."""
        if not config.max_age_sec:
            return None
        now = time.time() if now is None else now
        ends = [
            parse_utc(dump.record.crash_time) + config.max_age_sec - now
            for dump in self.dumps[:-1]
            if dump.record.crash_time and dump.presence is Presence.PRESENT and not dump.kept
        ]
        return min((seconds for seconds in ends if seconds > 0), default=None)

    def _find(self, name: str) -> StoredDump:
        for dump in self.dumps:
            if dump.name == name:
                return dump
        raise DumpMissing(f"there is no dump {name}", "To see all: kdumpctl list")
