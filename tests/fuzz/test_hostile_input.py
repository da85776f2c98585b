# SPDX-License-Identifier: LGPL-2.1-or-later
"""Files that somebody has tampered with: an error of ours, in bounded time and memory, or a result.

Each example runs in a process of its own, whose address space and time are limited. Examples are the same in
each run; ``HYPOTHESIS_EXAMPLES=1000`` looks for more, with other ones.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import lz4.frame
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import open_image
from kdump_service.engine.convert import convert_file
from kdump_service.errors import BadVmcore
from tests.builders import printk_ring
from tests.builders.machine_memory import X86_64, Aarch64, Machine
from tests.builders.printk_ring import PrintkRing
from tests.builders.processors import NUMBER, OFFSETS, PRESENT, SYMBOLS, Processors

MIB = 1 << 20
NOTES_AT = 4096

_EXAMPLES = os.environ.get("HYPOTHESIS_EXAMPLES")


def _settings(examples: int) -> settings:
    return settings(
        max_examples=int(_EXAMPLES or examples),
        derandomize=not _EXAMPLES,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # shrinking what takes too long would take too long
        suppress_health_check=list(HealthCheck),
    )


# Files, and where in them is what


@dataclass
class Sample:
    """A sound file that is damaged for each example, and mended again."""

    path: Path
    regions: dict[str, list[tuple[int, int]]] = field(default_factory=dict, repr=False)
    """Offset and length of pieces, by what they are."""

    def __post_init__(self) -> None:
        self.content = self.path.read_bytes()

    @contextmanager
    def damaged(self, edits: list[tuple[int, bytes]], length: int | None = None) -> Iterator[Path]:
        """The file with these bytes at these offsets, cut off at a length."""
        with self.path.open("r+b") as file:
            for offset, data in edits:
                file.seek(offset)
                file.write(data)
            file.truncate(len(self.content) if length is None else length)
            file.flush()
            try:
                yield self.path
            finally:
                if length is not None:
                    file.seek(length)
                    file.write(self.content[length:])
                for offset, data in edits:
                    file.seek(offset)
                    file.write(self.content[offset : offset + len(data)])


def _machine(architecture: X86_64 | Aarch64) -> Machine:
    machine = Machine(architecture, memory=[(MIB, 11 * MIB)], generation="6.12", memmap_leaf_bytes=4096)
    machine.fill(0x100, 32)
    for pfn, put in enumerate(("buddy", "cache", "anon", "slab", "offline", "swapcache"), 0x110):
        getattr(machine.pages, put)(pfn)
    machine.pages.hugetlb(0x200)
    machine.pages.buddy(0x400, 5)
    ring = PrintkRing(address=machine.direct(0x180 * 4096))
    for number in range(12):
        ring.print(f"line {number}")
    machine.write(0x180 * 4096, bytes(ring))
    Processors(machine, 2, pfn=0x440)
    machine.vmcoreinfo |= printk_ring.VMCOREINFO | {"SYMBOL(prb)": f"{ring.address:x}"}
    return machine


def _core(machine: Machine, folder: Path) -> Sample:
    sample = Sample(machine.write_elf(folder / f"core-{machine.architecture.e_machine}"))
    [_, load] = machine.loads()

    def at(physical: int) -> int:
        return load.offset + physical - load.physical

    tables = [machine.root_physical, *machine.tables.made.values()]
    blocks = [machine.memmap_physical(pfn) for pfn in (0x100, 0x200, 0x400)]
    sample.regions = {
        "headers": [(0, 64), (64, 56), (120, 56), (176, 56)],
        "notes": [(NOTES_AT, len(machine.notes()))],
        "page tables": [(at(table), 4096) for table in tables],
        "sections": [
            (at(machine.mem_section), 64),
            *((at(root), 64) for root in machine._roots.values()),
        ],
        "struct pages": [(at(block), 32 * 64) for block in blocks],
        "processors": [
            *((at(machine.image_physical + place), 64) for place in (OFFSETS, NUMBER, PRESENT)),
            (at(machine.image_physical + SYMBOLS), 2048),
            *((at(0x441 * 4096 + 0x20 * 4096 * number), 8) for number in range(2)),
            *((at(0x640 * 4096 + 0x10 * 4096 * number + 0x340), 128) for number in range(2)),
        ],
        "log": [(at(0x180 * 4096) + start, 512) for start in (0, 256, 4096, 8192, 12288)],
    }
    return sample


def _words(sample: Sample, name: str) -> list[int]:
    """Offsets of words in a region that are not zero: entries that say something."""
    return [
        offset
        for start, length in sample.regions[name]
        for offset in range(start, start + length - 7, 8)
        if any(sample.content[offset : offset + 8])
    ]


@pytest.fixture(scope="module")
def machines() -> list[Machine]:
    return [_machine(X86_64()), _machine(Aarch64())]


@pytest.fixture(scope="module")
def cores(machines: list[Machine], tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    folder = tmp_path_factory.mktemp("cores")
    return [_core(machine, folder) for machine in machines]


@pytest.fixture(scope="module")
def dumps(cores: list[Sample]) -> dict[str, Sample]:
    folder = cores[0].path.parent

    def dump(name: str, options: DumpOptions) -> Sample:
        convert_file(cores[0].path, folder / name, options)
        return Sample(folder / name)

    result = {
        "zstd": dump("zstd", DumpOptions(31)),
        "zlib": dump("zlib", DumpOptions(31, compression="zlib")),
        "lz4": dump("lz4", DumpOptions(31, "elf", "lz4")),
        "flattened": dump("flattened", DumpOptions(31, "flattened")),
    }
    for name in ("zstd", "zlib"):
        sample = result[name]
        with open_image(sample.path) as opened:
            data_offset = opened.image.data_offset  # type: ignore[union-attr]
            count = opened.image.page_count  # type: ignore[union-attr]
        sample.regions = {
            "header": [(0, 12), (408, 56)],
            "sub header": [(4096, 104)],
            "notes": [(4200, 1000)],
            "bitmaps": [
                (data_offset - 24 * count - 8192 + 32, 64),
                (data_offset - 24 * count - 4096 + 32, 64),
            ],
            "descriptors": [(data_offset - 24 * count, 24 * count)],
            "pages": [(data_offset + 4096, len(sample.content) - data_offset - 4096)],
        }
    sample = result["lz4"]
    sample.regions = {
        "slot": [(0, 256)],
        "frame": [(256, 64)],
        "frames": [
            (offset, 32)
            for offset in range(256, len(sample.content) - 32)
            if sample.content.startswith(b"\x04\x22\x4d\x18", offset)
        ],
        "anything": [(0, len(sample.content))],
    }
    sample = result["flattened"]
    records = []
    position = 4096
    while position < len(sample.content):
        records.append((position, 16))
        position += 16 + max(struct.unpack_from(">q", sample.content, position + 8)[0], 0)
    sample.regions = {"header": [(0, 32)], "records": records, "anything": [(0, len(sample.content))]}
    return result


# What is done with a file


class _User:
    """Does all that is done with files that others gave us, with limits: see limited_use.py."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.limited_use"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, path: Path) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(str(path)) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        assert told is None, told

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@pytest.fixture(scope="module")
def use() -> Iterator[_User]:
    user = _User()
    yield user
    user.close()


# Claims


@pytest.mark.parametrize("claim", [1 << 38, 1 << 49, 1 << 52, 1 << 60, (1 << 64) - 4096], ids=hex)
@pytest.mark.parametrize("offset", [24, 40], ids=["p_paddr", "p_memsz"])
def test_memory_that_no_machine_has(use: _User, cores: list[Sample], offset: int, claim: int) -> None:
    """What a program header says costs nothing, or is refused."""
    second_load = 64 + 2 * 56
    with cores[0].damaged([(second_load + offset, struct.pack("<Q", claim))]) as path:
        use(path)


def _head_with_frames(dumps: dict[str, Sample], frames: int) -> bytes:
    """Headers that claim so many frames, and as large bitmaps."""
    head = bytearray(dumps["zstd"].content[:8192])
    struct.pack_into("<I", head, 436, min(2 * frames // 8 // 4096, (1 << 32) - 1))
    struct.pack_into("<Q", head, 4096 + 96, frames)
    return bytes(head)


@pytest.mark.parametrize("frames", [1 << 30, 1 << 36, 1 << 45], ids=hex)
def test_bitmaps_that_are_not_there(
    use: _User, dumps: dict[str, Sample], tmp_path: Path, frames: int
) -> None:
    """A flattened file may say of itself that it is of any length, and then is zeros almost everywhere."""
    head = _head_with_frames(dumps, frames)
    records = struct.pack(">16sqq", b"makedumpfile", 1, 1).ljust(4096, b"\0")
    records += struct.pack(">qq", 0, len(head)) + head
    records += struct.pack(">qqcqq", 1 << 60, 1, b"x", -1, -1)
    path = tmp_path / "dump"
    path.write_bytes(records)
    use(path)
    with pytest.raises(BadVmcore, match=r"within the bitmaps|too few"):
        open_image(path)


@pytest.mark.parametrize("frames", [1 << 30, 1 << 36, 1 << 40], ids=hex)
def test_bitmaps_in_lz4_frames_that_hold_nothing(
    use: _User, dumps: dict[str, Sample], tmp_path: Path, frames: int
) -> None:
    """A frame of 19 bytes may claim 16 MiB."""
    claim = 16 * MIB
    lie = lz4.frame.compress(bytes(claim), store_size=True)[:15] + bytes(4)  # the end of its blocks
    path = tmp_path / "dump"
    true = lz4.frame.compress(_head_with_frames(dumps, frames), store_size=True)
    path.write_bytes(true + lie * (2 * frames // 8 // claim + 1))
    use(path)
    with pytest.raises(BadVmcore, match=r"the LZ4 frame at offset .* (?:is damaged|holds)"):
        open_image(path)


def test_bitmaps_that_are_packed_to_nothing(use: _User, dumps: dict[str, Sample], tmp_path: Path) -> None:
    """They are there, but cost no more than what is unpacked of them at a time."""
    frames = 1 << 27
    content = _head_with_frames(dumps, frames) + bytes(2 * frames // 8)
    path = tmp_path / "dump"
    with path.open("wb") as file:
        for start in range(0, len(content), MIB):
            file.write(lz4.frame.compress(content[start : start + MIB], store_size=True))
    assert path.stat().st_size < len(content) // 200
    use(path)
    with open_image(path) as opened:
        assert isinstance(opened.image, KdumpFile)
        assert (opened.image.end_pfn, opened.image.page_count) == (frames, 0)


# Damage

INTERESTING = [0, 1, 2, 7, 255, 4095, 4096, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
INTERESTING += [1 << 32, 1 << 40, 1 << 47, 1 << 52, 1 << 56, (1 << 62) - 1, 1 << 62, (1 << 63) - 1, 1 << 63]
INTERESTING += [(1 << 64) - 4096, (1 << 64) - 2, (1 << 64) - 1]
NUMBERS = st.sampled_from(INTERESTING) | st.integers(0, (1 << 64) - 1)


@st.composite
def _values(draw: st.DrawFn) -> bytes:
    """Some bytes, often a number that means trouble."""
    size = draw(st.sampled_from([1, 2, 4, 8, 8]))
    order = draw(st.sampled_from(["little", "little", "big"]))
    return (draw(NUMBERS) % (1 << 8 * size)).to_bytes(size, order)  # type: ignore[arg-type]


@st.composite
def _edits(draw: st.DrawFn, sample: Sample, names: list[str]) -> list[tuple[int, bytes]]:
    """One to three changes somewhere in these regions."""
    edits = []
    for _ in range(draw(st.integers(1, 3))):
        start, length = draw(st.sampled_from(sample.regions[draw(st.sampled_from(names))]))
        data = draw(_values())
        offset = start + draw(st.integers(0, max(length - 1, 0)))
        if draw(st.booleans()):
            offset -= (offset - start) % len(data)
        edits.append((offset, data[: max(len(sample.content) - offset, 0)]))
    return edits


@_settings(30)
@given(data=st.data())
def test_elf_headers_and_notes(use: _User, cores: list[Sample], data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(cores))
    with sample.damaged(data.draw(_edits(sample, ["headers", "headers", "notes"]))) as path:
        use(path)


@_settings(30)
@given(data=st.data())
def test_page_tables_and_sections(use: _User, cores: list[Sample], data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(cores))
    name = data.draw(st.sampled_from(["page tables", "page tables", "sections"]))
    words = _words(sample, name)
    edits = data.draw(_edits(sample, [name]))
    edits += [
        (data.draw(st.sampled_from(words)), data.draw(NUMBERS).to_bytes(8, "little"))
        for _ in range(data.draw(st.integers(0, 2)))
    ]
    with sample.damaged(edits) as path:
        use(path)


@_settings(15)
@given(data=st.data())
def test_page_tables_that_lead_to_each_other(
    use: _User, machines: list[Machine], cores: list[Sample], data: st.DataObject
) -> None:
    """Loops, and the same table at several levels."""
    number = data.draw(st.integers(0, 1))
    machine, sample = machines[number], cores[number]
    tables = [machine.root_physical, *machine.tables.made.values()]
    edits = [
        (
            data.draw(st.sampled_from(_words(sample, "page tables"))),
            machine.architecture.table_entry(data.draw(st.sampled_from(tables))).to_bytes(8, "little"),
        )
        for _ in range(data.draw(st.integers(1, 4)))
    ]
    with sample.damaged(edits) as path:
        use(path)


@_settings(15)
@given(data=st.data())
def test_struct_pages(use: _User, cores: list[Sample], data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(cores))
    with sample.damaged(data.draw(_edits(sample, ["struct pages"]))) as path:
        use(path)


@_settings(15)
@given(data=st.data())
def test_log_buffers(use: _User, cores: list[Sample], data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(cores))
    with sample.damaged(data.draw(_edits(sample, ["log"]))) as path:
        use(path)


@_settings(30)
@given(data=st.data())
def test_symbols_and_processors(use: _User, cores: list[Sample], data: st.DataObject) -> None:
    sample = data.draw(st.sampled_from(cores))
    with sample.damaged(data.draw(_edits(sample, ["processors"]))) as path:
        use(path)


@_settings(40)
@given(data=st.data())
def test_vmcoreinfo(use: _User, machines: list[Machine], cores: list[Sample], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, 1))
    machine, sample = machines[number], cores[number]
    former = dict(machine.vmcoreinfo)
    for key in data.draw(st.lists(st.sampled_from(sorted(former)), min_size=1, max_size=3)):
        value = data.draw(NUMBERS)
        machine.vmcoreinfo[key] = data.draw(
            st.sampled_from(
                [str(value), str(-value), f"{value:x}", f"0x{value:x}", "", "x", "9" * 5000, "\0"]
            )
        )
    notes = machine.notes()
    machine.vmcoreinfo = former
    lengths = struct.pack("<QQ", len(notes), len(notes))
    with sample.damaged([(NOTES_AT, notes), (64 + 32, lengths)]) as path:
        use(path)


@_settings(50)
@given(data=st.data())
@pytest.mark.parametrize("compression", ["zstd", "zlib"])
@pytest.mark.promise("any-dump-file")
def test_kdump_compressed_files(
    use: _User, dumps: dict[str, Sample], data: st.DataObject, compression: str
) -> None:
    sample = dumps[compression]
    names = ["header", "sub header", "notes", "bitmaps", "descriptors", "descriptors", "pages", "pages"]
    with sample.damaged(data.draw(_edits(sample, names))) as path:
        use(path)


@_settings(40)
@given(data=st.data())
@pytest.mark.promise("any-dump-file")
def test_flattened_files(use: _User, dumps: dict[str, Sample], data: st.DataObject) -> None:
    sample = dumps["flattened"]
    with sample.damaged(data.draw(_edits(sample, ["header", "records", "records", "anything"]))) as path:
        use(path)


@_settings(40)
@given(data=st.data())
def test_lz4_frames(use: _User, dumps: dict[str, Sample], data: st.DataObject) -> None:
    sample = dumps["lz4"]
    with sample.damaged(data.draw(_edits(sample, ["slot", "frame", "frames", "anything"]))) as path:
        use(path)


@_settings(30)
@given(data=st.data())
def test_files_that_end_anywhere(
    use: _User, cores: list[Sample], dumps: dict[str, Sample], data: st.DataObject
) -> None:
    sample = data.draw(st.sampled_from([*cores, *dumps.values()]))
    length = data.draw(st.integers(0, len(sample.content)) | st.integers(0, 8192))
    with sample.damaged([], min(length, len(sample.content))) as path:
        use(path)
