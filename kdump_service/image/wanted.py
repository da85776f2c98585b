# SPDX-License-Identifier: LGPL-2.1-or-later
"""Which image this machine wants now, by its configuration files and its kernel."""

from __future__ import annotations

import re

from kdump_service.config import read_config_files
from kdump_service.errors import NotSupported
from kdump_service.image.recipe import Recipe, find_storages, recipe_of
from kdump_service.kernel.files import KernelFiles

__all__ = ["wanted_recipe"]


def wanted_recipe(kernel_files: KernelFiles, release: str | None = None) -> Recipe:
    """For the kernel of this release, or the running one. Raises NotSupported where a small image cannot
    serve, or where there are no modules of this release."""
    config = read_config_files(kernel_files.root).config
    release = release or kernel_files.release
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+~_-]*", release):
        raise NotSupported(f"{release!r} is no release of a kernel")
    if not (kernel_files.root / "usr/lib/modules" / release).is_dir():
        raise NotSupported(
            f"there is no folder /usr/lib/modules/{release}", "Install the kernel's package again."
        )
    return recipe_of(kernel_files, config, release, find_storages(kernel_files, config))
