# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the memory of a Linux machine whose kernel died, and tells what happened."""

import os

__version__ = "0.1.0"

# numpy's linear algebra, which nothing here uses, starts a thread for each processor when it is loaded: 50 ms
# of processor time, and address space that a capture boot has no use for (OpenBLAS, measured).
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
