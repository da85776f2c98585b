# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install` and `make uninstall` below a folder; tests/vm/test_package.py tries them on a machine."""

import errno
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[3]
CONFIGURATION = "etc/kdump-service.conf"


def _load() -> ModuleType:
    """The program; packaging/ is no package, and must be none: libraries have this name."""
    spec = importlib.util.spec_from_file_location("kdump_install", REPOSITORY / "packaging/install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


program = _load()
MODULES = "usr/lib/python3/dist-packages"
PYTHON = program.Python((3, 11), f"/{MODULES}", (f"/{MODULES}",), ())


def _all_files(root: Path) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.parent.name != "__pycache__"
    }


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """An empty machine. Compiling takes most of an installation's time: one case looks at that."""
    if request.function is not test_staged_as_it_is_installed:
        monkeypatch.setattr(program, "run", lambda *command: None)
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


def test_all_that_is_to_be_installed_is() -> None:
    """What lies in units/, dbus/ and packaging/ is in a row, or known to be no part of what is installed."""
    rows = {path for pattern, *_ in program.FILES for path in REPOSITORY.glob(pattern)}
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "units", "dbus", "packaging"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    left_out = {
        name for name in listed if REPOSITORY / name not in rows and not name.startswith("packaging/debian/")
    }
    assert left_out == {"packaging/build-deb", "packaging/install.py", "packaging/man_from_xml.py"}


def test_modules_are_where_packages_put_them() -> None:
    """Asked of the interpreter; on Debian that is not where pip would put them."""
    python = program.Python.of_this_machine()
    assert python.modules in python.path
    assert not python.modules.startswith("/usr/local")


def test_staged_as_it_is_installed(root: Path, tmp_path: Path) -> None:
    program.stage(tmp_path / "staged", MODULES, PYTHON)
    program.install(root, PYTHON)
    assert _all_files(root) == _all_files(tmp_path / "staged") | {program.NOTE}
    for name in ("kdumpctl", "kdump-service"):
        text = (root / "usr/bin" / name).read_text()
        assert text.startswith("#!/usr/bin/python3 -I\n")
        assert f'sys.path.insert(0, "/{MODULES}")' in text
    assert (root / "etc/kdump-service.conf.d").is_dir()
    assert (root / MODULES / "kdump_service/__pycache__").is_dir()


def test_programs_run_what_was_installed_with_them(root: Path) -> None:
    """And no other copy, though it is found first."""
    program.stage(root, f"{root}/modules".lstrip("/"), program.Python((3, 11), f"{root}/modules", (), ()))
    # The folder of modules is absolute, and lies in the root here.
    (root / str(root).lstrip("/") / "modules").rename(root / "modules")
    other = root / "other/kdump_service"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    before = f"import sys\nsys.path.insert(0, {str(other.parent)!r})\n"
    launcher = (root / "usr/bin/kdump-service").read_text().partition("\n")[2]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            before + launcher,
            "--version",
        ],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
    )
    assert done.stdout.startswith("kdump-service ")


def test_what_is_installed_can_be_checked_and_goes_again(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/hostname").write_text("mine\n")
    program.install(root, PYTHON)
    lines = (root / program.NOTE).read_text().replace("  /", f"  {root}/")
    subprocess.run(["sha256sum", "--check", "--quiet"], input=lines, text=True, check=True)
    program.install(root, PYTHON)  # twice is as once
    program.uninstall(root, PYTHON)
    assert _all_files(root) == {"etc/hostname"}
    assert not list(root.rglob("*kdump*"))


def test_configuration_that_was_edited_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.install(root, PYTHON)
    new = (root / CONFIGURATION).read_text()
    (root / CONFIGURATION).write_text("[Dump]\nContents=log\n")
    (root / "etc/kdump-service.conf.d/10-mine.conf").write_text("[Dump]\nContents=user\n")
    program.install(root, PYTHON)
    assert (root / CONFIGURATION).read_text() == "[Dump]\nContents=log\n"
    assert (root / f"{CONFIGURATION}.new").read_text() == new
    assert "was edited, and stays as it is" in capsys.readouterr().out
    program.uninstall(root, PYTHON)
    assert _all_files(root) == {CONFIGURATION, "etc/kdump-service.conf.d/10-mine.conf"}
    assert "was edited, and stays" in capsys.readouterr().out


def test_what_a_newer_version_does_not_have_goes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program.install(root, PYTHON)
    assert (root / "usr/share/zsh/site-functions/_kdumpctl").exists()
    monkeypatch.setattr(program, "FILES", [row for row in program.FILES if "/zsh/" not in row[1]])
    program.install(root, PYTHON)
    assert not (root / "usr/share/zsh/site-functions/_kdumpctl").exists()


@pytest.mark.parametrize("name", ["usr/bin/kdumpctl", "usr/lib/systemd/system/kdump.service"])
def test_files_of_another_kdump_are_named_and_left_alone(root: Path, name: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True)
    path.write_text("# the other one\n")
    with pytest.raises(program.CannotInstall, match="nothing was installed") as refused:
        program.install(root, PYTHON)
    assert str(path) in str(refused.value)
    assert _all_files(root) == {name}
    assert path.read_text() == "# the other one\n"


def test_what_an_earlier_version_installed_without_a_note_is_ours(root: Path) -> None:
    """`make install` kept no note once; each file of ours says that it is ours."""
    program.install(root, PYTHON)
    (root / program.NOTE).unlink()
    program.install(root, PYTHON)
    program.uninstall(root, PYTHON)
    assert _all_files(root) == set()


def test_each_file_says_that_it_is_ours() -> None:
    for file in program.files(MODULES, f"/{MODULES}"):
        assert program.is_ours(file.path, file.content), file.path


def _add_to_note(root: Path, *lines: str) -> None:
    with open(root / program.NOTE, "a") as note:
        note.writelines(f"{line}\n" for line in lines)


@pytest.mark.parametrize("verb", ["install", "uninstall"])
def test_a_note_that_lies_removes_nothing_else(
    root: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """What is removed is what was installed, to the letter, whatever the note has come to say."""
    program.install(root, PYTHON)
    mine = [root / name for name in ("root/mine", "usr/bin/mine", "etc/mine")]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine\n")
    right = program.sha256_of(mine[0])
    _add_to_note(
        root,
        "damaged",
        "",
        f"0  /{MODULES}/x",
        f"{right}  /usr/../root/mine",
        f"{right}  /../root/root/mine",
        f"{right}  //root/mine",
        f"{'0' * 64}  /usr/bin/mine",
        f"{'0' * 64}  /etc/mine",
        "\0\ufffd",
    )
    getattr(program, verb)(root, PYTHON)
    assert [path.read_text() for path in mine] == 3 * ["mine\n"]
    said = capsys.readouterr()
    assert said.err.count("is no line of it") == 7
    if verb == "uninstall":
        assert f"{root}/usr/bin/mine was edited, and stays" in said.out
        assert _all_files(root) == {"root/mine", "usr/bin/mine", "etc/mine"}


def test_a_note_of_which_nothing_is_left(root: Path) -> None:
    program.install(root, PYTHON)
    (root / program.NOTE).write_bytes(b"\xff\0" * 100)
    with pytest.raises(program.CannotInstall, match="does not exist or is damaged"):
        program.uninstall(root, PYTHON)
    program.install(root, PYTHON)
    program.uninstall(root, PYTHON)
    assert _all_files(root) == set()


def test_what_was_edited_or_replaced_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A unit that an administrator has edited, a program that another package has put there meanwhile."""
    program.install(root, PYTHON)
    unit, other = root / "usr/lib/systemd/system/kdump.service", root / "usr/bin/kdumpctl"
    unit.write_text("# edited\n")
    other.unlink()
    other.symlink_to("../sbin/kdumpctl")
    program.uninstall(root, PYTHON)
    assert _all_files(root) == {"usr/lib/systemd/system/kdump.service", "usr/bin/kdumpctl"}
    assert capsys.readouterr().out.count("was edited, and stays") == 2


@pytest.mark.parametrize("link", [f"{MODULES}/kdump_service", f"{MODULES}/kdump_service/arm"])
def test_nothing_is_written_through_a_link(root: Path, tmp_path: Path, link: str) -> None:
    """As who develops the project has one, to the sources."""
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "__init__.py").write_text("work\n")
    (root / link).parent.mkdir(parents=True)
    (root / link).symlink_to(sources)
    with pytest.raises(program.CannotInstall, match=f"{link}, a link to {sources}"):
        program.install(root, PYTHON)
    assert _all_files(root) == {link}
    assert (sources / "__init__.py").read_text() == "work\n"


def test_configuration_that_is_a_link_stays_one(root: Path) -> None:
    program.install(root, PYTHON)
    kept = root / "srv/kdump-service.conf"
    kept.parent.mkdir()
    (root / CONFIGURATION).rename(kept)
    (root / CONFIGURATION).symlink_to(kept)
    program.install(root, PYTHON)
    assert (root / CONFIGURATION).readlink() == kept
    program.uninstall(root, PYTHON)
    assert kept.exists()


@pytest.mark.parametrize("count", [0, 1, 40, 150])
def test_interrupted_can_be_repeated_or_taken_away(
    root: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """By a full disk, after so many files: the first, the note, is written when nothing else is."""
    put = program.put
    done: list[object] = []

    def put_until_full(where: Path, file: object) -> None:
        if len(done) == count:
            raise OSError(errno.ENOSPC, "No space left on device", str(where))
        done.append(file)
        put(where, file)

    with monkeypatch.context() as patch:
        patch.setattr(program, "put", put_until_full)
        with pytest.raises(OSError, match="No space left"):
            program.install(root, PYTHON)
    if count:
        assert len(_all_files(root)) == count
        program.uninstall(root, PYTHON)
    assert _all_files(root) == set()
    program.install(root, PYTHON)
    program.uninstall(root, PYTHON)
    assert not list(root.rglob("*kdump*"))


def test_upgrade_that_was_interrupted_knows_both_versions(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.install(root, PYTHON)
    old = (root / "usr/bin/kdumpctl").read_bytes()
    files = list(program.files(MODULES, f"/{MODULES}"))
    newer = [program.replace(file, content=file.content + b"# newer\n") for file in files]
    monkeypatch.setattr(program, "files", lambda *of: iter(newer))
    with monkeypatch.context() as patch:
        patch.setattr(program, "put_links_and_folders", lambda root: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            program.install(root, PYTHON)
    (root / "usr/bin/kdumpctl").write_bytes(old)  # as if it had not come to it
    program.uninstall(root, PYTHON)
    assert _all_files(root) == set()


def test_links_of_ours_whose_unit_is_gone(root: Path) -> None:
    program.install(root, PYTHON)
    (root / "usr/lib/systemd/system/kdump-capture.service").unlink()
    (root / program.NOTE).unlink()
    program.install(root, PYTHON)
    assert (root / "usr/lib/systemd/system/kdump-capture.service").exists()


def test_folders_are_for_everybody(root: Path) -> None:
    """Whatever the umask was the first time."""
    before = os.umask(0o077)
    try:
        program.install(root, PYTHON)
    finally:
        os.umask(before)
    program.install(root, PYTHON)
    for folder in ("kdump_service", "kdump_service/arm"):
        assert (root / MODULES / folder).stat().st_mode & 0o777 == 0o755


def test_a_program_that_is_not_there_stops_nothing(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    program.run("/nonexistent/kdump-service", "unreserve")
    program.run("false")
    said = capsys.readouterr().err
    assert "/nonexistent/kdump-service" in said
    assert "'false'" in said


@pytest.mark.parametrize(
    ("package", "status", "verb", "why"),
    [
        ("kdump-service", "installed", "install", "whose files this would replace"),
        ("kdump-service", "half-installed", "install", "whose files this would replace"),
        ("kdump-service", "config-files", "install", "dpkg --purge kdump-service"),
        ("kdump-service", "unpacked", "uninstall", "remove that"),
        ("kdump-tools", "installed", "install", "kdump-tools is installed, which does the same"),
    ],
)
def test_packages_in_the_way(
    root: Path, monkeypatch: pytest.MonkeyPatch, package: str, status: str, verb: str, why: str
) -> None:
    """What dpkg says of them is tried on machines, in tests/vm."""
    monkeypatch.setattr(program, "MACHINE", root)
    monkeypatch.setattr(program, "status_of", lambda name: status if name == package else "")
    with pytest.raises(program.CannotInstall, match=why):
        getattr(program, verb)(root, PYTHON)
    assert _all_files(root) == set()


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="dpkg is not installed")
def test_the_status_of_packages() -> None:
    assert (program.status_of("dpkg"), program.status_of("no-such-package")) == ("installed", "")


def test_uninstall_is_of_this_machine() -> None:
    """`make uninstall DESTDIR=...` must not be what `make uninstall` is."""
    done = subprocess.run(
        ["make", "--silent", "--dry-run", "uninstall", "DESTDIR=/a b"],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    command = shlex.split(done.stdout)
    assert command[-1] == "--destdir=/a b"
    refused = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "uninstall is for this machine alone" in refused.stderr


def test_nothing_to_uninstall(root: Path) -> None:
    with pytest.raises(program.CannotInstall, match="nothing is known of an installation by make install"):
        program.uninstall(root, PYTHON)


@pytest.mark.parametrize(
    ("python", "why"),
    [
        (program.Python((3, 10), f"/{MODULES}", (f"/{MODULES}",), ()), "3.10, and 3.11 is needed"),
        (program.Python((3, 11), "/usr/elsewhere", (f"/{MODULES}",), ()), "would not find its modules"),
    ],
)
def test_an_interpreter_that_does_not_serve(root: Path, python: object, why: str) -> None:
    with pytest.raises(program.CannotInstall, match=why):
        program.install(root, python)
    assert _all_files(root) == set()


def test_what_is_missing_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program.install(root, program.Python((3, 11), f"/{MODULES}", (f"/{MODULES}",), ("lz4", "dbus_next")))
    assert "apt install python3-lz4 python3-dbus-next" in capsys.readouterr().out


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="dpkg is not installed")
def test_whose_files_are() -> None:
    """Asked of dpkg at once, in the words that it knows: with and without /usr."""
    assert program.owners(["/usr/bin/dpkg", "/usr/bin/nothing-of-this-name", "/usr/bin/mount"]) == {
        "/usr/bin/dpkg": "dpkg",
        "/usr/bin/mount": "mount",
    }
