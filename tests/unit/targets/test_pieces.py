# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of what was written, against a file in memory."""

from __future__ import annotations

import itertools
import zlib

from hypothesis import given
from hypothesis import strategies as st

from kdump_service.targets.pieces import Piece, Pieces

WRITES = st.lists(
    st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=80), st.booleans()), min_size=1, max_size=40
)


class _File:
    """A file, and the pieces of it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.written = bytearray()  # 1 for each byte that was
        self.pieces = Pieces()

    def write(self, offset: int, data: bytes) -> list[Piece]:
        damaged = self.pieces.add(offset, data, lambda at, length: bytes(self.content[at : at + length]))
        for store, new in ((self.content, data), (self.written, b"\1" * len(data))):
            store.extend(bytes(max(offset + len(data) - len(store), 0)))
            store[offset : offset + len(data)] = new
        return damaged

    def is_right(self, pieces: list[Piece]) -> bool:
        return all(zlib.crc32(self.content[each.offset : each.end]) == each.checksum for each in pieces)


@given(WRITES)
def test_the_last_content_of_each_byte_counts(writes: list[tuple[int, bytes, bool]]) -> None:
    file = _File()
    taken: dict[int, Piece] = {}
    for offset, data, take in writes:
        assert file.write(offset, data) == []
        pieces = list(file.pieces)
        assert pieces == sorted(pieces)
        assert all(one.end <= other.offset for one, other in itertools.pairwise(pieces))
        assert file.is_right(pieces)
        covered = {at for piece in pieces for at in range(piece.offset, piece.end)}
        assert covered == {at for at, written in enumerate(file.written) if written}
        if take:
            taken |= {piece.offset: piece for piece in file.pieces.take(0, all_of_them=False)}
    rest = file.pieces.take(0, all_of_them=True)
    # What was taken and not written since, and the rest, are all that there is.
    now = {piece.offset: piece for piece in file.pieces}
    assert now == {at: piece for at, piece in taken.items() if now.get(at) == piece} | {
        piece.offset: piece for piece in rest
    }
    assert file.pieces.take(0, all_of_them=True) == []
    gaps = {at for offset, length in file.pieces.gaps(500) for at in range(offset, offset + length)}
    assert gaps == {at for at in range(500) if at >= len(file.written) or not file.written[at]}


def test_damage_is_seen_before_it_is_written_over() -> None:
    """A piece of which a part is written anew is read for the rest."""
    file = _File()
    file.write(0, b"a" * 100)
    file.content[50] ^= 1
    [damaged] = file.write(10, b"b" * 10)
    assert (damaged.offset, damaged.length) == (0, 100)
    # Wholly written over, what it was does not matter.
    file.content[50] ^= 2
    assert file.write(0, b"c" * 100) == []


def test_pieces_that_follow_one_another_are_joined() -> None:
    file = _File()
    for number in range(20_000):
        file.pieces.add(number * 1000, bytes([number % 256]) * 1000, lambda at, length: b"")
    assert 15 <= len(file.pieces) <= 20
    assert sum(piece.length for piece in file.pieces) == 20_000_000
    large = bytes(2 << 20)
    pieces = Pieces()
    for number in range(5):
        pieces.add(number * len(large), large, lambda at, length: b"")
    assert len(pieces) == 5


def test_the_last_one_waits_for_its_neighbour() -> None:
    pieces = Pieces()
    for number in range(4):
        pieces.add(number << 20, bytes(1 << 20), lambda at, length: b"")
    assert [piece.offset >> 20 for piece in pieces.take(1 << 20, all_of_them=False)] == [1, 2]
    pieces.add(4 << 20, b"x", lambda at, length: b"")
    assert [piece.offset >> 20 for piece in pieces.take(1 << 20, all_of_them=False)] == [3]
    pieces.add(1 << 20, bytes(1 << 20), lambda at, length: b"")
    assert [piece.offset >> 20 for piece in pieces.take(0, all_of_them=True)] == [0, 1, 4]
