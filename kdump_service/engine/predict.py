# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large a dump will be, told before it is written: from the number of pages and a compressed sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kdump_service.engine.page_stream import PageStream, batches
from kdump_service.engine.verify import sampled_runs
from kdump_service.pfn import PfnBitmap

__all__ = ["Prediction", "predict_data_bytes"]

_SAMPLE_PAGES = 2048
_DEVIATIONS = 3.0
"""Standard deviations of the mean that are added: one prediction in a thousand is too small."""


class Prediction(NamedTuple):
    """Bytes of a dump, or of its pages alone."""

    expected_bytes: int
    at_most_bytes: int
    """With a margin for the sample's chance."""


def predict_data_bytes(
    stream: PageStream, kept: PfnBitmap, advance: Callable[[int, int], None] = lambda done, total: None
) -> Prediction:
    """Compress a sample of the kept pages. Pages of zeros and pages that cannot be read count nothing.

    ``advance`` is told how many pages are done, and of how many: with the highest levels they take a while.
    """
    at_once = min(stream.batch_pages, _SAMPLE_PAGES // 32)
    sizes = np.zeros(min(_SAMPLE_PAGES, len(kept)))
    done = 0
    for batch in stream.encode(batches(sampled_runs(kept, _SAMPLE_PAGES), at_once)):
        sizes[done : done + len(batch.pages.sizes)] = batch.pages.sizes
        done += len(batch.pages.sizes)
        advance(done, len(sizes))
    if not done:
        return Prediction(0, 0)
    sizes = sizes[:done]
    mean = float(np.mean(sizes))
    # Neighbours resemble each other, but evenly spread pages are as good as drawn by chance.
    error = float(np.std(sizes)) / math.sqrt(len(sizes))
    total = len(kept)
    return Prediction(round(total * mean), math.ceil(total * (mean + _DEVIATIONS * error)))
