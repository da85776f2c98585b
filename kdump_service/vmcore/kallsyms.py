# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses of the crashed kernel's symbols, by the table that it carries for itself.

kernel/kallsyms.c and scripts/kallsyms.c. Names are in order of address, each a length and that many bytes,
which stand for a text of kallsyms_token_table each; the first character of a name is its type. VMCOREINFO
tells where the tables are since 6.0 (5fd8fea935a1, f09bddbd8661); that objects are in them, and not functions
only, is CONFIG_KALLSYMS_ALL.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.address_space import AddressSpace

__all__ = ["kernel_symbols"]

_TOKENS = 256
_MOST_TOKEN_BYTES = 128
"""What is longer is in no name that is looked for; with 64 KiB, damaged names would take hours."""
_MOST_SYMBOLS = 1 << 20  # Debian 13's kernel for clouds has 158,000
_MOST_NAME_BYTES = 16 << 20  # of these, 2.2 MB
_LONG = 0x80
"""A length of two bytes, the lower seven bits first (73bbb94466fd, 6.1). Before, no name was as long."""
_LONGEST = 2 + 0x7FFF
_PIECE_BYTES = 256 << 10
_ALL_ONES = (1 << 64) - 1


def kernel_symbols(space: AddressSpace, names: Collection[str]) -> dict[str, int]:
    """Those of the names that there are. Raises BadVmcore if the image does not tell."""
    info = space.image.vmcoreinfo
    text = info.symbol("_stext")
    start, end = info.symbol("kallsyms_names"), info.symbol("kallsyms_token_table")
    if not 0 < end - start <= _MOST_NAME_BYTES:
        raise BadVmcore(f"kernel symbols: their names are said to lie from {start:#x} to {end:#x}")
    count = min(space.unsigned(info.symbol("kallsyms_num_syms"), 4), _MOST_SYMBOLS)
    wanted = {name.encode() for name in names} | {b"_stext"}
    numbers = dict(_numbers(space, range(start, end), count, wanted))
    if "_stext" not in numbers:
        raise BadVmcore(f"kernel symbols: _stext is not among {count}")
    for found in _addresses(space, numbers):
        if found["_stext"] == text:
            return {name: found[name] for name in names if name in found}
    raise BadVmcore(f"kernel symbols: none of the known ways gives {text:#x} for _stext")


def _tokens(space: AddressSpace) -> list[bytes]:
    info = space.image.vmcoreinfo
    index = space.read(info.symbol("kallsyms_token_index"), 2 * _TOKENS)
    starts = struct.unpack(f"{space.image.byte_order}{_TOKENS}H", index)
    table = space.read(info.symbol("kallsyms_token_table"), max(starts) + _MOST_TOKEN_BYTES)
    return [table[start : start + _MOST_TOKEN_BYTES].split(b"\0", 1)[0] for start in starts]


def _numbers(
    space: AddressSpace, place: range, count: int, wanted: Collection[bytes]
) -> Iterator[tuple[str, int]]:
    """Which symbols those are. There are many, so only names that end like one of them are put together; and
    they are read in pieces: a capture has little memory."""
    tokens = _tokens(space)
    ends = _ends(tokens, wanted)
    longest = max(map(len, wanted)) + 1
    data, position, number = b"", 0, 0
    while number < count and place:
        data, position = data[position:] + space.read(place.start, min(_PIECE_BYTES, len(place))), 0
        place = place[_PIECE_BYTES:]
        if not place:
            data += bytes(_LONGEST)  # a name that leads beyond the end is none
        whole = len(data) - _LONGEST
        # Run for each symbol: most of the time goes here.
        while position < whole and number < count:
            length = data[position]
            position += 1
            if length & _LONG:
                length = length & ~_LONG | data[position] << 7
                position += 1
            following = position + length
            before = ends[data[following - 1]]
            if before and length <= longest and data[following - 2] in before:
                name = b"".join([tokens[byte] for byte in data[position:following]])[1:]
                if name in wanted:
                    yield name.decode(), number
            position = following
            number += 1


def _ends(tokens: list[bytes], wanted: Collection[bytes]) -> list[set[int]]:
    """By the last byte of what stands for a name that is wanted: the bytes that may be before it; that is the
    length, where one byte stands for all of a name."""
    ends: list[set[int]] = [set() for _ in tokens]
    for name in wanted:
        for byte, token in enumerate(tokens):
            if _may_end(name, token):
                rest = name[: -len(token)]
                before = {each for each, text in enumerate(tokens) if _may_end(rest, text)}
                ends[byte] |= {1} if len(token) > len(name) else before
    return ends


def _may_end(name: bytes, token: bytes) -> bool:
    """Whether the name, or its rest, can end with this token; before it stands its type, any character."""
    return token != b"" and (name.endswith(token) or (len(token) == len(name) + 1 and token.endswith(name)))


def _addresses(space: AddressSpace, numbers: dict[str, int]) -> Iterator[dict[str, int]]:
    """By each of the ways in which kernels store them; nothing tells which it is."""
    info = space.image.vmcoreinfo
    table = info.symbol("kallsyms_offsets")
    offsets = {name: space.unsigned(table + 4 * number, 4) for name, number in numbers.items()}
    signed = {name: offset - (offset >> 31 << 32) for name, offset in offsets.items()}
    if not info.has("SYMBOL(kallsyms_relative_base)"):
        # From where the offset itself stands, since a081b5789255 (7.0).
        yield {name: table + 4 * numbers[name] + offset & _ALL_ONES for name, offset in signed.items()}
        return
    base = space.unsigned(info.symbol("kallsyms_relative_base"), 8)
    # CONFIG_KALLSYMS_ABSOLUTE_PERCPU, until 6.15: what each processor has for itself is numbered from zero.
    yield {name: offset if offset >= 0 else base - 1 - offset & _ALL_ONES for name, offset in signed.items()}
    yield {name: base + offset & _ALL_ONES for name, offset in offsets.items()}
