# SPDX-License-Identifier: LGPL-2.1-or-later
"""The interface org.kdump.Kdump1: rows of members, and values as they go over the bus. No logic of its own.

What the members mean is documented in ``dbus/org.kdump.Kdump1.xml``, which a test compares with live
introspection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dbus_next import Variant

from kdump_service import __version__
from kdump_service.bus.members import Argument, Interface, Method, Property, clean
from kdump_service.bus.names import ACTION_ARM, ACTION_CONFIGURE, ACTION_CRASH, FREE, INTERFACE, dump_path
from kdump_service.service.problems import Problem
from kdump_service.service.state import View

__all__ = ["ManagerActs", "manager_interface", "manager_values"]

_PROPERTIES = (
    Property("Version", "s", constant=True, at_hand=True),
    Property("State", "s", at_hand=True),
    Property("Ready", "b"),
    Property("Reason", "s", at_hand=True),
    Property("Explanation", "s", at_hand=True),
    Property("Problems", "a(ssss)"),
    Property("Loaded", "b", at_hand=True),
    Property("ReservedBytes", "t", at_hand=True),
    Property("RequestedReservation", "s", constant=True, at_hand=True),
    Property("KernelRelease", "s", constant=True, at_hand=True),
    Property("Kernel", "s", at_hand=True),
    Property("Image", "s", at_hand=True),
    Property("CommandLine", "s", at_hand=True),
    Property("ProvenLevel", "s"),
    Property("ProvenTime", "s"),
    Property("LastCrash", "o", at_hand=True),
    Property("Activity", "s", at_hand=True),
    Property("Progress", "d", at_hand=True),
)
"""At hand is what needs no file but the kernel's own word on whether a crash kernel is loaded."""

# What stands in Estimate's dictionary; keys without a row are numbers.
_TEXTS = {"Basis", "Contents"}


class ManagerActs(Protocol):
    """What the interface needs of the daemon."""

    def view(self) -> View:
        """The state, as far as it is known without looking."""

    async def look(self) -> View:
        """The state now."""

    async def arm(self) -> None:
        """Raises KdumpError."""

    async def disarm(self) -> None:
        """Raises KdumpError."""

    async def reload(self) -> None:
        """Raises KdumpError."""

    async def rebuild(self) -> None:
        """Raises KdumpError."""

    async def check(self) -> Sequence[Problem]:
        """Worst first."""

    async def estimate(self) -> Mapping[str, int | str]:
        """Figures by their names on the bus."""

    async def reserve(self, size: str, values: Mapping[str, Any]) -> Mapping[str, str | bool | list[str]]:
        """Raises KdumpError."""

    async def rehearse(self) -> Mapping[str, str | bool | int | float | list[str]]:
        """Raises KdumpError."""

    async def test_crash(self) -> None:
        """Raises KdumpError."""


def manager_values(view: View) -> dict[str, Any]:
    """All properties, by their names on the bus."""
    status = view.status
    return {
        "Version": __version__,
        "State": str(status.state),
        "Ready": view.ready,
        "Reason": status.reason,
        "Explanation": status.explanation,
        "Problems": _rows(view.problems),
        "Loaded": status.loaded,
        "ReservedBytes": status.reserved_bytes,
        "RequestedReservation": view.requested_reservation,
        "KernelRelease": view.kernel_release,
        "Kernel": status.kernel,
        "Image": status.image,
        "CommandLine": status.command_line,
        "ProvenLevel": view.proven_level,
        "ProvenTime": view.proven_time,
        "LastCrash": dump_path(view.last_crash) if view.last_crash else "/",
        "Activity": view.activity,
        "Progress": view.progress,
    }


def manager_interface(acts: ManagerActs) -> Interface:
    """The interface in front of ``acts``."""

    last: tuple[View, dict[str, Any]] | None = None

    async def read() -> Mapping[str, Any]:
        nonlocal last
        view = await acts.look()
        if last is None or last[0] is not view:
            last = (view, manager_values(view))  # many ask at the same time, and get the same view
        return last[1]

    async def check() -> list[list[str]]:
        return _rows(await acts.check())

    async def estimate() -> dict[str, Variant]:
        figures = await acts.estimate()
        return {key: Variant("s" if key in _TEXTS else "t", value) for key, value in figures.items()}

    async def reserve(size: str, options: Mapping[str, Variant]) -> dict[str, Variant]:
        plan = await acts.reserve(size, {name: option.value for name, option in options.items()})
        kinds = {bool: "b", list: "as"}
        return {key: Variant(kinds.get(type(value), "s"), clean(value)) for key, value in plan.items()}

    async def rehearse() -> dict[str, Variant]:
        result = await acts.rehearse()
        kinds = {bool: "b", list: "as", int: "t", float: "d"}
        return {key: Variant(kinds.get(type(value), "s"), clean(value)) for key, value in result.items()}

    methods = (
        Method("Arm", acts.arm, ACTION_ARM),
        Method("Disarm", acts.disarm, ACTION_ARM),
        Method("Reload", acts.reload, ACTION_ARM),
        Method("Rebuild", acts.rebuild, ACTION_ARM),
        Method("Check", check, FREE, gives=Argument("problems", "a(ssss)")),
        Method("Estimate", estimate, FREE, gives=Argument("estimate", "a{sv}")),
        Method(
            "Reserve",
            reserve,
            ACTION_CONFIGURE,
            (Argument("size", "s"), Argument("options", "a{sv}")),
            Argument("plan", "a{sv}"),
        ),
        Method("Rehearse", rehearse, ACTION_ARM, gives=Argument("result", "a{sv}")),
        Method("TestCrash", acts.test_crash, ACTION_CRASH),
    )
    return Interface(
        INTERFACE,
        {each.name: each for each in _PROPERTIES},
        {each.name: each for each in methods},
        read,
        lambda: manager_values(acts.view()),
    )


def _rows(problems: Sequence[Problem]) -> list[list[str]]:
    return [[each.code, str(each.severity), each.what, each.remedy] for each in problems]
