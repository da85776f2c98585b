# SPDX-License-Identifier: LGPL-2.1-or-later
"""kdumpctl dump, export and log DUMP: what was saved of a crash, out of the service's hands."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Any, cast

from kdump_service.bus.client import BusDump, Client
from kdump_service.ctl.copying import OutputFile, copy, open_output, terminable
from kdump_service.ctl.match import find_one
from kdump_service.ctl.output import notice
from kdump_service.ctl.pager import show
from kdump_service.ctl.progress import ProgressLine
from kdump_service.ctl.session import on_bus
from kdump_service.ctl.text import printable
from kdump_service.errors import BadVmcore, DumpMissing
from kdump_service.quantity import format_bytes, parse_utc

__all__ = ["open_dump", "run_dump", "run_export", "run_log"]

_LARGEST_LOG_BYTES = 256 << 20
"""Sixteen times the largest buffer that log_buf_len= makes sensible."""


def open_dump(pattern: str | None, *what: str) -> tuple[BusDump, dict[str, int | DumpMissing]]:
    """The dump that is meant, and of each file a descriptor, or why there is none. Raises KdumpError."""

    async def ask(client: Client) -> tuple[BusDump, dict[str, int | DumpMissing]]:
        dump = find_one(await client.dumps(), pattern)
        found: dict[str, int | DumpMissing] = {}
        for word in what:
            try:
                found[word] = await client.open_dump_file(dump, word)
            except DumpMissing as error:
                found[word] = error
        return dump, found

    return on_bus(ask, asks=True)


def _opened(pattern: str | None, what: str) -> tuple[BusDump, int]:
    dump, files = open_dump(pattern, what)
    found = files[what]
    if isinstance(found, DumpMissing):
        raise found
    return dump, found


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    line = ProgressLine(counts_bytes=True)
    try:
        yield lambda done, total: line(what, done, total)
    finally:
        line.clear()


def run_dump(arguments: argparse.Namespace) -> int:
    """kdumpctl dump. Raises KdumpError."""
    # Before the question for a password: what cannot be written need not be opened.
    with terminable(), open_output(arguments.output, force=arguments.force) as output:
        dump, descriptor = _opened(arguments.match, "image")
        try:
            with _progress("Copying") as progress:
                size = copy(descriptor, output, progress)
        finally:
            os.close(descriptor)
    if dump.properties.get("State") != "complete":
        notice(f"note: this dump is {printable(dump.properties['State'])}: it can be read up to a point")
    if arguments.output != "-":
        print(f"{arguments.output}: {format_bytes(size)}, of {printable(dump.name)}")
    return 0


def run_log(arguments: argparse.Namespace) -> int:
    """kdumpctl log of a stored dump. Raises KdumpError."""
    if arguments.json or arguments.caller:
        # The text that was saved does not have these; the memory does.
        from kdump_service.ctl import offline  # noqa: PLC0415  (numpy)

        dump, descriptor = _opened(arguments.source, "image")
        named = argparse.Namespace(**{**vars(arguments), "source": printable(dump.name)})
        try:
            return offline.run(named, descriptor=descriptor)
        finally:
            os.close(descriptor)
    _, descriptor = _opened(arguments.source, "log")
    with open(descriptor, "rb") as file:
        try:
            content = file.read(_LARGEST_LOG_BYTES)
        except OSError as error:
            raise BadVmcore(f"the log cannot be read: {error.strerror}") from error
    show(printable(content.decode("utf-8", "surrogateescape"), keep="\n\t"), pager=arguments.pager)
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """kdumpctl export. Raises KdumpError."""
    what = ("record", "log", *(("image",) if arguments.image else ()))
    dump, files = open_dump(arguments.match, *what)
    name = dump.name.replace("/", "_")
    path = arguments.output or f"{name}.tar"
    try:
        with terminable(), open_output(path, force=arguments.force) as output:
            _write_bundle(output, dump, name, files)
    finally:
        for each in files.values():
            if isinstance(each, int):
                os.close(each)
    told = sys.stderr if path == "-" else sys.stdout
    print(f"{path}: {', '.join(word for word in what if isinstance(files[word], int)) or 'properties only'}",
          file=told)  # fmt: skip
    for word in what:
        if isinstance(reason := files[word], DumpMissing):
            notice(f"left out: {word}: {reason}")
    if not arguments.image:
        notice("left out: image: it holds the machine's memory; --image adds it")
    return 0


def _write_bundle(output: OutputFile, dump: BusDump, name: str, files: dict[str, int | DumpMissing]) -> None:
    """A tar archive that depends on nothing but what is in it."""
    when = _mtime(dump.properties)
    with tarfile.open(
        fileobj=cast(IO[bytes], output), mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20
    ) as bundle:
        text = json.dumps(dump.properties, indent=2, sort_keys=True) + "\n"
        _add(bundle, f"{name}/properties.json", io.BytesIO(text.encode()), len(text.encode()), when)
        for word, descriptor in files.items():
            if isinstance(descriptor, DumpMissing):
                continue
            with _progress(f"Copying the {word}") as progress:
                size = os.fstat(descriptor).st_size
                reader = cast(IO[bytes], _Reader(descriptor, size, progress))
                _add(bundle, f"{name}/{_file_name(word, dump.properties)}", reader, size, when)


def _add(bundle: tarfile.TarFile, name: str, content: IO[bytes], size: int, when: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = size, when, 0o600
    bundle.addfile(member, content)


def _mtime(properties: dict[str, Any]) -> int:
    try:
        return parse_utc(str(properties.get("CrashTime", "")))
    except ValueError:
        return 0


def _file_name(word: str, properties: dict[str, Any]) -> str:
    """The name that the file has in the dump's folder."""
    images = [str(each) for each in properties.get("Files", []) if str(each).startswith("vmcore")]
    return {
        "record": "record.json",
        "log": "dmesg.txt",
        "image": images[0].replace("/", "_") if images else "vmcore",
    }[word]


class _Reader(io.RawIOBase):
    """A descriptor as a file object for tarfile, which tells how far it is."""

    def __init__(self, descriptor: int, size: int, progress: Callable[[int, int], None]) -> None:
        self._descriptor = descriptor
        self._size = size
        self._position = 0
        self._progress = progress

    def read(self, count: int = -1) -> bytes:
        """Exactly ``count`` bytes. Raises BadVmcore."""
        parts = []
        while count > 0:
            try:
                data = os.pread(self._descriptor, count, self._position)
            except OSError as error:
                raise BadVmcore(f"the dump cannot be read: {error.strerror}") from error
            if not data:
                raise BadVmcore(f"the dump became shorter while it was read: {self._position} bytes")
            parts.append(data)
            count -= len(data)
            self._position += len(data)
            self._progress(self._position, self._size)
        return b"".join(parts)
