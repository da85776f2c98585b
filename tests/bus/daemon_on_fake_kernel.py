# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: the real daemon, with kexec_file_load(2) replaced by one that loads into a folder."""

from __future__ import annotations

import asyncio
import functools
import sys
from pathlib import Path

from kdump_service import log
from kdump_service.arm.loader import Loader
from kdump_service.bus.client import Client
from kdump_service.daemon import Daemon
from kdump_service.errors import ImageNotBuilt, KdumpError, ProgramFailed, ServiceUnreachable
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.systemd import StopCause
from tests.builders.machine_disks import SMALL_IMAGE_DRIVERS, put_image
from tests.builders.machine_root import FakeKernel, MachineRoot


class _ExistingRoot(MachineRoot):
    def __init__(self, path: Path) -> None:
        self.path = path


async def _say_when_ready() -> None:
    client = await Client.connect()
    while True:
        try:
            properties = await client.properties()
        except ServiceUnreachable:
            properties = {"State": "starting"}
        if properties["State"] not in ("starting", "arming"):
            break
        await asyncio.sleep(0.02)
    client.close()
    print("ready", flush=True)


def _crash(kernel_files: KernelFiles, identity: str) -> None:
    """Instead of the real thing; it fails if a test wants it to."""
    (kernel_files.root / "crashed").write_text(identity)
    if (kernel_files.root / "crash-fails").exists():
        raise ProgramFailed("systemctl start kdump-test-crash.service: made to fail")


def _build(root: Path, release: str, *, anew: bool) -> None:
    """Instead of kdump-build-image@.service: ends when a test writes to the pipe of this build, as told."""
    with open(root / "builds", "a+") as begun:
        begun.write(f"{release}{' anew' if anew else ''}\n")
        begun.seek(0)
        pipe = root / f"build-{len(begun.readlines())}"
    if pipe.exists():
        said = pipe.read_text().strip()
        if said:
            raise ImageNotBuilt(said, "Make room in /var.")
    more = (root / "drivers").read_text().split() if (root / "drivers").exists() else []
    put_image(_ExistingRoot(root), release=release, drivers=(*SMALL_IMAGE_DRIVERS, *more))


def _why_stopped(root: Path, cause: str) -> StopCause:
    """Instead of what systemd says; if there is a pipe for it, when a test has written to that."""
    if (root / "why-stopped").exists():
        (root / "why-stopped").read_text()
    return StopCause(cause)


async def _main() -> None:
    root = Path(sys.argv[1])
    kernel = FakeKernel(_ExistingRoot(root))
    kernel.failures = [int(code) for code in sys.argv[3:]]
    loader = Loader(KernelFiles(root), kernel.load, kernel.unload)
    why_stopped = functools.partial(_why_stopped, root, sys.argv[2])
    daemon = Daemon(root, loader, why_stopped, _crash, functools.partial(_build, root))
    ready = asyncio.create_task(_say_when_ready())
    await daemon.run()
    ready.cancel()


if __name__ == "__main__":
    log.to_stderr()
    try:
        asyncio.run(_main())
    except KdumpError as error:
        print(error.explanation(), file=sys.stderr)
        sys.exit(error.exit_code)
