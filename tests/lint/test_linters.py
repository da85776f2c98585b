# SPDX-License-Identifier: LGPL-2.1-or-later
"""Linters as tests: what they say is a failure like any other."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kdump_service import __version__

REPOSITORY = Path(__file__).parents[2]
REQUIRE_ALL = os.environ.get("CI") == "true"


def _check(*command: str, **environment: str) -> None:
    program = command[0]
    if shutil.which(program) is None:
        if REQUIRE_ALL:
            pytest.fail(f"{program} is not installed, and must be where CI runs")
        pytest.skip(f"{program} is not installed")
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _shell_scripts() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    paths = [REPOSITORY / name for name in done.stdout.splitlines()]
    return [
        str(path)
        for path in paths
        if path.is_file() and re.match(rb"#!.*\b(ba|da)?sh\b", path.read_bytes()[:80].split(b"\n")[0])
    ]


def test_ruff() -> None:
    _check(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_format() -> None:
    _check(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy() -> None:
    _check(sys.executable, "-m", "mypy")


def test_codespell() -> None:
    _check(str(Path(sys.executable).parent / "codespell"))


def test_shellcheck() -> None:
    _check("shellcheck", *_shell_scripts())


@pytest.mark.parametrize("pattern", ["*.xml", "*.conf", "*.policy"])
def test_xml_is_well_formed(pattern: str) -> None:
    _check("xmllint", "--noout", "--nonet", *map(str, (REPOSITORY / "dbus").glob(pattern)))


@pytest.mark.parametrize("page", sorted(path.name for path in (REPOSITORY / "packaging/man").iterdir()))
def test_man_pages(page: str) -> None:
    # -W style: conventions of each system's own manual are left out, they contradict one another.
    _check("mandoc", "-T", "lint", "-W", "warning", f"packaging/man/{page}")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make install installs."""
    root = tmp_path_factory.mktemp("installed")
    subprocess.run(["make", "--silent", "install", f"DESTDIR={root}"], cwd=REPOSITORY, check=True)
    return root


def test_units_are_valid(installed: Path) -> None:
    folder = installed / "usr/lib/systemd/system"
    units = sorted(path.name for path in folder.glob("kdump*"))
    assert len(units) == 8
    for unit in Path("/usr/lib/systemd/system").iterdir():  # the units that ours name
        if unit.is_file() and not (folder / unit.name).exists():
            shutil.copy(unit, folder)
    _check(
        "systemd-analyze",
        "verify",
        "--man=no",
        f"--root={installed}",
        *(name.replace("@.", "@test.") for name in units),
    )


def test_catalog_compiles(installed: Path) -> None:
    (installed / "var/lib/systemd/catalog").mkdir(parents=True)
    _check("journalctl", "--update-catalog", f"--root={installed}")


def test_installed_modules_are_whole(installed: Path) -> None:
    [package] = installed.glob("usr/**/kdump_service")
    for module in ("kdump_service", "kdump_service.ctl.main"):
        _check(sys.executable, "-m", module, "--version", PYTHONPATH=str(package.parent))


def test_news_has_the_version() -> None:
    assert re.search(rf"^## {re.escape(__version__)}\b", (REPOSITORY / "NEWS.md").read_text(), re.MULTILINE)


def test_every_source_file_names_its_licence() -> None:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    missing = []
    for name in done.stdout.splitlines():
        path = REPOSITORY / name
        if name.startswith("tests/earlier/states/"):  # as the service wrote them
            continue
        if path.suffix in {
            ".py",
            ".c",
            ".service",
            ".target",
            ".xml",
            ".conf",
            ".policy",
            ".catalog",
            ".8",
            ".5",
            ".7",
        }:
            head = path.read_text()[:400]
            if "SPDX-License-Identifier: " not in head and path.name != "kdump-service.conf":
                missing.append(name)
    assert missing == []
