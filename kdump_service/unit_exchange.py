# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the daemon may not do itself, a unit does for it: a request and its answer are files in /run."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from kdump_service import log
from kdump_service.atomic_file import write_atomically
from kdump_service.errors import InvalidArgument, KdumpError, ProgramFailed, error_class

__all__ = ["UnitRequest", "answer_unit_request", "read_answer", "run_unit_verb"]

logger = logging.getLogger(__name__)

_MOST_BYTES = 8 << 20


class UnitRequest(Protocol):
    """Any kind of request."""

    @property
    def id(self) -> str:
        """The answer has the same."""


RequestType = TypeVar("RequestType", bound=UnitRequest)


def answer_unit_request(
    request_file: Path,
    result_file: Path,
    hint: str,
    parse: Callable[[str], RequestType],
    do: Callable[[RequestType], dict[str, Any]],
) -> bool:
    """In the unit: do what is asked for, and leave the result, or the error. Returns whether it could be
    done. Raises InvalidArgument where nothing is asked for (``hint`` says how to), OSError where no answer
    can be left."""
    try:
        text = request_file.read_text(encoding="utf-8")
        request_file.unlink()  # it is for one time
    except OSError as error:
        raise InvalidArgument("nothing was asked for", hint) from error
    request = parse(text)
    answer: dict[str, Any] = {"id": request.id}
    try:
        answer["result"] = do(request)
    except KdumpError as error:
        answer["error"] = {"name": error.dbus_name(), "text": str(error), "hint": error.hint}
        logger.error("%s", error.explanation())
    write_atomically(result_file, json.dumps(answer))
    return "result" in answer


def run_unit_verb(answer: Callable[[Path], bool]) -> int:
    """Entry of a verb that a unit runs; returns the exit code."""
    log.to_journal()
    try:
        return 0 if answer(Path("/")) else 1
    except KdumpError as error:
        logger.error("%s", error.explanation())
        return error.exit_code
    except OSError as error:
        logger.error("the answer cannot be left in /run: %s", error)
        return 1


def read_answer(path: Path, request_id: str, unit: str, failure: ProgramFailed | None) -> dict[str, Any]:
    """In the daemon: the result of this request. Raises the error that the unit met; ``failure``, which is
    how the start of the unit ended, or KdumpError, where it left no answer."""
    hint = f"See: journalctl -u {unit}"
    try:
        with open(path, encoding="utf-8") as file:
            answer = json.loads(file.read(_MOST_BYTES))
        if answer["id"] != request_id:
            raise ValueError("it is of another request")
        if "error" in answer:
            error = answer["error"]
            raise error_class(str(error["name"]))(str(error["text"]), str(error["hint"]))
        result: dict[str, Any] = answer["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if failure is not None:
            raise failure from error
        raise KdumpError(f"{unit} left no answer: {error}", hint) from error
    return result
