# SPDX-License-Identifier: LGPL-2.1-or-later
"""Turn a memory image of any format into a dump of another: what ``kdumpctl convert`` does."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.formats import DumpWriter, dump_format
from kdump_service.dumpfile.open_image import OpenedImage, open_image
from kdump_service.dumpfile.sink import FilePart, Sink, StreamSink
from kdump_service.engine.dump import Dump
from kdump_service.engine.survey import Survey, survey_pages
from kdump_service.engine.uploaded import open_upload
from kdump_service.engine.verify import verify_dump
from kdump_service.errors import ConfigError, TargetUnusable
from kdump_service.targets.local import place_of_file

__all__ = ["Conversion", "convert_file", "convert_to_stream"]

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how many pages are done, and of how many."""


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass
class Conversion:
    """What came of it."""

    level: int
    format: str
    compression: str
    source_format: str
    pages: int = 0
    zero_pages: int = 0
    lost_pages: int = 0
    excluded: dict[str, int] = field(default_factory=dict)
    """Frames left out, by class."""
    bytes: int = 0
    """Length of the file that was written."""
    verified_pages: int = 0
    parts: list[FilePart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What somebody who opens the dump should know."""


def _survey(opened: OpenedImage, options: DumpOptions, result: Conversion, progress: Progress) -> Survey:
    survey = survey_pages(
        opened.image,
        opened.pages,
        options.level,
        workers=options.threads,
        advance=lambda done, total: progress("Filtering", done, total),
    )
    result.excluded = survey.excluded
    if survey.unreadable_struct_pages:
        result.notes.append(
            f"what {survey.unreadable_struct_pages} frames are used for could not be read; they are kept"
        )
    return survey


def _prepare(
    opened: OpenedImage, options: DumpOptions, progress: Progress
) -> tuple[Conversion, Survey, Dump]:
    dump_format(options).check(opened.image)  # to find out which pages to keep may take long
    result = Conversion(options.level, options.format, options.codec, opened.format)
    if opened.incomplete:
        result.notes.append(f"{opened.image.path} says that it is incomplete")
    survey = _survey(opened, options, result, progress)
    dump = Dump(opened.image, opened.pages, survey, options)
    return result, survey, dump


def convert_file(
    source: Path,
    target: Path,
    options: DumpOptions,
    *,
    verify_every_page: bool = False,
    replace: bool = False,
    progress: Progress = _silent,
) -> Conversion:
    """Write ``target``, read it back and compare. Raises BadVmcore, ConfigError, TargetFull, TargetUnusable,
    VerificationFailed.

    Until all of that is done, the file is called NAME.incomplete, and stays so if it cannot be.
    """
    options.check()
    with open_image(source) as opened:
        result, survey, dump = _prepare(opened, options, progress)
        place, name = place_of_file(target, replace=replace)
        upload = place.create(name)
        try:
            writer = _write(opened, dump, upload, result, progress)
            unit = opened.pages.page_bytes
            upload.verify(lambda done, total: progress("Reading back", done // unit, total // unit))
            with open_upload(upload) as written:
                result.verified_pages = verify_dump(
                    opened.pages,
                    written,
                    survey.kept,
                    every_page=verify_every_page,
                    lost=dump.written.lost,
                    advance=lambda done, total: progress("Verifying", done, total),
                )
            writer.finish(complete=_is_whole(opened, dump))
        except BaseException:
            with contextlib.suppress(TargetUnusable):  # the error that is under way says more
                upload.abandon()
            raise
        result.bytes = upload.publish(name).bytes
        result.parts = writer.parts()
    return result


def convert_to_stream(
    source: Path, stream: BinaryIO, options: DumpOptions, *, progress: Progress = _silent
) -> Conversion:
    """Write to a pipe. Nothing is read back. Raises ConfigError also for what cannot be written so."""
    options.check()
    if not dump_format(options).append_only:
        raise ConfigError(
            f"format {options.format} cannot be written to a pipe", "Use --format flattened or --format elf."
        )
    with open_image(source) as opened:
        result, _, dump = _prepare(opened, options, progress)
        sink = StreamSink(stream)
        writer = _write(opened, dump, sink, result, progress)
        writer.finish(complete=_is_whole(opened, dump))
        sink.close()
        result.parts = writer.parts()
    return result


def _write(opened: OpenedImage, dump: Dump, sink: Sink, result: Conversion, progress: Progress) -> DumpWriter:
    writer = dump.write(
        sink, lambda done, total: progress("Writing", done, total), of_incomplete=opened.incomplete
    )
    written = dump.written
    result.pages, result.zero_pages, result.lost_pages = (
        written.pages,
        written.zero_pages,
        written.lost_pages,
    )
    if written.lost_pages:
        result.notes.append(f"{written.lost_pages} pages could not be read and are missing")
    return writer


def _is_whole(opened: OpenedImage, dump: Dump) -> bool:
    return not dump.written.lost_pages and not opened.incomplete
