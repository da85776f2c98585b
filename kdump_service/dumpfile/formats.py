# SPDX-License-Identifier: LGPL-2.1-or-later
"""Dump formats are objects: each knows how it encodes pages, in which order, and what it needs of a sink."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.page_codec import EncodedPages
from kdump_service.dumpfile.sink import FilePart, Sink
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.memory_image import MemoryImage

__all__ = ["DumpFormat", "DumpWriter", "Frames", "Pass", "WritePages", "dump_format"]

WritePages = Callable[[NDArray[np.int64], EncodedPages, memoryview], None]
"""Takes runs of frames (rows of first frame and number of frames), what became of their pages when they were
encoded, and the encoded pages one after the other."""

Pass = tuple[Iterable[NDArray[np.int64]], WritePages]
"""Runs of frames in the order in which the format wants them, and what takes their pages."""


class Frames(Protocol):
    """Which frames there are, as engine.survey.Survey has them."""

    level: int
    existing: PfnBitmap
    kept: PfnBitmap


class DumpWriter(Protocol):
    """A dump that is being written."""

    def passes(self, vital: Iterable[PfnBitmap]) -> Iterator[Pass]:
        """What is to be written, one pass after the other. ``vital``: frames without which a dump cannot be
        opened, in parts, each of which is asked for when it is due; for formats that can take them first."""

    def flush(self) -> None:
        """Put all that was given into the sink, so that it can be read back."""

    def finish(self, *, complete: bool) -> None:
        """Write what is left, and say in the file whether it is whole. Before, it says that it is not."""

    def parts(self) -> list[FilePart]:
        """The integrity manifest: the file's parts, hashed while they were written."""


class DumpFormat(Protocol):
    """A dump format for the kept frames of one memory image."""

    file_name: ClassVar[str]
    """What the file of a dump is called in its folder."""
    append_only: ClassVar[bool]
    """Whether the sink may be one that takes bytes only one after the other, as a pipe does."""

    @classmethod
    def check(cls, image: MemoryImage) -> None:
        """Raises ConfigError if the format cannot hold the memory of such a machine."""

    def __init__(self, image: MemoryImage, frames: Frames, page_bytes: int, options: DumpOptions) -> None:
        """Raises as ``check``, BadVmcore if the image does not tell enough for the format, ImportError if the
        library for the compression is not installed."""

    @property
    def head_bytes(self) -> int:
        """Bytes that stand before the pages."""

    @property
    def most_data_bytes(self) -> int | None:
        """Bytes that the pages take if none of them shrinks; None if that depends on a library."""

    def encode(self, pages: memoryview, lost: NDArray[np.bool_], target: memoryview) -> EncodedPages:
        """Encode pages that follow one another into ``target``, which is 64 KiB longer than they are.
        ``lost`` marks those that could not be read."""

    def writer(self, sink: Sink, *, of_incomplete: bool = False) -> DumpWriter:
        """Begin to write. ``of_incomplete``: the image itself is incomplete; what a sink cannot rewrite says
        so from the beginning. Raises what the sink raises."""


_MODULES = {  # imported when they are used: not each has its library everywhere
    "kdump": ("kdump_writer", "KdumpFormat"),
    "elf": ("elf_writer", "ElfFormat"),
    "elf+lz4": ("lz4_file", "Lz4ElfFormat"),
    "flattened": ("flattened_writer", "FlattenedFormat"),
}


def dump_format(options: DumpOptions) -> type[DumpFormat]:
    """The class of the format that these options, which are checked, ask for. Raises ImportError if the
    library that it needs is not installed."""
    module, name = _MODULES.get(f"{options.format}+{options.codec}") or _MODULES[options.format]
    found: type[DumpFormat] = getattr(import_module(f"kdump_service.dumpfile.{module}"), name)
    return found
