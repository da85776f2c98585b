# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl debug: open a dump in drgn, crash or gdb, with the symbols of its kernel."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdump_service.ctl.dump_files import open_dump
from kdump_service.ctl.output import notice
from kdump_service.ctl.symbols import Search, find_symbols, how_to_get
from kdump_service.ctl.text import printable
from kdump_service.errors import DumpMissing, InvalidArgument, NotAuthorized, ProgramFailed

__all__ = ["DEBUGGERS", "choose_debugger", "command_line", "run"]

DEBUGGERS = ("drgn", "crash", "gdb")

# For who may not open the file anew, only read the descriptor: drgn's own program takes a path, its library a
# descriptor, too. Arguments: descriptor, vmlinux, further symbol files.
_DRGN_BY_DESCRIPTOR = """
import sys, drgn, drgn.cli
prog = drgn.Program()
prog.set_core_dump(int(sys.argv[1]))
prog.load_debug_info(sys.argv[2:])
drgn.cli.run_interactive(prog)
"""


def run(arguments: argparse.Namespace) -> int:
    """The verb. Becomes the debugger, or raises KdumpError."""
    dump, files = open_dump(arguments.match, "image")
    image = files["image"]
    if isinstance(image, DumpMissing):
        raise image
    properties = dump.properties
    debugger = choose_debugger(arguments.debugger, properties)
    release, build_id = str(properties.get("KernelRelease", "")), str(properties.get("KernelBuildID", ""))
    symbols = _symbols(arguments.symbols, release, build_id)
    if properties.get("State") != "complete":
        notice(f"note: this dump is {printable(str(properties['State']))}: parts of the memory are not in it")
    command = command_line(debugger, image, symbols, arguments.arguments, _readable_path(image, properties))
    notice(f"starting {debugger}, symbols: {printable(str(symbols))}")
    os.set_inheritable(image, True)
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise ProgramFailed(f"{command[0]} cannot be started: {error.strerror}") from error


def choose_debugger(wanted: str | None, properties: Mapping[str, Any]) -> str:
    """The debugger that was asked for, or the first that is there and can open the dump.

    Raises ProgramFailed if there is none, InvalidArgument if the one asked for cannot open this format.
    """
    name = str(properties.get("Name", ""))
    convert = f"Convert it: kdumpctl dump {name} -o FILE, then kdumpctl convert --format elf FILE NEW."
    if properties.get("Compression") == "lz4":
        raise InvalidArgument(f"no debugger opens the dump {printable(name)}: it is in LZ4 frames", convert)
    is_elf = properties.get("Format") == "elf"
    if wanted == "gdb" and not is_elf:
        raise InvalidArgument(
            f"gdb opens ELF images only, and {printable(name)} is kdump-compressed", convert
        )
    candidates = [wanted] if wanted else [each for each in DEBUGGERS if is_elf or each != "gdb"]
    for candidate in candidates:
        if shutil.which(candidate):
            return candidate
    raise ProgramFailed(
        f"{' and '.join(candidates)} {'is' if len(candidates) == 1 else 'are'} not installed",
        f"Install the package {candidates[0]}" + (", or crash." if not wanted else "."),
    )


def _symbols(given: str | None, release: str, build_id: str) -> Path:
    """The vmlinux to use. Raises ProgramFailed, and says what to install."""
    if given is not None:
        if not os.access(given, os.R_OK):
            raise InvalidArgument(f"{given} cannot be read")
        return Path(given)
    search: Search = find_symbols(release, build_id)
    for sentence in search.rejected:
        notice(f"note: {printable(sentence)}")
    if search.path is None:
        raise ProgramFailed(
            f"the symbols of kernel {printable(release) or '(not known)'} are not here",
            how_to_get(printable(release), printable(build_id)),
        )
    if not search.fits:
        notice(f"note: whether {search.path} is of the very build that crashed is not known")
    return search.path


def _readable_path(image: int, properties: Mapping[str, Any]) -> str | None:
    """A path by which another program can open the image: the descriptor's, or the file's own."""
    link = f"/proc/self/fd/{image}"
    images = [each for each in properties.get("Files", []) if str(each).startswith("vmcore")]
    own = Path(str(properties.get("Folder", ""))) / images[0] if images else None
    for path in (link, own):
        # Opening a descriptor's path opens the file anew, with the rights of who opens it.
        if path is not None and os.access(path, os.R_OK):
            return str(path)
    return None


def command_line(
    debugger: str, image: int, symbols: Path, arguments: Sequence[str], path: str | None
) -> list[str]:
    """What to start. ``path``: by which the image can be opened, if it can. Raises NotAuthorized."""
    if path is None:
        interpreter = _interpreter_of(debugger) if debugger == "drgn" and not arguments else None
        if interpreter is None:
            raise NotAuthorized(
                f"you may read this dump, but {debugger} cannot open it for you: it takes no open descriptor",
                "Copy it with kdumpctl dump -o FILE, or do it as root.",
            )
        return [interpreter, "-c", _DRGN_BY_DESCRIPTOR, str(image), str(symbols)]
    match debugger:
        case "drgn":
            return ["drgn", "-c", path, "-s", str(symbols), *arguments]
        case "crash":
            return ["crash", *arguments, str(symbols), path]
        case _:
            return ["gdb", *arguments, str(symbols), path]


def _interpreter_of(program: str) -> str | None:
    """The Python that a script names in its first line."""
    path = shutil.which(program)
    if path is None:
        return None
    with open(path, "rb") as file:
        first = file.readline(256).decode("utf-8", "replace").strip()
    interpreter = first.removeprefix("#!").strip()
    return (
        interpreter
        if first.startswith("#!/") and "python" in interpreter and " " not in interpreter
        else None
    )
