# SPDX-License-Identifier: LGPL-2.1-or-later
"""Save the memory image: by the dump engine, or, where that cannot run, as a plain copy."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

from kdump_service.capture.lasting import lasting
from kdump_service.capture.plain_copy import copy_image, verify_copy
from kdump_service.capture.small_numpy import load_numpy
from kdump_service.capture.stages import INTERRUPTED, Stages
from kdump_service.config import Config
from kdump_service.dumpfile.elf_copy import ElfCopyWriter
from kdump_service.errors import BadVmcore, TargetFull
from kdump_service.quantity import format_bytes
from kdump_service.record import DumpFile, DumpRecord, DumpState, ImagePart
from kdump_service.targets.contract import Place, Upload, end_upload
from kdump_service.vmcore.reader import Guard, Vmcore

if TYPE_CHECKING:
    from kdump_service.dumpfile.formats import DumpWriter

__all__ = ["ImageSaver"]

logger = logging.getLogger(__name__)

WriterType = TypeVar("WriterType")


def open_vmcore(path: Path, guard: Guard) -> Vmcore:
    """Open /proc/vmcore. Raises BadVmcore."""
    try:
        return Vmcore(path, guard=guard)
    except OSError as error:
        raise BadVmcore(f"{path}: {error.strerror}", "Was this kernel started by a crash?") from error


class ImageSaver:
    """Writes, verifies and names the image. Whatever happens, the file says of itself what it is."""

    def __init__(
        self,
        vmcore: Path,
        guard: Guard,
        place: Place,
        config: Config,
        record: DumpRecord,
        stages: Stages,
        *,
        small_image: bool = False,
    ) -> None:
        """``small_image``: whether this boot runs in the small capture image."""
        self._small_image = small_image
        self._vmcore = vmcore
        self._guard = guard
        self._place = place
        self._config = config
        self._record = record
        self._stages = stages

    def save(self, *, threads: int | None = None) -> bool:
        """Save the image by the engine, with as many processes as are configured or as ``threads`` says. What
        became of it is in the record; whether a plain copy is what is left is returned."""
        self._record.contents = self._config.contents
        if self._config.level is None:
            self._record.format = "none"
            if self._record.kernel_log_records:
                self._record.state = DumpState.COMPLETE
            return False
        engine: ModuleType | None = None
        with self._stages("load-engine"), lasting():
            # Only now: numpy is large, and the log does without it.
            if self._small_image:
                load_numpy()
            engine = importlib.import_module("kdump_service.capture.image")
        if engine is None:
            return not self._has_problem(INTERRUPTED)
        plan = None
        with self._stages("survey"):
            source = open_vmcore(self._vmcore, self._guard)
            plan = self._survey(engine, source, threads)
        if plan is None:
            return not self._has_problem(TargetFull.reason, INTERRUPTED)
        self._save_by_engine(engine, plan)
        return False

    def _has_problem(self, *reasons: str) -> bool:
        """Whether something went wrong after which a plain copy, which would need more room and more time,
        is not tried."""
        return any(problem.reason in reasons for problem in self._record.problems)

    def _survey(self, engine: ModuleType, source: Vmcore, threads: int | None) -> Any:
        """Decide what to write; an ImagePlan, whose module is not loaded before this."""
        options = self._config.dump_options(processors=len(os.sched_getaffinity(0)))
        if threads is not None:
            options = dataclasses.replace(options, threads=threads)
        room_bytes = self._place.room_bytes()
        in_pages = functools.partial(self._stages.progress_in_pages, page_bytes=source.page_bytes)
        plan = engine.plan_image(source, options, room_bytes, in_pages)
        record = self._record
        record.format, record.compression = plan.options.format, plan.options.codec
        record.dump_level = plan.options.level
        record.excluded_pages = plan.survey.excluded
        record.predicted_bytes = plan.prediction.at_most_bytes
        for reason, decision in plan.decisions:
            self._stages.add_problem("survey", reason, decision)
        expected_bytes, at_most_bytes = plan.prediction.expected_bytes, plan.prediction.at_most_bytes
        logger.info(
            "Level %d keeps %d of %d pages, leaves out %s; %s %s to write",
            record.dump_level,
            len(plan.survey.kept),
            len(plan.survey.existing),
            ", ".join(f"{name} {count}" for name, count in record.excluded_pages.items() if count) or "none",
            "about" if expected_bytes < at_most_bytes else "at most",
            format_bytes(expected_bytes),
        )
        return plan

    def _save_by_engine(self, engine: ModuleType, plan: Any) -> None:
        record = self._record
        page_bytes = plan.pages.page_bytes

        def write(upload: Upload) -> DumpWriter:
            written = plan.dump.written
            try:
                progress = self._stages.progress_in_pages("Saving", page_bytes)
                writer: DumpWriter = plan.dump.write(upload, progress)
            finally:
                record.pages, record.zero_pages = written.pages, written.zero_pages
                record.lost_pages = written.lost_pages
            if written.lost_pages:
                self._stages.add_problem(
                    "write-image",
                    BadVmcore.reason,
                    f"{written.lost_pages} pages of the crashed kernel's memory could not be read, the first "
                    f"at physical address {written.lost[0][0] * page_bytes:#x}; they are missing",
                )
            return writer

        def verify(upload: Upload, writer: DumpWriter) -> bool:
            upload.verify(self._stages.progress_of_bytes("Reading back"))
            engine.verify_image(plan, upload, self._stages.progress_in_pages("Verifying", page_bytes))
            whole = not record.lost_pages
            writer.finish(complete=whole)
            record.image_parts = [ImagePart(**dataclasses.asdict(part)) for part in writer.parts()]
            return whole

        self._write_file(plan.dump.format.file_name, write, verify)

    def save_plain_copy(self) -> None:
        """What is left without the engine: the whole memory as it is."""
        with self._stages("plain-copy"), open_vmcore(self._vmcore, self._guard) as source:
            self._copy(source)

    def _copy(self, source: Vmcore) -> None:
        self._record.format, self._record.compression = "elf", "none"
        self._record.dump_level = 0
        self._record.excluded_pages = {}
        unreadable_bytes = 0

        def write(upload: Upload) -> ElfCopyWriter:
            nonlocal unreadable_bytes
            writer = ElfCopyWriter(upload, source.header, source.size_bytes)
            result = copy_image(source, writer, self._stages.progress("Saving", source.size_bytes).advance)
            unreadable_bytes = result.unreadable_bytes
            if unreadable_bytes:
                self._stages.add_problem(
                    "write-image",
                    BadVmcore.reason,
                    f"{unreadable_bytes} bytes of the crashed kernel's memory could not be read, the "
                    f"first at offset {result.first_unreadable_offset:#x}; they are zeros in the dump",
                )
            return writer

        def verify(upload: Upload, writer: ElfCopyWriter) -> bool:
            upload.verify(self._stages.progress_of_bytes("Reading back"))
            verify_copy(source, writer, self._stages.progress("Verifying", source.size_bytes).advance)
            if not unreadable_bytes:
                writer.finish()
            return not unreadable_bytes

        self._write_file("vmcore", write, verify)

    def _write_file(
        self,
        name: str,
        write: Callable[[Upload], WriterType],
        verify: Callable[[Upload, WriterType], bool],
    ) -> None:
        """Make the file; ``verify`` tells whether it is whole, and has then marked it so."""
        upload: Upload | None = None
        writer: WriterType | None = None
        whole = False
        with self._stages("write-image"):
            upload = self._place.create(name)
            self._record.state = DumpState.INCOMPLETE
            self._stages.changed()
            writer = write(upload)
            upload.flush()
        if upload is None:
            return
        if writer is not None:
            with self._stages("verify"):
                whole = verify(upload, writer)
        with self._stages("commit"):
            self._record.read_back_bytes, self._record.read_back_cached_bytes = upload.read_back_bytes
            self._record.files.append(DumpFile(*end_upload(upload, name, whole=whole)))
            if whole:
                self._record.state = DumpState.COMPLETE
