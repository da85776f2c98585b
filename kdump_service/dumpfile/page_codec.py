# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compression of single pages, as kdump-compressed files hold them."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import COMPRESSION_LEVELS
from kdump_service.errors import BadVmcore, VerificationFailed

__all__ = [
    "FILL",
    "EncodedPages",
    "PageCodec",
    "PageKind",
    "decompressor",
    "encode_pages",
    "expect_unpacked",
    "page_codec",
]

# Flags of a page descriptor and of the header's status (diskdump_mod.h of makedumpfile).
FLAG_ZLIB, FLAG_LZO, FLAG_SNAPPY, FLAG_INCOMPLETE, FLAG_EXCLUDED_VMEMMAP, FLAG_ZSTD = 1, 2, 4, 8, 16, 32

FILL = -1
"""In place of a run's first frame: pages of zeros that stand for nothing."""

_MOST_ZSTD_WINDOW_BYTES = 8 << 20
"""What a frame that does not say how much it holds may ask for: as RFC 8878, 3.1.1.1.2, and level 19."""

_Compress = Callable[[memoryview, int, NDArray[np.intp]], list[Any]]
"""Takes pages, the size of a page, and which of them; gives a buffer with a frame for each."""


class PageKind(IntEnum):
    """What became of a page."""

    ZERO = 0
    RAW = 1
    COMPRESSED = 2
    LOST = 3
    """It could not be read."""


class PageCodec(NamedTuple):
    """One way to compress a page."""

    name: str
    flag: int
    compress: _Compress | None
    """None: pages are stored as they are."""


_FAULTY = "Try another Compression=; a processor that computes wrongly shows so, too."


def page_codec(name: str, level: int | None = None) -> PageCodec:
    """The codec ``zstd``, ``zlib`` or ``none`` at a level (None: its default). Raises ImportError where the
    library is not installed."""
    level = COMPRESSION_LEVELS[name][2] if level is None else level
    if name == "zstd":
        import zstandard  # noqa: PLC0415  (optional codec)

        # Other readers want the size in the frame, though the format does not need it.
        compressor = zstandard.ZstdCompressor(level=level, write_content_size=True)
        if hasattr(compressor, "multi_compress_to_buffer"):
            return PageCodec(name, FLAG_ZSTD, partial(_many_at_once, zstandard, compressor))
        return PageCodec(name, FLAG_ZSTD, partial(_one_by_one, compressor.compress))
    if name == "zlib":
        return PageCodec(name, FLAG_ZLIB, partial(_one_by_one, _zlib_compress(level)))
    return PageCodec(name, 0, None)


def _many_at_once(
    zstandard: Any, compressor: Any, pages: memoryview, page_bytes: int, indices: NDArray[np.intp]
) -> list[Any]:
    """One call for all pages: saves a fifth of the time of a call for each (measured). Only the library's C
    backend has it."""
    segments = np.empty((len(indices), 2), np.uint64)
    segments[:, 0] = indices * page_bytes
    segments[:, 1] = page_bytes
    if not len(indices):
        return []
    frames = compressor.multi_compress_to_buffer(
        zstandard.BufferWithSegments(pages, segments.tobytes()), threads=1
    )
    return [frames[number] for number in range(len(indices))]


def _one_by_one(
    compress: Callable[[memoryview], bytes], pages: memoryview, page_bytes: int, indices: NDArray[np.intp]
) -> list[Any]:
    return [compress(pages[index * page_bytes : (index + 1) * page_bytes]) for index in indices.tolist()]


def _zlib_compress(level: int) -> Callable[[memoryview], bytes]:
    """ISA-L makes the same format in less than half the time (measured); it has levels 0 to 3."""
    try:
        library = importlib.import_module("isal.isal_zlib")
        level = min(level, 3)
    except ImportError:
        library = importlib.import_module("zlib")
    compress = library.compress
    return lambda page: compress(page, level)


class EncodedPages(NamedTuple):
    """Some consecutive pages of a dump."""

    kinds: NDArray[np.uint8]
    """PageKind of each."""
    sizes: NDArray[np.uint32]
    """Bytes that each takes in the data; 0 for ZERO and LOST."""


def encode_pages(
    pages: memoryview, page_bytes: int, lost: NDArray[np.bool_], codec: PageCodec, target: memoryview
) -> EncodedPages:
    """Compress pages one by one into ``target``, which is as long as they are.

    A page that does not shrink is stored as it is, so the target always suffices. One of those that shrank is
    unpacked from there, and compared. Raises VerificationFailed if it is not the same.
    """
    words = np.frombuffer(pages, np.uint64).reshape(-1, page_bytes // 8)
    filled = np.bitwise_or.reduce(words, axis=1) != 0
    kinds = np.where(filled, PageKind.RAW, PageKind.ZERO).astype(np.uint8)
    kinds[lost] = PageKind.LOST
    sizes = np.zeros(len(kinds), np.uint32)
    indices = np.flatnonzero(kinds == PageKind.RAW)
    sizes[indices] = page_bytes
    if codec.compress is None:
        parts = [pages[index * page_bytes : (index + 1) * page_bytes] for index in indices.tolist()]
    else:
        parts = codec.compress(pages, page_bytes, indices)
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        shrunk = lengths < page_bytes
        kinds[indices[shrunk]] = PageKind.COMPRESSED
        sizes[indices[shrunk]] = lengths[shrunk]
        for number in np.flatnonzero(~shrunk).tolist():
            index = int(indices[number])
            parts[number] = pages[index * page_bytes : (index + 1) * page_bytes]
    data = b"".join(parts)
    target[: len(data)] = data
    compressed = np.flatnonzero(kinds == PageKind.COMPRESSED)
    if len(compressed):
        index = int(compressed[len(compressed) // 2])
        start = int(sizes[:index].sum())
        stored = bytes(target[start : start + int(sizes[index])])
        expect_unpacked(_unpacker(codec.flag, page_bytes), stored, pages[index * page_bytes :][:page_bytes])
    return EncodedPages(kinds, sizes)


def expect_unpacked(unpack: Callable[[bytes], bytes], stored: bytes, content: memoryview) -> None:
    """Raise VerificationFailed if what is stored does not unpack to the content: a fault of the library or
    of the processor."""
    try:
        same = unpack(stored) == content
    except BadVmcore as error:
        raise VerificationFailed(f"what was compressed cannot be unpacked: {error}", _FAULTY) from error
    if not same:
        raise VerificationFailed("what was compressed is not what is unpacked", _FAULTY)


@functools.lru_cache(maxsize=4)
def _unpacker(flag: int, page_bytes: int) -> Callable[[bytes], bytes]:
    return decompressor(flag, page_bytes)


def decompressor(flag: int, page_bytes: int) -> Callable[[bytes], bytes]:
    """The function that gives back a page with this flag in its descriptor; it raises BadVmcore for data that
    is not one page. Raises BadVmcore for flags that we cannot undo."""
    if flag == 0:
        return lambda data: _whole(data, page_bytes)
    if flag == FLAG_ZLIB:
        import zlib  # noqa: PLC0415

        def inflate(data: bytes) -> bytes:
            unpacker = zlib.decompressobj()
            try:
                page = unpacker.decompress(data, page_bytes)
                if unpacker.unconsumed_tail and unpacker.decompress(unpacker.unconsumed_tail, 1):
                    raise BadVmcore(f"a compressed page holds more than {page_bytes} bytes")
            except zlib.error as error:
                raise BadVmcore(f"a compressed page is damaged: {error}") from error
            return _whole(page, page_bytes)

        return inflate
    if flag == FLAG_ZSTD:
        import zstandard  # noqa: PLC0415  (optional codec)

        unpack = zstandard.ZstdDecompressor(max_window_size=_MOST_ZSTD_WINDOW_BYTES)

        def unpack_page(data: bytes) -> bytes:
            try:
                # A frame claims how much it holds: believed only as far as a page goes.
                if zstandard.frame_content_size(data) not in (-1, page_bytes):
                    raise BadVmcore("a compressed page claims to hold something else than a page")
                page = unpack.decompress(data, max_output_size=page_bytes)
            except zstandard.ZstdError as error:
                raise BadVmcore(f"a compressed page is damaged: {error}") from error
            return _whole(page, page_bytes)

        return unpack_page
    names = {FLAG_LZO: "LZO", FLAG_SNAPPY: "snappy"}
    raise BadVmcore(f"pages compressed with {names.get(flag, f'method {flag:#x}')} cannot be read here")


def _whole(page: bytes, page_bytes: int) -> bytes:
    if len(page) != page_bytes:
        raise BadVmcore(f"a page of {page_bytes} bytes was stored as {len(page)}")
    return page
