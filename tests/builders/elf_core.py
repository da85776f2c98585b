# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes ELF cores shaped like /proc/vmcore, from a description; imports nothing of the package.

Layout as the kernel writes it: ELF header, program headers, notes on page 1 (0x1000), then each segment on a
page border.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PAGE = 4096


@dataclass
class Segment:
    """One PT_LOAD."""

    physical: int
    content: bytes
    virtual: int = 0
    flags: int = 7


@dataclass
class ElfCore:
    """What to make; ``bytes()`` of it is the file."""

    segments: list[Segment] = field(default_factory=list)
    vmcoreinfo: dict[str, str] = field(default_factory=dict)
    byte_order: str = "<"
    machine: int = 62  # EM_X86_64
    e_type: int = 4  # ET_CORE
    e_class: int = 2  # ELFCLASS64
    e_flags: int = 0

    def note(self, name: str, kind: int, content: bytes) -> bytes:
        """One note, padded."""
        raw = name.encode() + b"\0"
        result = struct.pack(self.byte_order + "III", len(raw), len(content), kind)
        result += raw + bytes(-len(raw) % 4)
        return result + content + bytes(-len(content) % 4)

    def notes(self) -> bytes:
        """A PRSTATUS of zeros and VMCOREINFO."""
        text = "".join(f"{key}={value}\n" for key, value in self.vmcoreinfo.items())
        return self.note("CORE", 1, bytes(336)) + self.note("VMCOREINFO", 0, text.encode())

    def __bytes__(self) -> bytes:
        notes = self.notes()
        offset = 2 * PAGE + len(notes) // PAGE * PAGE
        headers = struct.pack(self.byte_order + "IIQQQQQQ", 4, 0, PAGE, 0, 0, len(notes), len(notes), 0)
        body = b""
        for segment in self.segments:
            size = len(segment.content)
            headers += struct.pack(
                self.byte_order + "IIQQQQQQ",
                1,
                segment.flags,
                offset + len(body),
                segment.virtual,
                segment.physical,
                size,
                size,
                0,
            )
            body += segment.content + bytes(-size % PAGE)
        ident = b"\x7fELF" + bytes([self.e_class, 1 if self.byte_order == "<" else 2, 1]) + bytes(9)
        header = struct.pack(
            self.byte_order + "16sHHIQQQIHHHHHH",
            ident,
            self.e_type,
            self.machine,
            1,
            0,
            64,
            0,
            self.e_flags,
            64,
            56,
            1 + len(self.segments),
            0,
            0,
            0,
        )
        head = (header + headers).ljust(PAGE, b"\0") + notes
        return head.ljust(offset, b"\0") + body
