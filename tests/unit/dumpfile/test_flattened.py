# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest

from kdump_service.dumpfile.flattened import FlattenedFile
from kdump_service.dumpfile.flattened_writer import FlattenedSink
from kdump_service.dumpfile.sink import StreamSink
from kdump_service.errors import BadVmcore
from kdump_service.vmcore.reader import PlainFile

HEADER = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
END = struct.pack(">qq", -1, -1)


def _record(offset: int, data: bytes) -> bytes:
    return struct.pack(">qq", offset, len(data)) + data


def _rearranged(stream: bytes) -> bytes:
    """What makedumpfile -R makes of it."""
    assert stream[:4096] == HEADER
    result = bytearray()
    position = 4096
    while True:
        offset, length = struct.unpack_from(">qq", stream, position)
        position += 16
        if (offset, length) == (-1, -1):
            assert position == len(stream)
            return bytes(result)
        assert offset >= 0
        assert length > 0
        result.extend(bytes(max(offset + length - len(result), 0)))
        result[offset : offset + length] = stream[position : position + length]
        position += length


def _open(path: Path, content: bytes) -> FlattenedFile:
    path.write_bytes(content)
    return FlattenedFile(PlainFile(path))


@pytest.mark.promise("flattened")
def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    stream = io.BytesIO()
    sink = FlattenedSink(StreamSink(stream))
    sink.write_at(100, b"behind")
    sink.set_size(200)
    sink.write_at(50, memoryview(b"before"))
    sink.write_at(0, b"")
    sink.close()
    expected = bytes(50) + b"before" + bytes(44) + b"behind" + bytes(94)
    assert _rearranged(stream.getvalue()) == expected
    file = _open(tmp_path / "flat", stream.getvalue())
    assert file.size_bytes == 200
    assert file.read(0, 1000) == expected
    assert file.read(53, 50) == expected[53:103]
    assert file.read(200, 1) == b""
    file.close()


def test_records_in_any_order_the_last_one_counts(tmp_path: Path) -> None:
    chance = random.Random(1)
    for _ in range(60):
        records = [
            (chance.randrange(300), chance.randbytes(chance.randrange(1, 80)))
            for _ in range(chance.randrange(40))
        ]
        stream = HEADER + b"".join(_record(*each) for each in records) + END
        expected = _rearranged(stream)
        file = _open(tmp_path / "flat", stream)
        assert file.size_bytes == len(expected)
        for _ in range(20):
            offset, length = chance.randrange(400), chance.randrange(400)
            assert file.read(offset, length) == expected[offset : offset + length]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEADER[:20], "ends after 20 bytes"),
        (b"KDUMP   " + HEADER[8:], "begins with 4b 44 55 4d"),
        (HEADER[:23] + b"\2" + HEADER[24:], "type 2, version 1"),
        (HEADER[:31] + b"\2" + HEADER[32:], "type 1, version 2"),
        (HEADER + _record(0, b"") + END, "record at offset 0x1000 claims 0 bytes"),
        (HEADER + _record(-2, b"abc") + END, "record at offset 0x1000 claims 3 bytes for offset -2"),
        (HEADER + _record(0, b"a") + struct.pack(">qq", 0, -1), "record at offset 0x1011 claims -1"),
        (HEADER + _record((1 << 62) - 1, b"abc") + END, "claims 3 bytes for offset"),
        (HEADER + struct.pack(">qq", 0, (1 << 63) - 1) + END, "claims 9223372036854775807 bytes"),
        (HEADER + struct.pack(">qq", -1, 5) + END, "claims 5 bytes for offset -1"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadVmcore, match=message):
        _open(tmp_path / "flat", content)


def test_what_is_left_of_a_truncated_file(tmp_path: Path) -> None:
    whole = HEADER + _record(0, b"abc") + _record(10, b"defg")
    for end, expected in [
        (4096, b""),
        (4096 + 16, b""),
        (4096 + 18, b"ab"),
        (4096 + 19, b"abc"),
        (4096 + 30, b"abc"),
        (len(whole) - 1, b"abc" + bytes(7) + b"def"),
        (len(whole), b"abc" + bytes(7) + b"defg"),
    ]:
        file = _open(tmp_path / "flat", whole[:end])
        assert file.truncated
        assert file.read(0, 100) == expected


def test_a_claimed_offset_allocates_nothing(tmp_path: Path) -> None:
    file = _open(tmp_path / "flat", HEADER + _record(1 << 61, b"abc") + END)
    assert file.size_bytes == (1 << 61) + 3
    assert file.read((1 << 61) - 2, 10) == b"\0\0abc"
    assert file.read(0, 5) == bytes(5)


def test_stream_fills_what_is_left_out() -> None:
    stream = io.BytesIO()
    sink = StreamSink(stream)
    sink.write_at(0, b"ab")
    sink.write_at(5, memoryview(b"cd"))
    with pytest.raises(ValueError, match="a stream at 7 cannot be written at 6"):
        sink.write_at(6, b"x")
    sink.set_size(10)
    sink.close()
    assert stream.getvalue() == b"ab\0\0\0cd\0\0\0"
    assert not sink.rewritable


class _Slow(io.BytesIO):
    """Takes a few bytes at a time, as a pipe without a buffer may; nothing at all after a while."""

    def write(self, data: object) -> int:
        return 0 if self.tell() >= 5000 else super().write(bytes(memoryview(data)[:7]))  # type: ignore[arg-type]


def test_streams_that_take_a_part() -> None:
    stream = _Slow()
    sink = FlattenedSink(StreamSink(stream))
    sink.write_at(0, b"x" * 100)
    sink.close()
    assert _rearranged(stream.getvalue()) == b"x" * 100
    with pytest.raises(BlockingIOError):
        StreamSink(_Slow()).set_size(6000)
