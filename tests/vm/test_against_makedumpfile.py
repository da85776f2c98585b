# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dump level means what it means to makedumpfile: the same page frames are kept, for each kernel and level.

What is compared is `kdumpctl convert` and Debian sid's makedumpfile on the same reference vmcore. What
makedumpfile says of a vmcore never changes, so it is kept in the cache, as bitmaps.
"""

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from .debuggers import OpenDump
from .kdump_bitmaps import Bits, KdumpFile, RawPages
from .lab import Lab, crash_command
from .machine import PLANTED_COMMAND
from .makedumpfile import Makedumpfile
from .oracle import LEVELS, bitmaps, names_file
from .reference import GUESTS, Reference, reference_vmcore
from .symbols import vmlinux
from .tree import SUITE

ZERO, CACHE, CACHE_PRIVATE, USER, FREE = 1, 2, 4, 8, 16  # makedumpfile(8), -d
EVERYTHING_BUT_KERNEL = 31


@dataclass(frozen=True)
class Oracle:
    """What makedumpfile makes of one reference vmcore."""

    makedumpfile: Makedumpfile
    reference: Reference
    arguments: list[str]
    memory: Bits  # bitmap 1
    kept: list[Bits]  # bitmap 2, for each level


def _kernel(suite: str) -> object:
    """One kernel is compared in `make test`, the others in a part of their own."""
    return pytest.param(suite, marks=() if suite == SUITE else pytest.mark.part("kernels"))


@pytest.fixture(scope="module", params=[_kernel(suite) for suite in GUESTS])
def oracle(lab_base: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Oracle:
    makedumpfile = Makedumpfile(lab_base.cache)
    reference = reference_vmcore(lab_base.cache, request.param)
    memory, *kept = bitmaps(lab_base.cache, makedumpfile, reference)
    names = names_file(tmp_path_factory.mktemp("oracle"), reference)
    return Oracle(makedumpfile, reference, ["-i", str(names)], memory, kept)


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """Where a dump goes. It ends with the case: pytest keeps folders, and dumps are large."""
    path = tmp_path / "dump"
    yield path
    path.unlink(missing_ok=True)


def convert(source: Path, output: Path, level: int, *options: str) -> None:
    """`kdumpctl convert`, of the checkout."""
    command = [sys.executable, "-m", "kdump_service.ctl.main", "convert", str(source), str(output)]
    done = subprocess.run(
        [*command, "--format", "kdump", "--level", str(level), *options],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout


def described(frames: Bits) -> str:
    """Ranges of page frames, for a message."""
    numbers = np.flatnonzero(frames)
    ranges = [
        f"{run[0]:#x}-{run[-1]:#x}" for run in np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    ]
    return f"{len(numbers)} frames: {' '.join(ranges[:8])}{' ...' if len(ranges) > 8 else ''}"


def test_reference_has_every_class(oracle: Oracle) -> None:
    """A class that no page is of would make the comparison an empty one."""
    kept = [int(bits.sum()) for bits in oracle.kept]
    for levels in itertools.pairwise((0, CACHE, CACHE_PRIVATE)):
        assert kept[levels[0]] - kept[levels[1]] > 100, f"levels {levels}"
    assert kept[0] - kept[USER] > 10_000
    assert kept[0] - kept[FREE] > 10_000
    assert kept[EVERYTHING_BUT_KERNEL] < kept[0] / 4
    # What a balloon took is left out at every level that looks at pages at all.
    assert oracle.memory.sum() - kept[CACHE_PRIVATE] > 10_000


@pytest.mark.promise("same-pages")
@pytest.mark.parametrize("level", LEVELS)
def test_same_pages(oracle: Oracle, level: int, output: Path) -> None:
    convert(oracle.reference.vmcore, output, level, "--compression", "none")
    with KdumpFile(output) as dump:
        assert not dump.incomplete
        assert dump.dump_level == level
        assert dump.max_mapnr == len(oracle.memory)
        assert np.array_equal(dump.bitmap1, oracle.memory)
        missing, needless = oracle.kept[level] & ~dump.bitmap2, dump.bitmap2 & ~oracle.kept[level]
    assert not missing.any(), f"left out: {described(missing)}"
    assert not needless.any(), f"kept: {described(needless)}"


@pytest.mark.parametrize(
    ("level", "options"),
    [
        (EVERYTHING_BUT_KERNEL, ["--compression", "zstd"]),
        (EVERYTHING_BUT_KERNEL, ["--compression", "zlib", "--threads", "2"]),
        (EVERYTHING_BUT_KERNEL, ["--compression", "none", "--threads", "1"]),
        (ZERO, ["--compression", "zstd", "--threads", "2"]),
    ],
    ids=lambda value: "-".join(value).replace("--", "") if isinstance(value, list) else str(value),
)
def test_same_contents(oracle: Oracle, level: int, options: list[str], output: Path) -> None:
    """Each page of the dump is, byte by byte, what the vmcore has there."""
    convert(oracle.reference.vmcore, output, level, *options)
    with KdumpFile(output) as dump, RawPages(oracle.reference.vmcore) as raw:
        wrong = [
            frame for number, frame in enumerate(dump.frames.tolist()) if dump.page(number) != raw.page(frame)
        ]
    assert not wrong, f"{len(wrong)} pages differ, the first one is {wrong[0]:#x}"


@pytest.mark.promise("any-dump-file")
def test_makedumpfile_reads_it(oracle: Oracle, output: Path) -> None:
    """A dump of everything, filtered anew by makedumpfile, is the dump that it makes of the vmcore."""
    convert(oracle.reference.vmcore, output, 0, "--compression", "zlib", "--compression-level", "1")
    filtered = output.with_name("filtered")
    arguments = [*oracle.arguments, "-c", "-d", str(EVERYTHING_BUT_KERNEL)]
    oracle.makedumpfile.run(arguments, output, filtered)
    with KdumpFile(filtered) as dump, RawPages(oracle.reference.vmcore) as raw:
        assert np.array_equal(dump.bitmap1, oracle.memory)
        assert np.array_equal(dump.bitmap2, oracle.kept[EVERYTHING_BUT_KERNEL])
        for number in random.Random(1).sample(range(len(dump.frames)), 1000):
            assert dump.page(number) == raw.page(int(dump.frames[number]))
    filtered.unlink()


@pytest.mark.promise("opens-in-debuggers")
def test_debuggers_read_it(oracle: Oracle, lab_base: Lab, output: Path) -> None:
    """What is left out is missed by nobody who looks for the reason of a crash."""
    convert(oracle.reference.vmcore, output, EVERYTHING_BUT_KERNEL)
    tree = oracle.reference.tree
    opened = OpenDump(
        output, vmlinux(lab_base.cache, tree), crash_command=crash_command(lab_base.cache, tree.suite)
    )
    drgn = opened.drgn(PLANTED_COMMAND)
    assert drgn.panic_message == "Kernel panic - not syncing: sysrq triggered crash"
    assert drgn.planted_pids == [drgn.pid]
    assert not drgn.unreadable
    assert "write_sysrq_trigger" in drgn.stack
    crash = opened.crash(PLANTED_COMMAND)
    assert crash.panic_message == drgn.panic_message
    assert str(drgn.pid) in crash.ps
