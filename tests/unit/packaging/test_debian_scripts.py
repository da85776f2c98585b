# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package's maintainer scripts, run below a folder; tests/vm/test_package.py has dpkg run them."""

import re
import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
POSTRM = REPOSITORY / "packaging/debian/kdump-service.postrm"
STATE = "var/lib/kdump-service"
# They stay: dumps, and what tells how the boot loader's configuration was, as long as that is needed.
STAY = {"crash", "reservation.json"}


def _purge(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", POSTRM, "purge"],
        env={"PATH": "/usr/bin:/bin", "DPKG_ROOT": str(root)},
        check=False,
        capture_output=True,
        text=True,
    )


def _tree(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def _names_in_the_sources() -> set[str]:
    """What the sources call the files and folders of the state folder."""
    text = "\n".join(path.read_text() for path in (REPOSITORY / "kdump_service").rglob("*.py"))
    return {*re.findall(rf'"(?:{STATE}|\{{STATE_FOLDER\}})/([\w.-]+)', text)}


def test_purge_knows_all_that_the_program_keeps() -> None:
    match = re.search(r"^STATE='(.*)'$", POSTRM.read_text(), re.MULTILINE)
    assert match is not None
    assert {*match[1].split()} == _names_in_the_sources() - STAY
    assert len(_names_in_the_sources() & STAY) == 2


def test_purge_leaves_nothing(tmp_path: Path) -> None:
    for name in sorted(_names_in_the_sources() - STAY):
        (tmp_path / STATE / name / "within").mkdir(parents=True)
        (tmp_path / STATE / f".{name}.new").touch()
    for name in (f"{STATE}/rehearsal-x1", f"{STATE}/crash", "etc/kdump-service.conf.d", "run/kdump-service"):
        (tmp_path / name).mkdir(parents=True)
    assert _purge(tmp_path).returncode == 0
    assert _tree(tmp_path) == {"etc", "run", "var", "var/lib"}


def test_purge_leaves_what_is_not_the_programs(tmp_path: Path) -> None:
    """Dumps in a target below the state folder, and whatever somebody has put there."""
    for name in ("crash/2026-host/vmcore", "dumps/2026-host/vmcore", "notes", "images.old/x"):
        path = tmp_path / STATE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = _tree(tmp_path)
    (tmp_path / STATE / "images").mkdir()
    assert _purge(tmp_path).returncode == 0
    assert _tree(tmp_path) == before


def test_purge_goes_through_no_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "srv/state"
    (elsewhere / "images").mkdir(parents=True)
    (elsewhere / "crash").symlink_to(tmp_path / "srv")
    (elsewhere / "records").symlink_to(tmp_path / "srv/mine")
    for name in ("srv/mine/record", "srv/settings/a.conf"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/kdump-service.conf.d").symlink_to(tmp_path / "srv/settings")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / STATE).symlink_to(elsewhere)
    assert _purge(tmp_path).returncode == 0
    assert (tmp_path / "srv/mine/record").exists()
    assert (tmp_path / "srv/settings/a.conf").exists()
    assert _tree(elsewhere) == {"crash"}


def test_purge_keeps_the_way_back_while_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / STATE / "reservation.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    done = _purge(tmp_path)
    assert done.returncode == 0
    assert str(path) in done.stderr
    assert path.read_text() == "{}"
