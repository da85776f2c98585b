# SPDX-License-Identifier: LGPL-2.1-or-later
"""What earlier versions wrote is read by this one: after an upgrade, and by a capture boot amid one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import zstandard

from kdump_service.arm.loader import ARMED_FILE, Loader
from kdump_service.capture.settings import read_capture_settings
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.config import read_config
from kdump_service.dumpfile.open_image import open_image
from kdump_service.dumpfile.sink import FilePart
from kdump_service.engine.inspect import inspect_file
from kdump_service.file_identity import HASHES_FILE, content_hashes
from kdump_service.image.store import ImageStore
from kdump_service.kernel.files import KernelFiles
from kdump_service.record import DumpRecord
from kdump_service.reserve.way_back import kept
from kdump_service.service.crash_reports import report_crashes
from kdump_service.service.proof import PROOFS_FILE, Level, proof_of
from kdump_service.store.history import look
from tests.builders.machine_root import MachineRoot

STATES = Path(__file__).parents[1] / "earlier/states"
TARGET = "/var/crash"


@pytest.fixture(params=sorted(path.name for path in STATES.iterdir()))
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A machine that is up, armed, and as that version left it."""
    machine = MachineRoot(tmp_path, loaded=True)
    shutil.copytree(STATES / request.param, tmp_path, dirs_exist_ok=True)
    boot_id = json.loads((tmp_path / ARMED_FILE).read_text())["boot_id"]
    machine.write("proc/sys/kernel/random/boot_id", f"{boot_id}\n")
    return tmp_path


def _files(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.glob(pattern))
    assert found, f"the state has no {pattern}"
    return found


def test_the_list_is_what_there_is(root: Path) -> None:
    for line in (root / "files.txt").read_text().splitlines():
        size, name = line.split(maxsplit=1)
        assert (root / name).stat().st_size == int(size), name


def test_nothing_is_left_out_of_the_list(root: Path) -> None:
    state = next(
        path for path in STATES.iterdir() if (path / "of.json").read_text() == (root / "of.json").read_text()
    )
    listed = {line.split(maxsplit=1)[1] for line in (state / "files.txt").read_text().splitlines()}
    there = {str(path.relative_to(state)) for path in state.rglob("*") if path.is_file()}
    assert there - listed == {"files.txt"}


def test_records(root: Path) -> None:
    for path in _files(root, "var/crash/*/record.json"):
        record = DumpRecord.from_json(path.read_text())
        assert record.name == path.parent.name
        assert record.state == "complete"
        assert record.panic_message or record.crash_title
        assert record.kernel_release.endswith("amd64")


def test_history_and_marks(root: Path) -> None:
    dumps = look(root, TARGET).dumps
    assert [dump.name for dump in dumps] == [
        path.parent.name for path in _files(root, "var/crash/*/record.json")
    ]
    assert [dump.kept for dump in dumps] == [True, False]
    assert [bool(dump.record.test) for dump in dumps] == [True, False]
    # Told before, and so not told again.
    assert report_crashes(KernelFiles(root), TARGET) == 0
    for dump in dumps:
        shutil.rmtree(dump.folder)
    assert [dump.name for dump in look(root, TARGET).dumps] == [dump.name for dump in dumps]


def test_what_is_loaded_is_known(root: Path) -> None:
    loaded = Loader(KernelFiles(root)).loaded_request()
    assert loaded is not None
    assert loaded.kernel.path.startswith("/boot/vmlinuz-")
    assert "systemd.unit=kdump-capture.target" in loaded.command_line


def test_settings(root: Path) -> None:
    config, errors = read_config(root)
    assert not errors
    assert (config.contents, config.keep_free_bytes) == ("log", 100 << 20)


def test_settings_handed_over(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As a capture boot finds them that starts amid an upgrade: with the old settings and the new program."""
    loaded = Loader(KernelFiles(root)).loaded_request()
    assert loaded is not None
    files = dict(loaded.added_files)
    capture = tmp_path_factory.mktemp("capture")
    path = capture / CAPTURE_SETTINGS_FILE
    path.parent.mkdir(parents=True)
    path.write_text(
        next(text for name, text in files.items() if name.endswith(Path(CAPTURE_SETTINGS_FILE).name))
    )
    settings = read_capture_settings(capture)
    assert settings.problems == ()
    assert (settings.config.contents, settings.config.keep_free_bytes) == ("log", 100 << 20)
    assert settings.host == "kdump-test"
    assert settings.small_image
    assert settings.target_folder
    assert settings.armed_identity


def test_settings_handed_over_are_written_as_before(root: Path) -> None:
    """Else an upgrade would load anew what is loaded already."""
    loaded = Loader(KernelFiles(root)).loaded_request()
    assert loaded is not None
    text = dict(loaded.added_files)[CAPTURE_SETTINGS_FILE]
    assert CaptureSettings.from_json(text).to_json() == text
    text = (root / CAPTURE_SETTINGS_FILE).read_text()
    assert CaptureSettings.from_json(text).to_json(indent=2) + "\n" == text


def test_images_are_known_and_outdated(root: Path) -> None:
    """Their files are there no more, and so another image is built; until then it is the last good one."""
    store = ImageStore(root)
    [manifest] = store.manifests()
    assert manifest.recipe.release.endswith("amd64")
    assert store.changed_source(manifest)
    assert store.current(manifest.recipe) is None


def test_hashes_and_proofs(root: Path) -> None:
    known = json.loads((root / HASHES_FILE).read_text())
    assert known
    assert content_hashes([], root) == {}
    identities = json.loads((root / PROOFS_FILE).read_text())
    assert [proof_of(root, identity, ()).level for identity in identities] == [Level.TESTED]


def test_way_back_of_the_boot_loader(root: Path) -> None:
    found = kept(root)
    assert found is not None
    assert (found.boot_loader, found.words) == ("grub", ("crashkernel=300M",))


def test_dumps_of_a_specimen(root: Path) -> None:
    images = _files(root, "specimen/*/vmcore*.zst")
    assert len(images) >= 4
    for packed in images:
        path = packed.with_suffix("")
        path.write_bytes(zstandard.decompress(packed.read_bytes()))
        with open_image(path) as opened:
            assert not opened.incomplete, path
        record = DumpRecord.read(path.parent)
        assert record.state == "complete"
        manifest = [FilePart(part.name, part.offset, part.length, part.sha256) for part in record.image_parts]
        assert manifest
        found = inspect_file(path, every_page=True, progress=lambda *_: None, manifest=manifest)
        assert not found.problems, path
