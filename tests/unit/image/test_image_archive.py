# SPDX-License-Identifier: LGPL-2.1-or-later
"""Archives as the kernel unpacks them; read back by cpio and by libarchive."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
from pathlib import Path

import pytest

from kdump_service.image.archive import Archive, small_archive

LONG_NAME = "n" * 200
CONTENTS = {
    "a": b"",
    "b": b"x",
    "c": b"xy",
    "d": b"xyz",
    "e": b"wxyz",
    f"deep/er/{LONG_NAME}": os.urandom(5000),
}


def _unpacked(data: bytes, folder: Path) -> Path:
    folder.mkdir()
    done = subprocess.run(
        ["cpio", "--extract", "--quiet", "--make-directories", "--preserve-modification-time"],
        input=data, cwd=folder, capture_output=True, check=True,
    )  # fmt: skip
    assert done.stderr == b""
    return folder


def _listed(data: bytes) -> list[list[str]]:
    """Mode, links, owner, group and what follows of each entry, as libarchive's program prints them."""
    done = subprocess.run(["bsdtar", "-tv", "-f", "-"], input=data, capture_output=True, check=True)
    return [line.split() for line in done.stdout.decode().splitlines()]


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    output = io.BytesIO()
    archive = Archive(output)
    for path, content in CONTENTS.items():
        archive.file(path, content, 0o600)
    archive.folder("/etc/private", 0o700)
    archive.link("usr/lib64", "lib")
    archive.file("usr/bin/program", b"#!/bin/sh\n", 0o755)
    archive.close()
    folder = _unpacked(output.getvalue(), tmp_path / "out")
    assert _files(folder) == {**CONTENTS, "usr/bin/program": b"#!/bin/sh\n"}
    assert str((folder / "usr/lib64").readlink()) == "lib"
    assert {(folder / name).stat().st_mtime for name in CONTENTS} == {0.0}
    modes = {
        name: stat.S_IMODE((folder / name).stat().st_mode) for name in ("a", "etc", "etc/private", "deep/er")
    }
    assert modes == {"a": 0o600, "etc": 0o755, "etc/private": 0o700, "deep/er": 0o755}
    assert stat.S_IMODE((folder / "usr/bin/program").stat().st_mode) == 0o755
    assert len(output.getvalue()) % 512 == 0


def test_folders_stand_before_what_is_in_them_and_once() -> None:
    data = small_archive({"a/b/one": "1", "a/b/two": "2", "a/three": "3"})
    names = [line[-1] for line in _listed(data)]
    assert names == ["a", "a/b", "a/b/one", "a/b/two", "a/three"]


def test_all_belongs_to_root_and_has_no_time(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("of a user")
    source.chmod(0o4755)
    if os.geteuid() == 0:
        os.chown(source, 1234, 1234)
        source.chmod(0o4755)
    output = io.BytesIO()
    archive = Archive(output)
    archive.copy("usr/bin/source", source)
    archive.close()
    listed = _listed(output.getvalue())
    assert [(line[2], line[3]) for line in listed] == [("0", "0")] * 3
    assert listed[-1][0] == "-rwsr-xr-x"
    assert {line[-2] for line in listed} == {"1970"}


def test_the_same_content_is_the_same_archive(tmp_path: Path) -> None:
    archives = []
    for _ in range(2):
        source = tmp_path / "source"
        source.unlink(missing_ok=True)
        source.write_text("content")
        output = io.BytesIO()
        archive = Archive(output)
        archive.copy("source", source)
        archive.close()
        archives.append(output.getvalue())
        os.utime(source, (1, 1))
    assert archives[0] == archives[1]


def test_copies_of_each_kind(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir(mode=0o710)
    (source / "link").symlink_to("../somewhere//else")
    (source / "large").write_bytes(os.urandom((1 << 20) + 3))
    os.mkfifo(source / "pipe")
    output = io.BytesIO()
    archive = Archive(output)
    archive.copy("s", source)
    for name in ("link", "large", "pipe"):
        archive.copy(f"s/{name}", source / name)
    archive.copy("dev/null", Path("/dev/null"))
    archive.close()
    listed = {line[8]: line for line in _listed(output.getvalue())}
    assert {name: line[0] for name, line in listed.items()} == {
        "s": "drwx--x---", "s/link": "lrwxrwxrwx", "s/large": "-rw-r--r--", "dev": "drwxr-xr-x",
        "dev/null": "crw-rw-rw-",
    }  # fmt: skip
    assert listed["s/link"][-1] == "../somewhere//else"  # not tidied up
    assert listed["dev/null"][4] == "1,3"
    extracted = subprocess.run(
        ["bsdtar", "-xO", "-f", "-", "s/large"], input=output.getvalue(), capture_output=True, check=True
    )
    assert extracted.stdout == (source / "large").read_bytes()


def test_one_archive_behind_another(tmp_path: Path) -> None:
    """As the kernel reads an initramfs: the next one begins where the padding ends."""
    first, second = small_archive({"etc/a": "1"}), small_archive({"etc/b": "2"})
    output = io.BytesIO(first + second)
    folder = tmp_path / "out"
    folder.mkdir()
    # cpio stops at the end of an archive, and goes on from a descriptor that others share.
    with open(tmp_path / "both", "wb+") as both:
        both.write(output.getvalue())
        both.seek(0)
        for _ in range(2):
            command = ["cpio", "--extract", "--quiet", "--make-directories", "--io-size=512"]
            subprocess.run(command, stdin=both, cwd=folder, check=True)
    assert _files(folder) == {"etc/a": b"1", "etc/b": b"2"}


def test_small_archive_has_texts_and_links(tmp_path: Path) -> None:
    data = small_archive(
        {
            "var/lib/capture.json": json.dumps({"host": "h\u00e9"}, ensure_ascii=False),
            "etc/wants/unit": "-> ../unit",
            "odd": "\udcff",  # a byte that is no UTF-8
        }
    )
    folder = _unpacked(data, tmp_path / "out")
    assert json.loads((folder / "var/lib/capture.json").read_bytes()) == {"host": "h\u00e9"}
    assert str((folder / "etc/wants/unit").readlink()) == "../unit"
    assert (folder / "odd").read_bytes() == b"\xff"


def test_too_large_a_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with open(source, "wb") as file:
        file.truncate(1 << 32)
    with pytest.raises(ValueError, match="too many for an initramfs"):
        Archive(io.BytesIO()).copy("large", source)
