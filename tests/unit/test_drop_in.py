# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdump_service import drop_in
from kdump_service.config import Config, read_config_files
from kdump_service.drop_in import DROP_IN_FILE, DropIn
from kdump_service.errors import ConfigError
from kdump_service.settings import SETTINGS, SETTINGS_BY_KEY


def _set(root: Path, key: str, value: object) -> None:
    setting = SETTINGS_BY_KEY[key]
    DropIn(root).set_value(setting, setting.to_text(value))


def _text(root: Path) -> str:
    return (root / DROP_IN_FILE).read_text()


def test_what_is_set_is_read_back(tmp_path: Path) -> None:
    values = {
        "Target": "/srv/crash",
        "CommandLineAppend": 'a b="c d"',
        "DumpLevel": -1,
        "MaxUse": 0,
        "Contents": "log",
    }
    for key, value in values.items():
        _set(tmp_path, key, value)
    files = read_config_files(tmp_path)
    assert files.errors == []
    for key, value in values.items():
        assert getattr(files.config, SETTINGS_BY_KEY[key].attribute) == value
        assert files.origins[key].startswith(f"/{DROP_IN_FILE}:")
    assert set(files.origins) == set(values)


def test_order_and_sections_are_those_of_the_manual(tmp_path: Path) -> None:
    for setting in reversed(SETTINGS):
        _set(tmp_path, setting.key, setting.default)
    lines = [line for line in _text(tmp_path).splitlines() if line and not line.startswith("#")]
    keys = list(dict.fromkeys(line.partition("=")[0] for line in lines if "=" in line))
    assert keys == [setting.key for setting in SETTINGS]
    assert read_config_files(tmp_path).config == Config()


def test_the_umask_does_not_matter(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        _set(tmp_path, "Contents", "user")
    finally:
        os.umask(before)
    assert (tmp_path / DROP_IN_FILE).stat().st_mode & 0o777 == 0o644
    assert (tmp_path / DROP_IN_FILE).parent.stat().st_mode & 0o777 == 0o755


def test_it_outweighs_the_main_file_also_where_lines_add_up(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/kdump-service.conf").write_text("[Kernel]\nCommandLineAppend=theirs\nKernel=/theirs\n")
    _set(tmp_path, "CommandLineAppend", "ours")
    _set(tmp_path, "Kernel", "")
    config = read_config_files(tmp_path).config
    assert (config.command_line_append, config.kernel) == ("ours", "")


def test_reset_takes_out_one_key_and_at_last_the_file(tmp_path: Path) -> None:
    file = DropIn(tmp_path)
    assert file.content() is None
    assert file.reset_value(SETTINGS_BY_KEY["Contents"]) is False
    _set(tmp_path, "Contents", "user")
    _set(tmp_path, "CommandLineRemove", "x y")
    assert file.reset_value(SETTINGS_BY_KEY["Contents"]) is True
    assert "Contents" not in _text(tmp_path)
    assert "CommandLineRemove=\nCommandLineRemove=x y\n" in _text(tmp_path)
    assert file.reset_value(SETTINGS_BY_KEY["CommandLineRemove"]) is True
    assert file.content() is None


def test_restore_brings_back_every_byte(tmp_path: Path) -> None:
    file = DropIn(tmp_path)
    _set(tmp_path, "Contents", "user")
    (tmp_path / DROP_IN_FILE).write_text("# edited by hand\n[Dump]\nContents = log\n")
    before = file.content()
    _set(tmp_path, "Contents", "user")
    assert _text(tmp_path) != before
    file.restore(before)
    assert _text(tmp_path) == before
    file.restore(None)
    assert file.content() is None


def test_edits_by_hand_are_kept_as_far_as_they_are_settings(tmp_path: Path) -> None:
    path = tmp_path / DROP_IN_FILE
    path.parent.mkdir(parents=True)
    path.write_text(
        "[Dump]\nContents=log\nFormat=odd\nnonsense\nTarget=/wrong-section\n"
        "[Kernel]\nCommandLineAppend=a \\\n  b\nCommandLineAppend=c\n"
    )
    _set(tmp_path, "Threads", 2)
    files = read_config_files(tmp_path)
    assert files.errors == []
    config = files.config
    assert (config.contents, config.format, config.threads) == ("log", "kdump", 2)
    assert config.command_line_append == "a b c"
    assert "Target" not in _text(tmp_path)


@pytest.mark.parametrize("points_to", ["/dev/null", "elsewhere", "missing"])
def test_a_link_is_an_error_and_not_followed(tmp_path: Path, points_to: str) -> None:
    path = tmp_path / DROP_IN_FILE
    path.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").write_text("theirs")
    path.symlink_to(points_to if points_to.startswith("/") else tmp_path / points_to)
    with pytest.raises(ConfigError, match=r"a link to .* stands where the service keeps settings") as caught:
        _set(tmp_path, "Contents", "user")
    assert caught.value.hint == f"Remove it: rm /{DROP_IN_FILE}"
    assert path.is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "theirs"


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / DROP_IN_FILE
    path.mkdir(parents=True)
    with pytest.raises(ConfigError, match="a folder stands where"):
        _set(tmp_path, "Contents", "user")
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match="no regular file stands where"):
        _set(tmp_path, "Contents", "user")


def test_a_read_only_etc_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, text: str, *, mode: int) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(drop_in, "write_atomically", refuse)
    with pytest.raises(
        ConfigError, match=f"^/{DROP_IN_FILE} cannot be written: Read-only file system$"
    ) as caught:
        _set(tmp_path, "Contents", "user")
    assert "/run/kdump-service.conf.d" in caught.value.hint
