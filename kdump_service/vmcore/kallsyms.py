# SPDX-License-Identifier: LGPL-2.1-or-later
"""Addresses of the crashed kernel's symbols, by the table that it carries for itself.

kernel/kallsyms.c and scripts/kallsyms.c. Names are in order of address, each a length and that many bytes,
which stand for a text of kallsyms_token_table each; the first character of a name is its type. VMCOREINFO
tells where the tables are since 6.0 (5fd8fea935a1, f09bddbd8661); that objects are in them, and not functions
only, is CONFIG_KALLSYMS_ALL.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Collection, Iterable, Iterator

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
    names_in_order = itertools.islice(_stored_names(space, start, end), count)
    numbers = dict(_numbers(names_in_order, _tokens(space), wanted))
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
    names: Iterable[bytes], tokens: list[bytes], wanted: Collection[bytes]
) -> Iterator[tuple[str, int]]:
    """Which symbols those are. There are many, so only names that end like one of them are put together."""
    ends = {byte for byte, token in enumerate(tokens) if any(name.endswith(token) for name in wanted)}
    longest = max(map(len, wanted)) + 1
    for number, stored in enumerate(names):
        if stored and stored[-1] in ends and len(stored) <= longest:
            name = b"".join([tokens[byte] for byte in stored])[1:]
            if name in wanted:
                yield name.decode(), number


def _stored_names(space: AddressSpace, start: int, end: int) -> Iterator[bytes]:
    """One after the other. They are read in pieces: a capture has little memory."""
    data, position = b"", 0
    while True:
        if len(data) - position < _LONGEST and start < end:
            piece = space.read(start, min(_PIECE_BYTES, end - start))
            data, position = data[position:] + piece, 0
            start += len(piece)
        if position + 1 >= len(data):
            return
        length = data[position]
        position += 1
        if length & _LONG:
            length = length & ~_LONG | data[position] << 7
            position += 1
        yield data[position : position + length]
        position += length


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
