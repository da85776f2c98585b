# SPDX-License-Identifier: LGPL-2.1-or-later
"""The table of who may what in kdump-service(8) is that of the code and of the policy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from kdump_service.bus import names
from kdump_service.bus.dump_interface import dump_interface
from kdump_service.bus.interface import manager_interface
from kdump_service.bus.settings_interface import settings_interface

REPOSITORY = Path(__file__).parents[3]


class _NoActs:
    """Interfaces can be looked at without a daemon."""

    def __getattr__(self, name: str) -> Any:
        return None


def _rights() -> dict[str, set[str]]:
    acts: Any = _NoActs()
    found: dict[str, set[str]] = {}
    for interface in (manager_interface(acts), settings_interface(acts), dump_interface(acts, "name")):
        for method in interface.methods.values():
            found.setdefault(method.action, set()).add(method.name)
        for prop in interface.properties.values():
            if prop.write:
                found.setdefault(prop.action, set()).add("setting a property")
    found[names.FREE].add("reading properties")
    return found


def test_the_manual_has_each_right() -> None:
    page = (REPOSITORY / "packaging/man/kdump-service.8").read_text()
    rows = re.findall(r"^\.It (?:Li )?([\w.-]+) Ta (?!Sy)(.*)$", page, re.MULTILINE)
    table = {names.FREE if action == "free" else action: set(acts.split(", ")) for action, acts in rows}
    assert table == _rights()
    policy = (REPOSITORY / "dbus/org.kdump.Kdump1.policy").read_text()
    assert set(re.findall(r'<action id="([\w.-]+)">', policy)) == set(table) - {names.FREE}


def test_what_the_manual_says_of_passwords_is_the_policy() -> None:
    policy = (REPOSITORY / "dbus/org.kdump.Kdump1.policy").read_text()
    for action, rest in re.findall(r'<action id="([\w.-]+)">(.*?)</action>', policy, re.DOTALL):
        answers = dict(re.findall(r"<allow_(\w+)>(\w+)<", rest))
        in_front = "auth_admin" if action == names.ACTION_CRASH else "auth_admin_keep"
        assert answers == {"any": "auth_admin", "inactive": "auth_admin", "active": in_front}
