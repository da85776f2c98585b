# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is known of the crash kernel that is armed: has it carried a dump?

Kernel, image, command line and target together have an identity, a hash of their content. Arming hands it to
the capture boot, which puts it into the record; so each whole dump is a proof of what it was made with, and a
proof of nothing else. It stays one when dump and record are deleted, and counts no more when a test crash of
the same identity fails later.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from kdump_service import log
from kdump_service.arm.identity import armed_identity
from kdump_service.atomic_file import sync_folder, write_atomically
from kdump_service.folders import STATE_FOLDER
from kdump_service.own_state import read_json, write_json
from kdump_service.quantity import format_bytes, parse_utc
from kdump_service.record import DumpRecord, DumpState
from kdump_service.store.dumps import StoredDump

__all__ = [
    "TEST_CRASH_FILE",
    "Level",
    "Outcome",
    "Proof",
    "Verdict",
    "announce_test",
    "armed_identity",
    "learn",
    "learn_rehearsal",
    "proof_of",
    "tell_verdict",
    "verdict",
    "withdraw_test",
]

logger = logging.getLogger(__name__)

PROOFS_FILE = f"{STATE_FOLDER}/proofs.json"
TEST_CRASH_FILE = f"{STATE_FOLDER}/test-crash.json"
"""Announces a crash that somebody asked for; written before it, read by who makes it and after the reboot."""
_MOST_PROOFS = 32


class Level(StrEnum):
    """The values are those on the bus."""

    FAILED = "failed"
    """A test crash was not captured whole."""
    UNPROVEN = "unproven"
    REHEARSED = "rehearsed"
    """A crash in a virtual machine was captured whole."""
    CAPTURED = "captured"
    """A crash was captured whole."""
    TESTED = "tested"
    """A crash that was asked for was captured whole."""


@dataclass(frozen=True)
class Proof:
    """What is known of one identity."""

    level: str = Level.UNPROVEN
    time: str = ""
    """Of the crash that proves it, or disproves it, UTC; empty if unproven."""


def proof_of(root: Path, identity: str, records: Iterable[DumpRecord]) -> Proof:
    """What is known of an identity, from what :func:`learn` kept and from records."""
    if not identity:
        return Proof()
    best = _proofs(root).get(identity, Proof())
    for record in records:
        if record.armed_identity == identity:
            best = _better(best, record)
    return best


def learn(root: Path, record: DumpRecord) -> None:
    """Keep what a record proves, so that it stays proven when the record is gone."""
    proofs = _proofs(root)
    before = proofs.pop(record.armed_identity, Proof())
    after = _better(before, record)
    if record.armed_identity and after != before:
        _keep_proofs(root, proofs, record.armed_identity, after)


def learn_rehearsal(root: Path, identity: str, time: str, *, passed: bool) -> None:
    """Keep what a rehearsal at this time (UTC) came to. What a real crash has proven, or disproven, counts
    more."""
    proofs = _proofs(root)
    before = proofs.pop(identity, Proof())
    if not identity or before.level not in (Level.UNPROVEN, Level.REHEARSED):
        return
    after = Proof(Level.REHEARSED, time) if passed else Proof()
    if after != before:
        _keep_proofs(root, proofs, identity, after)


def _better(proof: Proof, record: DumpRecord) -> Proof:
    """The proof, or what the record proves if that is more, or newer."""
    moment = record.crash_time or record.saved_time
    if record.state is not DumpState.COMPLETE or (proof.level == Level.FAILED and moment <= proof.time):
        return proof
    level = Level.TESTED if record.test or proof.level == Level.TESTED else Level.CAPTURED
    if level == Level.TESTED and not record.test:
        return proof  # the test counts more than a crash that came after it
    return Proof(level, moment) if (level != proof.level or moment > proof.time) else proof


def _proofs(root: Path) -> dict[str, Proof]:
    document = read_json(root / PROOFS_FILE, dict)
    try:
        return {
            identity: Proof(Level(each["level"]), str(each["time"])) for identity, each in document.items()
        }
    except (TypeError, KeyError, ValueError) as error:
        logger.warning("%s: ignoring: %r", root / PROOFS_FILE, error)
        return {}


def _keep_proofs(root: Path, others: dict[str, Proof], identity: str, proof: Proof) -> None:
    proofs = list(({**others, identity: proof}).items())[-_MOST_PROOFS:]
    write_json(root / PROOFS_FILE, {name: dataclasses.asdict(each) for name, each in proofs})


# The test crash


class Outcome(StrEnum):
    """What became of a test crash."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"
    FAILED = "failed"
    """There is a record, and no image."""
    NO_RECORD = "no-record"
    """The machine came back, and nothing is known of the crash."""


@dataclass(frozen=True)
class Verdict:
    """Of a test crash, after the reboot."""

    outcome: Outcome
    time: str
    """When the crash was asked for, UTC."""
    identity: str
    dump: StoredDump | None = None


def announce_test(root: Path, boot_id: str, identity: str, time: str) -> None:
    """Write down, synced, that the crash which follows is a test. ``time`` is now, UTC. Raises OSError."""
    path = root / TEST_CRASH_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = {"boot_id": boot_id, "armed_identity": identity, "time": time}
    write_atomically(path, json.dumps(document, indent=2) + "\n")


def withdraw_test(root: Path) -> None:
    """The test crash did not happen, or its verdict was told. Raises OSError."""
    path = root / TEST_CRASH_FILE
    path.unlink(missing_ok=True)
    if path.parent.is_dir():
        sync_folder(path.parent)


def verdict(
    root: Path, boot_id: str, dumps: Iterable[StoredDump], unreachable: bool = False
) -> Verdict | None:
    """What became of the test crash that was announced; None if none was, or it is not known yet.

    ``boot_id`` is of this boot: a test that was announced in it is still to come. ``dumps`` are all crashes
    that are known. With ``unreachable``, the dump may lie on a target that cannot be looked at now, and only
    what was found counts.
    """
    document = read_json(root / TEST_CRASH_FILE, dict)
    announced, identity, time = (document.get(key) for key in ("boot_id", "armed_identity", "time"))
    if not isinstance(announced, str) or not isinstance(identity, str) or not isinstance(time, str):
        return None
    if announced == boot_id:
        return None
    found = [dump for dump in dumps if announced and dump.record.boot_id == announced]
    if found:
        # The fallback folder may have a record beside the target's: the better one is what became of it.
        order = [DumpState.FAILED, DumpState.INCOMPLETE, DumpState.COMPLETE]
        best = max(found, key=lambda dump: order.index(dump.record.state))
        return Verdict(Outcome(best.record.state.value), time, identity, best)
    if unreachable:
        return None
    return Verdict(Outcome.NO_RECORD, time, identity)


def tell_verdict(root: Path, found: Verdict) -> None:
    """Tell the journal, keep what was proven or disproven, and take the announcement away.

    In this order: a service that is killed in between tells it twice, rather than never.
    """
    dump = found.dump
    fields: dict[str, str | int | float] = {
        "KDUMP_TEST_OUTCOME": found.outcome,
        "KDUMP_TEST_TIME": found.time,
        "KDUMP_ARMED_IDENTITY": found.identity,
    }
    if dump is not None:
        fields |= {
            "KDUMP_NAME": dump.name,
            "KDUMP_STATE": dump.record.state,
            "KDUMP_FOLDER": str(dump.folder),
        }
    if found.outcome is Outcome.COMPLETE and dump is not None:
        text = (
            f"The test crash of {found.time} was captured: {format_bytes(dump.record.stored_bytes)} in "
            f"{dump.folder}"
        )
        log.event(logger, logging.INFO, log.MessageId.TEST_PASSED, text, **fields)
    else:
        text = f"The test crash of {found.time} was not captured whole: {_why(found)}"
        log.event(logger, logging.ERROR, log.MessageId.TEST_FAILED, text, **fields)
        if found.identity and _is_time(found.time):
            proofs = _proofs(root)
            proofs.pop(found.identity, None)
            _keep_proofs(root, proofs, found.identity, Proof(Level.FAILED, found.time))
    try:
        withdraw_test(root)
    except OSError as error:
        logger.warning("the verdict will be told again at the next start, ignoring: %s", error)


def _why(found: Verdict) -> str:
    if found.dump is None:
        return "the machine came back without a dump, and without a record of the crash"
    record = found.dump.record
    why = record.problems[-1].message if record.problems else "its record does not say why"
    what = "the dump is incomplete" if found.outcome is Outcome.INCOMPLETE else "there is no dump"
    return f"{what}: {why} (record in {found.dump.folder})"


def _is_time(text: str) -> bool:
    try:
        parse_utc(text)
    except ValueError:
        return False
    return True
