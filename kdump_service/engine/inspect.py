# SPDX-License-Identifier: LGPL-2.1-or-later
"""Look into a dump file: what it is of, what it holds, and whether it is sound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kdump_service.dumpfile.identity import identity_of
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import OpenedImage, open_image
from kdump_service.dumpfile.sink import FilePart
from kdump_service.engine.verify import SAMPLE_PAGES, check_descriptors, sampled_runs
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import PfnBitmap, chunks_of
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.crash_identity import identify
from kdump_service.vmcore.printk import read_log

__all__ = ["Inspection", "inspect_file"]

_PAGES_AT_ONCE = 64
_READ_BYTES = 1 << 20


@dataclass
class Inspection:
    """What is in a file."""

    format: str
    wrapping: str
    """``lz4`` or ``flattened``, if the format is inside of one."""
    bytes: int
    state: str = "complete"
    """``complete`` or ``incomplete``, as the file says of itself."""
    page_bytes: int = 0
    existing_pages: int = 0
    """Frames that the machine had."""
    pages: int = 0
    """Frames that the file has."""
    dump_level: int | None = None
    """As the header says; None where the format does not tell."""
    kernel_release: str = ""
    build_id: str = ""
    machine: str = ""
    host: str = ""
    crash_time: int = 0
    panic_message: str = ""
    kind: str = ""
    task: str = ""
    signature: str = ""
    checked: str = ""
    problems: list[str] = field(default_factory=list)


def inspect_file(
    path: Path,
    *,
    every_page: bool,
    progress: Callable[[str, int, int], None],
    manifest: Sequence[FilePart] = (),
) -> Inspection:
    """Open, look, and read pages; ``manifest`` is what the file's parts were when it was written. Raises
    OSError, or BadVmcore if it is no dump at all."""
    with open_image(path) as opened:
        found = Inspection(opened.format, opened.wrapping, path.stat().st_size)
        found.page_bytes = opened.pages.page_bytes
        if opened.incomplete:
            found.state = "incomplete"
        kept = PfnBitmap(opened.pages.end_pfn)
        for chunk in range(chunks_of(opened.pages.end_pfn)):
            found.existing_pages += int(np.count_nonzero(opened.pages.existing(chunk)))
            kept.set_bits(chunk, opened.pages.present(chunk))
        found.pages = len(kept)
        _identify(opened, found)
        if isinstance(opened.pages, KdumpFile):
            found.dump_level = opened.pages.sub_header.dump_level
            lost_pages = found.pages if opened.incomplete else 0
            try:
                check_descriptors(opened.pages, lost_pages=lost_pages, cut_off=opened.truncated)
            except (BadVmcore, VerificationFailed) as error:
                found.problems.append(str(error))
        _read_pages(opened, kept, found, every_page, progress)
    if manifest:
        _hold_against(path, manifest, found, progress)
    return found


def _hold_against(
    path: Path,
    manifest: Sequence[FilePart],
    found: Inspection,
    progress: Callable[[str, int, int], None],
) -> None:
    """Compare the file with what it was when it was written."""
    total = sum(part.length for part in manifest) // found.page_bytes
    done = 0
    with open(path, "rb") as file:
        for part in manifest:
            digest = hashlib.sha256()
            left = part.length
            file.seek(part.offset)
            while left and (data := file.read(min(left, _READ_BYTES))):
                digest.update(data)
                left -= len(data)
                done += len(data)
                progress("Comparing", done // found.page_bytes, total)
            if left or digest.hexdigest() != part.sha256:
                found.problems.append(
                    f"the {part.name}, {part.length} bytes at offset {part.offset:#x}, are not what was "
                    "saved: the record has another SHA-256"
                )
    found.checked += f", held against the SHA-256 of {len(manifest)} parts"


def _identify(opened: OpenedImage, found: Inspection) -> None:
    image = opened.image
    info = image.vmcoreinfo
    identity = identity_of(image)
    found.kernel_release, found.build_id = info.release, info.build_id
    found.crash_time = info.crash_time or 0
    found.machine, found.host = identity.uts["machine"], identity.uts["nodename"]
    if not len(info):
        found.problems.append("there is no VMCOREINFO: this is no dump of a Linux kernel")
        return
    try:
        crash = identify(read_log(info, AddressSpace(image), image.byte_order))
    except BadVmcore as error:
        found.problems.append(f"the kernel's log cannot be read: {error}")
        return
    found.panic_message, found.kind, found.signature = crash.panic_message, crash.kind, crash.signature
    found.task = f"{crash.task} (pid {crash.pid}, CPU {crash.cpu})" if crash.task else ""


def _read_pages(
    opened: OpenedImage,
    kept: PfnBitmap,
    found: Inspection,
    every_page: bool,
    progress: Callable[[str, int, int], None],
) -> None:
    """Read pages; each is unpacked on the way. In an incomplete file, missing ones are no problem."""
    buffer = memoryview(bytearray(_PAGES_AT_ONCE * found.page_bytes))
    total = len(kept) if every_page else min(SAMPLE_PAGES, len(kept))
    done = missing = 0
    for runs in kept.runs() if every_page else sampled_runs(kept, SAMPLE_PAGES):
        for first, count in runs.tolist():
            for start in range(0, count, _PAGES_AT_ONCE):
                length = min(_PAGES_AT_ONCE, count - start)
                missing += _missing(opened, first + start, length, found, buffer)
                done += length
                progress("Reading", done, total)
    found.checked = f"{done} pages read" + (f", {missing} of them missing" if missing else "")


def _missing(opened: OpenedImage, pfn: int, count: int, found: Inspection, buffer: memoryview) -> int:
    try:
        opened.pages.read_pages(pfn, count, buffer[: count * found.page_bytes])
    except (OSError, BadVmcore) as error:
        if count > 1:
            return sum(_missing(opened, pfn + index, 1, found, buffer) for index in range(count))
        if not opened.incomplete and len(found.problems) < _MOST_PROBLEMS:
            found.problems.append(str(error))
        return 1
    return 0


_MOST_PROBLEMS = 10
"""Told one by one; more say nothing new."""
