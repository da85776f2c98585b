#!/usr/bin/python3 -I
# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make install` and `make uninstall`: the one list of what is installed, and where.

Packages use it with --destdir, where nothing is looked at and nothing is started. Without it, this machine is
changed: nothing that belongs to another is overwritten, what was installed is noted with its hash, and that
note is what `uninstall` goes by.

There is no prefix. The programs name /usr/bin/python3, the units name /usr/bin, and neither D-Bus nor polkit,
dracut nor kernel-install look for policies, actions, modules or plugins below /usr/local.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MACHINE = Path("/")
"""The root of what runs here; others are folders of tests, where nothing is started."""
PYTHON = "/usr/bin/python3"
"""The interpreter that the installed programs name."""
OLDEST_PYTHON = (3, 11)
PACKAGE = "kdump-service"
NOTE = "usr/lib/kdump-service/installed.sha256"
"""What was installed on this machine, as sha256sum(1) prints it. Packages have a list of their own."""
MODULES_MARK = "@MODULES@"
OURS = (b"kdump-service", b"kdump_service", b"org.kdump.Kdump1")
"""Each file of ours has one of these words in its path, or in it, where others have one of that name."""

UNITS = "usr/lib/systemd/system"
MAN = "usr/share/man"
FILES = (  # source (a pattern), folder, name there if it is another, mode
    ("packaging/bin/*", "usr/bin", "", 0o755),
    ("units/*.service", UNITS, "", 0o644),
    ("units/*.target", UNITS, "", 0o644),
    ("units/no-prompt-in-capture.conf", f"{UNITS}/emergency.service.d", "kdump-service.conf", 0o644),
    ("units/no-prompt-in-capture.conf", f"{UNITS}/rescue.service.d", "kdump-service.conf", 0o644),
    ("units/kdump-service.catalog", "usr/lib/systemd/catalog", "", 0o644),
    ("dbus/org.kdump.Kdump1.conf", "usr/share/dbus-1/system.d", "", 0o644),
    ("dbus/org.kdump.Kdump1.service", "usr/share/dbus-1/system-services", "", 0o644),
    ("dbus/*.xml", "usr/share/dbus-1/interfaces", "", 0o644),
    ("dbus/org.kdump.Kdump1.policy", "usr/share/polkit-1/actions", "", 0o644),
    ("packaging/completion/kdumpctl.bash", "usr/share/bash-completion/completions", "kdumpctl", 0o644),
    ("packaging/completion/_kdumpctl", "usr/share/zsh/site-functions", "", 0o644),
    ("packaging/completion/kdumpctl.fish", "usr/share/fish/vendor_completions.d", "", 0o644),
    ("packaging/kdump-service.conf", "etc", "", 0o644),
    ("packaging/dracut/99kdump-service/*", "usr/lib/dracut/modules.d/99kdump-service", "", 0o755),
    ("packaging/kernel-hooks/zz-kdump-service", "etc/kernel/postinst.d", "", 0o755),
    ("packaging/kernel-hooks/*.install", "usr/lib/kernel/install.d", "", 0o755),
    ("packaging/specimen.vmcore.zst", "usr/lib/kdump-service", "", 0o644),
    *((f"packaging/man/*.{section}", f"{MAN}/man{section}", "", 0o644) for section in "578"),
)
LINKS = {  # the capture goes on where the boot ends in one of these
    f"{UNITS}/emergency.target.wants/kdump-capture.service": "../kdump-capture.service",
    f"{UNITS}/rescue.target.wants/kdump-capture.service": "../kdump-capture.service",
}
FOLDERS = ("etc/kdump-service.conf.d",)

DEPENDENCIES = {  # module -> package of Debian
    "dbus_next": "python3-dbus-next",
    "lz4": "python3-lz4",
    "numpy": "python3-numpy",
    "systemd": "python3-systemd",
    "zstandard": "python3-zstandard",
}

ASK_PYTHON = """
import importlib.util, json, sys, sysconfig
schemes = sysconfig.get_scheme_names()
scheme = "deb_system" if "deb_system" in schemes else sysconfig.get_default_scheme()
print(json.dumps({
    "version": sys.version_info[:2],
    "modules": sysconfig.get_path("purelib", scheme),
    "path": sys.path,
    "missing": [name for name in sys.argv[1:] if importlib.util.find_spec(name) is None],
}))
"""
"""Debian and Ubuntu: deb_system is where packages put modules; the default scheme is pip's, in /usr/local."""


class CannotInstall(Exception):
    """What stands in the way, and what to do."""


@dataclass(frozen=True)
class File:
    """A file that is installed."""

    path: str
    """Below the root."""
    content: bytes
    mode: int
    modified_nsec: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def is_configuration(self) -> bool:
        return self.path.startswith("etc/")


@dataclass(frozen=True)
class Python:
    """What the interpreter of the installed programs says of itself."""

    version: tuple[int, int]
    modules: str
    """Where packages put modules."""
    path: tuple[str, ...]
    missing: tuple[str, ...]
    """Modules that are needed and not installed."""

    @classmethod
    def of_this_machine(cls) -> Python:
        """Ask it. Raises CannotInstall if there is none."""
        try:
            said = subprocess.run(
                [PYTHON, "-I", "-c", ASK_PYTHON, *DEPENDENCIES], check=True, capture_output=True, text=True
            ).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            raise CannotInstall(f"{PYTHON}, which the programs are run by, does not run: {error}") from error
        known = json.loads(said)
        return cls((*known["version"],), known["modules"], (*known["path"],), (*known["missing"],))


def files(modules: str | None, python_folder: str) -> Iterator[File]:
    """All files; those of the Python package only if `modules`, the folder for them, is given.

    `python_folder` is where the programs find the package, whoever installs it.
    """
    for pattern, folder, name, mode in FILES:
        found = sorted(path for path in REPOSITORY.glob(pattern) if path.is_file())
        if not found:
            raise CannotInstall(f"{REPOSITORY / pattern}: no such file; is this the whole of the sources?")
        for path in found:
            content = path.read_bytes().replace(MODULES_MARK.encode(), python_folder.encode())
            yield File(f"{folder}/{name or path.name}", content, mode, path.stat().st_mtime_ns)
    if modules is not None:
        for path in sorted((REPOSITORY / "kdump_service").rglob("*.py")):
            name = str(path.relative_to(REPOSITORY))
            yield File(f"{modules}/{name}", path.read_bytes(), 0o644, path.stat().st_mtime_ns)


# To this machine


def owners(paths: list[str]) -> dict[str, str]:
    """Of those absolute paths that a package has, as dpkg or rpm know it: path -> package."""
    found = {}
    if shutil.which("dpkg-query") and paths:
        # Where /lib is a link to /usr/lib, dpkg knows a file by one of its names.
        names = {name: path for path in paths for name in (path, path.replace("/usr/", "/", 1))}
        for line in output_of("dpkg-query", "--search", *names):
            package, _, name = line.partition(": ")  # dpkg-query(1); others say what diverts a file
            if name in names:
                found[names[name]] = package
    if shutil.which("rpm"):
        for path in paths:  # of several, it does not say which one is nobody's
            said = output_of("rpm", "-qf", "--qf", "%{NAME}", path)
            if said and " " not in said[0]:
                found[path] = said[0]
    return found


def output_of(*command: str) -> list[str]:
    """Lines that a program prints, whatever its status: it asks of many, and some are not known."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.splitlines()


def installed_package() -> bool:
    """Whether the package of this project is installed, or half so."""
    if shutil.which("dpkg-query"):
        done = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${db:Status-Status}", PACKAGE],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode == 0 and done.stdout not in ("not-installed", "config-files"):
            return True
    return (
        bool(shutil.which("rpm"))
        and not subprocess.run(["rpm", "--quiet", "-q", PACKAGE], check=False, capture_output=True).returncode
    )


def noted(root: Path) -> dict[str, str]:
    """What `make install` installed before: path -> SHA-256. Raises CannotInstall if that cannot be read."""
    try:
        lines = (root / NOTE).read_text(encoding="utf-8").splitlines()
        rows = [line.split("  /", 1) for line in lines]
        return {path: digest for digest, path in rows}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CannotInstall(f"/{NOTE}, which tells what was installed, cannot be read: {error}") from error


def is_ours(path: str, content: bytes) -> bool:
    """Whether this project has put it there, some time."""
    return any(word in path.encode() or word in content for word in OURS)


def refuse_others(root: Path, wanted: list[File], before: Mapping[str, str]) -> None:
    """Raises CannotInstall if files of others are where ours would go, and names them all."""
    there = [
        path
        for path in [*(file.path for file in wanted), *LINKS]
        if path not in before and ((root / path).exists() or (root / path).is_symlink())
    ]
    packages = owners([f"/{path}" for path in there]) if root == MACHINE else {}
    others = []
    for path in there:
        place, package = root / path, packages.get(f"/{path}", "")
        if package == PACKAGE:  # removed, but for its configuration
            continue
        if package or not place.is_file() or not is_ours(path, place.read_bytes()):
            others.append(f"  {place}{f' of the package {package}' if package else ''}")
    if others:
        raise CannotInstall(
            "these files are another's, and nothing was installed:\n" + "\n".join(others) + "\n"
            "Remove the package or program that they belong to first."
        )


def sha256_of(path: Path) -> str:
    """Of the content of a file, hexadecimal; empty if there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def put(root: Path, file: File) -> None:
    """Write a file, in place of what is there, in one step."""
    place = root / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    new = place.with_name(f".{place.name}.new")
    new.write_bytes(file.content)
    new.chmod(file.mode)
    os.utime(new, ns=(file.modified_nsec, file.modified_nsec))
    new.rename(place)


def put_links_and_folders(root: Path) -> None:
    """What is no file. A link of the same name is replaced."""
    for path, target in LINKS.items():
        place = root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(target)
    for path in FOLDERS:
        (root / path).mkdir(parents=True, exist_ok=True)


def stage(root: Path, modules: str | None, python: Python) -> None:
    """For a packager: everything below an empty root."""
    for file in files(modules, python.modules):
        put(root, file)
    put_links_and_folders(root)


def install(root: Path, python: Python) -> None:
    """To this machine. Raises CannotInstall, and then nothing has changed."""
    if root == MACHINE and installed_package():
        raise CannotInstall(
            f"the package {PACKAGE} is installed, whose files this would replace.\n"
            f"Install a newer package in its place (make deb), or remove it first."
        )
    if python.version < OLDEST_PYTHON:
        raise CannotInstall(f"{PYTHON} is {'.'.join(map(str, python.version))}, and 3.11 is needed")
    if python.modules not in python.path:
        raise CannotInstall(f"{PYTHON} would not find its modules in {python.modules}")
    wanted = list(files(python.modules.lstrip("/"), python.modules))
    before = noted(root)
    refuse_others(root, wanted, before)
    note: dict[str, str] = {}
    for file in wanted:
        place = root / file.path
        there = sha256_of(place)
        if file.is_configuration and there not in ("", file.sha256, before.get(file.path, "")):
            print(f"{place} was edited, and stays as it is; the new one: {place}.new")
            put(root, File(f"{file.path}.new", file.content, file.mode, file.modified_nsec))
            note[f"{file.path}.new"] = file.sha256
        else:
            put(root, file)
        note[file.path] = file.sha256
    put_links_and_folders(root)
    for path in [path for path in before if path not in note]:
        remove(root, path)
    put_note(root, note)
    package = root / python.modules.lstrip("/") / "kdump_service"
    run(PYTHON, "-I", "-m", "compileall", "-q", str(package))
    if python.missing:
        packages = " ".join(DEPENDENCIES[name] for name in python.missing)
        print(f"{PYTHON} lacks {', '.join(python.missing)}. On Debian: apt install {packages}")
    if root == MACHINE:
        tell_systemd("try-restart")


def put_note(root: Path, note: Mapping[str, str]) -> None:
    """Remember what was installed."""
    text = "".join(f"{digest}  /{path}\n" for path, digest in note.items())
    put(root, File(NOTE, text.encode(), 0o644, time.time_ns()))


def tell_systemd(*verb: str) -> None:
    """Let a running systemd know of units and catalog, and do this to the service."""
    if not Path("/run/systemd/system").is_dir():
        return
    run("systemctl", "daemon-reload")
    run("journalctl", "--update-catalog")
    if verb:
        run("systemctl", *verb, "kdump.service")


def run(*command: str) -> None:
    """Run a program to its end; what fails is told and no reason to stop: the files are there."""
    if (status := subprocess.run(command, check=False).returncode) != 0:
        print(f"{' '.join(command)} ended with status {status}", file=sys.stderr)


# Away again


def uninstall(root: Path, python: Python) -> None:
    """Remove what `install` installed; what was edited, state and dumps stay. Raises CannotInstall."""
    before = noted(root)
    if not before:
        raise CannotInstall(
            f"nothing is known of an installation by make install (/{NOTE} does not exist)"
            + (f"; remove the package {PACKAGE} instead" if installed_package() else "")
        )
    if root == MACHINE:
        tell_systemd("disable", "--now", "--quiet")
        run("/usr/bin/kdump-service", "unreserve")
    for path, digest in before.items():
        place = root / path
        if path.startswith("etc/") and sha256_of(place) not in ("", digest):
            print(f"{place} was edited, and stays")
        else:
            remove(root, path)
    for path in LINKS:
        remove(root, path)
    shutil.rmtree(root / python.modules.lstrip("/") / "kdump_service", ignore_errors=True)
    remove(root, NOTE)
    for path in FOLDERS:
        remove_if_empty(root / path)
    if root == MACHINE:
        tell_systemd()
    print("Dumps stay, and so do the settings in /etc/kdump-service.conf.d and /var/lib/kdump-service.")


def remove(root: Path, path: str) -> None:
    """Remove a file or link, and the folder that it was in, if that is empty then, and has our name or is one
    for additions to a unit."""
    place = root / path
    place.unlink(missing_ok=True)
    folder = place.parent
    if is_ours(str(folder), b"") or folder.parent == root / UNITS:
        remove_if_empty(folder)


def remove_if_empty(folder: Path) -> None:
    """Leave it where it holds something."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("install", "uninstall"))
    parser.add_argument("--destdir", type=Path, help="for packagers: an empty folder in place of /")
    parser.add_argument(
        "--without-modules",
        action="store_true",
        help="for packagers who install the Python package by its own means",
    )
    given = parser.parse_args()
    try:
        python = Python.of_this_machine()
        if given.verb == "uninstall":
            uninstall(MACHINE, python)
        elif given.destdir is None:
            install(MACHINE, python)
        else:
            stage(given.destdir, None if given.without_modules else python.modules.lstrip("/"), python)
    except CannotInstall as error:
        print(f"Not {given.verb}ed: {error}", file=sys.stderr)
        return 1
    except PermissionError as error:
        print(f"Not {given.verb}ed: {error.filename}: {error.strerror}; run this as root", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
