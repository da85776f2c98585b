# SPDX-License-Identifier: LGPL-2.1-or-later
"""How large a dump will be, told before it is written: from the number of pages and a compressed sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from kdump_service.engine.page_stream import PageStream, batches
from kdump_service.engine.verify import sampled_runs
from kdump_service.pfn import PfnBitmap

__all__ = ["Prediction", "predict_data_bytes"]

_SAMPLE_PAGES = 2048
_DEVIATIONS = 3.0
"""Standard deviations of the mean that are added: one prediction in a thousand is too small."""


@dataclass(frozen=True)
class Prediction:
    """Bytes of all pages of a dump, without its head."""

    expected_bytes: int
    at_most_bytes: int
    """With a margin for the sample's chance."""


def predict_data_bytes(stream: PageStream, kept: PfnBitmap) -> Prediction:
    """Compress a sample of the kept pages. Pages of zeros and pages that cannot be read count nothing."""
    at_once = min(stream.batch_pages, _SAMPLE_PAGES // 32)
    encoded = stream.encode(batches(sampled_runs(kept, _SAMPLE_PAGES), at_once))
    sizes = np.concatenate([[0.0], *(batch.pages.sizes for batch in encoded)])[1:]
    if not len(sizes):
        return Prediction(0, 0)
    mean = float(np.mean(sizes))
    # Neighbours resemble each other, but evenly spread pages are as good as drawn by chance.
    error = float(np.std(sizes)) / math.sqrt(len(sizes))
    total = len(kept)
    return Prediction(round(total * mean), math.ceil(total * (mean + _DEVIATIONS * error)))
