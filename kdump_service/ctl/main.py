# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of kdumpctl: a client of the bus, and a few verbs that work on files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from kdump_service import __version__
from kdump_service.ctl import offline
from kdump_service.ctl.show import dumps_table, status_text
from kdump_service.errors import KdumpError

__all__ = ["main"]

NOT_ARMED_EXIT_CODE = 3
"""As systemctl status for a unit that is not active (LSB: program is not running)."""

INTERRUPTED_EXIT_CODE = 130
"""As a shell reports SIGINT."""

_EPILOG = """exit codes: 0 success; 1 internal error; 2 wrong usage; 3 status: not armed;
10 bad configuration or option; 20 to 30 the crash kernel cannot be loaded (see REASON of status);
40 a file cannot be read, is damaged, or no dump; 41 a file cannot be written; 42 no room;
43 a dump is not sound; 44 a fault of the dump engine;
60 the service does not answer; 61 you do not have the right"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdumpctl",
        description="Look at and control kdump-service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdumpctl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    status = verbs.add_parser("status", help="would a crash now be captured?")
    listing = verbs.add_parser("list", help="the dumps that this machine keeps")
    for verb in (status, listing):
        verb.add_argument("--json", action="store_true", help="print JSON")
    verbs.add_parser("arm", help="load the crash kernel, if it is not loaded already")
    verbs.add_parser("disarm", help="unload the crash kernel until the next boot, restart or arm")
    verbs.add_parser("reload", help="read the configuration anew and load what it asks for")
    offline.add_parsers(verbs)
    return parser


async def _run(arguments: argparse.Namespace) -> int:
    from kdump_service.bus.client import Client  # noqa: PLC0415  (the verbs that work on files need no bus)

    client = await Client.connect()
    try:
        match arguments.verb:
            case "status":
                properties = await client.properties()
                print(json.dumps(properties, indent=2) if arguments.json else status_text(properties))
                return 0 if properties["State"] == "armed" else NOT_ARMED_EXIT_CODE
            case "list":
                dumps = await client.call("ListDumps")
                print(json.dumps(dumps, indent=2) if arguments.json else dumps_table(dumps))
            case verb:
                await client.call(verb.capitalize(), start=verb == "arm")
                print(status_text(await client.properties()))
    finally:
        client.close()
    return 0


def _do(arguments: argparse.Namespace) -> int:
    if arguments.verb in offline.VERBS:
        return offline.run(arguments)
    import asyncio  # noqa: PLC0415  (as above)

    return asyncio.run(_run(arguments))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        code = _do(parsed)
        sys.stdout.flush()
        return code
    except KdumpError as error:
        print(f"kdumpctl: {error.explanation()}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Nobody reads any more, as after "| head". The interpreter shall not stumble over it when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
