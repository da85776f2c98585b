# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verb ``shrink`` of kdump-service: write the size that the request in /run asks for, leave an answer.

Runs in kdump-shrink.service, which may write that one file of the kernel, where the daemon may not.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdump_service.errors import InvalidArgument, KdumpError, KernelBusy, NoReservation, NotReady
from kdump_service.folders import RUN_FOLDER
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes
from kdump_service.unit_exchange import answer_unit_request, run_unit_verb

__all__ = ["LEAST_GAIN_BYTES", "REQUEST_FILE", "RESULT_FILE", "Request", "answer_request", "run_shrink"]

logger = logging.getLogger(__name__)

REQUEST_FILE = f"{RUN_FOLDER}/shrink-request.json"
RESULT_FILE = f"{RUN_FOLDER}/shrink-result.json"
LEAST_GAIN_BYTES = 32 << 20
"""For less than that the machine is not left without a crash kernel for a moment."""
_LEAST_BYTES = 64 << 20
"""No kernel of today starts in less, with the smallest image (kdump_service/service/estimate.py)."""


@dataclass(frozen=True)
class Request:
    """What the unit is to do."""

    id: str
    """The answer has the same."""
    size_bytes: int
    """What is to be left."""

    def to_json(self) -> str:
        """For the file."""
        return json.dumps({"id": self.id, "size_bytes": self.size_bytes})

    @classmethod
    def from_json(cls, text: str) -> Request:
        """Read one. Raises InvalidArgument for what is none, whoever wrote it."""
        try:
            document: dict[str, Any] = json.loads(text)
            request = cls(document["id"], document["size_bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(f"/{REQUEST_FILE} is not a request: {error}") from error
        # bool is an int, too.
        if not isinstance(request.id, str) or type(request.size_bytes) is not int:
            raise InvalidArgument(f"/{REQUEST_FILE} is not a request")
        return request


def answer_request(root: Path) -> bool:
    """Do what is asked for; returns whether it could be done. Raises InvalidArgument where nothing is."""
    return answer_unit_request(
        root / REQUEST_FILE,
        root / RESULT_FILE,
        "Set Shrink=yes.",
        Request.from_json,
        lambda request: _shrink(KernelFiles(root), request.size_bytes),
    )


def _shrink(kernel_files: KernelFiles, size_bytes: int) -> dict[str, int]:
    """The size before, and after. Raises KdumpError, with what the kernel says."""
    path = kernel_files.crash_size_file
    if kernel_files.crash_loaded:
        raise NotReady("a crash kernel is loaded: the kernel would refuse", "Try again: kdumpctl reload")
    try:
        before = kernel_files.crash_size_bytes
        if not before:
            raise NoReservation("no memory is reserved for a crash kernel", "Run: kdumpctl reserve")
        if not _LEAST_BYTES <= size_bytes <= before - LEAST_GAIN_BYTES:
            raise InvalidArgument(
                f"{format_bytes(before)} are reserved, which are not shrunk to {format_bytes(size_bytes)}"
            )
        descriptor = os.open(path, os.O_WRONLY)  # a file of sysfs is neither made nor emptied
        try:
            os.write(descriptor, f"{size_bytes}\n".encode())
        finally:
            os.close(descriptor)
        after = kernel_files.crash_size_bytes
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise KernelBusy("another program is loading a kernel now", "Try again later.") from error
        raise KdumpError(f"{path}: {error.strerror}", "See: journalctl -k --grep crash") from error
    logger.info("%s: %s instead of %s", path, format_bytes(after), format_bytes(before))
    return {"before_bytes": before, "after_bytes": after}


def run_shrink() -> int:
    """Entry of the verb; returns the exit code."""
    return run_unit_verb(answer_request)
