# SPDX-License-Identifier: LGPL-2.1-or-later
"""The load of a guest, and the disk from which it takes it: the same bytes each time, without true chance."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.vm.tree import Tree

__all__ = ["Load", "content_disk"]

MATERIAL_MIB = 64  # of each kind of anonymous memory, before it repeats; pages are compressed one by one
PIECE_MIB = 64  # size of the files for the page cache
WORDS = (
    *("request", "response", "user", "session", "cache", "miss", "hit"),
    *("timeout", "connection", "closed", "accepted", "from", "to", "id"),
)


@dataclass(frozen=True)
class Load:
    """What a guest does before it dies. Its other memory is the kernel's own, or free and never used."""

    cache_mib: int
    """Files that were read: programs, libraries, documentation, compressed and not."""
    text_mib: int
    """Anonymous memory: lines of a log, JSON, source text."""
    heap_mib: int
    """Anonymous memory: pointers, small numbers, zeros, short strings."""
    noise_mib: int
    """Anonymous memory: random bytes, as what is encrypted or compressed already."""
    stale_mib: int
    """Free memory that was in use (half text, half heap): the kernel does not clear it."""
    files: int
    """Dentries of files, with their inodes."""
    names: int
    """Dentries, together with those of names that do not exist."""


def content_disk(work: Path, tree: Tree, load: Load) -> Path:
    """A file system with the files for the page cache, many empty ones, and material for anonymous memory."""
    content = work / "content"
    (content / "cache").mkdir(parents=True)
    _fill_cache_folder(content / "cache", tree, load.cache_mib << 20)
    (content / "text").write_bytes(_text(tree))
    (content / "heap").write_bytes(_heap())
    (content / "noise").write_bytes(random.Random(2).randbytes(MATERIAL_MIB << 20))
    for number in range(load.files):
        path = content / "names" / str(number // 1000) / str(number)
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    image = work / "content.img"
    size = f"{load.cache_mib + 4 * MATERIAL_MIB + load.files // 1000 + 128}M"
    inodes = str(load.files + 10_000)
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", inodes, "-d", content, image, size],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    shutil.rmtree(content)
    return image


def _files(tree: Tree) -> list[Path]:
    return [path for path in sorted(tree.root.rglob("*")) if path.is_file() and not path.is_symlink()]


def _fill_cache_folder(folder: Path, tree: Tree, size: int) -> None:
    """The files of the tree one after the other, each from the start of a page, again and again."""
    paths = _files(tree)
    number = written = at = 0
    while written < size:
        piece = bytearray()
        while len(piece) < PIECE_MIB << 20:
            content = paths[at % len(paths)].read_bytes()
            piece += content + bytes(-len(content) % 4096)
            at += 1
        part = piece[: min(PIECE_MIB << 20, size - written)]
        (folder / str(number)).write_bytes(part)
        written += len(part)
        number += 1


def _text(tree: Tree) -> bytes:
    chance = random.Random(1)
    size = MATERIAL_MIB << 20
    parts: list[bytes] = []
    length = 0
    while length < size // 4:
        parts.append(
            f"2023-11-{chance.randint(1, 30):02} {chance.randint(0, 23):02}:{chance.randint(0, 59):02} "
            f"worker[{chance.randint(1, 99999)}]: {' '.join(chance.choices(WORDS, k=8))} "
            f"{chance.getrandbits(64):x}\n".encode()
        )
        length += len(parts[-1])
    while length < size // 2:
        row = {
            "id": chance.getrandbits(40),
            "name": chance.choice(WORDS) + chance.choice(WORDS),
            "price": round(chance.random() * 1000, 2),
            "tags": chance.choices(WORDS, k=3),
        }
        parts.append(json.dumps(row).encode())
        length += len(parts[-1])
    for path in _files(tree):
        if path.suffix == ".py":
            parts.append(path.read_bytes())
            length += len(parts[-1])
        if length >= size:
            break
    return b"".join(parts).ljust(size, b"\n")[:size]


def _heap() -> bytes:
    """Objects of 64 bytes: header and type, three pointers, two numbers, padding, a short string; and of
    every 16 pages one that was never used."""
    chance = np.random.default_rng(3)
    count = (MATERIAL_MIB << 20) // 64
    words = np.zeros((count, 8), np.uint64)
    types = chance.integers(0, 64, 200, dtype=np.uint64) * 0x140 + 0x5581_2A40_0000
    words[:, 0] = chance.integers(1, 5, count, dtype=np.uint64)
    words[:, 1] = types[chance.integers(0, len(types), count)]
    near = np.arange(count, dtype=np.uint64) * 64 + 0x7F32_1000_0000
    words[:, 2] = near + chance.integers(0, 64, count, dtype=np.uint64) * 64
    words[:, 3] = near + chance.integers(0, 1 << 14, count, dtype=np.uint64) * 64
    words[:, 4] = chance.integers(0, 1 << 24, count, dtype=np.uint64) * 64 + 0x7F32_0000_0000
    words[:, 5] = chance.integers(0, 1000, count, dtype=np.uint64)
    letters = chance.integers(97, 123, (count, 8), dtype=np.uint8)
    words[:, 7] = letters.view(np.uint64)[:, 0]
    words[chance.random(count) < 0.3, 3:5] = 0
    words.reshape(-1, 16, 64, 8)[:, 5] = 0
    return words.tobytes()
