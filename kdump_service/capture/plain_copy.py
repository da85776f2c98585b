# SPDX-License-Identifier: LGPL-2.1-or-later
"""Copy /proc/vmcore as it is, and prove that it arrived: what is left where the dump engine cannot run.

It needs nothing but the standard library. The copy opens in crash, drgn and gdb; it is as large as the
memory, less its pages of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdump_service.dumpfile.elf_copy import ElfCopyWriter, with_incomplete_flag
from kdump_service.errors import VerificationFailed
from kdump_service.vmcore.reader import PAGE_BYTES, Vmcore

__all__ = ["CopyResult", "copy_image", "verify_copy"]

_SAMPLES = 256
_SAMPLE_BYTES = 64 << 10


@dataclass
class CopyResult:
    """What became of the source's bytes."""

    zero_bytes: int = 0
    unreadable_bytes: int = 0
    first_unreadable_offset: int | None = None


def copy_image(source: Vmcore, writer: ElfCopyWriter, advance: Callable[[int], None]) -> CopyResult:
    """Write all of the source. Raises what the sink raises; what cannot be read is counted, not raised."""
    result = CopyResult()
    for window in source.windows():
        if window.data is None:
            writer.skip(window.offset, window.length)
            result.unreadable_bytes += window.length
            if result.first_unreadable_offset is None:
                result.first_unreadable_offset = window.offset
        else:
            result.zero_bytes += writer.write(window.offset, window.data)
        advance(window.offset + window.length)
    return result


def _sample_offsets(size_bytes: int) -> list[int]:
    """Evenly spread, on page borders, with the first and the last bytes among them."""
    last = max(size_bytes - _SAMPLE_BYTES, 0)
    offsets = {last * index // (_SAMPLES - 1) // PAGE_BYTES * PAGE_BYTES for index in range(_SAMPLES)}
    return sorted(offsets | {last})


def verify_copy(source: Vmcore, writer: ElfCopyWriter, advance: Callable[[int], None]) -> None:
    """Compare a sample of what the file gives back with the source: its header, and up to 16 MiB spread
    evenly. Call before the file is finished. Raises VerificationFailed.

    Ranges of the source that cannot be read are left out; they are zeros in the file.
    """
    for offset in _sample_offsets(source.size_bytes):
        length = min(_SAMPLE_BYTES, source.size_bytes - offset)
        try:
            expected = source.read(offset, length)
        except OSError:
            continue
        if offset == 0:
            expected = with_incomplete_flag(source.header, expected)
        found = writer.read_back(offset, length)
        if found != expected:
            first = next(
                (i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b),
                min(len(expected), len(found)),
            )
            raise VerificationFailed(f"byte {offset + first:#x} of the image was not saved as it was read")
        advance(offset + length)
