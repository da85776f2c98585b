# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdump_service.errors import BadVmcore
from kdump_service.pfn import CHUNK_PAGES, MOST_PFN, BoolArray, PfnBitmap, chunks_of, fill_range, runs_of


def _bits(*pfns: int) -> BoolArray:
    """One chunk with these frames."""
    bits = np.zeros(CHUNK_PAGES, np.bool_)
    bits[list(pfns)] = True
    return bits


@pytest.mark.parametrize(
    ("end_pfn", "chunks"),
    [(0, 0), (1, 1), (CHUNK_PAGES, 1), (CHUNK_PAGES + 1, 2), (1 << 28, 1 << 10)],
)
def test_chunks_of(end_pfn: int, chunks: int) -> None:
    assert chunks_of(end_pfn) == chunks
    assert PfnBitmap(end_pfn).chunk_count == chunks


@settings(derandomize=True)
@given(st.lists(st.booleans(), max_size=50), st.integers(0, 1 << 40))
def test_runs_are_the_set_bits(bits: list[bool], base: int) -> None:
    runs = runs_of(np.array(bits, np.bool_), base).tolist()
    frames = [pfn for first, count in runs for pfn in range(first, first + count)]
    assert frames == [base + index for index, bit in enumerate(bits) if bit]
    # None could be longer.
    assert all(sum(run) < following[0] for run, following in itertools.pairwise(runs))


@pytest.mark.parametrize(
    ("first", "end", "filled"),
    [
        (0, 10, []),
        (CHUNK_PAGES - 5, CHUNK_PAGES, []),
        (CHUNK_PAGES - 5, CHUNK_PAGES + 2, [0, 1]),
        (CHUNK_PAGES + 7, CHUNK_PAGES + 9, [7, 8]),
        (2 * CHUNK_PAGES - 1, 5 * CHUNK_PAGES, [CHUNK_PAGES - 1]),
        (CHUNK_PAGES + 3, CHUNK_PAGES + 3, []),
        (CHUNK_PAGES + 3, CHUNK_PAGES + 1, []),
        (2 * CHUNK_PAGES, 3 * CHUNK_PAGES, []),
    ],
)
def test_fill_range_stays_within_its_chunk(first: int, end: int, filled: list[int]) -> None:
    bits = np.zeros(CHUNK_PAGES, np.bool_)
    fill_range(bits, 1, first, end)
    assert np.flatnonzero(bits).tolist() == filled
    bits[:] = True
    fill_range(bits, 1, first, end, False)
    assert np.flatnonzero(~bits).tolist() == filled


def test_a_bitmap_gives_back_what_was_put_in() -> None:
    bitmap = PfnBitmap(2 * CHUNK_PAGES + 100)
    bitmap.set_bits(0, _bits(0, 5, CHUNK_PAGES - 1))
    bitmap.set_bits(2, _bits(0, 99))
    assert len(bitmap) == 5
    assert [bitmap.count(chunk) for chunk in range(3)] == bitmap.counts().tolist() == [3, 0, 2]
    assert np.flatnonzero(bitmap.bits(0)).tolist() == [0, 5, CHUNK_PAGES - 1]
    assert not bitmap.bits(1).any()
    # Two neighbours in different chunks stay two runs.
    bitmap.set_bits(1, _bits(0))
    assert [runs.tolist() for runs in bitmap.runs()] == [
        [[0, 1], [5, 1], [CHUNK_PAGES - 1, 1]],
        [[CHUNK_PAGES, 1]],
        [[2 * CHUNK_PAGES, 1], [2 * CHUNK_PAGES + 99, 1]],
    ]


def test_membership() -> None:
    bitmap = PfnBitmap(CHUNK_PAGES + 100)
    bitmap.set_bits(1, _bits(99))
    assert CHUNK_PAGES + 99 in bitmap
    for pfn in (-1, 99, CHUNK_PAGES + 98, CHUNK_PAGES + 100, 1 << 50):
        assert pfn not in bitmap


def test_setting_a_chunk_again_replaces_it() -> None:
    bitmap = PfnBitmap(CHUNK_PAGES)
    bitmap.set_bits(0, _bits(1, 2, 3))
    assert bitmap.bits(0)[2]
    bitmap.set_bits(0, _bits(7))
    assert np.flatnonzero(bitmap.bits(0)).tolist() == [7]
    assert len(bitmap) == 1
    bitmap.set_bits(0, _bits())
    assert len(bitmap) == 0
    assert list(bitmap.runs()) == []


def test_packed_as_kdump_compressed_files_have_it() -> None:
    bitmap = PfnBitmap(CHUNK_PAGES)
    bitmap.set_bits(0, _bits(0, 9, CHUNK_PAGES - 1))
    packed = bitmap.packed(0)
    assert len(packed) == CHUNK_PAGES // 8
    assert packed[:3] == b"\x01\x02\x00"
    assert packed[-1] == 0x80
    assert PfnBitmap(1).packed(0) == bytes(CHUNK_PAGES // 8)


def test_more_than_there_can_be() -> None:
    assert len(PfnBitmap(MOST_PFN)) == 0
    with pytest.raises(BadVmcore, match="0x1000000001"):
        PfnBitmap(MOST_PFN + 1)


def test_a_terabyte_takes_little_memory() -> None:
    chunk = np.ones(CHUNK_PAGES, np.bool_)
    chunk[::1000] = False
    tracemalloc.start()
    bitmap = PfnBitmap(1 << 28)
    for number in range(bitmap.chunk_count):
        bitmap.set_bits(number, chunk)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(bitmap) == bitmap.chunk_count * np.count_nonzero(chunk)
    assert held < 2 << 20  # 32 MiB as bits
    assert peak < held + (1 << 20)
