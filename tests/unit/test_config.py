# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kdump_service.config import Config, read_config, read_config_files
from kdump_service.settings import SETTINGS, SETTINGS_BY_KEY, Setting, example_file

REPOSITORY = Path(__file__).parents[2]


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_no_files_give_the_defaults(tmp_path: Path) -> None:
    assert read_config(tmp_path) == (Config(), [])


def test_table_and_dataclass_are_the_same() -> None:
    assert [setting.attribute for setting in SETTINGS] == [field.name for field in dataclasses.fields(Config)]
    for setting in SETTINGS:
        assert getattr(Config(), setting.attribute) == setting.default
        assert setting.help.endswith(".")


def test_files_merge_as_in_systemd(tmp_path: Path) -> None:
    _write(tmp_path, "etc/kdump-service.conf", "[Target]\nTarget=/main\n[Dump]\nCompression=zlib\n")
    _write(tmp_path, "usr/lib/kdump-service.conf.d/50-vendor.conf", "[Target]\nTarget=/vendor\n")
    _write(tmp_path, "run/kdump-service.conf.d/60-run.conf", "[Store]\nKeepFree=1G\n")
    config, errors = read_config(tmp_path)
    assert errors == []
    assert (config.target, config.compression, config.keep_free_bytes) == ("/vendor", "zlib", 1 << 30)


def test_a_name_in_etc_hides_the_same_name_elsewhere(tmp_path: Path) -> None:
    _write(tmp_path, "usr/lib/kdump-service.conf.d/50.conf", "[Target]\nTarget=/vendor\n")
    (tmp_path / "etc/kdump-service.conf.d").mkdir(parents=True)
    (tmp_path / "etc/kdump-service.conf.d/50.conf").symlink_to("/dev/null")
    assert read_config(tmp_path) == (Config(), [])


def test_later_lines_win_lists_add_up_and_empty_resets(tmp_path: Path) -> None:
    _write(
        tmp_path,
        "etc/kdump-service.conf",
        '[Kernel]\nCommandLineAppend=one\nCommandLineAppend=two="a b"\n'
        "CommandLineRemove=x\nCommandLineRemove=\nCommandLineRemove=y\n"
        "[Target]\nTarget=/a\nTarget=file:///b\n[Dump]\nCompression=zlib\nCompression=\n",
    )
    config, errors = read_config(tmp_path)
    assert errors == []
    assert config.command_line_append == 'one two="a b"'
    assert config.command_line_remove == "y"
    assert (config.target, config.compression) == ("/b", "auto")


def test_each_key_knows_the_line_that_set_it(tmp_path: Path) -> None:
    _write(tmp_path, "etc/kdump-service.conf", "[Target]\nTarget=/main\n[Dump]\nThreads=2\nContents=no\n")
    _write(tmp_path, "run/kdump-service.conf.d/60.conf", "# comment\n[Target]\nTarget=\n")
    files = read_config_files(tmp_path)
    assert files.origins == {
        "Target": "/run/kdump-service.conf.d/60.conf:3",
        "Threads": "/etc/kdump-service.conf:4",
    }


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("30d", 2592000), ("1h 30min", 5400), ("2w", 1209600), ("5 min", 300), ("7s", 7)],
)
def test_time_spans(tmp_path: Path, text: str, seconds: int) -> None:
    _write(tmp_path, "etc/kdump-service.conf", f"[Store]\nMaxAgeSec={text}\n")
    assert read_config(tmp_path) == (Config(max_age_sec=seconds), [])


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_a_row_is_one_piece(setting: Setting) -> None:
    assert setting.to_value(setting.to_text(setting.default)) == setting.default
    assert {"s": str, "i": int, "u": int, "t": int}[setting.signature] is type(setting.default)
    for word in setting.allowed:
        assert setting.to_text(word) == word
    for number in (setting.minimum, setting.maximum):
        if number is not None:
            assert setting.to_value(setting.to_text(number)) == number
    assert (setting.minimum is None) == (setting.signature == "s")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("Target", "/srv//crash/", "/srv/crash"),
        ("Target", " file:///srv ", "/srv"),
        ("CommandLineAppend", "  a   b ", "a b"),
        ("Kernel", "", ""),
        ("DumpLevel", -1, "-1"),
        ("MaxAgeSec", 86400, "86400"),
    ],
)
def test_values_become_text(key: str, value: Any, expected: str) -> None:
    assert SETTINGS_BY_KEY[key].to_text(value) == expected


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("Target", "", "'' is not an absolute path"),
        ("Contents", "", "'' is not one of"),
        ("CommandLineAppend", "a\nTarget=/x", "contains a control character"),
        ("CommandLineAppend", "a\u2028b", "contains a control character"),
        ("Kernel", "/boot/x\\", "ends with a backslash"),
        ("Threads", True, "True is not of type int"),
        ("Threads", 1025, "1025 is not between"),
        ("Target", 1, "1 is not of type str"),
    ],
)
def test_values_that_no_file_can_hold(key: str, value: Any, why: str) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        SETTINGS_BY_KEY[key].to_text(value)


def test_comments_and_continued_lines(tmp_path: Path) -> None:
    text = "# a\n; b\n\n[Kernel]\nCommandLineAppend=one \\\n# in between\n   two\n"
    _write(tmp_path, "etc/kdump-service.conf", text)
    config, errors = read_config(tmp_path)
    assert (config.command_line_append, errors) == ("one two", [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Target=/x", ":1: 'Target=/x': stands before the first [Section]"),
        ("[Target\nTarget=/x", ":1: '[Target': a section is written [Name]"),
        ("[Target]\nTarget", ":2: 'Target': neither Key=value nor [Section]"),
        ("[Target]\nTarget=crash", ":2: Target=: 'crash' is not an absolute path"),
        ("[Target]\nTarget=/", ":2: Target=: the root folder itself is no target"),
        ("[Target]\nTarget=/var/../etc", ":2: Target=: '/var/../etc' must not contain '..'"),
        ("[Target]\nTarget=nfs://host/x", ":2: Target=: nfs:// targets are not supported"),
        ("[Dump]\nCompresion=lz4", ":2: Compresion=: unknown setting; [Dump] has Contents=, DumpLevel="),
        ("[Dump]\nDumpLevel=32", ":2: DumpLevel=: 32 is not between -1 and 31"),
        ("[Dump]\nDumpLevel=all", ":2: DumpLevel=: 'all' is not a whole number"),
        ("[Dump]\nThreads=-1", ":2: Threads=: -1 is not between 0 and 1024"),
        ("[Store]\nMaxUse=99999999T", ":2: MaxUse=: 109951161678088372224 is not between 0 and 9223372036"),
        ("[Store]\nMaxAgeSec=1y", ":2: MaxAgeSec=: '1y' is not a time span"),
        ("[Store]\nMaxAgeSec=d", ":2: MaxAgeSec=: 'd' is not a time span"),
        ("[Store]\nMaxDumps=many", ":2: MaxDumps=: 'many' is not a whole number"),
        ("[Action]\nCrashLoopLimit=-1", ":2: CrashLoopLimit=: -1 is not between 0 and 1000"),
        ("[Kernel]\nKernel=/a\tb", ":2: Kernel=: '/a\\tb' contains a control character"),
        (f"[Image]\nImage=/{'x' * 4096}", ":2: Image=: a path of 4097 bytes is too long"),
        ("[Dump]\nContents=all", ":2: Contents=: 'all' is not one of log, kernel, user, everything"),
        ("[Dmup]\nCompression=lz4", ":2: Compression=: unknown setting; there is no section [Dmup]"),
        ("[Store]\nKeepFree=10%", ":2: KeepFree=: '10%' is not a size"),
        ("[Store]\nKeepFree=-1", ":2: KeepFree=: '-1' is not a size"),
        ("[Action]\nOnSuccess=explode", ":2: OnSuccess=: 'explode' is not one of reboot, poweroff, halt"),
        ('[Kernel]\nCommandLineAppend=a="b', ":2: CommandLineAppend=: 'a=\"b' has an opening quotation mark"),
        (
            "[Kernel]\nCommandLineAppend=a\x07b",
            ":2: CommandLineAppend=: 'a\\x07b' contains a control character",
        ),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, text: str, expected: str) -> None:
    _write(tmp_path, "etc/kdump-service.conf", text + "\n[Image]\nImage=/good\n")
    config, errors = read_config(tmp_path)
    assert str(errors[0]).startswith("/etc/kdump-service.conf" + expected)
    assert config.image == "/good"  # the other lines are used


def test_binary_garbage_and_unreadable_files_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "etc/kdump-service.conf"
    path.parent.mkdir()
    path.write_bytes(b"[Kernel]\n\xff\xfe")
    assert "not a text file in UTF-8: byte 9" in str(read_config(tmp_path)[1][0])
    path.unlink()
    path.mkdir()
    assert "cannot be read" in str(read_config(tmp_path)[1][0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Compression=lz4", "format kdump cannot be compressed with lz4, only with zstd, zlib, none"),
        ("Format=elf\nCompression=zstd", "format elf cannot be compressed with zstd, only with none, lz4"),
        ("Compression=zlib\nCompressionLevel=12", "zlib has levels from 1 to 9, not 12"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, text: str, expected: str) -> None:
    _write(tmp_path, "etc/kdump-service.conf", f"[Dump]\n{text}\n")
    config, errors = read_config(tmp_path)
    assert [str(error) for error in errors] == [f"[Dump]: {expected}"]
    assert (config.compression, config.compression_level) == ("auto", 0)


@pytest.mark.parametrize(
    ("settings", "level"),
    [({}, 31), ({"contents": "log"}, None), ({"contents": "user"}, 23), ({"dump_level": 0}, 0)],
)
def test_contents_are_dump_levels(settings: dict[str, Any], level: int | None) -> None:
    assert Config(**settings).level == level


def test_json_round_trip_is_pinned() -> None:
    config = Config(
        target="/t",
        format="elf",
        compression="lz4",
        dump_level=17,
        keep_free_bytes=5,
        command_line_append="a b",
    )
    document = json.loads(json.dumps(config.to_json()))
    assert document["keep_free_bytes"] == 5
    assert Config.from_json(document) == (config, [])


def test_json_of_the_first_version_is_read() -> None:
    document = {"dump_level": "", "compression_level": "", "threads": "", "target": "/t"}
    assert Config.from_json(document) == (Config(target="/t"), [])
    document = {"dump_level": "17", "compression_level": "3", "threads": "2"}
    assert Config.from_json(document) == (Config(dump_level=17, compression_level=3, threads=2), [])


@pytest.mark.parametrize(
    ("document", "word"),
    [
        ({"target": 3}, "Target="),
        ({"target": "relative"}, "Target="),
        ({"keep_free_bytes": True}, "KeepFree="),
        ({"keep_free_bytes": -1}, "KeepFree="),
        ({"on_success": "explode"}, "OnSuccess="),
        ({"dump_level": "much"}, "DumpLevel="),
        ({"threads": 1.5}, "Threads="),
    ],
)
def test_json_forgives_with_the_default(document: dict[str, object], word: str) -> None:
    config, problems = Config.from_json(document | {"future_setting": 1})
    assert config == Config()
    assert len(problems) == 1
    assert problems[0].startswith(word)


def test_shipped_example_is_the_table() -> None:
    shipped = REPOSITORY / "packaging/kdump-service.conf"
    assert shipped.read_text() == example_file()


def test_example_uncommented_is_valid(tmp_path: Path) -> None:
    text = re.sub(r"^#(\w+=)", r"\1", example_file(), flags=re.MULTILINE)
    _write(tmp_path, "etc/kdump-service.conf", text)
    assert read_config(tmp_path) == (Config(), [])


def test_man_page_has_every_setting() -> None:
    page = (REPOSITORY / "packaging/man/kdump-service.conf.5").read_text()
    assert re.findall(r"^\.It Li (\w+)=$", page, re.MULTILINE) == [setting.key for setting in SETTINGS]
    assert re.findall(r"^\.Ss \[(\w+)\]$", page, re.MULTILINE) == list(
        dict.fromkeys(s.section for s in SETTINGS)
    )
