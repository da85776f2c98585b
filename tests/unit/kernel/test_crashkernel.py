# SPDX-License-Identifier: LGPL-2.1-or-later
"""What crashkernel= asks for: by hand, and against the kernel's own steps, one after the other."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.kernel.crashkernel import (
    BadCrashkernel,
    Kind,
    parse_argument,
    parse_value,
    requested,
    reservation_of,
    rounded_memory_bytes,
)

MIB, GIB = 1 << 20, 1 << 30


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("quiet", 0),
        ("crashkernel=256M", 256 * MIB),
        ("crashkernel=256m@16M", 256 * MIB),
        ("crashkernel=256M@", 256 * MIB),
        ("crashkernel=0x10000000", 256 * MIB),
        ("crashkernel=0400M", 256 * MIB),
        ("crashkernel=262144K", 256 * MIB),
        ("crashkernel=1G,high", GIB),
        ("crashkernel=1G,high crashkernel=72M,low", GIB),
        ("crashkernel=72M,low", 0),
        ("crashkernel=512M crashkernel=256M", 256 * MIB),
        ("crashkernel=256M crashkernel=1G,high", 256 * MIB),
        ("crashkernel=256M crashkernel=1G,cma", 256 * MIB),
        ("crashkernel=1G,cma crashkernel=256M", 256 * MIB),
        ("crashkernel=1G,cma", 0),
        ("crashkernel=1G-4G:192M,4G-:256M", 256 * MIB),
        ("crashkernel=1G-8G:192M,8G-:256M", 256 * MIB),  # the end of a range is not in it
        ("crashkernel=1G-4G:192M", 0),
        ("crashkernel=256M crashkernel=1G-:512M", 512 * MIB),
        ("crashkernel=1G-:512M@64M", 512 * MIB),
        ("crashkernel=1G-:512M,nonsense@64M", 512 * MIB),  # never read that far
        # Anywhere in the line, as strstr(3) finds it.
        ("module.nocrashkernel=256M", 256 * MIB),
    ],
)
def test_what_8_gib_are_asked_for(line: str, asked: int) -> None:
    assert reservation_of(line).asked_bytes(8 * GIB) == asked


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("crashkernel=auto", "a size is missing"),
        ("crashkernel=", "a size is missing"),
        ('crashkernel="256M"', "a size is missing"),
        ("crashkernel=256M,higher", "only @ and an address"),
        ("crashkernel=256MB", "only @ and an address"),
        ("crashkernel=1G-4G:192M,high", "only ,high may follow"),
        ("crashkernel=8G", "this machine has 8.00 GiB only"),
        ("crashkernel=1G-2G:8G,2G-:256M", "8.00 GiB is not less than"),  # refused for its other range
        ("crashkernel=4G-2G:64M", "larger than its start"),
        ("crashkernel=1G-2G", "only @ and an address"),
        ("crashkernel=1G-2G;64M:", "a : has to follow"),
        ("crashkernel=1G:64M", "a - has to follow"),
        ("crashkernel=1G-2G:64M,nonsense", "a size is missing"),
        ("crashkernel=1G-:64M@", "an address has to follow"),
        ("crashkernel=1G,high crashkernel=x,low", "a size is missing"),
    ],
)
def test_what_the_kernel_refuses(line: str, why: str) -> None:
    with pytest.raises(BadCrashkernel, match=why):
        reservation_of(line).asked_bytes(8 * GIB)


def test_a_refused_area_of_cma_does_not_matter() -> None:
    assert reservation_of("crashkernel=256M crashkernel=x,cma").asked_bytes(GIB) == 256 * MIB


def test_the_place_of_a_mistake_is_told() -> None:
    with pytest.raises(BadCrashkernel) as caught:
        parse_argument("1G-2G:64M,2G:128M")
    assert caught.value.position == len("1G-2G:64M,2G")
    assert str(caught.value).endswith("(at ':128M', behind '1G-2G:64M,2G')")


def test_memory_is_rounded_up_before_ranges_are_looked_at() -> None:
    # 4 GiB, of which the firmware keeps 20 MiB.
    assert reservation_of("crashkernel=1G-4G:192M,4G-:256M").asked_bytes(4 * GIB - 20 * MIB) == 256 * MIB
    assert rounded_memory_bytes(4 * GIB) == 4 * GIB
    # But that much is not there to be reserved.
    with pytest.raises(BadCrashkernel, match="this machine has"):
        reservation_of("crashkernel=1G-:4090M").asked_bytes(4 * GIB - 20 * MIB)


def test_where_the_size_of_memory_is_known_roughly() -> None:
    by_ranges = reservation_of("crashkernel=1G-4G:192M,4G-:256M")
    assert by_ranges.asked_between(5 * GIB, 6 * GIB) == 256 * MIB
    assert by_ranges.asked_between(3 * GIB, 6 * GIB) is None
    assert reservation_of("crashkernel=auto").asked_between(GIB, GIB) is None
    # It was reserved, so the memory is not as small as the least that it may be.
    assert reservation_of("crashkernel=256M").asked_between(200 * MIB, GIB) == 256 * MIB


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("256M", Kind.PLAIN, "256 MiB"),
        ("256M@16M", Kind.PLAIN, "256 MiB at the address 0x1000000"),
        ("1G,high", Kind.HIGH, "1.00 GiB above 4 GiB, and a little below"),
        ("72M,low", Kind.LOW, "72.0 MiB below 4 GiB, besides what is above"),
        ("512M,cma", Kind.CMA, "512 MiB more, which processes may use until the crash"),
        (
            "0-1G:0,1G-4G:192M,4G-:256M@64M",
            Kind.PLAIN,
            "by the size of memory: nothing from 0 B to less than 1.00 GiB; 192 MiB from 1.00 GiB to less "
            "than 4.00 GiB; 256 MiB from 4.00 GiB on at the address 0x4000000",
        ),
    ],
)
def test_each_form_in_words(text: str, kind: Kind, sentence: str) -> None:
    area = parse_value(text)
    assert (area.kind, area.sentence()) == (kind, sentence)


@pytest.mark.parametrize("text", ["256M", "1G-4G:192M,4G-:256M", "512M,high", "256M@16M", "2G-:1G@1G"])
def test_what_may_be_set(text: str) -> None:
    assert parse_argument(text).text == text


@pytest.mark.parametrize(
    "text",
    ["", "auto", "256M,low", "256M,cma", "0", "0M", "1G-:0", "256M@", "256M@16M;rm -rf", "256M quiet",
     "256M\n", "1G-4G:192M;4G-:1M@1", "1G-:512M@64Mx", "$(id)", "256M'", "1G-2G:64M,x", "²56M", "0" * 3],
)  # fmt: skip
def test_what_may_not_be_set(text: str) -> None:
    with pytest.raises(BadCrashkernel):
        parse_argument(text)


@given(st.text(alphabet="0123456789KMGTxX,-:@higlowcma \"'$`\\\n", max_size=30))
def test_what_may_be_set_is_one_harmless_word(text: str) -> None:
    """It gets into shell files and command lines."""
    try:
        parse_argument(text)
    except BadCrashkernel:
        return
    assert re.fullmatch(r"[0-9A-Za-z,:@-]+", text)


# The kernel's steps, with an index for its pointer; None is its -EINVAL.


def _memparse(text: str, at: int) -> tuple[int, int]:
    found = re.compile(r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*").match(text, at)
    if not found:
        return 0, at
    digits = found[0].lower()
    number = int(digits, 16) if "x" in digits else int(digits, 8) if digits[0] == "0" else int(digits)
    at = found.end()
    if at < len(text) and text[at] in "KMGTPEkmgtpe":
        number <<= 10 * ("kmgtpe".index(text[at].lower()) + 1)
        at += 1
    return number % (1 << 64), at


def _char(text: str, at: int) -> str:
    return text[at] if at < len(text) else "\0"


def _kernel_ranges(text: str, system_ram: int) -> int | None:
    total, at, crash_size = rounded_memory_bytes(system_ram), 0, 0
    while True:
        begin = at
        start, at = _memparse(text, at)
        if at == begin or _char(text, at) != "-":
            return None
        at += 1
        end = (1 << 64) - 1
        if _char(text, at) != ":":
            begin = at
            end, at = _memparse(text, at)
            if at == begin or end <= start:
                return None
        if _char(text, at) != ":":
            return None
        at += 1
        begin = at
        size, at = _memparse(text, at)
        if at == begin or size >= total:
            return None
        if start <= total < end:
            crash_size = size
            break
        more = _char(text, at) == ","
        at += 1
        if not more:
            break
    if crash_size:
        while _char(text, at) not in ("\0", " ", "@"):
            at += 1
        if _char(text, at) == "@" and _memparse(text, at + 1)[1] == at + 1:
            return None
    return crash_size


def _kernel(line: str, system_ram: int) -> int:
    """What is reserved above or anywhere; 0 if the kernel refuses."""
    words: dict[str, str] = {}
    for match in re.finditer("crashkernel=", line):
        value = line[match.end() :].partition(" ")[0]
        suffix = (
            value[-5:] if value.endswith(",high") else value[-4:] if value.endswith((",low", ",cma")) else ""
        )
        words[suffix] = value
    size: int | None
    if "" in words:
        value = words[""]
        if ":" in value:
            size = _kernel_ranges(value, system_ram)
        else:
            size, at = _memparse(value, 0)
            if at == 0 or _char(value, at) not in ("\0", "@"):
                size = None
    elif ",high" in words:
        size, at = _memparse(words[",high"], 0)
        if at == 0 or words[",high"][at:] != ",high":
            size = None
        if ",low" in words:
            _, at = _memparse(words[",low"], 0)
            if at == 0 or words[",low"][at:] != ",low":
                size = None
    else:
        return 0
    return 0 if not size or size >= system_ram else size


_SIZES = st.sampled_from(
    ["0", "64M", "192M", "256M", "1G", "2G", "4G", "8G", "0x10000000", "010", "1T", "x", ""]
)
_ENDS = st.sampled_from(["", "@16M", "@", "@x", ",high", ",low", ",cma", "junk", ","])
_RANGES = st.builds(lambda start, end, size: f"{start}-{end}:{size}", _SIZES, _SIZES, _SIZES)
_VALUES = st.one_of(
    st.builds(lambda size, end: size + end, _SIZES, _ENDS),
    st.builds(lambda parts, end: ",".join(parts) + end, st.lists(_RANGES, min_size=1, max_size=3), _ENDS),
    st.text(alphabet="012KMG-:,@ hig", max_size=12),
)


@given(
    st.lists(_VALUES, max_size=4).map(lambda values: " ".join(f"crashkernel={value}" for value in values)),
    st.sampled_from([512 * MIB, GIB, 2 * GIB - MIB, 4 * GIB, 64 * GIB]),
)
def test_the_same_as_the_kernel(line: str, system_ram: int) -> None:
    try:
        asked = reservation_of(line).asked_bytes(system_ram)
    except BadCrashkernel:
        asked = 0
    assert asked == _kernel(line, system_ram)


@given(st.text())
def test_any_command_line_can_be_read(text: str) -> None:
    for line in (text, f"crashkernel={text}"):
        requested(line)
        reservation_of(line).asked_between(GIB, 2 * GIB)
