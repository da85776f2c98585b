# SPDX-License-Identifier: LGPL-2.1-or-later
"""Reads kdump-compressed dumps for comparisons: which pages they hold, and the content of one.

Nothing of the project's, so that a mistake made there is not made here as well. The layout is that of
makedumpfile's diskdump_mod.h and crash's diskdump.h: 64-bit, native byte order, one whole file.
"""

import functools
import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import zstandard
from elftools.elf.elffile import ELFFile

__all__ = ["Bits", "KdumpFile", "NotReadable", "RawPages"]

Bits = npt.NDArray[np.bool_]
"""One truth value for each page frame, from frame 0 on."""

SIGNATURE = b"KDUMP   "
SIGNATURE_BYTES = 8
# struct disk_dump_header, from `status` on: status, block_size, sub_hdr_size, bitmap_blocks, max_mapnr
HEADER_AT, HEADER = 424, struct.Struct("<iiiII")
VERSION_AT = 8
# struct kdump_sub_header: phys_base, dump_level; max_mapnr_64 is there since version 6.
SUB_HEADER, MAX_MAPNR_64_AT = struct.Struct("<Qi"), 96
INCOMPLETE = 0x8  # in `status`
DESCRIPTOR = np.dtype([("offset", "<i8"), ("size", "<u4"), ("flags", "<u4"), ("page_flags", "<u8")])
RAW, ZLIB, ZSTD = 0x0, 0x1, 0x20
ELF_PAGE = 4096


class NotReadable(AssertionError):
    """The file is not the kdump-compressed dump that it should be."""


class KdumpFile:
    """A dump that is open for reading; `with` closes it."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        header = self._read(0, 464)
        if header[:SIGNATURE_BYTES] != SIGNATURE:
            raise NotReadable(f"{path} begins with {header[:SIGNATURE_BYTES]!r}")
        [self.version] = struct.unpack_from("<i", header, VERSION_AT)
        self.status, self.block_bytes, sub_blocks, bitmap_blocks, max_mapnr = HEADER.unpack_from(
            header, HEADER_AT
        )
        sub_header = self._read(self.block_bytes, 104)
        self.phys_base, self.dump_level = SUB_HEADER.unpack_from(sub_header)
        if self.version >= 6:
            [max_mapnr] = struct.unpack_from("<Q", sub_header, MAX_MAPNR_64_AT)
        self.max_mapnr: int = max_mapnr
        self._bitmaps_at = (1 + sub_blocks) * self.block_bytes
        self._bitmap_bytes = bitmap_blocks // 2 * self.block_bytes
        self._descriptors_at = self._bitmaps_at + bitmap_blocks * self.block_bytes
        if self._bitmap_bytes * 8 < max_mapnr:
            raise NotReadable(f"{path}: {bitmap_blocks} bitmap blocks for {max_mapnr} page frames")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def incomplete(self) -> bool:
        return bool(self.status & INCOMPLETE)

    @functools.cached_property
    def bitmap1(self) -> Bits:
        """Frames that are memory."""
        return self._bitmap(0)

    @functools.cached_property
    def bitmap2(self) -> Bits:
        """Frames that the dump holds."""
        return self._bitmap(1)

    @functools.cached_property
    def descriptors(self) -> npt.NDArray[np.void]:
        """One for each frame of `bitmap2`, in that order."""
        count = int(self.bitmap2.sum())
        return np.frombuffer(self._read(self._descriptors_at, count * DESCRIPTOR.itemsize), DESCRIPTOR)

    @functools.cached_property
    def frames(self) -> npt.NDArray[np.intp]:
        """The frame of each descriptor."""
        return np.flatnonzero(self.bitmap2)

    def page(self, number: int) -> bytes:
        """The content of the `number`th page that the dump holds, unpacked."""
        offset, size, flags, _ = self.descriptors[number].tolist()
        frame = self.frames[number]
        if not offset or size > self.block_bytes:
            raise NotReadable(f"page frame {frame:#x}: {size} bytes at {offset:#x}")
        data = self._read(offset, size)
        if flags == ZLIB:
            data = zlib.decompress(data)
        elif flags == ZSTD:
            data = self._zstd.decompress(data, max_output_size=self.block_bytes)
        elif flags != RAW:
            raise NotReadable(f"page frame {frame:#x}: flags {flags:#x}")
        if len(data) != self.block_bytes:
            raise NotReadable(f"page frame {frame:#x} is {len(data)} bytes long")
        return data

    @functools.cached_property
    def _zstd(self) -> zstandard.ZstdDecompressor:
        return zstandard.ZstdDecompressor()

    def _bitmap(self, number: int) -> Bits:
        packed = self._read(self._bitmaps_at + number * self._bitmap_bytes, self._bitmap_bytes)
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").astype(np.bool_)
        if bits[self.max_mapnr :].any():
            raise NotReadable(f"bitmap {number + 1} has bits past the last page frame {self.max_mapnr:#x}")
        return bits[: self.max_mapnr]

    def _read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise NotReadable(f"the file ends within the {size} bytes at {offset:#x}")
        return data


@dataclass(frozen=True)
class _Piece:
    """File content of a program header: frames that lie in it whole."""

    first_frame: int
    end_frame: int
    offset: int


class RawPages:
    """The pages of an ELF vmcore, by page frame; `with` closes it."""

    def __init__(self, path: Path) -> None:
        self._file: io.BufferedReader = path.open("rb")
        self._pieces = [
            _Piece(
                segment["p_paddr"] // ELF_PAGE,
                (segment["p_paddr"] + segment["p_filesz"]) // ELF_PAGE,
                segment["p_offset"],
            )
            for segment in ELFFile(self._file).iter_segments("PT_LOAD")
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def page(self, frame: int) -> bytes:
        for piece in self._pieces:
            if piece.first_frame <= frame < piece.end_frame:
                offset = piece.offset + (frame - piece.first_frame) * ELF_PAGE
                return os.pread(self._file.fileno(), ELF_PAGE, offset)
        raise NotReadable(f"page frame {frame:#x} is in no PT_LOAD")
