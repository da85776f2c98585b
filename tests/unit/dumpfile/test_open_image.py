# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lz4.frame
import pytest
import zstandard

from kdump_service.dumpfile.elf_writer import ElfWriter, batches_of
from kdump_service.dumpfile.flattened_writer import FlattenedSink
from kdump_service.dumpfile.formats import DumpWriter
from kdump_service.dumpfile.identity import Identity
from kdump_service.dumpfile.kdump_writer import KdumpWriter
from kdump_service.dumpfile.lz4_file import Lz4ElfWriter, encode_lz4_frame
from kdump_service.dumpfile.open_image import open_image
from kdump_service.dumpfile.page_codec import page_codec
from kdump_service.dumpfile.sink import Sink, StreamSink
from kdump_service.errors import BadVmcore
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.page_source import ElfPages
from kdump_service.vmcore.reader import Vmcore
from tests.builders.elf_core import PAGE
from tests.unit.dumpfile.small_core import FileSink, bitmap, page, plan_of, small_core, write_pages

KEPT = [0x100, 0x105, 0x1FF]


@dataclass
class _Frames:
    level: int
    existing: PfnBitmap
    kept: PfnBitmap


def _write(source: Path, kind: str, sink: Sink, *, complete: bool = True, end_pfn: int = 0x200) -> None:
    with Vmcore(source) as core:
        plan, kept = plan_of(core, KEPT)
        pages = ElfPages(core)
        writer: DumpWriter
        if kind == "kdump":
            identity = Identity({"machine": "x86_64"}, 0, 0, 1, core.note_segment, (0, 0))
            frames = _Frames(31, bitmap(range(0x100, 0x200), end_pfn), bitmap(KEPT, end_pfn))
            writer = KdumpWriter(sink, identity, frames, PAGE, page_codec("none"))
            write_pages(writer, pages, kept.runs())
        elif kind == "lz4":
            writer = Lz4ElfWriter(sink, plan, kept)
            write_pages(writer, pages, batches_of(plan, kept), encode_lz4_frame)
        else:
            writer = ElfWriter(sink, plan, kept)
            write_pages(writer, pages, batches_of(plan, kept))
        writer.finish(complete=complete)


@pytest.fixture(name="source")
def _source(tmp_path: Path) -> Path:
    return small_core(tmp_path / "core", [(0x100, 0x100)])


@pytest.fixture(name="descriptors", autouse=True)
def _descriptors() -> Iterator[None]:
    """Whatever happens, no file stays open."""
    before = _open_descriptors()
    yield
    assert _open_descriptors() == before


def _open_descriptors() -> set[str]:
    return {each.name for each in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("wrapping", ["", "flattened"])
@pytest.mark.parametrize("kind", ["elf", "kdump", "lz4"])
def test_formats(source: Path, tmp_path: Path, kind: str, wrapping: str) -> None:
    target = tmp_path / "dump"
    if wrapping:
        stream = io.BytesIO()
        sink = FlattenedSink(StreamSink(stream))
        _write(source, kind, sink)
        sink.close()
        target.write_bytes(stream.getvalue())
    else:
        file = FileSink(target)
        _write(source, kind, file)
        file.close()
    if (kind, wrapping) == ("lz4", "flattened"):
        with pytest.raises(BadVmcore, match="has an unknown format within flattened"):
            open_image(target)
        return
    with open_image(target) as opened:
        assert opened.format == ("kdump" if kind == "kdump" else "elf")
        assert opened.wrapping == ("lz4" if kind == "lz4" else wrapping)
        assert not opened.incomplete
        assert opened.image.page_bytes == PAGE
        assert opened.image.read_physical(0x105 * PAGE, PAGE) == page(0x105)
        buffer = memoryview(bytearray(PAGE))
        opened.pages.read_pages(0x1FF, 1, buffer)
        assert buffer == page(0x1FF)


def _packed(content: bytes) -> list[bytes]:
    """LZ4 frames of 64 KiB."""
    parts = (content[start : start + (1 << 16)] for start in range(0, len(content), 1 << 16))
    return [lz4.frame.compress(part, store_size=True) for part in parts]


def test_bitmaps_that_are_larger_than_the_file(source: Path, tmp_path: Path) -> None:
    """As those of a machine with little memory at a high address, in LZ4 frames that somebody else made."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    sink = FileSink(plain)
    _write(source, "kdump", sink, end_pfn=1 << 24)
    sink.close()
    frames = _packed(plain.read_bytes())
    packed.write_bytes(b"".join(frames))
    bitmap_bytes = 2 * (1 << 24) // 8
    assert packed.stat().st_size < bitmap_bytes // 10
    with open_image(packed) as opened:
        assert (opened.format, opened.wrapping, opened.incomplete) == ("kdump", "lz4", False)
        assert opened.image.read_physical(0x1FF * PAGE, PAGE) == page(0x1FF)
    # The last frame holds nothing but pages.
    for number in (len(frames) // 2, len(frames) - 1):
        packed.write_bytes(b"".join(frames[:number]))
        with pytest.raises(BadVmcore, match=f"ends after {number << 16:#x} bytes, within the bitmaps"):
            open_image(packed)


@pytest.mark.parametrize("kind", ["elf", "kdump", "lz4"])
def test_a_file_that_is_open_already(source: Path, tmp_path: Path, kind: str) -> None:
    """Its path is a name and no more."""
    sink = FileSink(tmp_path / "dump")
    _write(source, kind, sink)
    sink.close()
    with (tmp_path / "dump").open("rb") as file:
        (tmp_path / "dump").rename(tmp_path / "elsewhere")
        with open_image(tmp_path / "dump", descriptor=file.fileno()) as opened:
            assert opened.image.read_physical(0x105 * PAGE, PAGE) == page(0x105)
        assert file.read(4) == (tmp_path / "elsewhere").read_bytes()[:4]
    with source.open("rb+") as file:
        file.truncate(4)
        with pytest.raises(BadVmcore, match=r"^named: ends after 4 bytes"):
            open_image(Path("named"), descriptor=file.fileno())
        os.fstat(file.fileno())


@pytest.mark.parametrize("kind", ["elf", "kdump", "lz4"])
def test_what_is_not_complete_says_so(source: Path, tmp_path: Path, kind: str) -> None:
    sink = FileSink(tmp_path / "dump")
    _write(source, kind, sink, complete=False)
    sink.close()
    with open_image(tmp_path / "dump") as opened:
        assert opened.incomplete


def test_a_truncated_flattened_file(source: Path, tmp_path: Path) -> None:
    stream = io.BytesIO()
    sink = FlattenedSink(StreamSink(stream))
    _write(source, "kdump", sink)  # neither its first bytes nor an end record
    (tmp_path / "dump").write_bytes(stream.getvalue())
    with open_image(tmp_path / "dump") as opened:
        assert opened.incomplete
        assert opened.image.read_physical(0x105 * PAGE, PAGE) == page(0x105)


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        (b"", "is empty", ""),
        (b"\x7fELF", "ends after 4 bytes, within the ELF header", ""),
        (b"KDUMP   ", "ends after 8 bytes, within the header", ""),
        (b"makedumpfile\0\0\0\0", "ends after 16 bytes, within the header of the flattened format", ""),
        (b"\x04\x22\x4d\x18", "ends within the LZ4 frame at offset 0x0", ""),
        (b"\x02\x21\x4c\x18rest", "compressed with the legacy format of lz4", "Unpack it with lz4 -d first."),
        (gzip.compress(b"x", mtime=0), "is compressed with gzip", "Unpack it with gzip -d first."),
        (zstandard.compress(b"x"), "is compressed with zstd", "Unpack it with zstd -d first."),
        (lzma.compress(b"x"), "is compressed with xz", "Unpack it with xz -d first."),
        (bz2.compress(b"x"), "is compressed with bzip2", "Unpack it with bzip2 -d first."),
        (
            b"#!/bin/sh\n",
            "begins with 23 21 2f 62 69 6e 2f 73 68 0a, which is no known format",
            "Known are ELF",
        ),
        (
            struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
            + struct.pack(">qq3s", 0, 3, b"abc")
            + struct.pack(">qq", -1, -1),
            "has an unknown format within flattened: begins with 61 62 63",
            "Known are ELF",
        ),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, content: bytes, message: str, hint: str) -> None:
    path = tmp_path / "dump"
    path.write_bytes(content)
    with pytest.raises(BadVmcore, match=message) as caught:
        open_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.hint.startswith(hint)
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none")
