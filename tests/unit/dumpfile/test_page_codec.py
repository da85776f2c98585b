# SPDX-License-Identifier: LGPL-2.1-or-later
"""A sample of what is compressed is unpacked by who compressed it."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kdump_service.dumpfile import lz4_file
from kdump_service.dumpfile.page_codec import encode_pages, page_codec
from kdump_service.errors import VerificationFailed


@pytest.mark.promise("no-broken-dump-as-good")
@pytest.mark.parametrize("name", ["zstd", "zlib"])
def test_compression_that_does_not_give_back_what_it_got(name: str) -> None:
    """As by a fault of the library or the processor: no batch of pages leaves the worker so."""
    pages = memoryview(b"".join(bytes([number]) * 4096 for number in range(1, 129)))
    target = memoryview(bytearray(len(pages) + 65536))
    codec = page_codec(name)
    lost = np.zeros(128, np.bool_)
    assert codec.compress is not None
    encode_pages(pages, 4096, lost, codec, target)

    def of_other_pages(pages: memoryview, page_bytes: int, indices: NDArray[np.intp]) -> list[Any]:
        assert codec.compress is not None
        return [*codec.compress(pages, page_bytes, indices)[1:], b"?"]

    with pytest.raises(VerificationFailed, match="what was compressed is not what is unpacked"):
        encode_pages(pages, 4096, lost, codec._replace(compress=of_other_pages), target)

    def cut_short(pages: memoryview, page_bytes: int, indices: NDArray[np.intp]) -> list[Any]:
        assert codec.compress is not None
        return [bytes(part)[:-8] for part in codec.compress(pages, page_bytes, indices)]

    with pytest.raises(VerificationFailed, match="what was compressed cannot be unpacked"):
        encode_pages(pages, 4096, lost, codec._replace(compress=cut_short), target)


@pytest.mark.promise("no-broken-dump-as-good")
def test_lz4_frames_that_do_not_give_back_what_they_got(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = memoryview(b"".join(bytes([number]) * 4096 for number in range(1, 129)))
    target = memoryview(bytearray(len(pages) + 65536))
    lost = np.zeros(128, np.bool_)
    monkeypatch.setattr(lz4_file, "_ENCODED", itertools.count())
    for _ in range(40):
        lz4_file.encode_lz4_frame(pages, 4096, lost, target)
    frame = lz4_file._frame
    monkeypatch.setattr(lz4_file, "_frame", lambda data, level: frame(bytes(data[:-1]) + b"?", level))
    with pytest.raises(VerificationFailed, match="what was compressed is not what is unpacked"):
        for _ in range(16):
            lz4_file.encode_lz4_frame(pages, 4096, lost, target)
    monkeypatch.setattr(lz4_file, "_frame", lambda data, level: frame(data, level)[:-9])
    with pytest.raises(VerificationFailed, match="what was compressed cannot be unpacked"):
        for _ in range(16):
            lz4_file.encode_lz4_frame(pages, 4096, lost, target)
