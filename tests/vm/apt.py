# SPDX-License-Identifier: LGPL-2.1-or-later
"""apt for a root tree of any Debian release, from the mirrors that the machine's own apt is set up for."""

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROLLING", "apt_get", "apt_options", "apt_sources", "download"]

# Settings of the machine's apt that say how far its mirrors' dates can be trusted. A mirror frozen in time
# needs them.
DATE_SETTINGS = ("Acquire::Check-Valid-Until", "Acquire::Check-Date")

# Suites that get new versions all the time, and so have neither updates nor security fixes beside them.
ROLLING = ("sid", "unstable")


def _machine_suite() -> str:
    release = Path("/etc/os-release").read_text()
    match = re.search(r"^VERSION_CODENAME=(\w+)", release, re.MULTILINE)
    return match[1] if match else "bookworm"


def apt_sources(suite: str) -> list[str]:
    """One-line apt sources of `suite`, its updates and security fixes, from where this machine gets its own.

    A suite other than the machine's is looked for on the same mirrors. No answer (a machine that is not
    Debian) means that mmdebstrap's own choice is as good as any.
    """
    own = _machine_suite()
    listed = subprocess.run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    wanted = re.compile(rf"{re.escape(own)}(-updates|-security)?")
    rows = (line.split() for line in listed.stdout.splitlines())
    sources = {
        f"deb {uri} {suite}{release.removeprefix(own)} {component}"
        for uri, release, component in rows
        if wanted.fullmatch(release) and component == "main" and (release == own or suite not in ROLLING)
    }
    return sorted(sources)


def _setting(name: str) -> str:
    """A setting of the machine's apt; empty if it has none."""
    shown = subprocess.run(
        ["apt-config", "shell", "VALUE", name], check=False, capture_output=True, text=True
    ).stdout
    match = re.match(r"VALUE='(.*)'", shown)
    return match[1] if match else ""


@functools.cache
def apt_options() -> tuple[str, ...]:
    """Lines for an apt.conf: how far dates can be trusted."""
    settings = {name: _setting(name) for name in DATE_SETTINGS}
    return tuple(f'{name} "{value}"' for name, value in settings.items() if value)


def apt_get(root: Path, lists: Path, *words: str, cwd: Path | None = None) -> None:
    """Run the machine's apt-get on the packages of the tree `root`, whose package lists are in `lists`.

    dpkg and what packages bring along run in the tree, in mount namespaces of their own.
    """
    settings = (
        *apt_options(),
        f'Dir "{root}"',
        f'Dir::State::Lists "{lists}"',
        f'Dir::State::Status "{root}/var/lib/dpkg/status"',
        f'Dir::Etc::Trusted "{_setting("Dir::Etc::Trusted/f")}"',
        f'Dir::Etc::TrustedParts "{_setting("Dir::Etc::TrustedParts/d")}"',
        f'DPkg::Chroot-Directory "{root}"',
        'APT::Install-Recommends "false"',
        'APT::Sandbox::User "root"',
        'Acquire::Languages "none"',
    )
    mounts = (
        f"mount -t proc proc {root}/proc && mount -t sysfs sys {root}/sys && mount --rbind /dev {root}/dev"
    )
    with tempfile.NamedTemporaryFile("w", prefix="kdump-apt-") as config:
        config.write("".join(f"{line};\n" for line in settings))
        config.flush()
        command = ("apt-get", "-qq", "--yes", *words)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *command],
            check=False,
            cwd=cwd,
            env={**os.environ, "APT_CONFIG": config.name, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if done.returncode != 0:
        last = "\n".join(done.stdout.splitlines()[-40:])
        raise RuntimeError(f"{' '.join(command)} in {root} ended with status {done.returncode}:\n{last}")


def download(root: Path, lists: Path, packages: Sequence[str], folder: Path) -> list[Path]:
    """Fetch packages (NAME or NAME=VERSION) that fit the tree into `folder`, and return the files."""
    apt_get(root, lists, "download", *packages, cwd=folder)
    return sorted(folder.glob("*.deb"))
