# SPDX-License-Identifier: LGPL-2.1-or-later
"""Loads numpy without the parts that a dump does not need.

``import numpy`` loads linear algebra with LAPACK, random numbers, Fourier transforms and polynomials:
measured with numpy 1.24, some 10 MB of memory, a third of the time, and 15 MB of files in the capture image.
None of them is used here. They are public names of numpy; what asks for them while numpy is loaded gets empty
modules. (Masked arrays could go, too, but for newer versions, whose ``unique`` asks them.) The texts of its
manual, which are modules of their own, and its types for annotations take another seventh of the time each.

Only in the small capture image, where a trial has shown that this very numpy goes along; 1.24 to 2.4 do.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["load_numpy"]

_NOT_NEEDED = ("linalg", "random", "fft", "polynomial")
_MANUAL = tuple(
    f"{core}.{texts}"
    for core in ("core", "_core")  # up to 1.26, and since 2.0
    for texts in ("_add_newdocs", "_add_newdocs_scalars")
)


class _Nothing(ModuleType):
    """A module in which each name is a function that cannot be called to any good."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.__all__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*arguments: object, **words: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} is left out of a capture")

        return missing


def load_numpy() -> None:
    """Import it. Raises whatever a version that does not go along raises: it cannot be loaded a second time
    (numpy 2.2 and later refuse), so that the trial, and not the capture, is the place to find out."""
    if "numpy" in sys.modules:
        return
    for part in (*_NOT_NEEDED, *_MANUAL):
        sys.modules[f"numpy.{part}"] = _Nothing(f"numpy.{part}")
    numpy = importlib.import_module("numpy")
    # For those who check types; the arrays themselves do in its place.
    typing = ModuleType("numpy.typing")
    typing.NDArray = numpy.ndarray  # type: ignore[attr-defined]
    sys.modules[typing.__name__] = typing
    for part in _NOT_NEEDED:
        # Newer versions load some of these when they are asked for first, and ask for them by import.
        setattr(numpy, part, sys.modules[f"numpy.{part}"])
