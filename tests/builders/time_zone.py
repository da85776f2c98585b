# SPDX-License-Identifier: LGPL-2.1-or-later
"""Another place on earth for a while."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator

__all__ = ["time_zone"]


@contextlib.contextmanager
def time_zone(name: str) -> Iterator[None]:
    """Local time of this process is that of ``name``, as in ``Europe/Berlin``."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TZ"]
        else:
            os.environ["TZ"] = before
        time.tzset()
