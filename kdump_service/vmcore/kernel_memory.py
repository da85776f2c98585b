# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read the crashed kernel's memory by its virtual addresses, as far as the core itself maps them.

The program headers of /proc/vmcore name the virtual addresses of the kernel's own image and of the direct
mapping of all memory, so that static and boot-time data is found without page tables.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.elf import ProgramHeader

__all__ = ["Core", "KernelMemory"]

_BLOCK_BYTES = 64 << 10
_MOST_BLOCKS = 32


class Core(Protocol):
    """What is needed of reader.Vmcore."""

    @property
    def loads(self) -> list[ProgramHeader]:
        """The segments."""

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file."""


class KernelMemory:
    """Small reads by virtual address, through a cache of 2 MiB: on /proc/vmcore each read(2) is dear."""

    def __init__(self, core: Core, byte_order: str) -> None:
        self._core = core
        self._byte_order = byte_order
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, address: int, length: int) -> bytes:
        """Copy out bytes. Raises BadVmcore where the core does not map the range."""
        for load in self._core.loads:
            start = address - load.virtual_address
            if start >= 0 and start + length <= load.file_bytes:
                return self._read_file(load.offset + start, length)
        raise BadVmcore(f"kernel address {address:#x} is in no segment of the core")

    def unsigned(self, address: int, length: int) -> int:
        """An unsigned integer of 1, 2, 4 or 8 bytes; also a pointer."""
        return int.from_bytes(self.read(address, length), "little" if self._byte_order == "<" else "big")

    def _read_file(self, offset: int, length: int) -> bytes:
        parts = []
        while length > 0:
            block, within = divmod(offset, _BLOCK_BYTES)
            part = self._block(block)[within : within + length]
            if not part:
                raise BadVmcore(f"the core ends before offset {offset:#x}")
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def _block(self, number: int) -> bytes:
        if number in self._blocks:
            self._blocks.move_to_end(number)
            return self._blocks[number]
        try:
            content = self._core.read(number * _BLOCK_BYTES, _BLOCK_BYTES)
        except OSError as error:
            raise BadVmcore(
                f"offset {number * _BLOCK_BYTES:#x} of the core cannot be read: {error.strerror}"
            ) from error
        self._blocks[number] = content
        if len(self._blocks) > _MOST_BLOCKS:
            self._blocks.popitem(last=False)
        return content
