# SPDX-License-Identifier: LGPL-2.1-or-later
"""What production hands to the capture boot comes through whole, and what is damaged costs nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest

from kdump_service.capture.settings import read_capture_settings
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.config import Config
from kdump_service.settings import SETTINGS, Setting

ALL = CaptureSettings(
    boot_id="0123",
    host="here",
    armed_identity="abcd",
    armed_uptime_seconds=12.5,
    config=Config(contents="log", keep_free_bytes=100 << 20, target="/srv/crash"),
    target_folder="/kdump/target/crash",
    target_mount_point="/kdump/target",
    fallback_folder="/kdump/state/crash",
    fallback_mount_point="/kdump/state",
    small_image=True,
)
HANDED_OVER = [field.name for field in dataclasses.fields(ALL) if field.name != "problems"]


def test_all_of_it_comes_through() -> None:
    assert not [name for name in HANDED_OVER if getattr(ALL, name) == getattr(CaptureSettings(), name)]
    assert CaptureSettings.from_json(ALL.to_json()) == ALL
    assert CaptureSettings.from_json(ALL.to_json(indent=2)) == ALL
    assert CaptureSettings.from_json(CaptureSettings().to_json()) == CaptureSettings()


def test_what_is_written_is_what_versions_before_read() -> None:
    """Their image stays armed until another one is built. Places that are not known have no key."""
    assert set(json.loads(ALL.to_json())) == {"schema", *HANDED_OVER}
    unknown = {
        "small_image",
        "target_folder",
        "target_mount_point",
        "fallback_folder",
        "fallback_mount_point",
    }
    assert set(json.loads(CaptureSettings().to_json())) == {"schema", *HANDED_OVER} - unknown
    assert json.loads(ALL.to_json())["schema"] == 1


_NO_NAMES: list[object] = [None, True, 7, -1.5, float("nan"), 1 << 80, [], {}, ["x"], "x" * 65, "x" * 100_000]
_NO_PLACES: list[object] = [
    *_NO_NAMES,
    "x",
    "./x",
    " /x",
    "/x\0y",
    "/\ud800",
    "/" + "x" * 4095,
    "/" + "\u00e9" * 2048,
]
_NO_DURATIONS: list[object] = [
    None, True, "4", [], {}, -1, -0.5, 1 << 33, 1 << 80, 1e300, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
_NO_FLAGS: list[object] = [None, 0, 1, 1.0, "", "true", [], {}, float("nan")]
_NO_CONFIGS: list[object] = [None, True, 7, float("nan"), "", "contents", [], [{}]]
UNUSABLE = {
    **dict.fromkeys(("boot_id", "host", "armed_identity"), _NO_NAMES),
    **dict.fromkeys(
        ("target_folder", "target_mount_point", "fallback_folder", "fallback_mount_point"), _NO_PLACES
    ),
    "armed_uptime_seconds": _NO_DURATIONS,
    "small_image": _NO_FLAGS,
    "config": _NO_CONFIGS,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}-{value!r:.20}")
        for name, values in UNUSABLE.items()
        for value in values
    ],
)
def test_a_value_that_cannot_be_used_costs_that_value_alone_and_is_told(name: str, value: object) -> None:
    found = CaptureSettings.from_json(json.dumps({**json.loads(ALL.to_json()), name: value}))
    [problem] = found.problems
    assert problem.startswith(f"{name}: ")
    assert len(problem) < 200  # it goes into the record
    expected = dataclasses.replace(ALL, **{name: getattr(CaptureSettings(), name)})
    assert dataclasses.replace(found, problems=()) == expected


def test_each_field_was_damaged() -> None:
    assert set(UNUSABLE) == set(HANDED_OVER)


@pytest.mark.parametrize("name", HANDED_OVER)
def test_a_value_that_is_missing_is_of_an_older_version(name: str) -> None:
    document = json.loads(ALL.to_json())
    del document[name]
    found = CaptureSettings.from_json(json.dumps(document))
    expected = dataclasses.replace(ALL, **{name: getattr(CaptureSettings(), name)})
    assert dataclasses.replace(found, problems=()) == expected
    # All versions have handed over the configuration.
    assert bool(found.problems) == (name == "config")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", ""), ("host", "x" * 64), ("host", "h\u00f6st"),
        ("target_folder", ""), ("target_folder", "/"),
        ("target_folder", "/" + "x" * 4094), ("target_mount_point", "/a b"), ("target_folder", "/\udcff"),
        ("armed_uptime_seconds", 0), ("armed_uptime_seconds", 7), ("armed_uptime_seconds", 1 << 32),
        ("small_image", False),
    ],
)  # fmt: skip
def test_a_value_at_its_limit_is_used(name: str, value: Any) -> None:
    found = CaptureSettings.from_json(json.dumps({**json.loads(ALL.to_json()), name: value}))
    assert found == dataclasses.replace(ALL, **{name: value})
    assert type(getattr(found, name)) is type(getattr(ALL, name))


@pytest.mark.parametrize("value", [None, True, 0, -1, 1.0, 2, 7, 1 << 80, "1", [], {}])
def test_a_schema_that_is_not_known_is_told(value: object) -> None:
    found = CaptureSettings.from_json(json.dumps({**json.loads(ALL.to_json()), "schema": value}))
    [problem] = found.problems
    assert "is not known" in problem
    assert dataclasses.replace(found, problems=()) == ALL


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.key for setting in SETTINGS])
@pytest.mark.parametrize(
    "value", [None, True, -7, 1.5, float("nan"), 1 << 80, [], {}, "\0", "\ud800", "x" * 100_000],
    ids=lambda value: f"{value!r:.9}",
)  # fmt: skip
def test_a_damaged_setting_costs_no_other(setting: Setting, value: object) -> None:
    document = json.loads(ALL.to_json())
    document["config"][setting.attribute] = value
    found = CaptureSettings.from_json(json.dumps(document))
    told = getattr(found.config, setting.attribute)
    assert type(told) is type(setting.default)
    assert told == value or found.problems
    same = {setting.attribute: getattr(ALL.config, setting.attribute)}
    assert dataclasses.replace(found.config, **same) == ALL.config
    assert dataclasses.replace(found, config=ALL.config, problems=()) == ALL


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", "{" * 100_000, "[" * 100_000, '{"a": 1}x', "\0"]
)
def test_what_is_no_document(text: str) -> None:
    found = CaptureSettings.from_json(text)
    [problem] = found.problems
    assert "defaults are used" in problem
    assert dataclasses.replace(found, problems=()) == CaptureSettings()


def test_what_a_newer_version_adds_is_passed_over() -> None:
    document = {**json.loads(ALL.to_json()), "targets": [1, 2], "problems": ["not handed over"]}
    assert CaptureSettings.from_json(json.dumps(document)) == ALL


def test_a_setting_that_cannot_be_used_is_told() -> None:
    document = json.loads(ALL.to_json())
    document["config"]["contents"] = "nonsense"
    found = CaptureSettings.from_json(json.dumps(document))
    assert found.config == dataclasses.replace(ALL.config, contents="kernel")
    assert "Contents=" in found.problems[0]


# The file


def _put(root: Path, content: bytes) -> Path:
    path = root / CAPTURE_SETTINGS_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_the_file_is_read(tmp_path: Path) -> None:
    _put(tmp_path, ALL.to_json().encode())
    assert read_capture_settings(tmp_path) == ALL


WHOLE = ALL.to_json().encode()


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\0" * 4096, WHOLE[:-1], WHOLE[: len(WHOLE) // 2],
        b"\xff" + WHOLE, WHOLE.replace(b"here", b"h\xe9re"), b"[" * (1 << 20),
    ],
    ids=["empty", "zeros", "truncated", "half", "no-utf-8", "latin-1", "deep"],
)  # fmt: skip
def test_a_damaged_file_gives_defaults_and_says_so(tmp_path: Path, content: bytes) -> None:
    path = _put(tmp_path, content)
    found = read_capture_settings(tmp_path)
    [problem] = found.problems
    assert problem.startswith(f"{path}: ") and problem.endswith("; defaults are used")
    assert dataclasses.replace(found, problems=()) == CaptureSettings()


def test_what_is_no_file_gives_defaults_and_says_so(tmp_path: Path) -> None:
    found = read_capture_settings(tmp_path)
    assert "No such file" in found.problems[0]
    (tmp_path / CAPTURE_SETTINGS_FILE).mkdir(parents=True)
    found = read_capture_settings(tmp_path)
    assert "Is a directory" in found.problems[0]


def test_a_huge_file_does_not_take_the_memory(tmp_path: Path) -> None:
    """Of 8 TiB, most of it a hole: whoever reads it whole gets a MemoryError."""
    path = _put(tmp_path, WHOLE)
    os.truncate(path, 8 << 40)
    found = read_capture_settings(tmp_path)
    assert dataclasses.replace(found, problems=()) == CaptureSettings()
    assert found.problems


def test_problems_name_file_and_field(tmp_path: Path) -> None:
    path = _put(tmp_path, WHOLE.replace(b'"host": "here"', b'"host": 7'))
    assert read_capture_settings(tmp_path).problems == (
        f"{path}: host: 7 is not a text of at most 64 characters; the default is used",
    )
