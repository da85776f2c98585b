# SPDX-License-Identifier: LGPL-2.1-or-later
"""Prove a dump: read it back through its reader, and compare pages with where they came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdump_service.dumpfile.kdump_format import PAGE_DESCRIPTOR
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import OpenedImage
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import CHUNK_PAGES, PfnBitmap, chunks_of, runs_of
from kdump_service.vmcore.page_source import PageSource

__all__ = [
    "SAMPLE_PAGES", "check_descriptors", "digest_of_pages", "sampled_runs", "verify_dump", "verify_pages",
]  # fmt: skip

SAMPLE_PAGES = 1024
"""Pages that are compared where not all are asked for: enough to see a fault that hits one in 200 pages with
a probability of 99 %."""
_SAMPLE_TOGETHER = 8
_PAGES_AT_ONCE = 64


def sampled_runs(kept: PfnBitmap, most_pages: int, together: int = 1) -> Iterator[NDArray[np.int64]]:
    """Runs of at most so many frames in all, spread evenly over those that are kept, ``together`` by
    ``together``: what stands in one compressed frame is then unpacked once."""
    total = len(kept)
    groups = np.linspace(0, total - 1, min(total, most_pages // together)).astype(np.int64)
    wanted = np.unique(np.add.outer(groups, np.arange(together)))
    before = 0
    for chunk in range(kept.chunk_count):
        count = kept.count(chunk)
        ranks = wanted[(wanted >= before) & (wanted < before + count)] - before
        if len(ranks):
            chosen = np.zeros(CHUNK_PAGES, np.bool_)
            chosen[np.flatnonzero(kept.bits(chunk))[ranks]] = True
            yield runs_of(chosen, chunk * CHUNK_PAGES)
        before += count


def verify_pages(
    source: PageSource,
    dump: PageSource,
    kept: PfnBitmap,
    *,
    every_page: bool,
    bridged: bool = False,
    lost: Sequence[tuple[int, int]] = (),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Compare pages of the dump with the source; how many were compared. Raises VerificationFailed.

    The dump must have exactly the frames that are kept; with ``bridged``, it may have others, as an ELF core
    has, and these must be zeros (looked at with ``every_page``). Pages that the source cannot give are left
    out, and ``lost`` ones (first frame, number) are not even tried: reading them may kill.
    """
    total = len(kept) if every_page else min(SAMPLE_PAGES, len(kept))
    for chunk in range(kept.chunk_count):
        advance(0, total)  # a machine may have memory at 40 TiB, and nothing below
        present, wanted = dump.present(chunk), kept.bits(chunk)
        wrong = wanted & ~present if bridged else wanted != present
        if wrong.any():
            pfn = chunk * CHUNK_PAGES + int(np.argmax(wrong))
            raise VerificationFailed(f"the dump is wrong about having frame {pfn:#x}")
        if bridged and every_page:
            _expect_zeros(dump, runs_of(present & ~wanted, chunk * CHUNK_PAGES))
    page_bytes = source.page_bytes
    compared = 0
    expected = memoryview(bytearray(_PAGES_AT_ONCE * page_bytes))
    found = memoryview(bytearray(_PAGES_AT_ONCE * page_bytes))
    for runs in kept.runs() if every_page else sampled_runs(kept, SAMPLE_PAGES, _SAMPLE_TOGETHER):
        for first, count in runs.tolist():
            for start in range(0, count, _PAGES_AT_ONCE):
                length = min(_PAGES_AT_ONCE, count - start)
                for pfn, part in _without(first + start, length, lost):
                    compared += _compare(source, dump, pfn, part, expected, found)
                advance(compared, total)
    return compared


def verify_dump(
    source: PageSource,
    written: OpenedImage,
    kept: PfnBitmap,
    *,
    every_page: bool,
    lost: Sequence[tuple[int, int]] = (),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """All that can be said of a file that was written; see check_descriptors and verify_pages."""
    bridged = not isinstance(written.pages, KdumpFile)
    if isinstance(written.pages, KdumpFile):
        check_descriptors(written.pages, lost_pages=sum(count for _, count in lost))
    return verify_pages(
        source, written.pages, kept, every_page=every_page, bridged=bridged, lost=lost, advance=advance
    )


def _expect_zeros(dump: PageSource, runs: NDArray[np.int64]) -> None:
    buffer = bytearray(_PAGES_AT_ONCE * dump.page_bytes)
    for first, count in runs.tolist():
        for start in range(0, count, _PAGES_AT_ONCE):
            view = memoryview(buffer)[: min(_PAGES_AT_ONCE, count - start) * dump.page_bytes]
            dump.read_pages(first + start, len(view) // dump.page_bytes, view)
            if np.frombuffer(view, np.uint64).any():
                raise VerificationFailed(f"frames from {first + start:#x} on were left out, but not wholly")


def _without(pfn: int, count: int, lost: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The frames of a run that are in none of the runs of ``lost``, which are in order."""
    end = pfn + count
    for first, length in lost:
        if first + length <= pfn or first >= end:
            continue
        if first > pfn:
            yield pfn, first - pfn
        pfn = first + length
    if pfn < end:
        yield pfn, end - pfn


def _compare(
    source: PageSource, dump: PageSource, pfn: int, count: int, expected: memoryview, found: memoryview
) -> int:
    size = count * source.page_bytes
    try:
        source.read_pages(pfn, count, expected[:size])
    except (OSError, BadVmcore):
        if count == 1:
            return 0
        return sum(_compare(source, dump, pfn + index, 1, expected, found) for index in range(count))
    try:
        dump.read_pages(pfn, count, found[:size])
    except (OSError, BadVmcore) as error:
        raise VerificationFailed("a page that was written cannot be read back") from error
    if expected[:size] != found[:size]:
        differ = np.frombuffer(expected, np.uint8, size) != np.frombuffer(found, np.uint8, size)
        address = pfn * source.page_bytes + int(np.argmax(differ))
        raise VerificationFailed(f"the byte at physical address {address:#x} was not saved as it was read")
    return count


def check_descriptors(dump: KdumpFile, *, lost_pages: int, cut_off: bool = False) -> None:
    """Look at each page descriptor of a kdump-compressed file. Raises VerificationFailed.

    ``lost_pages``: so many pages may be missing, no more. ``cut_off``: the end of the file is missing. Pages
    behind it are missing then, and so is the page whose descriptor was being written.
    """
    lost = 0
    torn = 1 if cut_off else 0
    at_once = 1 << 14  # 384 KiB of them, and as much of what is made of them
    data_offset = dump.data_offset
    for first in range(0, dump.page_count, at_once):
        descriptors = dump.descriptors(first, min(at_once, dump.page_count - first))
        offset, size = descriptors["offset"], descriptors["size"]
        missing = offset == 0
        lost += int(np.count_nonzero(missing))
        bad = ~missing & (
            (offset < data_offset)
            | (offset > dump.size_bytes)
            | (offset + size > dump.size_bytes)
            | (size == 0)
            | (size > dump.page_bytes)
            | ((descriptors["flags"] == 0) & (size != dump.page_bytes))
        )
        if cut_off:
            behind = bad & (offset >= data_offset) & (offset + size > dump.size_bytes)
            lost += int(np.count_nonzero(behind))
            bad &= ~behind
        if 0 < np.count_nonzero(bad) <= torn:
            torn -= int(np.count_nonzero(bad))
            lost += int(np.count_nonzero(bad))
        elif bad.any():
            number = first + int(np.argmax(bad))
            at = data_offset - (dump.page_count - number) * PAGE_DESCRIPTOR.itemsize
            raise VerificationFailed(
                f"page descriptor {number} at offset {at:#x} points outside of the pages"
            )
    if lost > lost_pages:
        raise VerificationFailed(f"{lost} pages have no data, though only {lost_pages} could not be read")


def digest_of_pages(path: Path) -> str:
    """SHA-256, hexadecimal, of all that stands before the page descriptors of a kdump-compressed file, and of
    its pages, unpacked: the same however they are compressed. Raises OSError or BadVmcore."""
    with open(path, "rb") as file, KdumpFile(path) as dump:
        digest = hashlib.sha256(file.read(dump.descriptors_offset))
        page = memoryview(bytearray(dump.page_bytes))
        for chunk in range(chunks_of(dump.end_pfn)):
            for first, count in runs_of(dump.present(chunk), chunk * CHUNK_PAGES).tolist():
                for pfn in range(first, first + count):
                    dump.read_pages(pfn, 1, page)
                    digest.update(page)
    return digest.hexdigest()
