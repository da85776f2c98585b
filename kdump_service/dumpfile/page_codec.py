# SPDX-License-Identifier: LGPL-2.1-or-later
"""Compression of single pages, as kdump-compressed files hold them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from kdump_service.dump_options import COMPRESSION_LEVELS
from kdump_service.errors import BadVmcore

__all__ = [
    "EncodedPages",
    "PageCodec",
    "PageKind",
    "decompressor",
    "encode_pages",
    "page_codec",
]

# Flags of a page descriptor and of the header's status (diskdump_mod.h of makedumpfile).
FLAG_ZLIB, FLAG_LZO, FLAG_SNAPPY, FLAG_INCOMPLETE, FLAG_EXCLUDED_VMEMMAP, FLAG_ZSTD = 1, 2, 4, 8, 16, 32

_Compress = Callable[[memoryview], bytes]


class PageKind(IntEnum):
    """What became of a page."""

    ZERO = 0
    RAW = 1
    COMPRESSED = 2
    LOST = 3
    """It could not be read."""


@dataclass(frozen=True)
class PageCodec:
    """One way to compress a page."""

    name: str
    flag: int
    compress: _Compress | None
    """None: pages are stored as they are."""


def page_codec(name: str, level: int | None = None) -> PageCodec:
    """The codec ``zstd``, ``zlib`` or ``none`` at a level (None: its default). Raises ImportError where the
    library is not installed."""
    level = COMPRESSION_LEVELS[name][2] if level is None else level
    if name == "zstd":
        import zstandard  # noqa: PLC0415  (optional codec)

        # Other readers want the size in the frame, though the format does not need it.
        compress = zstandard.ZstdCompressor(level=level, write_content_size=True).compress
        return PageCodec(name, FLAG_ZSTD, compress)
    if name == "zlib":
        return PageCodec(name, FLAG_ZLIB, _zlib_compress(level))
    return PageCodec(name, 0, None)


def _zlib_compress(level: int) -> _Compress:
    """ISA-L makes the same format in less than half the time (measured); it has levels 0 to 3."""
    try:
        library = importlib.import_module("isal.isal_zlib")
        level = min(level, 3)
    except ImportError:
        library = importlib.import_module("zlib")
    compress = library.compress
    return lambda page: compress(page, level)


@dataclass(frozen=True)
class EncodedPages:
    """Some consecutive pages of a dump."""

    kinds: NDArray[np.uint8]
    """PageKind of each."""
    sizes: NDArray[np.uint32]
    """Bytes that each takes in the data; 0 for ZERO and LOST."""


def encode_pages(
    pages: memoryview, page_bytes: int, lost: NDArray[np.bool_], codec: PageCodec, target: memoryview
) -> EncodedPages:
    """Compress pages one by one into ``target``, which is as long as they are.

    A page that does not shrink is stored as it is, so the target always suffices.
    """
    words = np.frombuffer(pages, np.uint64).reshape(-1, page_bytes // 8)
    filled = np.bitwise_or.reduce(words, axis=1) != 0
    kinds = np.where(filled, PageKind.RAW, PageKind.ZERO).astype(np.uint8)
    kinds[lost] = PageKind.LOST
    sizes = np.zeros(len(kinds), np.uint32)
    compress = codec.compress
    end = 0
    for index in np.flatnonzero(kinds == PageKind.RAW).tolist():
        page = pages[index * page_bytes : (index + 1) * page_bytes]
        start = end
        if compress is not None:
            data = compress(page)
            if len(data) < page_bytes:
                end = start + len(data)
                target[start:end] = data
                kinds[index] = PageKind.COMPRESSED
                sizes[index] = end - start
                continue
        end = start + page_bytes
        target[start:end] = page
        sizes[index] = page_bytes
    return EncodedPages(kinds, sizes)


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

        unpack = zstandard.ZstdDecompressor(max_window_size=1 << 27)

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
