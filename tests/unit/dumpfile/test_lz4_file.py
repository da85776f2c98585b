# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import hashlib
import io
import itertools
import os
import random
import struct
import subprocess
from pathlib import Path

import lz4.frame
import pytest

from kdump_service.dumpfile.elf_writer import ElfPlan, ElfWriter, batches_of
from kdump_service.dumpfile.lz4_file import Lz4ElfWriter, Lz4File, encode_lz4_frame
from kdump_service.dumpfile.open_image import open_image
from kdump_service.dumpfile.page_codec import EncodedPages, PageKind
from kdump_service.dumpfile.sink import Sink, StreamSink
from kdump_service.errors import BadVmcore, VerificationFailed
from kdump_service.pfn import CHUNK_PAGES
from kdump_service.vmcore.page_source import ElfPages
from kdump_service.vmcore.reader import PlainFile, Vmcore
from tests.builders.elf_core import PAGE
from tests.unit.dumpfile.small_core import (
    FileSink,
    SinkFull,
    page,
    plan_of,
    small_core,
    write_elf,
    write_pages,
)

KEPT = [*range(0x100, 0x140), *range(0x300, 0x304), *range(CHUNK_PAGES, CHUNK_PAGES + 8)]


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    # Two chunks, so two batches.
    direct = [(0x100, 0x210), (CHUNK_PAGES, 0x10)]
    return small_core(tmp_path / "core", direct, text=(0x300, 2), zero={0x108})


def _write(source: Path, sink: Sink) -> ElfPlan:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        write_elf(Lz4ElfWriter(sink, plan, kept), core, plan, kept, encode_lz4_frame)
    return plan


@pytest.fixture(name="frames")
def _frames(source: Path, tmp_path: Path) -> Path:
    _write(source, FileSink(tmp_path / "dump.lz4"))
    return tmp_path / "dump.lz4"


@pytest.fixture(name="plain")
def _plain(source: Path, tmp_path: Path) -> bytes:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        write_elf(ElfWriter(FileSink(tmp_path / "dump"), plan, kept), core, plan, kept)
    return (tmp_path / "dump").read_bytes()


def _unpacked(path: Path) -> bytes:
    return subprocess.run(["lz4", "-dc", path], check=True, capture_output=True).stdout


def _frame(content: bytes, **options: object) -> bytes:
    result: bytes = lz4.frame.compress(content, **{"store_size": True, "block_linked": False, **options})
    return result


def _open(path: Path, content: bytes) -> Lz4File:
    path.write_bytes(content)
    return Lz4File(PlainFile(path))


@pytest.mark.promise("elf-lz4")
def test_lz4_gives_the_core_back(frames: Path, plain: bytes) -> None:
    assert _unpacked(frames) == plain
    assert frames.stat().st_size < len(plain) // 4


def test_a_stream_gets_the_same_core(source: Path, tmp_path: Path, plain: bytes) -> None:
    stream = io.BytesIO()
    _write(source, StreamSink(stream))
    (tmp_path / "stream.lz4").write_bytes(stream.getvalue())
    assert _unpacked(tmp_path / "stream.lz4") == plain


def test_random_access(frames: Path, plain: bytes) -> None:
    file = Lz4File(PlainFile(frames))
    assert (file.size_bytes, file.truncated) == (len(plain), False)
    chance = random.Random(1)
    for _ in range(300):
        offset, length = chance.randrange(len(plain) + 10), chance.choice([0, 1, 100, 5000, 1 << 20])
        assert file.read(offset, length) == plain[offset : offset + length]
    file.close()


def test_more_than_the_cache_holds(tmp_path: Path) -> None:
    content = [bytes([index]) * (1 << 20) for index in range(40)]
    file = _open(tmp_path / "frames", b"".join(_frame(each) for each in content))
    for index in [*range(40), *range(40), 3, 3]:
        assert file.read((index << 20) + 5, 1 << 20) == content[index][5:] + content[(index + 1) % 40][:5] * (
            index < 39
        )


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.promise("incomplete-says-so")
def test_what_is_cut_off_opens_and_says_so(
    source: Path, tmp_path: Path, plain: bytes, streamed: bool
) -> None:
    target = tmp_path / "dump.lz4"
    sink = FileSink(target)
    sink.rewritable = not streamed
    plan = _write(source, sink)
    content = target.read_bytes()
    starts = [offset for offset, _ in sink.written if offset] + [len(content)]
    for end in sorted({*starts, *(start - 1 for start in starts)} - {starts[0] - 1}):
        file = _open(tmp_path / "cut", content[:end])
        assert file.size_bytes == len(plain)
        assert file.truncated == (end < len(content))
        whole = sum(start <= end for start in starts)
        if whole >= 2:  # ELF header and program headers are there
            assert file.read(0, plan.data_offset) == plain[: plan.data_offset]
            with open_image(tmp_path / "cut") as image:
                assert image.incomplete == (end < len(content))
        if end < len(content):
            with pytest.raises(BadVmcore, match="was cut off"):
                file.read(0, len(plain))


def test_a_capture_that_ends_early_leaves_what_it_wrote(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "dump.lz4"
    for calls in itertools.count(2):
        try:
            _write(source, FileSink(target, calls))
            break
        except SinkFull:
            pass
        with open_image(target) as image:
            assert image.incomplete
            buffer = memoryview(bytearray(PAGE))
            if calls > 2:
                image.pages.read_pages(0x101, 1, buffer)
                assert buffer == page(0x101)
            if calls < 4:
                with pytest.raises(BadVmcore, match="was cut off"):
                    image.pages.read_pages(CHUNK_PAGES, 1, buffer)
    assert calls == 5  # header, program headers, two batches, header
    with open_image(target) as image:
        assert not image.incomplete


def test_lost_pages_become_zeros(source: Path, tmp_path: Path) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        writer = Lz4ElfWriter(FileSink(tmp_path / "dump"), plan, kept)
        first, second = batches_of(plan, kept)
        write_pages(writer, ElfPages(core), [first], encode_lz4_frame, lost={0x101})
        with pytest.raises(VerificationFailed, match="pages, not"):
            writer.finish(complete=True)
        # A batch that killed whoever read it comes without data.
        count = int(second[:, 1].sum())
        kinds, sizes = bytes([PageKind.LOST]) * count, bytes(4 * count)
        writer.write(EncodedPages(*_arrays(kinds, sizes)), memoryview(b""))
        writer.finish(complete=False)
    with open_image(tmp_path / "dump") as image:
        assert image.incomplete
        assert not image.truncated
        for pfn in (0x100, 0x101, CHUNK_PAGES):
            buffer = memoryview(bytearray(b"x" * PAGE))
            image.pages.read_pages(pfn, 1, buffer)
            assert buffer == (page(pfn) if pfn == 0x100 else bytes(PAGE))


def _arrays(kinds: bytes, sizes: bytes):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.frombuffer(kinds, np.uint8), np.frombuffer(sizes, np.uint32)


def test_encoded_sizes_add_up() -> None:
    import numpy as np

    pages = os.urandom(PAGE) + bytes(PAGE) + b"ab" * (PAGE // 2) + bytes(PAGE)
    target = memoryview(bytearray(len(pages) + 64))
    encoded = encode_lz4_frame(memoryview(pages), PAGE, np.array([False, False, False, True]), target)
    assert encoded.kinds.tolist() == [PageKind.COMPRESSED, PageKind.ZERO, PageKind.COMPRESSED, PageKind.LOST]
    size = int(encoded.sizes.sum())
    assert lz4.frame.decompress(bytes(target[:size])) == pages
    noise = os.urandom(256 * PAGE)
    target = memoryview(bytearray(len(noise) + 64))
    encode_lz4_frame(memoryview(noise), PAGE, np.zeros(256, np.bool_), target)  # fits
    zeros = encode_lz4_frame(memoryview(bytes(2 * PAGE)), PAGE, np.zeros(2, np.bool_), target)
    assert lz4.frame.decompress(bytes(target[: int(zeros.sizes.sum())])) == bytes(2 * PAGE)


def test_manifest(source: Path, tmp_path: Path) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        writer = Lz4ElfWriter(FileSink(tmp_path / "dump"), plan, kept)
        write_elf(writer, core, plan, kept, encode_lz4_frame)
    content = (tmp_path / "dump").read_bytes()
    hashes = [
        (part.offset, hashlib.sha256(content[part.offset : part.offset + part.length]).hexdigest())
        for part in writer.parts()
    ]
    assert hashes == [(part.offset, part.sha256) for part in writer.parts()]
    assert sum(part.length for part in writer.parts()) == len(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "does not say how much it holds"),
        (["-BD"], "does not say how much it holds"),
        (["--content-size"], "holds 0x1400000 bytes, which is too much"),
    ],
)
def test_what_lz4_makes_is_refused_with_what_to_do(tmp_path: Path, options: list[str], message: str) -> None:
    (tmp_path / "big").write_bytes(bytes(20 << 20))
    subprocess.run(["lz4", "-q", *options, tmp_path / "big", tmp_path / "big.lz4"], check=True)
    with pytest.raises(BadVmcore, match=message) as caught:
        Lz4File(PlainFile(tmp_path / "big.lz4"))
    assert caught.value.hint == "Unpack it with lz4 -d first."


SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"12345"
ONE = _frame(b"a" * 1000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ONE[:-1], "ends within the LZ4 frame at offset 0x0"),
        (ONE[:3], "ends within the LZ4 frame at offset 0x0"),
        (ONE[:10], "ends within the LZ4 frame at offset 0x0"),
        (ONE + ONE[:5], f"ends within the LZ4 frame at offset {len(ONE):#x}"),
        (ONE + SKIPPABLE[:-1], f"ends within the LZ4 frame at offset {len(ONE):#x}"),
        (ONE + bytes(100), f"00 00 00 00 at offset {len(ONE):#x}"),
        (ONE[:4] + b"\x28" + ONE[5:], "has flags 0x28"),
        (ONE[:4] + b"\x69" + ONE[5:], "has flags 0x69"),
        (ONE[:6] + b"\xff" * 8 + ONE[14:], "holds 0xffffffffffffffff bytes"),
        (ONE[:15] + b"\xff" * 4 + ONE[19:], "LZ4 block at offset 0x13 claims 0x7fffffff bytes"),
        (ONE[:15] + b"\1\0\0\0x" * 5000, "more than 4096 blocks"),
        (
            struct.pack("<II16sQ", 0x184D2A50, 24, b"kdump-service\0\0\0", 999) + ONE,
            "holds 0x3e8 bytes, though it says 0x3e7",
        ),
    ],
)
def test_damage_is_told_with_its_place(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadVmcore, match=message):
        _open(tmp_path / "frames", content)


def test_foreign_frames_that_can_be_read(tmp_path: Path) -> None:
    linked = _frame(os.urandom(200_000), block_linked=True)
    file = _open(tmp_path / "frames", SKIPPABLE + ONE + SKIPPABLE + linked + ONE)
    assert file.size_bytes == 202_000
    assert file.read(0, 1 << 20) == b"a" * 1000 + lz4.frame.decompress(linked) + b"a" * 1000


def test_a_claimed_length_allocates_nothing(tmp_path: Path) -> None:
    mark = struct.pack("<II16sQ", 0x184D2A50, 24, b"kdump-service\0\0\0", 1 << 63)
    file = _open(tmp_path / "frames", mark + ONE)
    assert file.size_bytes == 1 << 63
    with pytest.raises(BadVmcore, match="was cut off"):
        file.read(1 << 62, 1 << 62)


def test_each_damaged_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    content = b"some text " * 30
    frames = _frame(content[:100], content_checksum=True) + _frame(content[100:], content_checksum=True)
    for index, bit in itertools.product(range(len(frames)), (0, 3, 7)):
        damaged = bytearray(frames)
        damaged[index] ^= 1 << bit
        try:
            assert _open(tmp_path / "frames", bytes(damaged)).read(0, 1000) == content
        except BadVmcore as error:
            assert "offset" in str(error)
