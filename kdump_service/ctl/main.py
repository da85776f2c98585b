# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl: one verb, of which only the code that it needs is imported."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import cast

from kdump_service.ctl import offline
from kdump_service.ctl.parser import parse
from kdump_service.errors import KdumpError, TargetFull, TargetUnusable

__all__ = ["main"]

INTERRUPTED_EXIT_CODE = 130
"""As a shell reports SIGINT."""

_VERBS = {
    "status": ("readiness", "run_status"),
    "check": ("readiness", "run_check"),
    "estimate": ("readiness", "run_estimate"),
    "list": ("dump_list", "run"),
    "info": ("dump_info", "run_info"),
    "show": ("dump_info", "run_show"),
    "dump": ("dump_files", "run_dump"),
    "export": ("dump_files", "run_export"),
    "log": ("dump_files", "run_log"),
    "debug": ("debug", "run"),
    "delete": ("acts", "run_delete"),
    "keep": ("acts", "run_keep"),
    "reserve": ("reserve", "run"),
    "rehearse": ("rehearse", "run"),
    "test": ("acts", "run_test"),
    "config": ("settings", "run"),
    "watch": ("watch", "run"),
    **dict.fromkeys(("arm", "disarm", "reload", "rebuild"), ("acts", "run_manager_verb")),
}
"""Module and function of each verb that is a client of the bus; these load asyncio and the D-Bus library."""


def _do(arguments: argparse.Namespace) -> int:
    if arguments.verb in offline.VERBS and not offline.means_stored_dump(arguments):
        return offline.run(arguments)
    module, function = _VERBS[arguments.verb]
    loaded = importlib.import_module(f"kdump_service.ctl.{module}")
    return cast("Callable[[argparse.Namespace], int]", getattr(loaded, function))(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    _open_streams()
    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _do(parsed)
        sys.stdout.flush()
        return code
    except KdumpError as error:
        print(f"kdumpctl: {error.explanation()}", file=sys.stderr)
        _flush_or_drop_output()
        return error.exit_code
    except BrokenPipeError:
        # Nobody reads any more, as after "| head".
        _drop_output()
        return 0
    except OSError as error:
        # Files are opened by those who tell of them; what is left is a full device behind standard output.
        _drop_output()
        kind = TargetFull if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else TargetUnusable
        failed = kind(f"{error.filename or 'standard output'}: {error.strerror}")
        print(f"kdumpctl: {failed}", file=sys.stderr)
        return failed.exit_code
    except KeyboardInterrupt:
        _flush_or_drop_output()
        return INTERRUPTED_EXIT_CODE


def _open_streams() -> None:
    """Standard output and error, also where they are closed, or where the locale knows few letters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _flush_or_drop_output() -> None:
    """What was said before an error is still said, if it can be: standard output may be what failed."""
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()


def _drop_output() -> None:
    """The interpreter shall not stumble over what is not written when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
