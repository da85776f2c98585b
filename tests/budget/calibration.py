# SPDX-License-Identifier: LGPL-2.1-or-later
"""How fast this machine is at what the suite does, so that seconds of two machines can be compared.

A third each: the interpreter, as unit cases; hashing and packing, as the engine and the cache; reads all over
a memory that fits into no cache, as the emulation of a processor, which looks up each address of its guest.
"""

import hashlib
import statistics
import time
import zlib

__all__ = ["calibrate"]

LOOPS = 1_500_000
PLACES = 1 << 23  # of eight bytes each: 64 MiB
PACKED_BYTES = 6 << 20
ROUNDS = 5


def calibrate() -> float:
    """Processor seconds of a fixed piece of work: about half of one. It is done five times, and the median
    counts: with neighbours at work, single ones differed by a factor of two."""
    return statistics.median(_work() for _ in range(ROUNDS))


def _work() -> float:
    import numpy as np

    start = time.process_time()
    total = 0
    for number in range(LOOPS):
        total = (total * 31 + number) & 0xFFFFFFFF
    # An odd step comes by each place once; no two in a row are in one page.
    places = np.arange(PLACES, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) & np.uint64(PLACES - 1)
    table = places[::-1].copy()
    data = table[: PACKED_BYTES // 8].tobytes()
    hashlib.sha256(data).digest()
    zlib.compress(data, 1)
    table[places].sum()
    return time.process_time() - start
