# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the memory of a Linux machine whose kernel died, and tells what happened."""

__version__ = "0.1.0"
