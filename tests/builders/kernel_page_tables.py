# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes kernel page tables as x86_64 and aarch64 processors walk them; imports nothing of the package.

Sources: Intel SDM volume 3, 4.5 (4- and 5-level paging); Arm ARM D8.3 (VMSAv8-64 descriptors). Bits of an
entry that are no address are set where the processor allows it: a reader that masks too little fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

__all__ = ["X86_64", "Aarch64", "KernelPageTables"]

_NX = 1 << 63


class Memory(Protocol):
    """What tables are written into."""

    def write(self, physical: int, content: bytes) -> None:
        """Put bytes."""

    def read(self, physical: int, length: int) -> bytes:
        """Get bytes."""


@dataclass(frozen=True)
class X86_64:
    """An x86_64 machine; ``levels`` 4 or 5, ``sme_mask`` the bit for "encrypted" on AMD's processors."""

    levels: int = 4
    sme_mask: int = 0

    e_machine = 62
    page_bytes = 4096

    @property
    def table_bits(self) -> int:
        """Address bits that the tables translate."""
        return 12 + 9 * self.levels

    @property
    def leaf_shifts(self) -> tuple[int, ...]:
        """Sizes of leaves, smallest first."""
        return (12, 21, 30)

    def table_entry(self, physical: int) -> int:
        """Present, writable, accessed, dirty; an ignored bit."""
        return physical | 0x63 | self.sme_mask | 1 << 52

    def leaf_entry(self, physical: int, shift: int) -> int:
        """Present, writable, accessed, dirty, global, no execution; in large leaves PSE and PAT (bit 12)."""
        entry = physical | 0x163 | self.sme_mask | _NX | 1 << 58
        return entry if shift == 12 else entry | 0x80 | 1 << 12


@dataclass(frozen=True)
class Aarch64:
    """An aarch64 machine: CONFIG_ARM64_VA_BITS, what of it the processor can (``actual_va_bits``), PA bits.

    ``flipped`` is the layout since 5.4, with the linear map in the lower half of kernel addresses.
    """

    page_bytes: int = 4096
    va_bits: int = 48
    actual_va_bits: int = 0
    pa_bits: int = 48
    flipped: bool = True

    e_machine = 183

    @property
    def page_shift(self) -> int:
        """12, 14 or 16."""
        return self.page_bytes.bit_length() - 1

    @property
    def runtime_va_bits(self) -> int:
        """64 - TCR_EL1.T1SZ."""
        return self.actual_va_bits or self.va_bits

    @property
    def table_bits(self) -> int:
        """With 64 KiB pages swapper_pg_dir is laid out for VA_BITS even if the processor cannot do them
        (c812026c54cf, 5.4)."""
        return self.va_bits if self.page_shift == 16 else self.runtime_va_bits

    @property
    def lpa2(self) -> bool:
        """Descriptors with address bits 51:50 where shareability was: 52 bits with 4 or 16 KiB pages."""
        return self.page_shift < 16 and self.runtime_va_bits == 52

    @property
    def leaf_shifts(self) -> tuple[int, ...]:
        """Blocks as the kernel makes them: 1 GiB and 2 MiB, 32 MiB, 512 MiB."""
        return {12: (12, 21, 30), 14: (14, 25), 16: (16, 29)}[self.page_shift]

    def _address(self, physical: int) -> int:
        if self.lpa2:
            return physical & (1 << 50) - 1 | physical >> 50 << 8
        if self.page_shift == 16:
            return physical & (1 << 48) - 1 | physical >> 48 << 12
        assert physical < 1 << 48
        return physical

    def table_entry(self, physical: int) -> int:
        """Table descriptor with PXNTable and UXNTable."""
        return self._address(physical) | 3 | 3 << 59

    def leaf_entry(self, physical: int, shift: int) -> int:
        """Block or page: access flag, inner shareable unless LPA2, guarded, DBM, contiguous, PXN, UXN, and
        software bits."""
        entry = self._address(physical) | 1 << 10 | 0x1F << 50 | 0xF << 55
        entry |= 0 if self.lpa2 else 3 << 8
        # In blocks the bits below the address are no address; 16 is nT there.
        return entry | (3 if shift == self.page_shift else 1 | 1 << 16)


class KernelPageTables:
    """The tables under one root; ``allocate`` gives the physical address of a zeroed table."""

    def __init__(
        self, machine: X86_64 | Aarch64, memory: Memory, root: int, allocate: Callable[[], int]
    ) -> None:
        self.machine = machine
        self.root = root
        self.made: dict[tuple[int, int], int] = {}
        """Physical address of a table by (shift of its entries, first address that it translates)."""
        self._memory = memory
        self._allocate = allocate
        self._page_shift = machine.page_bytes.bit_length() - 1
        self._index_bits = self._page_shift - 3
        levels = -(-(machine.table_bits - self._page_shift) // self._index_bits)
        self._top_shift = self._page_shift + self._index_bits * (levels - 1)

    def map(self, virtual: int, physical: int, length: int, largest_leaf: int = 1 << 30) -> None:
        """Map a range with leaves as large as alignment and ``largest_leaf`` allow."""
        while length > 0:
            shift = max(
                each
                for each in self.machine.leaf_shifts
                if each == self._page_shift
                or (1 << each <= min(length, largest_leaf) and (virtual | physical) % (1 << each) == 0)
            )
            self.set_entry(virtual, shift, self.machine.leaf_entry(physical, shift))
            virtual += 1 << shift
            physical += 1 << shift
            length -= 1 << shift

    def unmap(self, virtual: int, shift: int) -> None:
        """Clear one entry of the level with this shift."""
        self.set_entry(virtual, shift, 0)

    def set_entry(self, virtual: int, shift: int, entry: int) -> None:
        """Write any entry at the level with this shift; tables above it are made."""
        place = self.entry_address(virtual, shift)
        self._memory.write(place, entry.to_bytes(8, "little"))

    def entry_address(self, virtual: int, shift: int) -> int:
        """Where the entry for an address lies at the level with this shift; tables above it are made."""
        virtual &= (1 << self.machine.table_bits) - 1
        table = self.root
        at = self._top_shift
        while at > shift:
            below = at - self._index_bits
            key = (below, virtual >> at)
            if key not in self.made:
                self.made[key] = self._allocate()
                place = table + 8 * self._index(virtual, at)
                self._memory.write(place, self.machine.table_entry(self.made[key]).to_bytes(8, "little"))
            table = self.made[key]
            at = below
        return table + 8 * self._index(virtual, at)

    def _index(self, virtual: int, shift: int) -> int:
        return virtual >> shift & (1 << self._index_bits) - 1
