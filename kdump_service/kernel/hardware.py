# SPDX-License-Identifier: LGPL-2.1-or-later
"""Memory and processors of the machine, which may be plugged while it runs."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_service.kernel.files import KernelFiles

__all__ = ["Hardware"]


@dataclass(frozen=True)
class Hardware:
    """What an ELF header for a crash is made from."""

    memory_blocks: int
    processors: str

    @classmethod
    def of(cls, kernel_files: KernelFiles) -> Hardware:
        """What the machine has now."""
        return cls(kernel_files.memory_blocks, kernel_files.processors_present)
