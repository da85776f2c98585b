# SPDX-License-Identifier: LGPL-2.1-or-later
"""Images that were built: is one of them still what is wanted?"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_service.image.recipe import Recipe
from kdump_service.image.store import ImageStore, Manifest, Source
from tests.builders.machine_disks import SMALL_IMAGE_DRIVERS, put_image, small_image_machine
from tests.builders.machine_root import RELEASE, MachineRoot

RECIPE = Recipe(RELEASE, SMALL_IMAGE_DRIVERS)
SOURCE = "usr/bin/kdump-service"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return small_image_machine(tmp_path, built=False)


@pytest.fixture
def store(machine: MachineRoot) -> ImageStore:
    return ImageStore(machine.path)


def _fresh(machine: MachineRoot) -> ImageStore:
    """One that remembers nothing."""
    return ImageStore(machine.path)


def test_nothing_was_built(store: ImageStore) -> None:
    assert (store.manifests(), store.current(RECIPE), store.last_good(RELEASE)) == ([], None, None)


def test_what_was_built_is_current(machine: MachineRoot, store: ImageStore) -> None:
    image = put_image(machine)
    current = store.current(RECIPE)
    assert current is not None
    assert (current.path, current.image_bytes, current.packing) == (image, image.stat().st_size, "squashfs")
    assert store.last_good(RELEASE) == current
    assert store.current(replace(RECIPE, drivers=(*SMALL_IMAGE_DRIVERS, "xfs"))) is None
    assert store.current(replace(RECIPE, unit_settings=(("/etc/x.conf", "0" * 64),))) is None
    assert store.current(replace(RECIPE, release="6.12.0")) is None
    assert store.current(replace(RECIPE, schema=2)) is None
    assert store.last_good("6.12.0") is None


def test_drivers_of_watchdogs_may_be_more_than_are_needed(machine: MachineRoot, store: ImageStore) -> None:
    """A watchdog that is started late must not have an image built at each boot."""
    recipe = replace(RECIPE, watchdog_drivers=("iTCO_wdt", "lpc_ich"))
    put_image(machine, watchdog_drivers=recipe.watchdog_drivers)
    assert store.current(recipe) is not None
    assert store.current(RECIPE) is not None
    assert store.current(replace(RECIPE, watchdog_drivers=("lpc_ich",))) is not None
    assert store.current(replace(RECIPE, watchdog_drivers=("hpwdt",))) is None
    assert store.current(replace(recipe, drivers=(*SMALL_IMAGE_DRIVERS, "xfs"))) is None
    [manifest] = store.manifests()
    assert Manifest.from_json(manifest.to_json(), manifest.path) == manifest


@pytest.mark.promise("image-is-current")
def test_source_of_other_content_is_told(machine: MachineRoot, store: ImageStore) -> None:
    put_image(machine)
    path = machine.path / SOURCE
    before = path.stat()
    machine.write(SOURCE, path.read_bytes().replace(b"python3", b"python4"))  # as long as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 5 * 10**9))
    assert store.current(RECIPE) is None
    last = store.last_good(RELEASE)
    assert last is not None
    assert store.changed_source(last) == f"/{SOURCE}"


@pytest.mark.promise("image-is-current")
@pytest.mark.parametrize("suffix", ["", ".zst", ".xz"])
@pytest.mark.parametrize("folder", ["updates/{release}/", "updates/", "{release}/", ""])
def test_firmware_that_came_since(machine: MachineRoot, store: ImageStore, folder: str, suffix: str) -> None:
    """No file of the image has changed, and the next one would have a file more."""
    put_image(machine)
    [manifest] = store.manifests()
    manifest = replace(manifest, missing_firmware=("a/b.bin", "ql2600_fw.bin"))
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json())), manifest.path) == manifest
    machine.write("usr/lib/firmware/ql2500_fw.bin", "another")
    assert store.changed_source(manifest) == ""
    name = f"usr/lib/firmware/{folder.format(release=RELEASE)}ql2600_fw.bin{suffix}"
    machine.write(name, "firmware")
    assert store.changed_source(manifest) == f"/{name}"


def test_source_of_another_time_and_the_same_content_is_the_same(
    machine: MachineRoot, store: ImageStore
) -> None:
    put_image(machine)
    os.utime(machine.path / SOURCE, (1_700_000_000, 1_700_000_000))
    assert store.current(RECIPE) is not None


def test_source_of_another_length_is_not_read(
    machine: MachineRoot, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(machine)
    machine.write(SOURCE, "longer " * 100)
    [manifest] = store.manifests()
    monkeypatch.setattr("kdump_service.image.store.sha256_of", lambda path: pytest.fail(f"{path} is read"))
    assert store.changed_source(manifest) == f"/{SOURCE}"


def test_sources_that_have_not_changed_are_not_read(
    machine: MachineRoot, store: ImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(machine)
    [manifest] = store.manifests()
    monkeypatch.setattr("kdump_service.image.store.sha256_of", lambda path: pytest.fail(f"{path} is read"))
    assert store.changed_source(manifest) == ""


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
def test_source_that_is_gone(
    machine: MachineRoot, store: ImageStore, damage: Callable[[Path], object]
) -> None:
    put_image(machine)
    damage(machine.path / SOURCE)
    assert store.current(RECIPE) is None


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [_flip, _truncate, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.promise("image-damaged")
def test_damaged_image_is_not_used(
    machine: MachineRoot, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    older = put_image(machine, b"older", built="2026-11-22T04:00:00Z")
    image = put_image(machine)
    damage(image)
    current = _fresh(machine).current(RECIPE)
    assert current is not None and current.path == older
    last = _fresh(machine).last_good(RELEASE)
    assert last is not None and last.path == older
    assert str(image) in caplog.text


def test_image_that_is_damaged_after_it_was_found_whole(machine: MachineRoot, store: ImageStore) -> None:
    image = put_image(machine)
    assert store.current(RECIPE) is not None
    time = image.stat().st_mtime_ns
    _flip(image)
    os.utime(image, ns=(time, time + 1))
    assert store.current(RECIPE) is None


def test_image_without_a_manifest_does_not_exist(machine: MachineRoot, store: ImageStore) -> None:
    put_image(machine).with_suffix(".json").unlink()
    assert (store.manifests(), store.last_good(RELEASE)) == ([], None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"recipe": {}}', '{"recipe": [], "sources": []}', "\xff", "[" * 9999]
)
def test_damaged_manifest(
    machine: MachineRoot, store: ImageStore, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = put_image(machine).with_suffix(".json")
    path.write_bytes(text.encode("latin-1"))
    assert store.current(RECIPE) is None
    assert str(path) in caplog.text


@pytest.mark.parametrize(
    ("key", "value"),
    [("recipe", None), ("sources", {"/x": [1, 2]}), ("sources", []), ("image_bytes", "many")],
)
def test_manifest_with_a_wrong_value(
    machine: MachineRoot, store: ImageStore, key: str, value: object
) -> None:
    path = put_image(machine).with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    older = put_image(machine, b"good", built="2026-11-20T04:00:00Z")
    current = store.current(RECIPE)
    assert current is not None and current.path == older


def _manifest(machine: MachineRoot, number: int = 0, release: str = RELEASE) -> Manifest:
    work = machine.write("work", f"image {number}")
    return Manifest(
        recipe=replace(RECIPE, release=release),
        sources={"/a": Source(1, 2, f"{number:064x}")},
        image_sha256="",
        image_bytes=work.stat().st_size,
        unpacked_bytes=1,
        peak_bytes=2,
        built=f"2026-11-{number + 1:02}T00:00:00Z",
        build_seconds=1.5,
        packing="cpio",
    )


def _keep(machine: MachineRoot, number: int, release: str = RELEASE) -> Path:
    machine.write(f"usr/lib/modules/{release}/modules.dep", "")
    return ImageStore(machine.path).keep(_manifest(machine, number, release), machine.path / "work").path


def _names(machine: MachineRoot) -> set[str]:
    return {path.name for path in (machine.path / "var/lib/kdump-service/images").iterdir()}


def test_what_is_kept_is_read_back(machine: MachineRoot, store: ImageStore) -> None:
    manifest = _manifest(machine)
    kept = store.keep(manifest, machine.path / "work")
    assert kept == manifest
    assert store.manifests() == [manifest]
    assert (kept.path.read_text(), kept.path.name) == ("image 0", f"{manifest.identity[:16]}.img")
    assert not (machine.path / "work").exists()
    assert kept.path.parent.stat().st_mode & 0o777 == 0o700


def test_three_are_kept_and_the_newest_always(machine: MachineRoot) -> None:
    paths = [_keep(machine, number) for number in range(5)]
    kept = {name for path in paths[2:] for name in (path.name, path.with_suffix(".json").name)}
    assert _names(machine) == kept
    # A clock that went back makes the newest seem the oldest.
    manifest = replace(_manifest(machine, 9), built="2000-01-01T00:00:00Z")
    newest = ImageStore(machine.path).keep(manifest, machine.path / "work").path
    assert newest.exists()


def test_of_each_installed_kernel_one_is_kept(machine: MachineRoot) -> None:
    other = [_keep(machine, number, "6.12.0-other") for number in range(2)]
    gone = _keep(machine, 2, "5.10.0-removed")
    (machine.path / "usr/lib/modules/5.10.0-removed/modules.dep").unlink()
    (machine.path / "usr/lib/modules/5.10.0-removed").rmdir()
    for number in range(3, 8):
        _keep(machine, number)
    releases = [manifest.recipe.release for manifest in ImageStore(machine.path).manifests()]
    assert releases == [RELEASE, RELEASE, RELEASE, "6.12.0-other"]
    assert [path.exists() for path in (*other, gone)] == [False, True, False]


def test_images_without_a_manifest_go_and_strange_files_stay(machine: MachineRoot) -> None:
    folder = "var/lib/kdump-service/images"
    machine.write(f"{folder}/0123456789abcdef.img", "half")
    machine.write(f"{folder}/notes.img", "an administrator's")
    machine.write(f"{folder}/lock", "")
    path = _keep(machine, 0)
    assert _names(machine) == {path.name, path.with_suffix(".json").name, "notes.img", "lock"}


def test_identity_is_of_recipe_and_content() -> None:
    base = Manifest(
        RECIPE, {"/a": Source(1, 2, "aa"), "/b": Source(3, 4, "bb")}, "", 1, 1, 1, "", 1.0, "cpio"
    )
    others = [
        replace(base, recipe=replace(RECIPE, release="6.12.0")),
        replace(base, recipe=replace(RECIPE, drivers=("ext4",))),
        replace(base, recipe=replace(RECIPE, unit_settings=(("/etc/a", "cc"),))),
        replace(base, recipe=replace(RECIPE, schema=2)),
        replace(base, sources={"/a": Source(1, 2, "ab"), "/b": Source(3, 4, "bb")}),
        replace(base, sources={"/a": Source(1, 2, "aa"), "/b": Source(3, 4, "bc")}),
        replace(base, sources={"/a": Source(1, 2, "aa"), "/c": Source(3, 4, "bb")}),
        replace(base, sources={"/a": Source(1, 2, "aa")}),
    ]
    assert len({base.identity, *(other.identity for other in others)}) == 9
    same = [
        replace(base, sources={"/b": Source(3, 4, "bb"), "/a": Source(1, 9, "aa")}),
        replace(base, built="2026-01-01T00:00:00Z", build_seconds=9.0),
    ]
    assert {each.identity for each in same} == {base.identity}
