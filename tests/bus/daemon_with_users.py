# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: the daemon of daemon_on_fake_kernel, on a bus that says by a file who its callers are.

All callers of a test are one user. What is faked is the bus' answer to GetConnectionUnixUser; who is not
listed is root.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from kdump_service import log
from kdump_service.bus.authorization import Authority
from tests.bus import daemon_on_fake_kernel


def write_users(root: Path, users: Mapping[str, int]) -> None:
    """From now on the bus says so of these connections."""
    (root / "users.json").write_text(json.dumps(users))


async def _user_id(authority: Authority, sender: str) -> int:
    users: dict[str, int] = json.loads((Path(sys.argv[1]) / "users.json").read_text())
    return users.get(sender, 0)


if __name__ == "__main__":
    log.to_stderr()
    write_users(Path(sys.argv[1]), {})
    setattr(Authority, "_user_id", _user_id)  # noqa: B010 - mypy minds an assignment
    asyncio.run(daemon_on_fake_kernel._main())
