# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who takes part: `kdumpctl convert` of the checkout, and Debian sid's makedumpfile, each in its modes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.vm.makedumpfile import Makedumpfile

__all__ = ["EVERYBODY", "MAIN", "MOST", "QUICK", "Contestant", "named"]

REPO = Path(__file__).parents[2]


@dataclass(frozen=True)
class Contestant:
    """One mode of one program."""

    name: str
    ours: bool
    arguments: tuple[str, ...]

    def command(self, makedumpfile: Makedumpfile, vmcore: Path, output: Path, level: int) -> list[str]:
        """The words of the command line; `output` does not exist yet."""
        if not self.ours:
            program = makedumpfile.command("makedumpfile")
            return [*program, *self.arguments, "-d", str(level), str(vmcore), str(output)]
        program = [sys.executable, "-m", "kdump_service.ctl.main", "convert"]
        return [*program, str(vmcore), str(output), "--level", str(level), *self.arguments]


def _ours(format_: str, compression: str, threads: int, title: str = "") -> Contestant:
    """With the verification of a sample, which is a part of every conversion."""
    words = ("--format", format_, "--compression", compression, "--threads", str(threads))
    return Contestant(f"{title or f'{format_} {compression}'}, {threads} thr.", True, words)


def _makedumpfile(option: str, title: str, threads: int = 0) -> Contestant:
    """Without --num-threads one thread does it all; with it, so many compress, and one more writes."""
    words = ((option,) if option else ()) + ((f"--num-threads={threads}",) if threads else ())
    name = f"makedumpfile {' '.join(words)}".rstrip()
    return Contestant(f"{name} ({title})", False, words)


OURS = (
    _ours("kdump", "zstd", 2),
    _ours("kdump", "zstd", 1),
    _ours("kdump", "zlib", 2),
    _ours("kdump", "zlib", 1),
    _ours("kdump", "none", 2),
    _ours("elf", "none", 2),
    _ours("elf", "lz4", 2),
    _ours("elf", "lz4", 1),
    _ours("flattened", "zstd", 2),
)
# Not -p (snappy): Debian builds it without.
MAKEDUMPFILE = (
    _makedumpfile("-l", "lzo"),
    _makedumpfile("-l", "lzo", 2),
    _makedumpfile("-c", "zlib"),
    _makedumpfile("-c", "zlib", 2),
    _makedumpfile("-z", "zstd"),
    _makedumpfile("-z", "zstd", 2),
    _makedumpfile("", "none"),
    _makedumpfile("", "none", 2),
    _makedumpfile("-E", "ELF"),
)


def named(*names: str) -> tuple[Contestant, ...]:
    """Those whose names begin so, in that order."""
    everybody = OURS + MAKEDUMPFILE
    return tuple(next(each for each in everybody if each.name.startswith(name)) for name in names)


def _alternating(ours: Sequence[Contestant], theirs: Sequence[Contestant]) -> tuple[Contestant, ...]:
    """In turns, so that what changes on the machine meets both alike."""
    pairs = [each for pair in zip(ours, theirs, strict=False) for each in pair]
    return (*pairs, *ours[len(theirs) :], *theirs[len(ours) :])


EVERYBODY = _alternating(OURS, MAKEDUMPFILE)
MAIN = named(
    *("kdump zstd, 2", "makedumpfile -l (", "kdump zstd, 1", "makedumpfile -c ("),
    *("elf lz4, 2", "makedumpfile -z (", "kdump none, 2", "makedumpfile (none)"),
)
# makedumpfile's threads wait for each other in loops: with them a run takes up to 40 times as long.
MOST = (*(each for each in EVERYBODY if "--num-threads" not in each.name), *named("makedumpfile -l --num"))
QUICK = named(
    *("kdump zstd, 2", "makedumpfile -l (", "kdump zstd, 1", "makedumpfile -c ("),
    *("elf lz4, 2", "makedumpfile (none)"),
)
