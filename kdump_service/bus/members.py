# SPDX-License-Identifier: LGPL-2.1-or-later
"""What an interface consists of: methods and properties, each with the right that it takes.

A row cannot be made without saying who may: the action, or FREE. The rows are what is served, what is
authorised, and what introspection tells.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dbus_next import Variant

from kdump_service.bus.names import FREE

__all__ = ["Argument", "Interface", "Method", "Property", "clean"]


@dataclass(frozen=True)
class Argument:
    """One argument of a method; ``signature`` is one complete type."""

    name: str
    signature: str


@dataclass(frozen=True)
class Method:
    """One method. ``run`` gets the arguments and returns the value of ``gives``, if there is one."""

    name: str
    run: Callable[..., Awaitable[Any]]
    action: str
    takes: Sequence[Argument] = ()
    gives: Argument | None = None

    @property
    def signature(self) -> str:
        """Of a call's body."""
        return "".join(argument.signature for argument in self.takes)


@dataclass(frozen=True)
class Property:
    """One property, which everybody may read; ``action`` is what it takes to write it."""

    name: str
    signature: str
    write: Callable[[Any], Awaitable[None]] | None = None
    action: str = FREE
    constant: bool = False
    """Whether it never changes as long as the object is there."""
    at_hand: bool = False
    """Whether :attr:`Interface.at_hand` knows it."""


@dataclass(frozen=True)
class Interface:
    """An interface of one object."""

    name: str
    properties: Mapping[str, Property]
    methods: Mapping[str, Method]
    read: Callable[[], Awaitable[Mapping[str, Any]]] | None = None
    """All properties by name, true at the time of asking. None: what was announced last is true."""
    at_hand: Callable[[], Mapping[str, Any]] | None = None
    """The same, of which those marked so are true, without waiting for anything."""

    def variants(self, values: Mapping[str, Any]) -> dict[str, Variant]:
        """These of the properties, as a message carries them."""
        return {
            name: Variant(self.properties[name].signature, clean(value)) for name, value in values.items()
        }


def clean(value: Any) -> Any:
    """The value without what a message cannot carry: bytes that are no text (a kernel's command line may have
    some), and NUL."""
    if isinstance(value, str):
        if value.isascii() and "\0" not in value:
            return str(value)
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, (list, tuple)):
        return [clean(each) for each in value]
    return value
