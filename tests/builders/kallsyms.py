# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the symbol table that a kernel carries for itself, as scripts/kallsyms.c does; imports nothing of the
package.

    table = Kallsyms({"_stext": 0xffffffff81000000, "crash_notes": 0xffffffff82000000}, at=address)
    table.content                                          # to be put at that address
    table.vmcoreinfo                                       # lines
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

__all__ = ["WAYS", "Kallsyms"]

WAYS = ("absolute per-cpu", "relative", "place")
"""How addresses are stored: x86_64 before 6.15; others before 7.0; 7.0 and later."""

_LONG_TOKENS = (b"__per_", b"cpu_", b"_task", b"current", b"crash", b"_st", b"ext", b"Dcur", b"D__")


class Kallsyms:
    """The tables one behind the other, as 6.4 and later order them."""

    def __init__(self, symbols: Mapping[str, int], *, at: int, way: str = "relative") -> None:
        symbols = dict(sorted(symbols.items(), key=lambda each: each[1]))
        tokens = {bytes([byte]): byte for byte in range(0x20, 0x7F)}
        tokens |= {token: 0x80 + index for index, token in enumerate(_LONG_TOKENS)}
        names = b"".join(_name(b"D" + name.encode(), tokens) for name in symbols)
        by_byte = {byte: token for token, byte in tokens.items()}
        table, starts = b"", []
        for byte in range(256):
            starts.append(len(table))
            table += by_byte.get(byte, b"") + b"\0"
        self.content = b""
        self.vmcoreinfo: dict[str, str] = {}
        self._put("num_syms", struct.pack("<I", len(symbols)), at)
        self._put("names", names, at)
        self._put("", bytes(4), at)  # markers
        self._put("token_table", table, at)
        self._put("token_index", struct.pack("<256H", *starts), at)
        self.content += bytes(-len(self.content) % 4)
        place = at + len(self.content)
        base = next(address for address in symbols.values() if address >> 63)
        offsets = []
        for index, address in enumerate(symbols.values()):
            if way == "place":
                offsets.append(address - (place + 4 * index))
            elif way == "relative":
                offsets.append(address - base)
            else:
                offsets.append(base - 1 - address if address >> 63 else address)
        self._put("offsets", b"".join(each.to_bytes(4, "little", signed=True) for each in offsets), at)
        if way != "place":
            self._put("relative_base", base.to_bytes(8, "little"), at)
        self.content += bytes(512)  # the image goes on

    def _put(self, name: str, content: bytes, at: int) -> None:
        if name:
            self.vmcoreinfo[f"SYMBOL(kallsyms_{name})"] = f"{at + len(self.content):x}"
        self.content += content


def _name(name: bytes, tokens: Mapping[bytes, int]) -> bytes:
    longest_first = sorted(tokens, key=len, reverse=True)
    data = b""
    while name:
        token = next(each for each in longest_first if name.startswith(each))
        data += bytes([tokens[token]])
        name = name[len(token) :]
    # 7 bits each, the lower ones first.
    length = bytes([len(data)] if len(data) < 0x80 else [len(data) & 0x7F | 0x80, len(data) >> 7])
    return length + data
