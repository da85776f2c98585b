# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is left of a flattened dump whose end never arrived, at the size of a small machine."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.flattened import RECORD, FlattenedFile
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.dumpfile.open_image import open_image
from kdump_service.engine.convert import convert_file
from kdump_service.engine.dump import Dump
from kdump_service.engine.survey import survey_everything
from kdump_service.engine.vital import vital_parts
from kdump_service.errors import BadVmcore
from kdump_service.pfn import PfnBitmap
from kdump_service.targets.local import LocalPlace
from kdump_service.vmcore.reader import PlainFile
from tests.builders.machine_memory import Machine
from tests.unit.machine_image import ImageOfMachine
from tests.unit.machine_pages import PagesOfMachine, dump_machine

Descriptors = np.ndarray[tuple[int], np.dtype[np.void]]
MIB = 1 << 20
FIRST, END = 0x1000, 0x7000
"""Frames with content, 24,576, of a machine of 128 MiB."""
LAST = 2 * RECORD.size + 8
"""The first bytes of the content, and the end record: what the file ends with."""


class _Made(NamedTuple):
    machine: Machine
    path: Path
    kept: PfnBitmap


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> _Made:
    machine = Machine(memory=[(MIB, 127 * MIB)])
    machine.fill(FIRST, END - FIRST)
    path = tmp_path_factory.mktemp("flattened") / "whole"
    survey, written = dump_machine(machine, path, DumpOptions(0, "flattened", "zstd", threads=2))
    assert written.pages == len(survey.kept) > 28_000
    return _Made(machine, path, survey.kept)


def _records(path: Path) -> tuple[list[tuple[int, int]], int]:
    """Offset and length in the content of each record, and the end of the first that holds a page."""
    size = path.stat().st_size
    with open_image(path) as opened:
        assert isinstance(opened.image, KdumpFile)
        data_offset = opened.image.data_offset
    found, position, first_page_end = [], 4096, 0
    with path.open("rb") as file:
        while position < size:
            file.seek(position)
            offset, length = RECORD.unpack(file.read(RECORD.size))
            position += RECORD.size + max(length, 0)
            found.append((offset, length))
            if offset >= data_offset and not first_page_end:
                first_page_end = position
    return found, first_page_end


def _descriptors(dump: KdumpFile) -> Descriptors:
    """Of pages that were written."""
    found: Descriptors = dump.descriptors(0, dump.page_count)
    written: Descriptors = found[found["offset"] != 0]
    return written


def _described(dump: KdumpFile) -> int:
    return len(_descriptors(dump))


def test_nothing_is_written_twice(made: _Made) -> None:
    """Though vital pages come first, and are described first."""
    records, _ = _records(made.path)
    assert records[-1] == (-1, -1)
    assert records[-2] == (0, 8)
    in_order = sorted(records[:-1])
    for (offset, length), (following, _) in itertools.pairwise(in_order):
        assert offset + length <= following
    places = [offset for offset, _ in records[:-2]]
    assert places != sorted(places)


def test_what_is_there_can_be_read(made: _Made, tmp_path: Path) -> None:
    """At forty places and the last ones: it says that it is incomplete, all that it has is right, and more of
    the file is more of the dump."""
    whole = made.path.read_bytes()
    _, first_page_end = _records(made.path)
    path = tmp_path / "cut"
    path.write_bytes(whole)
    chance = np.random.default_rng(2)
    with open_image(path) as opened:
        assert isinstance(opened.image, KdumpFile)
        found = _descriptors(opened.image)
        found = found[found["size"] < 4096]  # all but those of zeros, which share their place
        assert len(found) > 20_000
        ends = found["offset"] + found["size"]
    before = len(made.kept)
    least = len(made.kept)
    places = {*np.linspace(first_page_end, len(whole) - 1, 40).astype(int).tolist()}
    places |= {len(whole) - 1, len(whole) - RECORD.size, len(whole) - LAST, len(whole) - LAST - 1}
    for size in sorted(places, reverse=True):
        os.truncate(path, size)
        with open_image(path) as opened:
            assert opened.truncated
            assert opened.incomplete
            assert isinstance(opened.image, KdumpFile)
            assert opened.image.page_count == len(made.kept)
            described = _described(opened.image)
            assert described <= before
            before = least = described
            readable = 0
            for pfn in chance.integers(FIRST, END, 200).tolist():
                try:
                    page = opened.image.read_physical(pfn * 4096, 4096)
                except BadVmcore:
                    continue
                assert page == made.machine.content_of(pfn)
                readable += 1
            assert readable < 200 or described > 24_000
            # Descriptors come soon after their pages: of what is there, less than 5 MiB cannot be read.
            there = np.count_nonzero(ends <= opened.image.size_bytes)
            assert there - np.count_nonzero(_descriptors(opened.image)["size"] < 4096) < 1280
    assert least < 1000


def test_what_is_cut_off_before_the_first_page(made: _Made, tmp_path: Path) -> None:
    whole = made.path.read_bytes()
    _, first_page_end = _records(made.path)
    path = tmp_path / "cut"
    for size in [0, 10, 31, 32, 4096, 4111, 4112, 4200, *range(4300, first_page_end - 4096, 997)]:
        path.write_bytes(whole[:size])
        try:
            with open_image(path) as opened:
                assert opened.incomplete
                assert isinstance(opened.image, KdumpFile)
                assert _described(opened.image) == 0
        except BadVmcore as error:
            assert str(path) in str(error)
            if 4096 <= size < 4128:
                assert "was cut off before the first bytes" in str(error)


class _Enough(Exception):
    """Whoever follows the writing ends it."""


def test_what_ends_among_the_vital_pages(made: _Made, tmp_path: Path) -> None:
    """They come first, and are described by what ends the attempt."""
    image = ImageOfMachine(made.machine)
    source = PagesOfMachine(image)
    dump = Dump(image, source, survey_everything(source), DumpOptions(0, "flattened"))
    sink = LocalPlace(tmp_path).create("dump")

    def end(done: int, total: int) -> None:
        if done > 1000:
            raise _Enough

    with pytest.raises(_Enough):
        dump.write(sink, end)
    sink.abandon()
    with open_image(tmp_path / "dump.incomplete") as opened:
        assert opened.incomplete
        assert isinstance(opened.image, KdumpFile)
        assert _described(opened.image) == dump.written.pages
        [[first, _], *_] = next(next(vital_parts(image, made.kept, made.kept)).runs()).tolist()
        assert opened.image.read_physical(first * 4096, 4096) == made.machine.content_of(first)
        with pytest.raises(BadVmcore):
            opened.image.read_physical(FIRST * 4096, 4096)


def test_it_becomes_a_dump_that_says_what_it_is(made: _Made, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    path.write_bytes(made.path.read_bytes()[:-LAST])
    told = convert_file(path, tmp_path / "dump", DumpOptions(0))
    assert f"{path} says that it is incomplete" in " ".join(told.notes)
    with open_image(tmp_path / "dump") as opened:
        assert opened.incomplete
        assert opened.image.read_physical(FIRST * 4096, 4096) == made.machine.content_of(FIRST)
    whole = convert_file(made.path, tmp_path / "whole", DumpOptions(0))
    assert whole.notes == []


def test_other_readers_find_nothing_whole_in_it(made: _Made, tmp_path: Path) -> None:
    """The content, as makedumpfile -R writes it down until it finds that the end is missing."""
    path = tmp_path / "cut"
    path.write_bytes(made.path.read_bytes()[:-LAST])
    content = FlattenedFile(PlainFile(path))
    assert content.read(0, 8) == bytes(8)
    content.close()
