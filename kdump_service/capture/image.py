# SPDX-License-Identifier: LGPL-2.1-or-later
"""Save the memory image by the dump engine: decide what fits, write, verify."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from kdump_service.dump_options import MOST_LEVEL, DumpOptions
from kdump_service.engine.dump import Dump
from kdump_service.engine.predict import Prediction
from kdump_service.engine.survey import Survey, survey_everything, survey_pages
from kdump_service.engine.uploaded import open_upload
from kdump_service.engine.verify import verify_dump
from kdump_service.errors import BadVmcore, ConfigError, TargetFull, describe
from kdump_service.quantity import format_bytes
from kdump_service.targets.contract import Upload
from kdump_service.vmcore.page_source import ElfPages
from kdump_service.vmcore.reader import Vmcore

__all__ = ["ImagePlan", "PagesDone", "plan_image", "verify_image"]

STEPPED_DOWN = "stepped-down"
"""The reason of a problem: there was room for less than what is configured."""

PagesDone = Callable[[int, int], None]
"""Is told how many pages are done, and of how many."""


@dataclass
class ImagePlan:
    """What will be written."""

    options: DumpOptions
    pages: ElfPages
    survey: Survey
    dump: Dump
    prediction: Prediction
    decisions: list[tuple[str, str]]
    """What was done otherwise than configured: a reason, as of a Problem, and a sentence."""


def plan_image(
    source: Vmcore, options: DumpOptions, room_bytes: int, progress_of: Callable[[str], PagesDone]
) -> ImagePlan:
    """Survey the memory, and choose contents for which there is room: those that are configured, or else what
    the kernel itself uses. If there is none for that either, an incomplete dump that begins with what
    debuggers begin with is better than none. Raises TargetFull if there is not even room for its head."""
    pages = ElfPages(source)
    plan = _plan(source, pages, options, room_bytes, progress_of)
    if plan.prediction.at_most_bytes > room_bytes and options.level != MOST_LEVEL:
        needed, room = format_bytes(plan.prediction.at_most_bytes), format_bytes(room_bytes)
        decision = (
            f"dump level {options.level} would take up to {needed}, and there are {room}: saved what the "
            f"kernel itself uses (level {MOST_LEVEL})"
        )
        options = dataclasses.replace(options, level=MOST_LEVEL)
        plan = _plan(source, pages, options, room_bytes, progress_of)
        plan.decisions.insert(0, (STEPPED_DOWN, decision))
    if plan.dump.format.head_bytes > room_bytes:
        raise TargetFull(
            f"the head of the image takes {format_bytes(plan.dump.format.head_bytes)}, and there are "
            f"{format_bytes(room_bytes)}: only the kernel's log was saved",
            "Make room on the target, or lower KeepFree=.",
        )
    if plan.prediction.at_most_bytes > room_bytes:
        needed, room = format_bytes(plan.prediction.at_most_bytes), format_bytes(room_bytes)
        decision = f"the image may take up to {needed}, and there are {room}: it may be cut off at its end"
        plan.decisions.append((TargetFull.reason, decision))
    return plan


def _plan(
    source: Vmcore,
    pages: ElfPages,
    options: DumpOptions,
    room_bytes: int,
    progress_of: Callable[[str], PagesDone],
) -> ImagePlan:
    decisions: list[tuple[str, str]] = []
    advance = progress_of("Surveying")
    try:
        survey = survey_pages(source, pages, options.level, workers=options.threads, advance=advance)
    except BadVmcore as error:
        decisions.append((error.reason, f"pages cannot be told apart, so all are kept: {describe(error)}"))
        survey = survey_everything(pages)
    if frames := survey.unreadable_struct_pages:
        decision = f"what {frames} frames are used for could not be read; they are kept"
        decisions.append((BadVmcore.reason, decision))
    dump, options = _dump(source, pages, survey, options, decisions)
    prediction = dump.predict_bytes(progress_of("Sampling"), room_bytes=room_bytes)
    return ImagePlan(options, pages, survey, dump, prediction, decisions)


def _dump(
    source: Vmcore, pages: ElfPages, survey: Survey, options: DumpOptions, decisions: list[tuple[str, str]]
) -> tuple[Dump, DumpOptions]:
    """Return the dump as configured, and its options. What cannot be had is replaced, a compression by none,
    a format that cannot hold the memory by an ELF core; ``decisions`` then tell why."""
    try:
        return Dump(source, pages, survey, options), options
    except ImportError as error:
        decision = f"Compression={options.codec} is not to be had ({error}); not compressed"
        other = dataclasses.replace(options, compression="none", compression_level=None)
    except ConfigError as error:
        decision = f"{error}: saved as an ELF core"
        other = dataclasses.replace(options, format="elf", compression="none", compression_level=None)
    decisions.append((ConfigError.reason, decision))
    return _dump(source, pages, survey, other, decisions)


def verify_image(plan: ImagePlan, upload: Upload, advance: PagesDone) -> int:
    """Open what was written by its reader, and compare a sample of its pages with /proc/vmcore; how many that
    was. Raises BadVmcore or VerificationFailed."""
    with open_upload(upload) as written:
        return verify_dump(
            plan.pages,
            written,
            plan.survey.kept,
            every_page=False,
            lost=plan.dump.written.lost,
            advance=advance,
        )
