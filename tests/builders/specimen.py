# SPDX-License-Identifier: LGPL-2.1-or-later
"""Makes the small vmcore that each new capture image has to save before it is armed.

The file in ``packaging/`` is what this makes; ``python -m tests.builders.specimen FILE`` makes it anew. It
has all that a capture reads: VMCOREINFO, page tables, the memmap with pages of each class, and a log that
ends in a panic.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import zstandard

from tests.builders.machine_memory import Machine
from tests.builders.printk_ring import VMCOREINFO, PrintkRing

__all__ = ["LOG", "specimen"]

CRASH_TIME = 1_795_406_400  # 2026-11-23T04:00:00Z
MIB = 1 << 20
LOG = (
    "Linux version 6.12.0-specimen (a vmcore that is made, not crashed)",
    "Kernel panic - not syncing: the capture image is being tried",
)
_RING_PFN = 0x1000
_FIRST_PFN = 0x1100


def specimen() -> bytes:
    """An ELF file with the layout of /proc/vmcore, 32 MiB, nearly all of it zeros."""
    machine = Machine(memory=((MIB, 32 * MIB),), generation="6.12")
    address = machine.direct(_RING_PFN * machine.page_bytes)
    ring = PrintkRing(address=address)
    for line in LOG:
        ring.print(line)
    machine.write(_RING_PFN * machine.page_bytes, bytes(ring))
    machine.pages.kernel(_RING_PFN, 16)
    for number in range(64):
        pfn = _FIRST_PFN + number
        machine.write(pfn * machine.page_bytes, struct.pack("<Q", pfn) * (machine.page_bytes // 8))
    machine.pages.slab(_FIRST_PFN)
    machine.pages.anon(_FIRST_PFN + 16)
    machine.pages.cache(_FIRST_PFN + 32)
    machine.pages.buddy(_FIRST_PFN + 48)
    machine.vmcoreinfo |= VMCOREINFO | {
        "SYMBOL(prb)": f"{address:x}",
        "OSRELEASE": "6.12.0-specimen",
        "BUILD-ID": "0" * 40,
        "CRASHTIME": str(CRASH_TIME),
    }
    with tempfile.TemporaryDirectory() as folder:
        return machine.write_elf(Path(folder) / "vmcore").read_bytes()


def main(path: str) -> None:
    """Write the compressed specimen."""
    Path(path).write_bytes(zstandard.ZstdCompressor(level=19, write_checksum=True).compress(specimen()))


if __name__ == "__main__":
    main(sys.argv[1])
