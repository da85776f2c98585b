# SPDX-License-Identifier: LGPL-2.1-or-later
"""The trial by which a capture image is built and proven, on the specimen that is shipped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zstandard
from elftools.elf.elffile import ELFFile

from tests.builders.specimen import LOG, specimen

SHIPPED = Path(__file__).parents[3] / "packaging/specimen.vmcore.zst"
FORMS = {"kdump-zstd", "kdump-zlib", "elf-none", "elf-lz4"}


def _shipped() -> bytes:
    return zstandard.ZstdDecompressor().decompress(SHIPPED.read_bytes(), max_output_size=64 << 20)


def _put_vmcore(folder: Path) -> Path:
    (folder / "proc").mkdir()
    (folder / "proc/vmcore").write_bytes(_shipped())
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return _put_vmcore(tmp_path)


class Trial(NamedTuple):
    """One that went well, for cases that look at it or compare another with it."""

    folder: Path
    code: int
    said: dict[str, Any]
    errors: str


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    folder = _put_vmcore(tmp_path_factory.mktemp("trial"))
    return Trial(folder, *_run(folder))


def _run(folder: Path, **environment: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [sys.executable, "-m", "kdump_service", "capture-trial", str(folder)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stderr
    return done.returncode, json.loads(lines[0]), done.stderr


def test_shipped_specimen_is_what_the_builder_makes() -> None:
    assert hashlib.sha256(_shipped()).hexdigest() == hashlib.sha256(specimen()).hexdigest()
    assert SHIPPED.stat().st_size < 64 << 10


@pytest.mark.promise("image-is-current")
def test_trial_of_the_specimen(trial: Trial) -> None:
    folder, code, said, errors = trial
    assert (code, errors, set(said["captures"])) == (0, "", FORMS)
    for form, captured in said["captures"].items():
        assert (captured["state"], captured["problems"]) == ("complete", [])
        [dump] = (folder / f"trial-{form}").iterdir()
        assert dump.name.startswith("20261123T040000Z-")
        digests = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in dump.iterdir()
            if path.name != "record.json"
        }
        assert {"dmesg.txt"} < set(digests)
        told = dict(captured["files"])
        if form == "kdump-zlib":  # that of its pages
            assert told.pop("vmcore") != digests.pop("vmcore")
        assert told == digests
        assert [line.partition("] ")[2] for line in (dump / "dmesg.txt").read_text().splitlines()] == [*LOG]
    with open(next((folder / "trial-elf-none").iterdir()) / "vmcore", "rb") as file:
        assert ELFFile(file).header.e_type == "ET_CORE"


def test_the_same_again_saves_the_same(trial: Trial, folder: Path) -> None:
    """An image is proven by that."""
    assert _run(folder)[1]["captures"] == trial.said["captures"]


def test_another_encoding_of_the_same_pages_is_the_same(trial: Trial, folder: Path) -> None:
    """ISA-L takes now this one, now that."""
    (folder / "modules/isal").mkdir(parents=True)
    other = "import zlib\ndef compress(page, level):\n    return zlib.compress(page, 9)\n"
    (folder / "modules/isal/__init__.py").touch()
    (folder / "modules/isal/isal_zlib.py").write_text(other)
    code, said, errors = _run(folder, PYTHONPATH=str(folder / "modules"))
    assert (code, errors) == (0, "")
    assert said["captures"] == trial.said["captures"]
    assert _zlib_dump(folder) != _zlib_dump(trial.folder)


def _zlib_dump(folder: Path) -> bytes:
    [dump] = (folder / "trial-kdump-zlib").glob("*/vmcore")
    return dump.read_bytes()


def test_files_are_all_that_a_capture_loads(trial: Trial) -> None:
    files = set(trial.said["files"])
    assert all(Path(path).is_file() or path.endswith("lib-dynload") for path in files)
    names = {Path(path).name for path in files}
    assert {"os.py", "pipeline.py", "plain_copy.py", "main.py", "kdump_writer.py", "workers.py"} <= names
    assert any(name.startswith(("libzstd", "backend_c", "_zstd")) for name in names)
    assert any("numpy" in path and ".so" in path for path in files)
    assert not any("asyncio" in path or "dbus_next" in path for path in files)
    # An interpreter that may load these alone can do the whole thing.
    modules = {Path(path) for path in files if path.endswith(".py")}
    package = {path for path in modules if "kdump_service" in path.parts}
    assert len(package) > 40


def test_vmcore_with_another_page_saves_something_else(trial: Trial, folder: Path) -> None:
    content = bytearray(_shipped())
    at = content.index((0x1101).to_bytes(8, "little") * 512)  # a page that is kept
    content[at + 100] ^= 1
    (folder / "proc/vmcore").write_bytes(content)
    code, said, _ = _run(folder)
    assert code == 0
    for form in FORMS:
        assert said["captures"][form] != trial.said["captures"][form]


def test_engine_that_cannot_be_loaded_fails_the_trial(folder: Path) -> None:
    """No plain copy takes its place: it would hold more than is asked for."""
    (folder / "modules/numpy").mkdir(parents=True)
    (folder / "modules/numpy/__init__.py").write_text("raise TypeError('it does not go along')\n")
    code, said, errors = _run(folder, PYTHONPATH=str(folder / "modules"))
    assert {captured["state"] for captured in said["captures"].values()} == {"failed"}
    assert code == 1
    assert "it does not go along" in errors


@pytest.mark.parametrize("length", [0, 100, 5000])
def test_truncated_vmcore_fails_and_says_why(folder: Path, length: int) -> None:
    (folder / "proc/vmcore").write_bytes(_shipped()[:length])
    code, said, errors = _run(folder)
    assert code == 1
    assert "complete" not in {captured["state"] for captured in said["captures"].values()}
    assert errors.count("\n") >= len(FORMS)
    assert "kdump-zstd: " in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["capture-trial"], "capture-trial needs a FOLDER"),
        (["capture", "/tmp"], "capture takes no argument"),
        (["daemon", "/tmp"], "daemon takes no argument"),
    ],
)
def test_arguments_of_other_verbs(arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kdump_service", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
