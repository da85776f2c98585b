# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdump-service: what the units run. One verb, of which only the code that it needs is imported."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdump_service import __version__

__all__ = ["main"]


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
    import argparse  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="kdump-service",
        description="Runs by systemd. To look at it and to control it, use kdumpctl.",
    )
    parser.add_argument("--version", action="version", version=f"kdump-service {__version__}")
    parser.add_argument(
        "verb",
        choices=(
            *("daemon", "arm-early", "capture", "crash-now", "reserve", "shrink", "rehearse"),
            *("build-image", "capture-trial"),
        ),
        help="daemon: arm the crash kernel and serve the bus (kdump.service); "
        "capture: save the crashed kernel's memory (kdump-capture.service); "
        "crash-now: crash the machine, if a test crash was announced (kdump-test-crash.service); "
        "reserve: set crashkernel= in the boot loader, as was asked for (kdump-reserve.service); "
        "shrink: give back memory that is reserved, as was asked for (kdump-shrink.service); "
        "rehearse: crash and capture in a virtual machine what is armed (kdump-rehearse.service); "
        "build-image: build the capture image for the kernel RELEASE, or the running one "
        "(kdump-build-image@.service); "
        "capture-trial: capture proc/vmcore below FOLDER, to prove a capture image",
    )
    parser.add_argument(
        "argument", nargs="?", metavar="RELEASE|FOLDER", help="of build-image and capture-trial"
    )
    given = parser.parse_args(words)
    verb = given.verb
    if verb == "capture-trial" and given.argument is None:
        parser.error("capture-trial needs a FOLDER")
    if verb not in ("capture-trial", "build-image") and given.argument is not None:
        parser.error(f"{verb} takes no argument")
    if verb == "daemon":
        from kdump_service.daemon import run_daemon  # noqa: PLC0415

        return run_daemon()
    if verb == "crash-now":
        from kdump_service.service.deliberate_crash import run_crash_now  # noqa: PLC0415

        return run_crash_now()
    if verb == "reserve":
        from kdump_service.reserve.main import run_reserve  # noqa: PLC0415

        return run_reserve()
    if verb == "shrink":
        from kdump_service.service.shrink_unit import run_shrink  # noqa: PLC0415

        return run_shrink()
    if verb == "rehearse":
        from kdump_service.rehearse.main import run_rehearse  # noqa: PLC0415

        return run_rehearse()
    if verb == "build-image":
        from kdump_service.image.build import run_build_image  # noqa: PLC0415

        return run_build_image(given.argument)
    if verb == "capture-trial":
        from kdump_service.capture.trial import run_capture_trial  # noqa: PLC0415

        return run_capture_trial(Path(given.argument))
    raise AssertionError(verb)


if __name__ == "__main__":
    sys.exit(main())
