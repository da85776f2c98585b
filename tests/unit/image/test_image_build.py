# SPDX-License-Identifier: LGPL-2.1-or-later
"""Building the capture image: what comes before dracut, and what is made of its folder. Real builds are in
tests/vm: this machine may have no kernel's modules."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import zstandard

from kdump_service.config import Config
from kdump_service.errors import ImageNotBuilt, KdumpError, NotSupported, ProgramFailed
from kdump_service.image import build, dracut, pack
from kdump_service.image.build import build_image
from kdump_service.image.recipe import Recipe, find_storages, recipe_of
from kdump_service.image.store import ImageStore, Manifest, Source
from kdump_service.image.wanted import wanted_recipe
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.image_builder import build_by_unit
from tests.builders.machine_disks import SMALL_IMAGE_DRIVERS, put_image, small_image_machine
from tests.builders.machine_root import RELEASE, MachineRoot
from tests.hang import wait_until

RECIPE = Recipe(RELEASE, SMALL_IMAGE_DRIVERS)
FOLDER = "var/lib/kdump-service/images"
SPECIMEN = Path(__file__).parents[3] / "packaging/specimen.vmcore.zst"


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    made = small_image_machine(tmp_path, built=False)
    made.write("usr/lib/kdump-service/specimen.vmcore.zst", SPECIMEN.read_bytes())
    return made


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Programs are noted, and fail: what would run is the system's own kdump-service."""
    commands: list[list[str]] = []

    def run(command: list[str], *, timeout_sec: float) -> str:
        commands.append(command)
        raise ProgramFailed("kdump-service capture-trial: made to fail")

    monkeypatch.setattr(build, "run", run)
    return commands


def _names(machine: MachineRoot) -> set[str]:
    folder = machine.path / FOLDER
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _refused(machine: MachineRoot) -> ImageNotBuilt:
    stages: list[str] = []
    before = _names(machine)
    with pytest.raises(ImageNotBuilt) as caught:
        build_image(machine.path, RECIPE, stages.append, anew=True)
    left = {name for name in before if not name.startswith("build-")}
    assert _names(machine) - {"lock"} == left - {"lock"}  # nothing has changed
    return caught.value


@pytest.mark.parametrize(
    "missing", ["usr/bin/dracut", "usr/lib/dracut/modules.d/99kdump-service/module-setup.sh"]
)
@pytest.mark.promise("build-fails")
def test_no_dracut(machine: MachineRoot, missing: str) -> None:
    (machine.path / missing).unlink()
    error = _refused(machine)
    assert "dracut is not installed" in str(error)
    assert "dracut-core" in error.hint and "Environment=rootfs" in error.hint
    assert _names(machine) == {"lock"}


@pytest.mark.promise("build-fails")
def test_no_room(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(machine.path)
    blocks = (250 << 20) // real.f_frsize
    small = os.statvfs_result((*real[:3], blocks, blocks, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    error = _refused(machine)
    assert "250 MiB are free, and a build needs 300 MiB" in str(error)
    assert error.hint == "Make room in /var."


def test_room_is_looked_at_when_what_was_left_over_is_gone(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, trials: list[list[str]]
) -> None:
    left = machine.write(f"{FOLDER}/build-abc/tree/usr/bin/x", "of a build that was killed")
    real = os.statvfs(machine.path)

    def statvfs(path: Path) -> os.statvfs_result:
        blocks = 0 if left.exists() else (400 << 20) // real.f_frsize
        return os.statvfs_result((*real[:3], blocks, blocks, *real[5:]))

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert "made to fail" in str(_refused(machine))
    assert _names(machine) == {"lock"}


@contextlib.contextmanager
def _another_build(machine: MachineRoot) -> Iterator[None]:
    """Locks of flock(2) are of an opening, so this is as good as another process."""
    machine.write(f"{FOLDER}/build-of-the-other/file", "in use")
    with open(machine.path / FOLDER / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_waiting(machine: MachineRoot, caplog: pytest.LogCaptureFixture) -> bool:
    wait_until(lambda: "waiting for its end" in caplog.text)
    return (machine.path / FOLDER / "build-of-the-other/file").exists()


def test_one_build_at_a_time(
    machine: MachineRoot, trials: list[list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "kdump_service")
    with ThreadPoolExecutor() as threads:
        with _another_build(machine):
            second = threads.submit(build_image, machine.path, RECIPE)
            put_image(machine, release="6.12.0-other")  # what the other builds
            assert _is_waiting(machine, caplog)
            assert not second.done()
            assert trials == []
        with pytest.raises(ImageNotBuilt, match="made to fail"):
            second.result(timeout=30)
    assert len(trials) == 1
    assert not (machine.path / FOLDER / "build-of-the-other").exists()


@pytest.mark.parametrize("anew", [False, True])
def test_what_another_build_made_meanwhile_is_not_built_again(
    machine: MachineRoot, trials: list[list[str]], caplog: pytest.LogCaptureFixture, anew: bool
) -> None:
    caplog.set_level(logging.INFO, "kdump_service")
    (machine.path / "usr/bin/dracut").unlink()  # nothing more is needed for what is there
    with ThreadPoolExecutor() as threads:
        with _another_build(machine):
            second = threads.submit(build_image, machine.path, RECIPE, anew=anew)
            assert _is_waiting(machine, caplog)
            image = put_image(machine)
        if anew:
            with pytest.raises(ImageNotBuilt, match="dracut is not installed"):
                second.result(timeout=30)
        else:
            assert second.result(timeout=30).path == image
            assert f"image is current: {image}" in caplog.text
    assert trials == []


def test_images_that_exist_survive_a_build_that_fails(machine: MachineRoot, trials: list[list[str]]) -> None:
    image = put_image(machine)
    _refused(machine)
    assert image.read_bytes() == b"small image "


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "specimen.vmcore.zst is damaged"),
        (lambda path: path.write_bytes(b"no zstd"), "specimen.vmcore.zst is damaged"),
        (lambda path: path.write_bytes(_flipped(path.read_bytes())), "specimen.vmcore.zst is damaged"),
        (Path.unlink, "specimen.vmcore.zst: No such file"),
    ],
    ids=["truncated", "other", "flipped", "missing"],
)
def test_damaged_specimen(
    machine: MachineRoot, trials: list[list[str]], damage: Callable[[Path], object], words: str
) -> None:
    damage(machine.path / "usr/lib/kdump-service/specimen.vmcore.zst")
    assert words in str(_refused(machine))
    assert trials == []


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def test_specimen_is_laid_out_with_holes(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = zstandard.ZstdDecompressor().decompress(SPECIMEN.read_bytes(), max_output_size=64 << 20)
    seen: list[tuple[bool, bool]] = []

    def run(command: list[str], *, timeout_sec: float) -> str:
        assert command[:2] == ["/usr/bin/kdump-service", "capture-trial"]
        vmcore = Path(command[2]) / "proc/vmcore"
        seen.append((vmcore.read_bytes() == expected, vmcore.stat().st_blocks * 512 < len(expected) // 8))
        return "no JSON"

    monkeypatch.setattr(build, "run", run)
    assert "printed nothing that can be read: 'no JSON'" in str(_refused(machine))
    assert seen == [(True, True)]


def test_folder_that_cannot_be_made(machine: MachineRoot) -> None:
    machine.write("var/lib/kdump-service/images", "a file in the way")
    with pytest.raises(ImageNotBuilt, match="File exists"):
        build_image(machine.path, RECIPE)


@pytest.mark.parametrize(
    "said",
    [
        "cp: error writing '/x/initramfs/usr/lib/systemd/systemd': No space left on device",
        "dracut: something\n/usr/bin/dracut: line 9: echo: write error: Disk quota exceeded\ndracut: more",
    ],
)
def test_dracut_leaves_out_what_found_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    """And says that all is well, with a whole archive, since there was room again by then."""

    def run(command: list[str], **more: object) -> str:
        assert (command[2], more["complaints_too"]) == ("dracut", True)
        program = tmp_path / "dracut/dracut.abc/initramfs/usr/bin/kdump-service"
        program.parent.mkdir(parents=True)
        program.touch()
        (tmp_path / "archive").touch()
        return said

    monkeypatch.setattr(dracut, "run", run)
    with pytest.raises(ImageNotBuilt) as caught:
        dracut.collect(RELEASE, [], [], tmp_path)
    assert str(caught.value) == next(line for line in said.splitlines() if "error" in line)
    assert caught.value.hint == "Make room in /var."


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("mksquashfs: exit status 1: No space left on device / FATAL ERROR", "Make room in /var."),
        ("dracut: exit status 1: no message", "See: journalctl -u 'kdump-build-image@*'"),
    ],
)
def test_program_that_fails_is_told_with_what_to_do(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, said: str, hint: str
) -> None:
    def run(command: list[str], *, timeout_sec: float) -> str:
        raise ProgramFailed(said)

    monkeypatch.setattr(build, "run", run)
    error = _refused(machine)
    assert (str(error), error.hint) == (said, hint)


# What is made of dracut's folder


WHAT_DECIDED = {
    "/usr/bin/dracut", "/usr/lib/kdump-service/specimen.vmcore.zst",
    "/usr/lib/dracut/modules.d/99kdump-service/module-setup.sh",
}  # fmt: skip


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def copied(tmp_path: Path, machine: MachineRoot) -> Path:
    """A folder as dracut leaves it, of files that were on the machine before."""
    libraries = {
        "usr/lib/gnu/libc.so.6": "old",
        "usr/lib/gnu/libz.so.1.2": "old",
        "usr/lib/gnu/libm.so.6": "old",
    }
    _write(machine.path, {
        **libraries, "usr/bin/edited": "as installed", "usr/lib/gnu/not-in-the-image": "",
        "etc/ld.so.cache": "of all", "usr/lib/other/file": "",
    })  # fmt: skip
    tree = tmp_path / "tree"
    _write(tree, {
        **libraries, "usr/bin/kdump-service": "#!/usr/bin/python3 -I\n", "usr/bin/edited": "as changed..",
        "etc/ld.so.cache": "of these", "etc/initrd-release": "", "usr/lib/other/made-by-dracut": "",
        "usr/lib/dracut/hooks/made/too": "",
    })  # fmt: skip
    (tree / "usr/bin/link").symlink_to("kdump-service")
    return tree


def _now() -> int:
    """A time that what was done before lies before, and what is done next behind: the times of files are
    those of the kernel's last tick, up to ten milliseconds ago."""
    time.sleep(0.02)
    now = time.time_ns()
    time.sleep(0.02)
    return now


COPIED = {
    "/usr/bin/kdump-service",
    "/usr/lib/gnu/libc.so.6",
    "/usr/lib/gnu/libm.so.6",
    "/usr/lib/gnu/libz.so.1.2",
}


def test_sources_are_files_of_the_machine_that_went_in_as_they_are(
    machine: MachineRoot, copied: Path
) -> None:
    sources = build._sources(machine.path, copied, RELEASE, _now())
    assert set(sources) == WHAT_DECIDED | COPIED


def test_configuration_of_the_kernel_decides(machine: MachineRoot, copied: Path) -> None:
    """It says how the image may be compressed."""
    machine.write(f"boot/config-{RELEASE}", "CONFIG_RD_LZ4=y\n")
    sources = build._sources(machine.path, copied, RELEASE, _now())
    assert set(sources) == WHAT_DECIDED | COPIED | {f"/boot/config-{RELEASE}"}
    machine.write(f"boot/config-{RELEASE}", "# CONFIG_RD_LZ4 is not set\n")
    assert _outdated(machine, sources) == {f"/boot/config-{RELEASE}"}


def _outdated(machine: MachineRoot, sources: dict[str, Source]) -> set[str]:
    """What is not any more what went in."""
    found = set()
    base = Manifest(RECIPE, {}, "", 1, 1, 1, "", 1.0, "squashfs")
    for path, source in sources.items():
        found.add(ImageStore(machine.path).changed_source(replace(base, sources={path: source})))
    return found - {""}


def test_library_that_was_replaced_or_removed_since_it_was_copied(
    machine: MachineRoot, copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As by dpkg amid a build. The next build is of what there is then."""
    caplog.set_level(logging.INFO, "kdump_service")
    began = _now()
    times = (copied / "usr/lib/gnu/libc.so.6").stat()
    new = machine.write("usr/lib/gnu/libc.so.6.dpkg-new", "new")
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))  # as long, and of the same time
    new.rename(machine.path / "usr/lib/gnu/libc.so.6")
    (machine.path / "usr/lib/gnu/libz.so.1.2").rename(machine.path / "usr/lib/gnu/libz.so.1.3")
    machine.write("etc/resolv.conf", "written at any time")
    replaced = {"/usr/lib/gnu/libc.so.6", "/usr/lib/gnu/libz.so.1.2"}
    sources = build._sources(machine.path, copied, RELEASE, began)
    assert set(sources) == WHAT_DECIDED | COPIED
    assert _outdated(machine, sources) == replaced
    assert "libc.so.6 has changed since it was copied" in caplog.text
    _write(copied, {"usr/lib/gnu/libc.so.6": "new", "usr/lib/gnu/libz.so.1.3": "old"})
    (copied / "usr/lib/gnu/libz.so.1.2").unlink()
    sources = build._sources(machine.path, copied, RELEASE, _now())
    assert set(sources) == (WHAT_DECIDED | COPIED | {"/usr/lib/gnu/libz.so.1.3"}) - {
        "/usr/lib/gnu/libz.so.1.2"
    }
    assert _outdated(machine, sources) == set()


def test_folder_that_was_removed_since_it_was_copied(machine: MachineRoot, copied: Path) -> None:
    began = _now()
    shutil.rmtree(machine.path / "usr/lib/gnu")
    sources = build._sources(machine.path, copied, RELEASE, began)
    assert _outdated(machine, sources) == {path for path in COPIED if "gnu" in path}


def test_clock_that_was_set_back_does_not_make_all_seem_new(
    machine: MachineRoot, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1000 * 10**9)
    assert set(build._sources(machine.path, copied, RELEASE, 990 * 10**9)) == WHAT_DECIDED | COPIED


@pytest.mark.parametrize(("line", "docstring"), [
    ("#!/usr/bin/python3 -I", "None"), ("#!/usr/bin/python3.11", "None"), ("#! /usr/bin/python3 -sP", "None"),
    ("#!/usr/bin/env -S python3 -I", "says what it does"),
    ("#!/usr/bin/python3 -Wdefault", "says what it does"),
])  # fmt: skip
def test_python_modules_run_without_their_sources(tmp_path: Path, line: str, docstring: str) -> None:
    """And without docstrings, where the interpreter can be told that there are none."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "noun.py").write_text(
        "def verb():\n    'says what it does'\n    print(verb.__doc__)\n    raise ValueError('done')\n"
    )
    (package / "link.py").symlink_to("noun.py")
    program = tmp_path / "usr/bin/kdump-service"
    program.parent.mkdir(parents=True)
    text = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport package.link\npackage.link.verb()\n"
    program.write_text(f"{line}\n{text}")
    program.chmod(0o755)
    installed = tmp_path / "installed"
    installed.hardlink_to(program)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(package)], check=True)
    build._leave_out_python_sources(tmp_path)
    assert not list(tmp_path.rglob("*.py"))
    assert not list(tmp_path.rglob("__pycache__"))
    assert installed.read_text() == f"{line}\n{text}"
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert "ValueError: done" in done.stderr
    assert done.stdout == f"{docstring}\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return _tree(tmp_path)


def _tree(folder: Path) -> Path:
    """As dracut leaves it, with the programs of this machine."""
    made = folder / "tree"
    for name in ("usr/bin", "usr/lib/systemd", "usr/sbin", "usr/lib64", "etc/conf.d", "kdump/target", "proc"):
        (made / name).mkdir(parents=True)
    for name in ("bin", "lib", "sbin", "lib64"):
        (made / name).symlink_to(f"usr/{name}")
    for path in (*pack._early_programs(), pack._program("modprobe")):
        _bring(made, Path(path))
    (made / "init").symlink_to("/usr/lib/systemd/systemd")
    (made / "usr/lib/systemd/systemd").write_text("#!/bin/sh\n")
    (made / "etc/conf.d/settings").write_text("a=b\n")
    (made / "usr/lib/large").write_bytes(b"compress me " * 100_000)
    return made


def _bring(tree: Path, path: Path) -> None:
    """A file, and what links lead to, in places where dracut puts them."""
    place = tree / path.parent.resolve().relative_to("/") / path.name
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        if not os.path.lexists(place):
            place.symlink_to(path.readlink())
        _bring(tree, path.parent / path.readlink())
    else:
        shutil.copy(path, place)


def _pack(tree: Path, image: Path, drivers: Iterable[str] = ("ext4",), *, lz4: bool = False) -> pack.Packed:
    return pack.pack(tree, RELEASE, drivers, image, image.parent, lz4_unpacks=lz4)


class Built(NamedTuple):
    """An image, with what it was made of, for cases that look at it; none changes anything of it."""

    tree: Path
    image: Path
    packed: pack.Packed


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    tree = _tree(folder)
    return Built(tree, folder / "image", _pack(tree, folder / "image"))


def _cpio(data: bytes, folder: Path) -> Path:
    folder.mkdir()
    command = ["cpio", "--extract", "--quiet", "--make-directories"]
    subprocess.run(command, input=data, cwd=folder, check=True)
    return folder


def test_squashfs_holds_usr_and_the_archive_the_rest(built: Built, tmp_path: Path) -> None:
    tree, image, packed = built
    assert packed.packing == "squashfs"
    data = image.read_bytes()
    assert len(data) % 512 == 0
    outer = _cpio(data, tmp_path / "outer")
    assert (outer / "etc/conf.d/settings").read_text() == "a=b\n"
    assert not os.path.lexists(outer / "init")
    assert list((outer / "usr").iterdir()) == []
    squashfs = outer / "kdump/usr.squashfs"
    subprocess.run(
        ["unsquashfs", "-quiet", "-no-progress", "-dest", str(tmp_path / "usr"), str(squashfs)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    done = subprocess.run(
        ["diff", "-r", "--no-dereference", str(tree / "usr"), str(tmp_path / "usr")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert squashfs.stat().st_size < packed.unpacked_bytes < (tree / "usr/lib/large").stat().st_size * 20
    assert packed.peak_bytes > packed.unpacked_bytes + len(data)


def _early(image: Path, folder: Path) -> Path:
    """What is unpacked from the second archive, which is compressed."""
    data = image.read_bytes()
    early = data[_end_of_archive(data) :]
    program = {b"\x1f\x8b": "gzip", b"\x02\x21": "lz4"}[early[:2]]
    # Neither likes the zeros behind the end, as the kernel does; cpio sees whether something is missing.
    done = subprocess.run([program, "-dc"], input=early, capture_output=True, check=False)
    return _cpio(done.stdout, folder)


def _end_of_archive(data: bytes) -> int:
    end = data.index(b"TRAILER!!!\0")
    return (end + 511) // 512 * 512


@pytest.mark.parametrize("lz4", [False, True])
def test_early_archive_can_mount_squashfs(built: Built, tmp_path: Path, lz4: bool) -> None:
    tree, image, packed = built
    if lz4:
        image = tmp_path / "image"
        packed = _pack(tree, image, lz4=True)
    at_once = 8 << 20 if lz4 else 0  # lib/decompress_unlz4.c
    assert packed.peak_bytes > packed.unpacked_bytes + image.stat().st_size + at_once
    # The kernel takes four zeros for the end of what LZ4 compressed.
    assert image.read_bytes().endswith(bytes(4))
    early = _early(image, tmp_path / "early-out")
    init = early / "init"
    assert stat.S_IMODE(init.stat().st_mode) == 0o755
    subprocess.run(["sh", "-n", str(init)], check=True)
    assert "exec /usr/lib/systemd/systemd\n" in init.read_text()
    for name in ("usr/bin/sh", "usr/bin/mount", "usr/bin/sleep"):
        assert (early / name).resolve().exists(), name
    # Where the kernel would find it, each module that anything built in asks for would be a process.
    assert not list((early / "usr").rglob("*bin/modprobe"))
    # With the links of the outer archive the shell runs from what is there, and nothing else.
    for name in ("bin", "lib", "lib64", "sbin"):
        (early / name).symlink_to(f"usr/{name}")
    if os.geteuid() == 0:
        programs = "mount --version && /kdump/early/modprobe --version && sleep 0"
        done = subprocess.run(
            ["chroot", str(early), "/usr/bin/sh", "-c", programs],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr


def test_without_the_library_for_lz4_the_early_archive_is_gzip(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "lz4", None)
    _pack(built.tree, tmp_path / "image", lz4=True)
    assert (tmp_path / "image").read_bytes() == built.image.read_bytes()


@pytest.fixture
def started_init(built: Built, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Runs /init with programs that do nothing, but for what a test says, and know as OLDPWD where they were
    started; /dev, /proc, /run, /usr and /kdump are folders."""
    script = (_early(built.image, tmp_path / "early-out") / "init").read_text()
    machine = tmp_path / "machine"
    for name in ("bin", "dev", "proc/sys/kernel", "run", "usr", "kdump/early"):
        (machine / name).mkdir(parents=True)
    for name in ("dev", "proc", "run", "kdump"):
        script = script.replace(f"/{name}/", f"{machine}/{name}/")
    script = script.replace("PATH=/usr/bin:/usr/sbin", f"PATH={machine}/bin")
    script = script.replace("cd /usr\n", f"cd {machine}/usr\n")
    script = script.replace("exec /usr/lib/systemd/systemd", "exec systemd")
    started: list[subprocess.Popen[bytes]] = []

    def start(**programs: str) -> subprocess.Popen[bytes]:
        nothing = dict.fromkeys(("mount", "modprobe", "rm", "sleep", "systemd"), ":")
        for name, text in {**nothing, **programs}.items():
            path = machine / ("kdump/early" if name == "modprobe" else "bin") / name
            path.write_text(f"#!/bin/sh\ncd {machine} && {text}\n")
            path.chmod(0o755)
        started.append(
            subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        )
        return started[0]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


_AT_ONCE = {"sleep": "exit 1", "systemd": "echo systemd"}


def test_kernel_finds_the_early_modprobe_while_modules_are_loaded(
    started_init: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    setting = tmp_path / "machine/proc/sys/kernel/modprobe"
    setting.write_text("/usr/sbin/modprobe\n")
    init = started_init(
        **_AT_ONCE, modprobe="read -r path < proc/sys/kernel/modprobe; echo $path > meanwhile; exit 1"
    )
    said, _ = init.communicate(timeout=60)
    assert (init.returncode, said) == (0, b"systemd\n")
    assert (tmp_path / "machine/meanwhile").read_text() == f"{tmp_path}/machine/kdump/early/modprobe\n"
    assert setting.read_text() == "/usr/sbin/modprobe\n"


def test_kernel_that_does_not_ask_for_modules(
    started_init: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    init = started_init(**_AT_ONCE, modprobe="echo $* > loaded")
    said, _ = init.communicate(timeout=60)
    assert (init.returncode, said) == (0, b"systemd\n")
    assert (tmp_path / "machine/loaded").read_text().startswith("-q -a")
    assert not (tmp_path / "machine/proc/sys/kernel/modprobe").exists()


def test_what_lies_below_the_mount_is_removed(
    started_init: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    """By a shell that went there before, since no path leads there afterwards."""
    (tmp_path / "machine/usr/early").write_text("")
    init = started_init(**_AT_ONCE, mount="echo $OLDPWD $* >> mounts", rm="echo $OLDPWD $* > removed")
    init.communicate(timeout=60)
    usr = tmp_path / "machine/usr"
    squashfs = tmp_path / "machine/kdump/usr.squashfs"
    assert f"{usr} -t squashfs -o ro,loop {squashfs} /usr\n" in (tmp_path / "machine/mounts").read_text()
    removed = (tmp_path / "machine/removed").read_text()
    assert removed == f"{usr} -rf ./early {tmp_path}/machine/kdump/early\n"


@pytest.mark.promise("never-hang", "driver-hangs")
def test_driver_that_waits_for_ever_does_not_hold_up_the_reboot(
    started_init: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    init = started_init(modprobe="exec /bin/sleep 1000", sleep="echo $1 >> sleeps")
    trigger = tmp_path / "machine/proc/sysrq-trigger"
    wait_until(lambda: trigger.exists() and trigger.read_text())
    assert trigger.read_text() == "b\n"
    assert "no systemd after 600 seconds" in (tmp_path / "machine/dev/kmsg").read_text()
    assert (tmp_path / "machine/sleeps").read_text() == 600 * "1\n"
    assert init.poll() is None


@pytest.mark.parametrize("sleep", ["echo 1 >> sleeps; exec /bin/sleep 0.05", "exit 127"])
def test_who_counts_the_time_is_gone_when_systemd_is_there(
    started_init: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, sleep: str
) -> None:
    """Or when it cannot count: better without a deadline than rebooted at once."""
    init = started_init(systemd="/bin/mkdir -p run/systemd/system; echo systemd", sleep=sleep)
    said, _ = init.communicate(timeout=60)  # until nobody has the output open any more
    assert (init.returncode, said) == (0, b"systemd\n")
    assert not (tmp_path / "machine/proc/sysrq-trigger").exists()


def test_program_that_dracut_left_out_is_told(tree: Path, tmp_path: Path) -> None:
    (tree / "usr/bin/mount").unlink()
    with pytest.raises(ImageNotBuilt, match="bin/mount did not get into the image"):
        _pack(tree, tmp_path / "image", [])


@pytest.mark.parametrize("how", ["no-mksquashfs", "split-usr"])
def test_without_squashfs_it_is_one_archive(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "split-usr":
        (tree / "sbin").unlink()
        (tree / "sbin").mkdir()
    else:
        real = shutil.which
        monkeypatch.setattr(
            shutil, "which", lambda name, **more: None if name == "mksquashfs" else real(name, **more)
        )
    image = tmp_path / "image"
    packed = _pack(tree, image, [])
    assert packed.packing == "cpio"
    data = subprocess.run(["gzip", "-dc", str(image)], capture_output=True, check=True).stdout
    out = _cpio(data, tmp_path / "out")
    done = subprocess.run(["diff", "-r", "--no-dereference", str(tree), str(out)], check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("lz4", [False, True])
def test_the_same_folder_is_the_same_image(tree: Path, tmp_path: Path, lz4: bool) -> None:
    images = []
    for number in range(2):
        work = tmp_path / f"work{number}"
        work.mkdir()
        _pack(tree, work / "image", lz4=lz4)
        images.append((work / "image").read_bytes())
        os.utime(tree / "usr/lib/large", (number, number))
    assert images[0] == images[1]


# What is wanted, and who asks for it


def test_what_is_built_is_what_arming_wants(machine: MachineRoot) -> None:
    machine.set_environment("initramfs")
    machine.write("etc/kdump-service.conf", "[Image]\nExtraDrivers=xfs\n")
    files = KernelFiles(machine.path)
    config = Config(extra_drivers="xfs")
    assert wanted_recipe(files) == recipe_of(files, config, RELEASE, find_storages(files, config))
    machine.set_mounts("1 0 0:40 / / rw - nfs4 server:/root rw")
    with pytest.raises(NotSupported):
        wanted_recipe(files)


@pytest.mark.parametrize("release", ["", "..", "../../etc", "a/b", "-x", "6.1 0"])
def test_release_that_is_none(machine: MachineRoot, release: str) -> None:
    if release:
        with pytest.raises(NotSupported, match="no release of a kernel"):
            wanted_recipe(KernelFiles(machine.path), release)
    machine.write("proc/sys/kernel/osrelease", "6.12.0-without-modules\n")
    with pytest.raises(NotSupported, match=r"there is no folder /usr/lib/modules/6\.12\.0-without-modules"):
        wanted_recipe(KernelFiles(machine.path))


def test_another_installed_kernel(machine: MachineRoot) -> None:
    machine.write("usr/lib/modules/6.12.0+deb13~rc1_x-amd64/modules.dep", "")
    release = "6.12.0+deb13~rc1_x-amd64"
    assert wanted_recipe(KernelFiles(machine.path), release).release == release


def _escaped(release: str) -> str:
    done = subprocess.run(["systemd-escape", release], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    "release", ["6.1.0-99-amd64", "6.12.0+deb13~rc1_x-amd64", "5.14.0-503.el9.x86_64+rt"]
)
def test_name_of_the_unit_is_escaped_as_systemd_does(
    machine: MachineRoot, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], *, timeout_sec: float) -> str:
        commands.append(command)
        return ""

    monkeypatch.setattr("kdump_service.service.image_builder.run", run)
    build_by_unit(release, machine.path)
    assert commands == [["systemctl", "start", f"kdump-build-image@{_escaped(release)}.service"]]


@pytest.fixture
def unit(machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Stands for the unit: what it leaves, if it fails."""

    def make(left: object) -> None:
        def run(command: list[str], *, timeout_sec: float) -> str:
            assert command == ["systemctl", "start", f"kdump-build-image@{_escaped(RELEASE)}.service"]
            assert not (machine.path / "run/kdump-service/build.json").exists()  # not the last one's
            if left is None:
                return ""
            if left:
                text = left if isinstance(left, str) else json.dumps(left)
                machine.write("run/kdump-service/build.json", text)
            raise ProgramFailed("systemctl start kdump-build-image.service: exit status 1")

        monkeypatch.setattr("kdump_service.service.image_builder.run", run)

    return make


def test_unit_that_ends_well(machine: MachineRoot, unit: Callable[[object], None]) -> None:
    machine.write("run/kdump-service/build.json", '{"error": "of the last one", "hint": ""}')
    unit(None)
    build_by_unit(RELEASE, machine.path)


def test_unit_that_fails_says_why(machine: MachineRoot, unit: Callable[[object], None]) -> None:
    unit({"error": "no room", "hint": "Make room in /var."})
    with pytest.raises(ImageNotBuilt) as caught:
        build_by_unit(RELEASE, machine.path)
    assert (str(caught.value), caught.value.hint) == ("no room", "Make room in /var.")
    assert isinstance(caught.value, KdumpError) and caught.value.exit_code == 33


@pytest.mark.parametrize("left", ["", "{", {"stage": "packing"}, {"error": 7, "hint": ""}, [1]])
@pytest.mark.promise("build-fails")
def test_unit_that_was_killed(machine: MachineRoot, unit: Callable[[object], None], left: object) -> None:
    unit(left)
    with pytest.raises(ImageNotBuilt, match="exit status 1") as caught:
        build_by_unit(RELEASE, machine.path)
    assert caught.value.hint == "See: journalctl -u 'kdump-build-image@*'"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_firmware_that_was_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As modinfo tells it of modules, without what dracut has found."""
    said = {
        "qla2xxx": ["firmware=qla/ql2500_fw.bin", "firmware=qla/ql2600_fw.bin", "firmware=found.bin"],
        "ext4": ["license=GPL"],
    }
    modules = []
    for name, lines in said.items():
        attribute = '__attribute__((section(".modinfo"), used)) static const char'
        text = "".join(f'{attribute} line{number}[] = "{line}";\n' for number, line in enumerate(lines))
        modules.append(tmp_path / f"{name}.ko")
        subprocess.run(["gcc", "-x", "c", "-c", "-o", modules[-1], "-"], input=text, text=True, check=True)
    monkeypatch.setattr(build, "module_files", lambda release, names: modules)
    tree = tmp_path / "tree"
    (tree / "usr/lib/firmware").mkdir(parents=True)
    (tree / "usr/lib/firmware/found.bin.xz").write_text("firmware")
    assert build._missing_firmware(tree, RECIPE) == ("qla/ql2500_fw.bin", "qla/ql2600_fw.bin")
    monkeypatch.setattr(build, "module_files", lambda release, names: [])
    assert build._missing_firmware(tree, RECIPE) == ()
