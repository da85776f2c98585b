# SPDX-License-Identifier: LGPL-2.1-or-later
"""What makedumpfile keeps of a reference vmcore at each dump level: it never changes, and so is kept too."""

import tempfile
from pathlib import Path

import numpy as np

from .cache import Cache, digest
from .debuggers import vmcoreinfo
from .kdump_bitmaps import Bits, KdumpFile
from .makedumpfile import Makedumpfile, former_names
from .reference import GUESTS, Reference

__all__ = ["LEVELS", "bitmaps", "names_file"]

LEVELS = range(32)


def names_file(folder: Path, reference: Reference) -> Path:
    """For makedumpfile's -i: what this kernel calls otherwise than makedumpfile does."""
    names = folder / "vmcoreinfo"
    names.write_text(former_names(vmcoreinfo(reference.vmcore)))
    return names


def bitmaps(cache: Cache, makedumpfile: Makedumpfile, reference: Reference) -> list[Bits]:
    """Bitmap 1, and bitmap 2 of each level."""

    def build(folder: Path) -> None:
        output = folder / "dump"
        found: list[Bits] = []
        with tempfile.TemporaryDirectory(prefix="kdump-oracle-") as temporary:
            names = names_file(Path(temporary), reference)
            for level in LEVELS:
                # Without a compression: the pages are of no interest.
                makedumpfile.run(["-i", str(names), "-d", str(level)], reference.vmcore, output)
                with KdumpFile(output) as dump:
                    if not found:
                        found.append(dump.bitmap1)
                    assert np.array_equal(found[0], dump.bitmap1)
                    found.append(dump.bitmap2)
        output.unlink()
        np.savez_compressed(folder / "bitmaps.npz", frames=len(found[0]), bits=np.packbits(found, axis=1))

    key = digest(reference.key, makedumpfile.version, former_names(vmcoreinfo(reference.vmcore)))
    doing = (
        f"makedumpfile {makedumpfile.version} on the vmcore of {reference.tree.suite}, {len(LEVELS)} levels"
    )
    entry = cache.entry("bitmaps", key, build, doing=doing, keep=len(GUESTS) + 1)
    with np.load(entry / "bitmaps.npz") as stored:
        bits = np.unpackbits(stored["bits"], axis=1, count=int(stored["frames"]))
    return list(bits.astype(np.bool_))
