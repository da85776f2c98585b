# SPDX-License-Identifier: LGPL-2.1-or-later
"""The command line of kdumpctl."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from kdump_service import __version__
from kdump_service.ctl import offline

__all__ = ["make_parser", "parse"]

_DEBUGGERS = ("drgn", "crash", "gdb")
_EPILOG = """exit codes: 0 success; 1 internal error; 2 wrong usage; 3 status: not armed;
4 check: a crash now would not be captured; 5 reserve: the boot loader is not known, nothing was changed;
6 rehearse: no whole dump came of it;
10 bad configuration, option or value; 20 to 30 the crash kernel cannot be loaded (see REASON of status);
32 not ready for a test crash; 33 the capture image could not be built; 34 no rehearsal is possible;
40 a file cannot be read, is damaged, or no dump; 41 a file cannot be written; 42 no room;
43 a dump is not sound; 44 a fault of the dump engine; 45 no such dump, or its files are missing; 46 an
argument is wrong, or was not confirmed; 50 a program or the kernel's symbols are missing; 60 the
service does not answer; 61 you do not have the right; 130 interrupted"""

_Verbs = argparse._SubParsersAction


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; wrong usage ends the program with code 2, as argparse does."""
    words, rest = _prepared(arguments), []
    if words[:1] == ["debug"] and "--" in words:
        split = words.index("--")
        words, rest = words[:split], words[split + 1 :]
    parsed = make_parser().parse_args(words)
    parsed.arguments = rest
    return parsed


def _prepared(arguments: Sequence[str]) -> list[str]:
    """The command line as argparse can read it.

    ``--json`` alone is ``--json=pretty``, ``--cma`` alone is ``--cma=``, and neither takes the next word; a
    time such as ``-1h`` after ``--since`` is no option.
    """
    result: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            return [*result, word, *words]
        if word == "--json":
            result.append("--json=pretty")
        elif word == "--cma":
            result.append("--cma=")
        elif word in ("--since", "--until", "-S", "-U") and (value := next(words, None)) is not None:
            long = {"-S": "--since", "-U": "--until"}.get(word, word)
            result += [f"{long}={value}"] if re.match(r"[-+]?[\w@]", value) else [word, value]
        else:
            result.append(word)
    return result


def make_parser() -> argparse.ArgumentParser:
    """All verbs."""
    parser = argparse.ArgumentParser(
        prog="kdumpctl",
        description="Look at and control kdump-service.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"kdumpctl {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_readiness(verbs)
    _add_dumps(verbs)
    _add_acts(verbs)
    _add_config(verbs)
    offline.add_parsers(verbs)
    return parser


def _json(*verbs: argparse.ArgumentParser) -> None:
    for verb in verbs:
        offline.add_json(verb)


def _pager(*verbs: argparse.ArgumentParser) -> None:
    for verb in verbs:
        verb.add_argument("--no-pager", dest="pager", action="store_false", help="no pager on a terminal")


def _legend(*verbs: argparse.ArgumentParser) -> None:
    for verb in verbs:
        verb.add_argument("--no-legend", dest="legend", action="store_false", help="no column titles")


def _one_match(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "match", metavar="MATCH", nargs="?",
        help="name, beginning of a name, or signature (default: the newest dump)",
    )  # fmt: skip


def _matches(verb: argparse.ArgumentParser, nargs: str) -> None:
    verb.add_argument("match", metavar="MATCH", nargs=nargs, help="name, beginning of a name, or signature")


def _add_readiness(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    status = verbs.add_parser("status", help="the state: armed or not, and why")
    check = verbs.add_parser("check", help="would a crash now be captured? what stands in the way?")
    estimate = verbs.add_parser("estimate", help="how much memory and room a capture needs")
    watch = verbs.add_parser("watch", help="print what changes, as it happens")
    _json(status, check, estimate, watch)
    _pager(status, check)


def _add_dumps(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    listing = verbs.add_parser("list", help="the crashes that this machine had, and their dumps")
    _matches(listing, "*")
    listing.add_argument(
        "-S", "--since", metavar="TIME", help="crashes from then on: today, -2d, '2026-11-23 10:00'"
    )
    listing.add_argument("-U", "--until", metavar="TIME", help="crashes up to then")
    listing.add_argument("-n", dest="number", type=int, metavar="N", help="the newest N only")
    listing.add_argument("-r", "--reverse", action="store_true", help="the newest first")
    listing.add_argument("-q", "--quiet", action="store_true", help="say nothing where there is no dump")
    info = verbs.add_parser("info", help="what is known of a crash")
    _matches(info, "*")
    show = verbs.add_parser("show", help="the same for programs, as KEY=value lines")
    _one_match(show)
    show.add_argument("-p", "--property", metavar="NAME", action="append", default=[], help="this one only")
    show.add_argument("--value", action="store_true", help="without KEY=")
    _json(listing, info, show)
    _pager(listing, info)
    _legend(listing)
    dump = verbs.add_parser("dump", help="copy the memory image of a dump to a file")
    _one_match(dump)
    dump.add_argument("-o", "--output", metavar="FILE", default="-", help="default: standard output")
    export = verbs.add_parser("export", help="a bundle for support: record and log in a tar file")
    _one_match(export)
    export.add_argument("-o", "--output", metavar="FILE", help="default: NAME.tar; - is standard output")
    export.add_argument("--image", action="store_true", help="with the memory image: it holds all secrets")
    for verb in (dump, export):
        verb.add_argument("--force", action="store_true", help="replace FILE if it exists")
    debug = verbs.add_parser(
        "debug",
        help="open a dump in drgn, crash or gdb, with its kernel's symbols",
        epilog="What stands behind -- is passed to the debugger.",
    )
    _one_match(debug)
    debug.add_argument("--debugger", choices=_DEBUGGERS, help="default: the first of these that is there")
    debug.add_argument("--symbols", metavar="VMLINUX", help="default: found by release and build id")
    delete = verbs.add_parser("delete", help="delete a dump; once more: forget that the crash was")
    keep = verbs.add_parser("keep", help="protect a dump from the limits of [Store]")
    keep.add_argument("--off", action="store_true", help="protect it no longer")
    for verb in (delete, keep):
        _matches(verb, "+")


def _add_acts(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    verbs.add_parser("arm", help="load the crash kernel, if it is not loaded already")
    verbs.add_parser("disarm", help="unload the crash kernel until the next boot, restart or arm")
    verbs.add_parser("reload", help="read the configuration anew and load what it asks for")
    verbs.add_parser("rebuild", help="load kernel and image anew, also if they seem to be current")
    reserve = verbs.add_parser(
        "reserve", help="set crashkernel= in the boot loader, for the next boot; shows the change first"
    )
    reserve.add_argument(
        "size", metavar="SIZE", nargs="?",
        help="256M, 512M,high, 1G-4G:192M,4G-:256M; default: auto, what estimate recommends",
    )  # fmt: skip
    reserve.add_argument("--cma", metavar="SIZE", help="with memory that processes may use until the crash")
    reserve.add_argument("--dry-run", action="store_true", help="show the change, and make none")
    reserve.add_argument("--revert", action="store_true", help="bring back what was there before")
    reserve.add_argument("--yes", action="store_true", help="do not ask for a confirmation")
    _json(reserve)
    rehearse = verbs.add_parser(
        "rehearse", help="crash and capture in a virtual machine what is armed, without a reboot"
    )
    _json(rehearse)
    test = verbs.add_parser("test", help="crash this machine, to prove that a crash is captured")
    test.add_argument("--yes", action="store_true", help="do not ask for a confirmation")


def _add_config(verbs: _Verbs[argparse.ArgumentParser]) -> None:
    config = verbs.add_parser("config", help="show and change settings")
    actions = config.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="all settings")
    show.add_argument("--origin", action="store_true", help="with defaults, and the file and line of each")
    get = actions.add_parser("get", help="the value of one")
    get.add_argument("--allowed", action="store_true", help="the words that it may be, one a line")
    change = actions.add_parser("set", help="change one, now and for later boots")
    reset = actions.add_parser("reset", help="undo what was set")
    for action in (get, change, reset):
        action.add_argument("key", metavar="KEY")
    change.add_argument("value", metavar="VALUE", nargs="+", help="as in kdump-service.conf: 512M, 30d, zstd")
    _json(show, get)
    _pager(show)
    _legend(show)
