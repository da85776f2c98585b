# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where messages go: the journal with structured fields, the console, or standard error.

An event that an administrator acts on has a MESSAGE_ID here and an entry of the same id in
``units/kdump-service.catalog``; a test compares the two.
"""

from __future__ import annotations

import logging
import os
import sys
from enum import StrEnum
from typing import TextIO

__all__ = ["MessageId", "event", "to_console", "to_journal", "to_stderr"]

_LOGGER_NAME = "kdump_service"

# sd-daemon(3): a line on standard error that begins with <N> has syslog priority N.
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class MessageId(StrEnum):
    """128-bit ids of journal entries, made once with ``systemd-id128 new``."""

    ARMED = "20b96f03d48046f693af7d76fa69db57"
    NOT_ARMED = "b2ae476108a74c24bd32e38448ff1d8b"
    STILL_ARMED = "27a7ea415a5a4f44a86cc8e3ce6f0e69"
    DISARMED = "00ae0e82f8324f87a204bcd17665e877"
    BAD_CONFIGURATION = "ddd6fc0c3f7b4861b395e41a4240ecd8"
    CAPTURE_STARTED = "a1465df299984b7882ae789d22de54b6"
    DUMP_SAVED = "4d98fc5fdbe44df595122d6c9539ab97"
    DUMP_INCOMPLETE = "c149c8990c404a708be665183186f681"
    CAPTURE_FAILED = "8862e127971f484c9f7449ab2429a756"
    CRASH_RECORDED = "55792e44a9564d9080aa469de63bb5bc"
    TARGET_FAILED = "3a08022dd8c64d3cb825ee385fc4c669"
    CRASH_LOOP = "8b60e8a2333249ab8ae1dd7d4ccc476f"
    TEST_PASSED = "3b294e4fca574c399c3ab1cdf2ef7a8a"
    TEST_FAILED = "3bd31f295c10446b98dac7e6cd9c741c"
    OLD_DUMPS_REMOVED = "29379f21b11142b0a68791f6e2873a13"
    REHEARSAL_PASSED = "06afc083c11e4985b39d3f18fe5b7398"
    REHEARSAL_FAILED = "dce91b68dc214ac0b833c29e5e7f8f3c"
    IMAGE_REBUILT = "850369976345474786e4df6d21d08ecf"
    IMAGE_NOT_BUILT = "0ea5dd09e0e043aa979359bec1634602"
    RESERVATION_SHRUNK = "f3db6b037e3747b6af0d087716b5ac0d"


def event(
    logger: logging.Logger, level: int, message_id: MessageId, text: str, **fields: str | int | float
) -> None:
    """Log one event with its id and structured fields.

    Field names are upper case and begin with ``KDUMP_``; the journal stores them as they are.
    """
    logger.log(level, "%s", text, extra={"journal_fields": {"MESSAGE_ID": message_id.value, **fields}})


def _utf8(text: str) -> str:
    """The text in a form that the journal takes: names of files and kernel command lines may be any bytes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class _JournalHandler(logging.Handler):
    """Sends each record natively, so that its fields can be searched for with ``journalctl KDUMP_X=y``."""

    def __init__(self) -> None:
        super().__init__()
        from systemd import journal  # noqa: PLC0415  (a C extension that only a boot with a journal needs)

        self._send = journal.send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            fields = dict(getattr(record, "journal_fields", {}))
            if record.exc_info:
                fields["EXCEPTION_TEXT"] = logging.Formatter().formatException(record.exc_info)
            self._send(
                _utf8(record.getMessage()),
                PRIORITY=_PRIORITIES.get(record.levelno, 6),
                CODE_FILE=record.pathname,
                CODE_LINE=record.lineno,
                CODE_FUNC=record.funcName,
                SYSLOG_IDENTIFIER="kdump-service",
                **{name: _utf8(value) if isinstance(value, str) else value for name, value in fields.items()},
            )
        except OSError:
            self.handleError(record)  # journald is away: standard error is what is left


class _PriorityFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def _attach(handler: logging.Handler) -> None:
    logger = logging.getLogger(_LOGGER_NAME)
    logger.setLevel(logging.DEBUG if os.environ.get("KDUMP_DEBUG") else logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)


def to_stderr() -> None:
    """Plain lines on standard error; with priorities if systemd reads them."""
    handler = logging.StreamHandler(sys.stderr)
    if "JOURNAL_STREAM" in os.environ:
        handler.setFormatter(_PriorityFormatter())
    _attach(handler)


def to_journal() -> None:
    """Structured entries if this process runs under systemd, else standard error."""
    if "JOURNAL_STREAM" in os.environ:
        _attach(_JournalHandler())
    else:
        to_stderr()


def to_console(console: TextIO) -> None:
    """Besides what else is attached, a line on the machine's console for each message.

    In the capture boot somebody may be standing before the machine, and its console is the one thing
    they see.
    """
    handler = logging.StreamHandler(console)
    handler.setFormatter(logging.Formatter("kdump: %(message)s"))
    _attach(handler)
