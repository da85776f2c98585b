# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which dumps are meant: a name, the beginning of one, or the signature of a bug."""

from __future__ import annotations

from collections.abc import Sequence

from kdump_service.bus.client import BusDump
from kdump_service.ctl.text import printable
from kdump_service.errors import DumpMissing, InvalidArgument

__all__ = ["find_each", "find_one", "select"]

_MOST_NAMED = 5
_HINT = "kdumpctl list shows all names."


def select(dumps: Sequence[BusDump], patterns: Sequence[str]) -> list[BusDump]:
    """All dumps that any pattern matches, in their order; all if there is no pattern.

    Raises DumpMissing for a pattern that matches none.
    """
    if not patterns:
        return list(dumps)
    wanted = {dump.path for pattern in patterns for dump in _matches(dumps, pattern)}
    return [dump for dump in dumps if dump.path in wanted]


def find_one(dumps: Sequence[BusDump], pattern: str | None) -> BusDump:
    """The dump that is meant: the newest without a pattern; of a signature, its newest.

    Raises DumpMissing, or InvalidArgument if the beginning of a name fits more than one.
    """
    if pattern is None:
        if not dumps:
            raise DumpMissing("there are no dumps")
        return dumps[-1]
    found = _matches(dumps, pattern)
    if not _is_signature(found, pattern):
        _refuse_ambiguous(found, pattern)
    return found[-1]


def find_each(dumps: Sequence[BusDump], patterns: Sequence[str]) -> list[BusDump]:
    """The dumps that are meant, each once: of a signature, all that have it. Raises as :func:`find_one`."""
    result: dict[str, BusDump] = {}
    for pattern in patterns:
        found = _matches(dumps, pattern)
        if not _is_signature(found, pattern):
            _refuse_ambiguous(found, pattern)
        result.update((dump.path, dump) for dump in found)
    return list(result.values())


def _matches(dumps: Sequence[BusDump], pattern: str) -> list[BusDump]:
    if not pattern:
        raise InvalidArgument("an empty word is the name of no dump", _HINT)
    for found in (
        [dump for dump in dumps if dump.name == pattern],
        [dump for dump in dumps if dump.properties.get("Signature") == pattern],
        [dump for dump in dumps if dump.name.startswith(pattern)],
    ):
        if found:
            return found
    raise DumpMissing(f"no dump matches {printable(pattern)!r}", _HINT)


def _is_signature(found: Sequence[BusDump], pattern: str) -> bool:
    return all(dump.properties.get("Signature") == pattern for dump in found)


def _refuse_ambiguous(found: Sequence[BusDump], pattern: str) -> None:
    if len(found) > 1:
        names = ", ".join(printable(dump.name) for dump in found[:_MOST_NAMED])
        more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise InvalidArgument(f"{printable(pattern)!r} fits {names}{more}", "Write more of the name.")
