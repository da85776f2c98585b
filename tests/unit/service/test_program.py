# SPDX-License-Identifier: LGPL-2.1-or-later
"""A daemon whose own files were replaced says so. Here it is another process, with a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdump_service
from kdump_service import __version__
from kdump_service.service.checks.program import loaded_modules

PACKAGE = Path(kdump_service.__file__).parent

# Prints what the check finds for each line that comes.
DAEMON = """
import json, sys
import kdump_service.daemon
from kdump_service.service.checks.program import loaded_modules, program_problems
loaded = loaded_modules()
print(len(loaded), flush=True)
for line in sys.stdin:
    print(json.dumps([[each.code, each.what, each.remedy] for each in program_problems(loaded)]), flush=True)
"""


class _Daemon:
    def __init__(self, folder: Path) -> None:
        self.package = folder / "kdump_service"
        shutil.copytree(PACKAGE, self.package, ignore=shutil.ignore_patterns("__pycache__"))
        self._process = subprocess.Popen(
            [sys.executable, "-c", DAEMON],
            cwd=folder,  # which is where -c looks first
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.modules = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def problems(self) -> list[list[str]]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found: list[list[str]] = json.loads(self._line())
        return found

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[_Daemon]:
    started = _Daemon(tmp_path)
    yield started
    started.end()


def _replace(path: Path, text: str) -> None:
    """As dpkg does: another file in its place."""
    new = path.with_name(f"{path.name}.dpkg-new")
    new.write_text(text)
    new.rename(path)


def test_nothing_was_replaced(daemon: _Daemon) -> None:
    assert daemon.modules > 80
    # What it does not run may come and go.
    (daemon.package / "new.py").write_text("")
    (daemon.package / "ctl/main.py").unlink()
    assert daemon.problems() == []


@pytest.mark.parametrize("name", ["__init__.py", "record.py", "service/manager.py"])
def test_any_file_that_it_runs_counts(daemon: _Daemon, name: str) -> None:
    path = daemon.package / name
    stamp = path.stat().st_mtime_ns
    text = path.read_text()
    _replace(path, text[:-1] + " ")
    os.utime(path, ns=(stamp, stamp))  # packages of one version have one time
    [(code, what, remedy)] = daemon.problems()
    assert code == "program-replaced"
    assert str(path) in what
    assert "systemctl restart kdump.service" in remedy


def test_another_version(daemon: _Daemon) -> None:
    path = daemon.package / "__init__.py"
    _replace(path, path.read_text().replace(__version__, "1.2.3~rc1"))
    [(_, what, _)] = daemon.problems()
    assert f"version {__version__} runs, 1.2.3~rc1 is installed" in what


def test_removed(daemon: _Daemon) -> None:
    shutil.rmtree(daemon.package)
    [(_, what, _)] = daemon.problems()
    assert f"version {__version__} runs, nothing is installed" in what


def test_in_this_process() -> None:
    files = {file.path for file in loaded_modules()}
    assert str(PACKAGE / "service/checks/program.py") in files
    assert all(path.startswith(f"{PACKAGE}/") for path in files)
