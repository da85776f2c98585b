# SPDX-License-Identifier: LGPL-2.1-or-later
"""How a dump is to be written: the words of the configuration, of kdumpctl convert and of the engine."""

from __future__ import annotations

from dataclasses import dataclass

from kdump_service.errors import ConfigError

__all__ = ["COMPRESSIONS_OF", "COMPRESSION_LEVELS", "CONTENTS", "DUMP_FORMATS", "MOST_LEVEL", "DumpOptions"]

MOST_LEVEL = 31
"""All bits of a dump level (makedumpfile(8), -d): 1 pages of zeros, 2 page cache without private data, 4 all
page cache, 8 memory of processes, 16 free pages."""

CONTENTS: dict[str, int | None] = {"log": None, "kernel": MOST_LEVEL, "user": 23, "everything": 1}
"""``Contents=`` as dump levels: the kernel's log alone; what the kernel uses; that and the memory of
processes; all."""

COMPRESSIONS_OF = {
    "kdump": ("zstd", "zlib", "none"),
    "elf": ("none", "lz4"),
    "flattened": ("zstd", "zlib", "none"),
}
"""Formats, and how each can be compressed: its default first."""

DUMP_FORMATS = ("kdump", "elf")
"""Those in which dumps are saved; ``flattened`` is for pipes."""

COMPRESSION_LEVELS = {"zstd": (-7, 19, -1), "zlib": (1, 9, 1), "lz4": (0, 0, 0), "none": (0, 0, 0)}
"""Lowest, highest and default level."""


@dataclass(frozen=True)
class DumpOptions:
    """A checked choice."""

    level: int = MOST_LEVEL
    format: str = "kdump"
    compression: str = "auto"
    """``auto``: the format's default."""
    compression_level: int | None = None
    """None: the default of the compression."""
    threads: int = 1
    """Processes that read and compress."""

    @property
    def codec(self) -> str:
        """The compression by its own name."""
        return COMPRESSIONS_OF[self.format][0] if self.compression == "auto" else self.compression

    def check(self) -> None:
        """Raises ConfigError for what there is not or does not go together."""
        if self.format not in COMPRESSIONS_OF:
            raise ConfigError(f"there is no format {self.format}, only {', '.join(COMPRESSIONS_OF)}")
        possible = COMPRESSIONS_OF[self.format]
        if self.codec not in possible:
            raise ConfigError(
                f"format {self.format} cannot be compressed with {self.compression}, only with "
                f"{', '.join(possible)}"
            )
        lowest, highest, _ = COMPRESSION_LEVELS[self.codec]
        if self.compression_level is not None and not lowest <= self.compression_level <= highest:
            raise ConfigError(
                f"{self.codec} has levels from {lowest} to {highest}, not {self.compression_level}"
            )
        if not 0 <= self.level <= MOST_LEVEL:
            raise ConfigError(f"dump level {self.level} is not between 0 and {MOST_LEVEL}")
        if self.threads < 1:
            raise ConfigError(f"{self.threads} threads are too few")
