# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kdump_service.errors import BadVmcore
from kdump_service.vmcore import elf
from kdump_service.vmcore.reader import Vmcore
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo
from tests.builders.elf_core import PAGE, ElfCore, Segment


def _open(path: Path, content: bytes) -> Vmcore:
    path.write_bytes(content)
    return Vmcore(path)


def _core(**changes: object) -> ElfCore:
    segments = [Segment(0x100000, os.urandom(3 * PAGE)), Segment(0x200000, os.urandom(PAGE + 100))]
    return ElfCore(segments, {"OSRELEASE": "6.1.0", "CRASHTIME": "1700000000"}, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_headers_as_pyelftools_reads_them(tmp_path: Path, byte_order: str) -> None:
    content = bytes(_core(byte_order=byte_order))
    oracle = ELFFile(io.BytesIO(content))
    with _open(tmp_path / "core", content) as core:
        loads = [s.header for s in oracle.iter_segments() if s.header.p_type == "PT_LOAD"]
        assert [(each.offset, each.physical_address, each.file_bytes) for each in core.loads] == [
            (each.p_offset, each.p_paddr, each.p_filesz) for each in loads
        ]
        assert core.vmcoreinfo.release == "6.1.0"
        assert core.vmcoreinfo.crash_time == 1700000000
        assert [note.name for note in core.notes] == ["CORE", "VMCOREINFO"]


@pytest.mark.parametrize("window_bytes", [PAGE, 2 * PAGE, 1 << 20])
def test_windows_give_the_file(tmp_path: Path, window_bytes: int) -> None:
    content = bytes(_core())
    with _open(tmp_path / "core", content) as core:
        found = b""
        for window in core.windows(window_bytes):
            assert window.offset == len(found)
            assert window.data is not None
            assert window.length == len(window.data) <= window_bytes
            found += bytes(window.data)
    assert found == content


def test_what_mmap_refuses_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(_core())

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with _open(tmp_path / "core", content) as core:
        monkeypatch.setattr("mmap.mmap", refuse)
        assert b"".join(bytes(window.data or b"") for window in core.windows(1 << 20)) == content


def test_an_unreadable_page_costs_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bytes(_core())
    bad = 3 * PAGE
    pread = os.pread

    def pread_with_bad_page(descriptor: int, length: int, offset: int) -> bytes:
        if offset < bad + PAGE and offset + length > bad:
            raise OSError(5, "Input/output error")
        return pread(descriptor, length, offset)

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    with _open(tmp_path / "core", content) as core:
        monkeypatch.setattr("mmap.mmap", refuse)
        monkeypatch.setattr("os.pread", pread_with_bad_page)
        windows = list(core.windows(1 << 20))
    assert [(window.offset, window.length) for window in windows if window.data is None] == [(bad, PAGE)]
    found = b"".join(
        bytes(window.length) if window.data is None else bytes(window.data) for window in windows
    )
    assert found == content[:bad] + bytes(PAGE) + content[bad + PAGE :]


def test_source_that_shrinks_is_unreadable_not_endless(tmp_path: Path) -> None:
    path = tmp_path / "core"
    with _open(path, bytes(_core())) as core:
        os.truncate(path, 3 * PAGE)
        windows = list(core.windows(1 << 20))
    assert sum(window.length for window in windows) == core.size_bytes
    assert any(window.data is None for window in windows)


def _patched(content: bytes, offset: int, value: bytes) -> bytes:
    return content[:offset] + value + content[offset + len(value) :]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends after 0 bytes"),
        (b"\x7fELF" + bytes(10), "ends after 14 bytes"),
        (b"KDUMP   " + bytes(100), "begins with 4b 44 55 4d"),
        (bytes(_core(e_class=1)), "ELF class 1 at offset 4"),
        (_patched(bytes(_core()), 5, b"\x07"), "byte order 7"),
        (bytes(_core(e_type=2)), "ELF type 2"),
        (_patched(bytes(_core()), 54, b"\x20\x00"), "program headers of 32 bytes"),
        (_patched(bytes(_core()), 56, b"\x00\x00"), "there are no program headers"),
        (_patched(bytes(_core()), 56, b"\xff\xff"), "section header 0"),
        (_patched(bytes(_core()), 56, b"\xfe\xff"), "claims bytes|ends within program header"),
        (_patched(bytes(_core()), 64 + 56 + 32, b"\xff" * 8), "program header 1 claims bytes"),
        (
            _patched(bytes(_core()), 32, b"\xff" * 7 + b"\x7f"),
            "program headers at offset 0x7fff.* are past the end",
        ),
        (bytes(_core())[: 2 * PAGE], "program header 1 claims bytes"),
    ],
)
def test_damaged_headers_are_refused_with_their_place(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(BadVmcore, match=message) as caught:
        _open(tmp_path / "core", content)
    assert str(tmp_path / "core") in str(caught.value)


def test_damaged_note_costs_itself_and_those_behind(tmp_path: Path) -> None:
    core = _core()
    notes = core.notes()
    first = len(core.note("CORE", 1, bytes(336)))
    damaged = _patched(notes, first + 4, b"\xff\xff\xff\x7f")
    assert [note.name for note in elf.parse_notes("<", damaged)] == ["CORE"]
    assert elf.parse_notes("<", b"\x01") == []


def test_vmcoreinfo_tolerates_what_it_does_not_know() -> None:
    info = VmcoreInfo(b"OSRELEASE=6.1\nno separator\nCRASHTIME=soon\nA=b=c\n\xff\xfe=1\n\0\0\0")
    assert (info.release, info.crash_time, info.text("A"), info.build_id) == ("6.1", None, "b=c", "")
    assert [VmcoreInfo(b"CRASHTIME=" + t).crash_time for t in (b"", b"-1", b"9" * 11, b"9" * 12)] == [
        None,
        None,
        99999999999,
        None,
    ]
