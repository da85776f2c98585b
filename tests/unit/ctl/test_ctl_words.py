# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kdumpctl makes of words: times, matches, values of settings, command lines; and texts of tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kdump_service.bus.client import BusDump
from kdump_service.ctl.dump_list import chosen
from kdump_service.ctl.match import find_each, find_one, select
from kdump_service.ctl.output import json_text, key_value_lines
from kdump_service.ctl.parser import make_parser, parse
from kdump_service.ctl.settings import find_setting, format_value, parse_value
from kdump_service.ctl.table import Cell, Column, render
from kdump_service.ctl.text import Colour, display_width, ellipsized, labelled, printable
from kdump_service.ctl.times import ago, local_time, parse_time
from kdump_service.errors import ConfigError, DumpMissing, InvalidArgument, KdumpError
from tests.builders.time_zone import time_zone

REPOSITORY = Path(__file__).parents[3]
NOW = 1_795_435_200.0  # 2026-11-23 12:00 UTC


@pytest.fixture(autouse=True)
def berlin() -> Iterator[None]:
    """A place that is one hour ahead of UTC in winter, and two in summer."""
    with time_zone("Europe/Berlin"):
        yield


# Times


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("now", NOW),
        ("today", NOW - 13 * 3600),
        ("yesterday", NOW - 37 * 3600),
        ("tomorrow", NOW + 11 * 3600),
        ("@1795435200", NOW),
        ("@1795435200.5", NOW + 0.5),
        ("-1h", NOW - 3600),
        ("-1h 30min", NOW - 5400),
        ("-1h30min", NOW - 5400),
        ("+2d", NOW + 2 * 86400),
        ("-90", NOW - 90),
        ("-1h30", NOW - 3630),
        ("2 days ago", NOW - 2 * 86400),
        ("1 week ago", NOW - 7 * 86400),
        ("-1M", NOW - 2629800),
        ("2026-11-23 13:00", NOW),
        ("2026-11-23 13:00:00", NOW),
        ("2026-11-23T12:00:00Z", NOW),
        ("2026-11-23 12:00:00 UTC", NOW),
        ("2026-11-23 14:00:00+02:00", NOW),
        ("Mon 2026-11-23 13:00:00", NOW),
        ("2026-11-23", NOW - 13 * 3600),
        ("13:00", NOW),
        ("9:30", NOW - 3.5 * 3600),
        ("12:00 UTC", NOW),
        ("2026-07-01 14:00", 1_782_907_200.0),  # summer time
        ("  today ", NOW - 13 * 3600),
    ],
)
def test_times(text: str, seconds: float) -> None:
    assert parse_time(text, NOW) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "-", "+", "1h", "-1x", "soon", "2026-13-01", "2026-02-30", "25:00", "@", "@inf", "@nan",
        "ago", " ago", "@99999999999999999999x", "\u0661:00", "-\u0661h", "2026-11-23 13:00 CET",
    ],
)  # fmt: skip
def test_no_times(text: str) -> None:
    with pytest.raises(ConfigError, match="is no time"):
        parse_time(text, NOW)


def test_times_are_shown_in_local_time() -> None:
    assert local_time("2026-11-23T04:49:11Z") == "Mon 2026-11-23 05:49:11 CET"
    assert local_time("2026-07-01T04:49:11Z") == "Wed 2026-07-01 06:49:11 CEST"
    assert (local_time(""), local_time("yore")) == ("", "yore")


@pytest.mark.parametrize(
    ("utc", "text"),
    [
        ("2026-11-23T11:59:30Z", "30 s ago"),
        ("2026-11-23T11:55:00Z", "5 min ago"),
        ("2026-11-22T12:00:00Z", "1 day ago"),
        ("2026-11-20T12:00:00Z", "3 days ago"),
        ("2026-09-20T12:00:00Z", "2 months ago"),
        ("2024-09-20T12:00:00Z", "2 years ago"),
        ("2026-11-23T12:00:01Z", ""),
        ("nonsense", ""),
    ],
)
def test_how_long_ago(utc: str, text: str) -> None:
    assert ago(utc, NOW) == text


# Which dump


def _dump(name: str, signature: str = "", **more: Any) -> BusDump:
    return BusDump(f"/{name}", {"Name": name, "Signature": signature, **more})


DUMPS = [
    _dump("20261119T010203Z-web1", "a" * 16),
    _dump("20261120T010203Z-web1", "b" * 16),
    _dump("20261121T010203Z-web1", "a" * 16),
    _dump("20261121T010203Z-web10", "c" * 16),
]


def _names(dumps: list[BusDump]) -> list[int]:
    return [DUMPS.index(dump) for dump in dumps]


@pytest.mark.parametrize(
    ("pattern", "index"),
    [(None, 3), ("20261120", 1), ("20261121T010203Z-web1", 2), ("20261121T010203Z-web10", 3), ("a" * 16, 2)],
)
def test_one_dump(pattern: str | None, index: int) -> None:
    assert find_one(DUMPS, pattern) is DUMPS[index]


@pytest.mark.parametrize(
    ("pattern", "error"),
    [("20261121", InvalidArgument), ("2027", DumpMissing), ("a" * 15, DumpMissing), ("", InvalidArgument)],
)
def test_not_one_dump(pattern: str, error: type[KdumpError]) -> None:
    with pytest.raises(error):
        find_one(DUMPS, pattern)
    with pytest.raises(error):
        find_each(DUMPS, ["20261119", pattern])


def test_no_dumps_at_all() -> None:
    with pytest.raises(DumpMissing, match="there are no dumps"):
        find_one([], None)
    assert select([], []) == []


def test_an_ambiguous_word_names_what_it_fits() -> None:
    many = [_dump(f"2026-{number}\x1b") for number in range(9)]
    with pytest.raises(InvalidArgument) as caught:
        find_one(many, "2026")
    assert str(caught.value) == (
        "'2026' fits 2026-0\\x1b, 2026-1\\x1b, 2026-2\\x1b, 2026-3\\x1b, 2026-4\\x1b and 4 more"
    )


def test_several_dumps() -> None:
    assert _names(find_each(DUMPS, ["20261120", "a" * 16, "20261119"])) == [1, 0, 2]
    assert _names(select(DUMPS, ["20261121", "b" * 16])) == [1, 2, 3]
    with pytest.raises(DumpMissing, match="'nope'"):
        select(DUMPS, ["20261120", "nope"])


def test_dumps_within_a_time() -> None:
    dumps = [
        _dump("20261121T110000Z-h"),  # the time of the crash is not known
        _dump("x", CrashTime="2026-11-22T11:00:00Z"),
        _dump("y", CrashTime="2026-11-23T11:00:00Z"),
    ]
    since = parse_time("2026-11-21 12:00", NOW)
    assert chosen(dumps, since=since) == dumps
    assert chosen(dumps, since=since + 1) == dumps[1:]
    assert chosen(dumps, until=since) == dumps[:1]
    assert chosen(dumps, number=2, newest_first=True) == [dumps[2], dumps[1]]
    assert chosen(dumps, until=since - 1) == []
    with pytest.raises(ConfigError):
        chosen(dumps, number=0)


# Values of settings

SETTINGS = [
    {"Name": "KeepFree", "Type": "t", "Unit": "bytes"},
    {"Name": "MaxAgeSec", "Type": "t", "Unit": "seconds"},
    {"Name": "CompressionLevel", "Type": "i", "Unit": ""},
    {"Name": "Threads", "Type": "u", "Unit": ""},
    {"Name": "Target", "Type": "s", "Unit": "path"},
    {"Name": "Later", "Type": "b", "Unit": ""},
]


@pytest.mark.parametrize(
    ("key", "text", "value", "shown"),
    [
        ("KeepFree", "512M", 512 << 20, "512M"),
        ("KeepFree", "1025", 1025, "1025"),
        ("KeepFree", "1024", 1024, "1K"),
        ("KeepFree", "0", 0, "0"),
        ("MaxAgeSec", "30d", 30 * 86400, "30d"),
        ("MaxAgeSec", "1h 30min", 5400, "1h 30min"),
        ("MaxAgeSec", "0", 0, "0"),
        ("CompressionLevel", "-7", -7, "-7"),
        ("Threads", "4", 4, "4"),
        ("Target", "/srv/crash", "/srv/crash", "/srv/crash"),
        ("Target", "", "", ""),
        ("Later", "yes", True, "yes"),
        ("Later", "Off", False, "no"),
    ],
)
def test_values(key: str, text: str, value: object, shown: str) -> None:
    setting = find_setting(SETTINGS, key)
    assert parse_value(setting, text) == value
    assert format_value(setting, value) == shown
    assert parse_value(setting, shown) == value


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("KeepFree", "-5"), ("KeepFree", "lots"), ("KeepFree", "99999999999T"), ("MaxAgeSec", "30 moons"),
        ("CompressionLevel", "3000000000"), ("CompressionLevel", "x"), ("Threads", "-1"), ("Later", "maybe"),
        ("Target", "a\0b"), ("Target", "\udcff"),
    ],
)  # fmt: skip
def test_no_values(key: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{key}=: "):
        parse_value(find_setting(SETTINGS, key), text)


def test_a_setting_by_its_name() -> None:
    assert find_setting(SETTINGS, "keepfree=")["Name"] == "KeepFree"
    with pytest.raises(ConfigError) as caught:
        find_setting(SETTINGS, "KeepFre")
    assert caught.value.explanation() == "there is no setting KeepFre. Did you mean KeepFree?"


# Command lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["list", "--json", "x"], {"json": "pretty", "match": ["x"]}),
        (["list", "--json=short"], {"json": "short", "match": []}),
        (["list", "--since", "-1h", "-n", "3", "-r"], {"since": "-1h", "number": 3, "reverse": True}),
        (["list", "-S", "-2d", "-U", "today", "x"], {"since": "-2d", "until": "today", "match": ["x"]}),
        (["list"], {"json": None, "pager": True, "legend": True}),
        (["config", "set", "CompressionLevel", "-5"], {"key": "CompressionLevel", "value": ["-5"]}),
        (["debug", "x", "--debugger", "gdb", "--", "-batch", "--json"],
         {"match": "x", "debugger": "gdb", "arguments": ["-batch", "--json"]}),
        (["debug", "--", "-s"], {"match": None, "arguments": ["-s"]}),
        (["show", "-p", "A", "-p", "B,C"], {"property": ["A", "B,C"], "match": None}),
        (["log"], {"source": None}),
    ],
)  # fmt: skip
def test_command_lines(words: list[str], expected: dict[str, object]) -> None:
    parsed = vars(parse(words))
    assert {key: parsed[key] for key in expected} == expected


@pytest.mark.parametrize(
    "words",
    [[], ["frobnicate"], ["delete"], ["list", "--json=long"], ["config"], ["list", "-S"], ["keep", "--off"]],
)
def test_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2
    assert "usage: kdumpctl" in capsys.readouterr().err


def _verbs() -> list[str]:
    [verbs] = [each.choices for each in make_parser()._actions if isinstance(each.choices, dict)]
    return list(verbs)


def test_every_verb_and_option_is_in_the_manual_and_completed() -> None:
    parsers: list[Any] = [make_parser()]
    for each in parsers:
        for action in each._actions:
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    options = {word for each in parsers for action in each._actions for word in action.option_strings} - {
        "-h"
    }
    manual = (REPOSITORY / "packaging/man/kdumpctl.8").read_text()
    for word in [*options, *_verbs()]:
        # As in ".Fl q , -quiet", where mdoc(7) puts a dash before each.
        assert re.search(
            rf"(Fl |[,|] ){re.escape(word[1:])}\b" if word[0] == "-" else rf"Cm .*\b{word}\b", manual
        )
    for name, pattern in (("kdumpctl.bash", "{}"), ("_kdumpctl", "{}"), ("kdumpctl.fish", "-l {}")):
        text = (REPOSITORY / "packaging/completion" / name).read_text()
        for verb in _verbs():
            assert verb in text
        for option in options:
            if option.startswith("--"):
                word = option if name != "kdumpctl.fish" else option.removeprefix("--")
                assert pattern.format(word) in text, (name, option)


# Text on a terminal


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä 漢", "plain ä 漢"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("\x9b2J", r"\xc2\x9b2J"),
        ("line\nfeed\ttab", r"line\x0afeed\x09tab"),
        ("\u202eright", r"\xe2\x80\xaeright"),
        ("\udcff", r"\xff"),
        ("\x7f\x00", r"\x7f\x00"),
    ],
)
def test_what_acts_on_a_terminal_is_shown(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_log_keeps_its_lines() -> None:
    assert printable("a\n\tb\x1b\r", keep="\n\t") == "a\n\tb\\x1b\\x0d"


def test_json_acts_on_no_terminal() -> None:
    text = json_text({"Task": "\x1b[31m\x9b\x7f\u202e"}, "short")
    assert text == '{"Task":"\\u001b[31m\\u009b\\u007f\\u202e"}'
    assert json_text([1], "pretty") == "[\n  1\n]"


def test_key_value_lines() -> None:
    assert key_value_lines("A", ["x y", "z\n"]) == ["A=x y", "A=z\\x0a"]
    assert key_value_lines("A", []) == ["A="]
    assert key_value_lines("A", False) == ["A=no"]
    assert key_value_lines("A", 3) == ["A=3"]


def test_widths() -> None:
    assert display_width("漢字e\u0301") == 5
    assert ellipsized("漢字漢字", 5) == "漢字…"
    assert ellipsized("abcdef", 6) == "abcdef"
    assert ellipsized("abcdefg", 6) == "abcde…"


def test_labelled() -> None:
    text = labelled([("A", "1"), ("Long", "x\ny"), ("None", ""), ("", "more")], least_width=6)
    assert text.split("\n") == ["     A: 1", "  Long: x", "        y", "        more"]


def test_table_fits() -> None:
    columns = (Column("ONE", least=4), Column("N", right=True), Column("LAST", least=3))
    rows = [["abcdefghij", "5", "0123456789"], ["x", "10", "y"]]
    assert render(columns, rows).split("\n") == [
        "ONE          N  LAST", "abcdefghij   5  0123456789", "x           10  y",
    ]  # fmt: skip
    assert render(columns, rows, width=20, legend=False).split("\n") == [
        "abcdef…   5  012345…", "x        10  y",
    ]  # fmt: skip
    assert (
        max(map(len, render(columns, rows, width=3).split("\n"))) == 4 + 2 + 2 + 2 + 3
    )  # not below the least


def test_table_wraps_its_last_column() -> None:
    columns = (Column("A"), Column("TEXT", wraps=True))
    text = render(columns, [["x", "one two three four five six\n→ seven eight nine ten"]], width=28)
    assert text.split("\n") == [
        "A  TEXT",
        "x  one two three four five",
        "   six",
        "   → seven eight nine ten",
    ]
    assert all(len(line) <= 28 for line in text.split("\n"))


def test_colour_does_not_move_columns() -> None:
    columns = (Column("A"), Column("B"))
    plain = render(columns, [[Cell("x", Colour.BAD), "y"]])
    coloured = render(columns, [[Cell("x", Colour.BAD), "y"]], colour=True)
    for code in (*map(str, Colour), "0"):
        coloured = coloured.replace(f"\x1b[{code}m", "")
    assert coloured == plain
