# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdump-service: what the units run. One verb, of which only the code that it needs is imported."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from kdump_service import __version__

__all__ = ["VERBS", "Verb", "main"]


class Verb(NamedTuple):
    """A program of its own: a function that returns the exit code; only this verb imports its module."""

    function: str
    """``MODULE:NAME``."""
    help: str
    argument: str = ""
    """What it takes; in brackets if it may be left away, which is then None. Empty: nothing."""


VERBS = {
    "daemon": Verb(
        "kdump_service.daemon:run_daemon", "arm the crash kernel and serve the bus (kdump.service)"
    ),
    "capture": Verb(
        "kdump_service.capture.main:run_capture", "save the crashed kernel's memory (kdump-capture.service)"
    ),
    "crash-now": Verb(
        "kdump_service.service.deliberate_crash:run_crash_now",
        "crash the machine, if a test crash was announced (kdump-test-crash.service)",
    ),
    "reserve": Verb(
        "kdump_service.reserve.main:run_reserve",
        "set crashkernel= in the boot loader, as was asked for (kdump-reserve.service)",
    ),
    "unreserve": Verb(
        "kdump_service.reserve.main:run_unreserve",
        "take crashkernel= out of the boot loader again, if it was set so (removal of the program)",
    ),
    "shrink": Verb(
        "kdump_service.service.shrink_unit:run_shrink",
        "give back memory that is reserved, as was asked for (kdump-shrink.service)",
    ),
    "rehearse": Verb(
        "kdump_service.rehearse.main:run_rehearse",
        "crash and capture in a virtual machine what is armed (kdump-rehearse.service)",
    ),
    "build-image": Verb(
        "kdump_service.image.build:run_build_image",
        "build the capture image for the kernel RELEASE, or the running one (kdump-build-image@.service)",
        "[RELEASE]",
    ),
    "capture-trial": Verb(
        "kdump_service.capture.trial:run_capture_trial",
        "capture proc/vmcore below FOLDER, to prove a capture image",
        "FOLDER",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # Imports inside functions: the verbs are programs of their own, in two boots. The capture has no time for
    # a parser.
    if words == ["capture"]:
        from kdump_service.capture.lasting import lasting  # noqa: PLC0415

        with lasting():
            from kdump_service.capture.main import run_capture  # noqa: PLC0415
        code = run_capture()
        logging.shutdown()
        # The machine waits for this end: to take down all that was loaded would be a third of the time to it.
        os._exit(code)
    verb, argument = _parse(words)
    module, _, name = verb.function.partition(":")
    function = getattr(importlib.import_module(module), name)
    code = function(argument) if verb.argument else function()
    return int(code)


def _parse(words: Sequence[str]) -> tuple[Verb, str | None]:
    """The verb and its argument; exits with status 2 where they do not fit together."""
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="kdump-service",
        description="Runs by systemd. To look at it and to control it, use kdumpctl.",
    )
    parser.add_argument("--version", action="version", version=f"kdump-service {__version__}")
    parser.add_argument(
        "verb", choices=VERBS, help="; ".join(f"{name}: {verb.help}" for name, verb in VERBS.items())
    )
    parser.add_argument(
        "argument", nargs="?", metavar="RELEASE|FOLDER", help="of build-image and capture-trial"
    )
    given = parser.parse_args(words)
    verb = VERBS[given.verb]
    if given.argument is not None and not verb.argument:
        parser.error(f"{given.verb} takes no argument")
    if given.argument is None and verb.argument and not verb.argument.startswith("["):
        parser.error(f"{given.verb} needs a {verb.argument}")
    return verb, given.argument


if __name__ == "__main__":
    sys.exit(main())
