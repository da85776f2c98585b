# SPDX-License-Identifier: LGPL-2.1-or-later
"""The names of the service's own folders, below the root; units/kdump.service has them made."""

from __future__ import annotations

__all__ = ["FALLBACK_FOLDER", "RUN_FOLDER", "STATE_FOLDER"]

STATE_FOLDER = "var/lib/kdump-service"
"""What the service remembers across boots."""
FALLBACK_FOLDER = f"{STATE_FOLDER}/crash"
"""Takes the record where the target cannot be written."""
RUN_FOLDER = "run/kdump-service"
"""What it remembers of this boot, and hands to its units."""
