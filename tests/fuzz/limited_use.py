# SPDX-License-Identifier: LGPL-2.1-or-later
"""Run as a child: does all that is done with files that others gave us, each in a process of its own, whose
address space and time are limited.

Asked by lines, each the path of a file as JSON; the answer is a line, too: null, or what went wrong. What is
forked is forked from here, and not from the process of the tests, since a fork takes as long as the memory of
its parent is large: the engine forks for each conversion.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from kdump_service.dump_options import DumpOptions
from kdump_service.dumpfile.open_image import open_image
from kdump_service.engine.convert import convert_file
from kdump_service.engine.inspect import inspect_file
from kdump_service.errors import KdumpError, WorkerFailed
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.printk import read_log

MOST_BYTES = 512 << 20
"""More address space than before. Workers share some MiB; what a header claims may be anything."""
MOST_SECONDS = 10
"""Each process may take so many seconds of a processor. An example takes a fraction of one."""
LONGEST_WAIT_SECONDS = 60
"""An example must have ended after so many seconds, in which other tests may have the processors."""


def _use(path: Path) -> None:
    def log() -> None:
        with open_image(path) as opened:
            space = AddressSpace(opened.image)
            for _ in read_log(opened.image.vmcoreinfo, space, opened.image.byte_order):
                pass

    def convert() -> None:
        options = DumpOptions(31, "kdump", "none")
        convert_file(path, path.with_suffix(".out"), options, replace=True)

    def convert_to_elf() -> None:
        convert_file(path, path.with_suffix(".out"), DumpOptions(0, "elf", "none"), replace=True)

    acts: list[Callable[[], object]] = [
        log,
        lambda: inspect_file(path, every_page=True, progress=lambda *told: None),
        convert,
        convert_to_elf,
    ]
    for act in acts:
        try:
            act()
        except WorkerFailed:
            raise  # that hides an exception of another kind
        except KdumpError as error:
            assert error.explanation()


def _too_long(*arguments: object) -> None:
    raise TimeoutError(f"not done after {LONGEST_WAIT_SECONDS} s")


def _limited(path: Path) -> str | None:
    """Use it in a process of its own, with limits; returns what went wrong."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(LONGEST_WAIT_SECONDS)
            resource.setrlimit(resource.RLIMIT_CPU, (MOST_SECONDS, MOST_SECONDS))
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
            _use(path)
        except BaseException:
            os.write(write_end, traceback.format_exc().encode()[-60000:])
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if not told and not os.WIFEXITED(status):
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return told or None


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(_limited(Path(json.loads(line)))), flush=True)
