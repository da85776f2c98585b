# SPDX-License-Identifier: LGPL-2.1-or-later
"""Debian sid's makedumpfile and crash: what dumps are held against, and what reads those of new kernels.

Debian 12 has makedumpfile 1.7.2, which knows kernels up to about 6.2, and crash 8.0.2. The packages of sid
are unpacked into a folder of the cache, and their programs are started through the dynamic loader that lies
there too (ld.so(8)). So they find their own libraries, see the paths of the host and its /proc (without
which makedumpfile spins for ever), and leave no mount behind.
"""

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, digest
from .tree import mmdebstrap

__all__ = ["Makedumpfile", "MakedumpfileFailed", "MakedumpfileRun", "former_names"]

SUITE = "sid"
# base-files holds the links of a merged /usr; time says what a program took, without what started it.
PACKAGES = ("base-files", "libc6", "makedumpfile", "crash", "time")
LOADER = "usr/lib64/ld-linux-x86-64.so.2"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
TIMEOUT_SEC = 300.0
# -F writes the dump to standard output, -R reads one from standard input.
FLATTEN, REARRANGE = "-F", "-R"


class MakedumpfileFailed(AssertionError):
    """It ended with another status than 0, or not in time; the message ends with what it said."""


@dataclass(frozen=True)
class MakedumpfileRun:
    """What a run took and said. Pages are read by a mapping, and count as resident while they are mapped."""

    wall_seconds: float
    cpu_seconds: float  # of all of its threads, in user mode and in the kernel
    peak_resident_kib: int
    stdout: str  # "" with -F
    stderr: str


class Makedumpfile:
    """The programs of sid, fetched on first use: about 8 s and 135 MB."""

    def __init__(self, cache: Cache) -> None:
        self.key = digest(SUITE, *PACKAGES)
        """What was asked for; for what was got, see `version`."""

        def build(folder: Path) -> None:
            mmdebstrap(SUITE, folder / "root", ["--variant=extract", f"--include={','.join(PACKAGES)}"])

        entry = cache.entry("oracle", self.key, build, doing=f"makedumpfile and crash of Debian {SUITE}")
        self._root = entry / "root"
        self._loader = [str(self._root / LOADER), "--library-path", str(self._root / LIBRARIES)]
        said = subprocess.run(
            [*self.command("makedumpfile"), "-v"], check=True, capture_output=True, text=True
        )
        match = re.search(r"version (\S+)", said.stdout + said.stderr)
        self.version = match[1] if match else "unknown"

    def command(self, program: str) -> list[str]:
        """The words to start a program of this tree with; its arguments follow."""
        return [*self._loader, str(self._root / "usr/bin" / program)]

    @property
    def crash(self) -> list[str]:
        """For `OpenDump(..., crash_command=...)`."""
        return self.command("crash")

    def run(
        self, arguments: Sequence[str], vmcore: Path, output: Path, *, timeout_sec: float = TIMEOUT_SEC
    ) -> MakedumpfileRun:
        """`makedumpfile ARGUMENTS VMCORE OUTPUT`. `output` is replaced; the vmcore is only read.

        With -F the flattened dump goes from standard output to `output`; with -R `vmcore` is such a dump.
        """
        output.unlink(missing_ok=True)
        flatten, rearrange = FLATTEN in arguments, REARRANGE in arguments
        paths = [] if rearrange else [str(vmcore)]
        if not flatten:
            paths.append(str(output))
        with contextlib.ExitStack() as stack:
            measured = stack.enter_context(tempfile.NamedTemporaryFile("r", prefix="kdump-time-"))
            stdin = stack.enter_context(vmcore.open("rb")) if rearrange else subprocess.DEVNULL
            stdout = stack.enter_context(output.open("wb")) if flatten else subprocess.PIPE
            command = [
                # A test run that is killed takes both processes with it; so does the end of the first one.
                *("setpriv", "--pdeathsig", "KILL"),
                *(*self.command("time"), "--quiet", "--format", "%e %U %S %M", "--output", measured.name),
                *("setpriv", "--pdeathsig", "KILL"),
                *self.command("makedumpfile"),
                *arguments,
                *paths,
            ]
            process = stack.enter_context(
                subprocess.Popen(
                    command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace"
                )
            )
            shown = f"makedumpfile {' '.join(arguments)}"
            try:
                out, err = process.communicate(timeout=timeout_sec)
            except BaseException as error:
                process.kill()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise MakedumpfileFailed(f"{shown} did not end within {timeout_sec:.0f} s") from error
                raise
            if process.returncode != 0:
                last = "\n".join(((out or "") + err).splitlines()[-20:])
                raise MakedumpfileFailed(f"{shown} ended with status {process.returncode}:\n{last}")
            wall, user, system, resident = measured.read().split()
        return MakedumpfileRun(
            wall_seconds=float(wall),
            cpu_seconds=round(float(user) + float(system), 2),
            peak_resident_kib=int(resident),
            stdout=out or "",
            stderr=err,
        )


def former_names(vmcoreinfo: Mapping[str, str]) -> str:
    """The text of a file for `makedumpfile -i`: what this kernel calls otherwise than makedumpfile 1.7.8.

    Linux 7.1 renamed page.compound_head to compound_info (d50569612c29). makedumpfile 1.7.8 and 1.7.9 then
    take no page for the tail of a compound page, and leave out some that they should keep; the next release
    knows the name (f50c015f150f). What such a file does not give is taken from the dump's own VMCOREINFO, so
    one without names changes nothing.
    """
    lines = [f"{key}={vmcoreinfo[key]}" for key in ("OSRELEASE", "PAGESIZE")]
    if offset := vmcoreinfo.get("OFFSET(page.compound_info)"):
        lines.append(f"OFFSET(page.compound_head)={offset}")
    return "".join(f"{line}\n" for line in lines)
