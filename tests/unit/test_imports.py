# SPDX-License-Identifier: LGPL-2.1-or-later
"""Imports run one way: the table of CONTRIBUTING.md, held against the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "kdump_service"

BASE = {"errors", "quantity", "folders", "atomic_file"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "quantity": set(),
    "folders": set(),
    "atomic_file": set(),
    "log": {"errors"},
    "process": {"errors"},
    "settings": {*BASE, "dump_options"},
    "config": {*BASE, "dump_options", "settings"},
    "capture_settings": {*BASE, "config"},
    "drop_in": {*BASE, "config", "settings"},
    "record": BASE,
    "kernel": BASE,
    "dump_options": {"errors"},
    "pfn": {"errors"},
    "vmcore": {"errors", "pfn"},
    "filtering": {"errors", "pfn", "vmcore"},
    "dumpfile": {"errors", "dump_options", "pfn", "vmcore"},
    "engine": {"errors", "dump_options", "pfn", "vmcore", "filtering", "dumpfile", "targets"},
    "targets": {*BASE, "process"},
    "own_state": {"atomic_file"},
    "unit_exchange": {"errors", "log", "atomic_file"},
    "file_identity": {"errors", "folders", "own_state"},
    "image": {*BASE, "log", "config", "process", "kernel", "file_identity"},
    "arm": {*BASE, "log", "config", "capture_settings", "process", "kernel", "image", "file_identity"},
    "reserve": {*BASE, "log", "process", "kernel", "unit_exchange"},
    "rehearse": {*BASE, "log", "config", "capture_settings", "record", "process", "kernel", "image", "arm"},
    "store": {*BASE, "log", "record"},
    "capture": {
        *BASE,
        *("log", "config", "capture_settings", "record", "process", "kernel", "dump_options"),
        *("vmcore", "dumpfile", "engine", "targets"),
    },
    "service": {
        *BASE,
        *("log", "config", "drop_in", "record", "own_state", "process", "kernel", "settings"),
        *("image", "arm", "store", "reserve", "rehearse", "unit_exchange", "file_identity"),
    },
    "bus": {"errors", "log", "config", "settings", "service", "store"},
    "ctl": {*BASE, "dump_options", "record", "vmcore", "dumpfile", "engine", "bus"},
    "daemon": {*BASE, "log", "config", "kernel", "arm", "service", "bus", "store"},
    "__main__": {"daemon", "capture", "service", "image", "reserve", "rehearse"},
}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room != "__init__":
            yield path, room


def test_every_room_is_in_the_table() -> None:
    assert {room for _, room in _modules()} == set(MAY_IMPORT)


def test_imports_run_one_way() -> None:
    wrong = []
    for path, room in _modules():
        for name in _imports(path):
            if name.startswith("kdump_service."):
                other = name.split(".")[1]
                if other not in MAY_IMPORT[room] | {room, "__version__"}:
                    wrong.append(f"{path.relative_to(PACKAGE)} imports {name}")
    assert wrong == []


def test_one_door_to_each_thing() -> None:
    doors = {"subprocess": {"process"}, "ctypes": {"kernel"}, "dbus_next": {"bus"}}
    for path, room in _modules():
        for name in _imports(path):
            allowed = doors.get(name.split(".")[0])
            assert allowed is None or room in allowed, f"{path.relative_to(PACKAGE)} imports {name}"


def test_broad_excepts_are_at_the_edges() -> None:
    found = set()
    for path, _ in _modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                kind = ast.unparse(node.type) if node.type else ""
                if kind in ("", "Exception", "BaseException"):
                    found.add(str(path.relative_to(PACKAGE)))
    assert found == {
        *(
            "bus/connection.py",
            "bus/objects.py",
            "bus/server.py",
            "service/control.py",
            "capture/stages.py",
            "capture/children.py",
        ),
        # What opens a file closes it again, whatever ends the opening.
        *("vmcore/reader.py", "engine/convert.py"),
        "engine/workers.py",
    }


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        # Until the log is saved.
        ("capture.main", {"asyncio", "dbus_next", "numpy", "elftools", "lz4", "zstandard"}),
        ("daemon", {"numpy", "lz4", "zstandard"}),
        ("ctl.main", {"asyncio", "dbus_next", "numpy", "lz4", "zstandard"}),
    ],
)
def test_what_is_heavy_is_loaded_only_where_it_serves(module: str, absent: set[str]) -> None:
    code = f"import sys, kdump_service.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint(absent)


def test_no_package_where_a_library_has_its_name() -> None:
    for folder in ("dbus", "packaging"):
        assert not (PACKAGE.parent / folder / "__init__.py").exists()
