# SPDX-License-Identifier: LGPL-2.1-or-later
"""The verbs of kdumpctl that work on files: convert, inspect, log. They need neither root nor the daemon.

``log`` of a word that is no file, or of none, means a stored dump, and is not done here.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from kdump_service.ctl.output import json_text
from kdump_service.ctl.progress import ProgressLine
from kdump_service.ctl.text import labelled, printable
from kdump_service.dump_options import COMPRESSIONS_OF, CONTENTS, MOST_LEVEL, DumpOptions
from kdump_service.dumpfile.sink import FilePart
from kdump_service.errors import BadVmcore, ConfigError, TargetFull, TargetUnusable
from kdump_service.quantity import format_bytes, format_seconds, format_utc
from kdump_service.record import RECORD_FILE, DumpRecord

__all__ = ["VERBS", "add_json", "add_parsers", "means_stored_dump", "run"]

VERBS = ("convert", "inspect", "log")


def add_parsers(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command lines of these verbs."""
    convert = verbs.add_parser("convert", help="write a memory image anew: filtered, compressed, as ELF ...")
    convert.add_argument("source", metavar="IN", type=Path, help="ELF core or dump of any format known here")
    convert.add_argument("target", metavar="OUT", type=Path, help="new file; - for standard output")
    what = convert.add_mutually_exclusive_group()
    pages = [name for name, level in CONTENTS.items() if level is not None]
    what.add_argument("--contents", choices=pages, help="what to keep (default: kernel)")
    what.add_argument(
        "--level", type=int, metavar="N", help=f"what to leave out, 0 to {MOST_LEVEL}, as makedumpfile -d"
    )
    convert.add_argument("--format", choices=tuple(COMPRESSIONS_OF), default="kdump")
    compressions = sorted({name for names in COMPRESSIONS_OF.values() for name in names})
    convert.add_argument("--compression", choices=("auto", *compressions), default="auto")
    convert.add_argument("--compression-level", type=int, metavar="N")
    convert.add_argument("--threads", type=int, metavar="N", help="default: one for each processor")
    convert.add_argument("--verify", action="store_true", help="compare every page, not a sample")
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
    inspect = verbs.add_parser("inspect", help="what a dump file holds, and whether it is sound")
    inspect.add_argument("source", metavar="FILE", type=Path)
    inspect.add_argument("--verify", action="store_true", help="read every page")
    log = verbs.add_parser("log", help="the kernel's log in a dump file, or of a stored dump")
    log.add_argument(
        "source", metavar="FILE|MATCH", nargs="?", help="a file, or a stored dump (default: the newest)"
    )
    log.add_argument("--no-pager", dest="pager", action="store_false", help="no pager on a terminal")
    log.add_argument("--caller", action="store_true", help="with the task or processor of each line")
    for verb in (convert, inspect, log):
        add_json(verb)


def add_json(verb: argparse.ArgumentParser) -> None:
    """The option --json of a verb; ``--json`` alone is made ``--json=pretty`` before."""
    verb.add_argument(
        "--json", choices=("short", "pretty"), metavar="short|pretty", help="print JSON (default: pretty)"
    )


def means_stored_dump(arguments: argparse.Namespace) -> bool:
    """Whether the verb is about a dump that the service keeps: no word, or one that is no path."""
    if arguments.verb != "log":
        return False
    word = arguments.source
    return word is None or not ("/" in word or os.path.lexists(word))


def run(arguments: argparse.Namespace, *, descriptor: int | None = None) -> int:
    """One of these verbs; the exit code. ``descriptor``: what ``log`` reads; ``source`` is only its name."""
    try:
        match arguments.verb:
            case "convert":
                return _convert(arguments)
            case "inspect":
                return _inspect(arguments)
            case _:
                return _log(arguments, descriptor)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and arguments.verb != "convert":
            raise  # whoever reads has enough; of a dump, nobody has enough
        if error.filename == str(arguments.source):
            raise BadVmcore(f"{arguments.source}: {error.strerror}") from error
        # All other files are opened and written by those who tell of them themselves.
        kind = TargetFull if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else TargetUnusable
        raise kind(f"standard output: {error.strerror}") from error


def _options(arguments: argparse.Namespace) -> DumpOptions:
    from kdump_service.engine.dump import default_threads  # noqa: PLC0415  (numpy)

    level = arguments.level
    if level is None:
        level = CONTENTS[arguments.contents or "kernel"]
    assert level is not None
    threads = default_threads() if arguments.threads is None else arguments.threads
    options = DumpOptions(
        level=level,
        format=arguments.format,
        compression=arguments.compression,
        compression_level=arguments.compression_level,
        threads=threads,
    )
    options.check()
    return options


def _convert(arguments: argparse.Namespace) -> int:
    from kdump_service.engine.convert import convert_file, convert_to_stream  # noqa: PLC0415  (numpy)

    options = _options(arguments)
    progress = ProgressLine()
    began = time.monotonic()
    to_stdout = str(arguments.target) == "-"
    try:
        if to_stdout:
            if sys.stdout.isatty():
                raise ConfigError("a dump is not written to a terminal", "Redirect standard output.")
            result = convert_to_stream(arguments.source, sys.stdout.buffer, options, progress=progress)
        else:
            result = convert_file(
                arguments.source,
                arguments.target,
                options,
                verify_every_page=arguments.verify,
                replace=arguments.force,
                progress=progress,
            )
    finally:
        progress.clear()
    seconds = time.monotonic() - began
    if arguments.json:
        document = dataclasses.asdict(result) | {"seconds": round(seconds, 3)}
        print(json_text(document, arguments.json), file=sys.stderr if to_stdout else sys.stdout)
        return 0
    for note in result.notes:
        print(f"kdumpctl: note: {note}", file=sys.stderr)
    if not to_stdout:
        excluded = ", ".join(f"{name} {count}" for name, count in result.excluded.items() if count)
        print(
            f"{arguments.target}: {format_bytes(result.bytes)}, {result.pages} pages "
            f"({result.zero_pages} of zeros), {result.verified_pages} compared, in {format_seconds(seconds)}"
        )
        if excluded:
            print(f"left out: {excluded}")
    return 0


def _manifest_of(path: Path) -> list[FilePart]:
    """What the record beside a dump says of its parts; nothing where there is no record, or none of it."""
    try:
        record = DumpRecord.read(path.parent)
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        print(f"kdumpctl: note: {path.parent / RECORD_FILE} cannot be used: {error}", file=sys.stderr)
        return []
    if not any(file.name == path.name for file in record.files):
        return []
    return [FilePart(part.name, part.offset, part.length, part.sha256) for part in record.image_parts]


def _inspect(arguments: argparse.Namespace) -> int:
    from kdump_service.engine.inspect import inspect_file  # noqa: PLC0415  (numpy)

    progress = ProgressLine()
    try:
        found = inspect_file(
            arguments.source,
            every_page=arguments.verify,
            progress=progress,
            manifest=_manifest_of(arguments.source) if arguments.verify else (),
        )
    finally:
        progress.clear()
    if arguments.json:
        print(json_text(dataclasses.asdict(found), arguments.json))
    else:
        rows: Iterable[tuple[str, str]] = (
            ("File", str(arguments.source)),
            ("Format", " in ".join(part for part in (found.format, found.wrapping) if part)),
            ("Size", format_bytes(found.bytes)),
            ("State", found.state),
            ("Kernel", f"{found.kernel_release} {found.machine}".strip()),
            ("Build id", found.build_id),
            ("Host", found.host),
            ("Crashed", format_utc(found.crash_time) if found.crash_time else ""),
            ("Panic", found.panic_message),
            ("Kind", found.kind),
            ("Task", found.task),
            ("Signature", found.signature),
            ("Dump level", str(found.dump_level) if found.dump_level is not None else ""),
            ("Pages", f"{found.pages} of {found.existing_pages} of {format_bytes(found.page_bytes)}"),
            ("Checked", found.checked),
            *(("Problem", problem) for problem in found.problems),
        )
        print(labelled(((label, printable(value)) for label, value in rows), least_width=12))
    return 0 if not found.problems else _UNSOUND_EXIT_CODE


_UNSOUND_EXIT_CODE = 43
"""As VerificationFailed: the file is not what it says."""


def _log(arguments: argparse.Namespace, descriptor: int | None) -> int:
    from kdump_service.dumpfile.open_image import open_image  # noqa: PLC0415  (numpy)
    from kdump_service.vmcore.address_space import AddressSpace  # noqa: PLC0415
    from kdump_service.vmcore.printk import format_record, read_log, record_as_dict  # noqa: PLC0415

    with open_image(Path(arguments.source), descriptor=descriptor) as opened:
        image = opened.image
        for record in read_log(image.vmcoreinfo, AddressSpace(image), image.byte_order):
            if arguments.json:
                print(json_text(record_as_dict(record), "short"))
            else:
                sys.stdout.write(format_record(record, caller=arguments.caller))
    return 0
