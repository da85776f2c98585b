# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdump-service: what the units run. One verb, of which only the code that it needs is imported."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from kdump_service import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="kdump-service",
        description="Runs by systemd. To look at it and to control it, use kdumpctl.",
    )
    parser.add_argument("--version", action="version", version=f"kdump-service {__version__}")
    parser.add_argument(
        "verb",
        choices=("daemon", "capture"),
        help="daemon: arm the crash kernel and serve the bus (kdump.service); "
        "capture: save the crashed kernel's memory (kdump-capture.service)",
    )
    verb = parser.parse_args(arguments).verb
    # Imports inside functions: the two verbs are two programs, in two boots.
    if verb == "daemon":
        from kdump_service.daemon import run_daemon  # noqa: PLC0415

        return run_daemon()
    from kdump_service.capture.main import run_capture  # noqa: PLC0415

    return run_capture()


if __name__ == "__main__":
    sys.exit(main())
