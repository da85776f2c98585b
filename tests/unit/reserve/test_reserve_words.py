# SPDX-License-Identifier: LGPL-2.1-or-later
"""crashkernel= words in texts: put in, taken out, and everything else left as it is."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.errors import ConfigError
from kdump_service.kernel.cmdline import split_words
from kdump_service.reserve.grub import shell_drop_in
from kdump_service.reserve.words import (
    edited_assignments,
    edited_keys,
    edited_lines,
    line_with,
    replaced_words,
    words_in,
)

OURS = ("crashkernel=256M",)
GRUB = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT")


@pytest.mark.parametrize(
    ("line", "edited"),
    [
        ("", "crashkernel=256M"),
        ("quiet", "quiet crashkernel=256M"),
        ("quiet  splash \n", "quiet  splash crashkernel=256M \n"),
        ("crashkernel=1G quiet", "quiet crashkernel=256M"),
        ("a crashkernel=1G,high crashkernel=72M,low b", "a b crashkernel=256M"),
        ("crashkernel=1G", "crashkernel=256M"),
        ("crashkernel=", "crashkernel=256M"),
        ("nocrashkernel=1", "nocrashkernel=1 crashkernel=256M"),
        ("quiet -- single", "quiet crashkernel=256M -- single"),
        ("-- single", "crashkernel=256M -- single"),
        ("a --b", "a --b crashkernel=256M"),
    ],
)
def test_lines(line: str, edited: str) -> None:
    assert line_with(line, OURS) == edited


@given(st.lists(st.text(alphabet="abc=,\"'$\\-/.", min_size=1), max_size=6), st.integers(0, 6))
def test_other_words_stay(words: list[str], at: int) -> None:
    line = " ".join([*words[:at], "crashkernel=1G-:64M", *words[at:]])
    edited = line_with(line, OURS)
    assert [word for word in edited.split() if word != OURS[0]] == words
    assert edited.split().count(OURS[0]) == 1
    assert line_with(edited, OURS) == edited


def test_a_file_of_one_command_line() -> None:
    assert edited_lines("root=x quiet\n", OURS) == "root=x quiet crashkernel=256M\n"
    assert edited_lines("", OURS) == "crashkernel=256M\n"
    text = "# comment crashkernel=1\nroot=x crashkernel=1G\nquiet\n\n"
    assert edited_lines(text, OURS) == "# comment crashkernel=1\nroot=x\nquiet crashkernel=256M\n\n"


def test_an_entry_with_several_lines_of_options() -> None:
    text = "title A\noptions root=x crashkernel=1G\nlinux /v\noptions\tquiet\n"
    assert edited_keys(text, "options", OURS) == (
        "title A\noptions root=x\nlinux /v\noptions\tquiet crashkernel=256M\n"
    )


def test_lines_that_are_chosen() -> None:
    text = "LABEL a\n  APPEND root=a\nLABEL b\n\tappend root=b crashkernel=1M\n"
    assert edited_keys(text, "append", OURS, all_lines=lambda line: "root=a" in line) == (
        "LABEL a\n  APPEND root=a crashkernel=256M\nLABEL b\n\tappend root=b crashkernel=1M\n"
    )


# Shell files, as a shell reads them


def _sourced(text: str, name: str, before: str = "") -> str:
    script = f"set -e\n{before}\n{text}\nprintf '%s|' \"${name}\""
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.removesuffix("|")


VALUES = [
    "quiet",
    "",
    "quiet splash crashkernel=384M-:128M",
    "crashkernel=1G quiet",
    "crashkernel=1G",
    "a crashkernel=1G,high crashkernel=72M,low b",
    "console=tty0  console=ttyS0,115200n8",
    'dyndbg="file drivers/* +p" $HOME `id` $(id) \\n',
    "it's * ? [a]",
    "one\ntwo",
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("words", [OURS, ("crashkernel=1G,cma", "crashkernel=1G-4G:192M,4G-:256M")])
def test_a_drop_in_in_a_shell(value: str, words: tuple[str, ...]) -> None:
    text = shell_drop_in(GRUB, "GRUB_CMDLINE_LINUX_DEFAULT", words)
    before = "".join(f"{name}={shlex.quote(value)}\n" for name in GRUB)
    kept = [word for word in value.split() if not word.startswith("crashkernel=")]
    assert _sourced(text, "GRUB_CMDLINE_LINUX", before).split() == kept
    assert _sourced(text, "GRUB_CMDLINE_LINUX_DEFAULT", before).split() == [*kept, *words]
    # Read twice, as where a file includes it, it says the same.
    assert _sourced(text + text, "GRUB_CMDLINE_LINUX_DEFAULT", before).split() == [*kept, *words]
    # Where nothing is set, and the shell minds that.
    assert _sourced("set -u\n" + text, "GRUB_CMDLINE_LINUX_DEFAULT").split() == list(words)


@pytest.mark.parametrize("value", VALUES[:7])
def test_blanks_in_a_drop_in(value: str) -> None:
    text = shell_drop_in(GRUB, "GRUB_CMDLINE_LINUX_DEFAULT", OURS)
    if "crashkernel" not in value:
        assert _sourced(text, "GRUB_CMDLINE_LINUX", f"GRUB_CMDLINE_LINUX={shlex.quote(value)}") == value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('GRUB_CMDLINE_LINUX_DEFAULT="quiet"', ["quiet"]),
        ("GRUB_CMDLINE_LINUX_DEFAULT='quiet crashkernel=1G' # why", ["quiet"]),
        ("GRUB_CMDLINE_LINUX_DEFAULT=quiet", ["quiet"]),
        ("export GRUB_CMDLINE_LINUX_DEFAULT=", []),
        ('GRUB_CMDLINE_LINUX_DEFAULT="a=\\"b c\\" $X"', ['a="b', 'c"', "x"]),
        ('GRUB_CMDLINE_LINUX_DEFAULT="a \\\n  b"', ["a", "b"]),
        (
            'GRUB_CMDLINE_LINUX_DEFAULT="1"\nGRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT 2"',
            ["1", "2"],
        ),
    ],
)
def test_assignments_in_a_shell(line: str, words: list[str]) -> None:
    text = f'# GRUB_CMDLINE_LINUX_DEFAULT="no"\nX=x\n{line}\nGRUB_CMDLINE_LINUX="y crashkernel=2G"\n'
    edited = edited_assignments("/f", text, GRUB, "GRUB_CMDLINE_LINUX_DEFAULT", OURS)
    assert _sourced(edited, "GRUB_CMDLINE_LINUX_DEFAULT").split() == [*words, *OURS]
    assert _sourced(edited, "GRUB_CMDLINE_LINUX") == "y"
    assert edited_assignments("/f", edited, GRUB, "GRUB_CMDLINE_LINUX_DEFAULT", OURS) == edited


def test_an_assignment_that_is_missing() -> None:
    assert edited_assignments("/f", "A=1", GRUB, "GRUB_CMDLINE_LINUX", OURS) == (
        'A=1\nGRUB_CMDLINE_LINUX="crashkernel=256M"\n'
    )


@pytest.mark.parametrize(
    "line",
    ['GRUB_CMDLINE_LINUX+=" x"', "GRUB_CMDLINE_LINUX=$(cat /x)", "GRUB_CMDLINE_LINUX=`id`",
     'GRUB_CMDLINE_LINUX="a"b', 'GRUB_CMDLINE_LINUX="a', "GRUB_CMDLINE_LINUX=a; B=c",
     'GRUB_CMDLINE_LINUX="`id`"'],
)  # fmt: skip
def test_an_assignment_that_is_a_program_is_not_edited(line: str) -> None:
    with pytest.raises(ConfigError, match=r"^/f:2: "):
        edited_assignments("/f", f"A=1\n{line}\n", GRUB, "GRUB_CMDLINE_LINUX", OURS)


# Taking back


@pytest.mark.parametrize(
    ("text", "others", "restored"),
    [
        ("a crashkernel=256M b\n", (), "a b\n"),
        ("a crashkernel=256M b\n", ("crashkernel=1G",), "a crashkernel=1G b\n"),
        ('X="crashkernel=256M"\n', (), 'X=""\n'),
        ("# crashkernel=1\na\n", (), "# crashkernel=1\na\n"),
        ("a crashkernel=512M\n", (), None),
        ("a crashkernel=256M crashkernel=512M\n", (), None),
        ("a crashkernel=256M,high\n", (), None),
    ],
)
def test_words_are_replaced_only_if_they_are_ours(
    text: str, others: tuple[str, ...], restored: str | None
) -> None:
    assert replaced_words(text, OURS, others) == restored


@given(st.lists(st.sampled_from(["a", "b=c", "quiet"]), max_size=4))
def test_what_is_put_in_can_be_taken_out(words: list[str]) -> None:
    line = " ".join(words) + "\n"
    edited = edited_lines(line, OURS)
    restored = replaced_words(edited, OURS, ())
    assert restored is not None
    assert split_words(restored) == words
    assert words_in(edited) == list(OURS)
