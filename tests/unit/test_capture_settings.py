# SPDX-License-Identifier: LGPL-2.1-or-later
"""What production hands to the capture boot comes through whole, and what is damaged costs nothing else."""

import dataclasses
import json
from typing import Any

import pytest

from kdump_service.capture_settings import CaptureSettings
from kdump_service.config import Config

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


@pytest.mark.parametrize(
    "value", [None, True, 7, -1.5, 1e400, float("nan"), 1 << 80, [], {}, ["/x"], "\ud800"]
)
@pytest.mark.parametrize("name", HANDED_OVER)
def test_a_value_that_cannot_be_used_costs_that_value_alone(name: str, value: Any) -> None:
    document = json.loads(ALL.to_json())
    document[name] = value
    found = CaptureSettings.from_json(json.dumps(document))
    for other in HANDED_OVER:
        if other != name:
            assert getattr(found, other) == getattr(ALL, other)
    # What comes of it has the type of the field, and a duration is one.
    assert type(getattr(found, name)) is type(getattr(ALL, name))
    assert 0 <= found.armed_uptime_seconds < 1 << 33


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", "{" * 100_000, "[" * 100_000, '{"a": 1}x', "\0"]
)
def test_what_is_no_document(text: str) -> None:
    found = CaptureSettings.from_json(text)
    [problem] = found.problems
    assert "defaults are used" in problem
    assert dataclasses.replace(found, problems=()) == CaptureSettings()


def test_what_a_newer_version_adds_is_passed_over() -> None:
    document = {**json.loads(ALL.to_json()), "schema": 7, "targets": [1, 2]}
    assert CaptureSettings.from_json(json.dumps(document)) == ALL


def test_a_setting_that_cannot_be_used_is_told() -> None:
    document = json.loads(ALL.to_json())
    document["config"]["contents"] = "nonsense"
    found = CaptureSettings.from_json(json.dumps(document))
    assert found.config == dataclasses.replace(ALL.config, contents="kernel")
    assert "Contents=" in found.problems[0]
