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
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MACHINE = Path("/")
"""The root of what runs here; others are folders of tests, where nothing is started."""
PYTHON = "/usr/bin/python3"
"""The interpreter that the installed programs name."""
OLDEST_PYTHON = (3, 11)
PACKAGE = "kdump-service"
RIVALS = ("kdump-tools",)
"""Packages with whose files ours do not collide, and which load a crash kernel all the same."""
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


def status_of(package: str) -> str:
    """What the package manager says of a package, in dpkg's words; empty if it knows nothing of it."""
    if shutil.which("dpkg-query"):
        said = output_of("dpkg-query", "--show", "--showformat=${db:Status-Status}", package)
        if said and said[0] != "not-installed":
            return said[0]
    if shutil.which("rpm"):
        said = output_of("rpm", "-q", "--qf", "installed", package)
        return "installed" if said == ["installed"] else ""
    return ""


Note = dict[str, set[str]]
"""Path below the root -> SHA-256 of what `make install` may have put there, as of the last time or before."""


def noted(root: Path) -> Note:
    """What `make install` installed before. Lines that it did not write are named, and mean nothing."""
    note: Note = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (root / NOTE).read_text(encoding="utf-8", errors="replace").splitlines():
            digest, _, path = line.partition("  /")
            if len(digest) == 64 and not {"", ".", ".."} & {*path.split("/")}:
                note.setdefault(path, set()).add(digest)
            else:
                print(f"/{NOTE}: {line!r} is no line of it, and is passed over", file=sys.stderr)
    return note


def is_ours(path: str, content: bytes) -> bool:
    """Whether this project has put it there, some time."""
    return any(word in path.encode() or word in content for word in OURS)


def refuse_other_packages() -> None:
    """Raises CannotInstall if a package is installed that would be in the way of this, or this of it."""
    status = status_of(PACKAGE)
    if status == "config-files":
        raise CannotInstall(
            f"the package {PACKAGE} was removed, but not its configuration; purging would take away yours.\n"
            f"Keep a copy of your settings, and run: dpkg --purge {PACKAGE}"
        )
    if status:
        raise CannotInstall(
            f"the package {PACKAGE} is installed, whose files this would replace.\n"
            f"Install a newer package in its place (make deb), or remove it first."
        )
    for rival in RIVALS:
        if status_of(rival) not in ("", "config-files"):
            raise CannotInstall(f"the package {rival} is installed, which does the same. Remove it first.")


def refuse_others(root: Path, wanted: list[File], before: Note) -> None:
    """Raises CannotInstall if files of others are where ours would go, and names them all."""
    there = [
        path
        for path in [*(file.path for file in wanted), *LINKS]
        if path not in before and os.path.lexists(root / path)
    ]
    packages = owners([f"/{path}" for path in there]) if root == MACHINE else {}
    # What is a link to somewhere would be written through, and be removed from there.
    others = sorted(
        f"  {folder}, a link to {folder.readlink()}"
        for folder in {root / parent for file in wanted for parent in own_folders(file.path)}
        if folder.is_symlink()
    )
    for path in there:
        place, package = root / path, packages.get(f"/{path}", "")
        ours = is_our_link(root, path) or (place.is_file() and is_ours(path, place.read_bytes()))
        if package or not ours:
            others.append(f"  {place}{f' of the package {package}' if package else ''}")
    if others:
        raise CannotInstall(
            "these files are another's, and nothing was installed:\n" + "\n".join(others) + "\n"
            "Remove the package or program that they belong to first."
        )


def own_folders(path: str) -> list[str]:
    """Return those of the folders above ``path`` that hold nothing but files of this project."""
    return [str(parent) for parent in Path(path).parents if is_ours(str(parent), b"")]


def is_our_link(root: Path, path: str) -> bool:
    """Whether it is a link that leads where ours of that name does, whether or not there is something."""
    place = root / path
    return place.is_symlink() and str(place.readlink()) == LINKS.get(path)


def sha256_of(path: Path) -> str:
    """Of the content of a file, hexadecimal; empty if there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def put(root: Path, file: File) -> None:
    """Write a file, in place of what is there, in one step."""
    place = root / file.path
    place.parent.mkdir(parents=True, exist_ok=True)
    for folder in own_folders(file.path):
        (root / folder).chmod(0o755)
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
    if root == MACHINE:
        refuse_other_packages()
    if python.version < OLDEST_PYTHON:
        raise CannotInstall(f"{PYTHON} is {'.'.join(map(str, python.version))}, and 3.11 is needed")
    if python.modules not in python.path:
        raise CannotInstall(f"{PYTHON} would not find its modules in {python.modules}")
    wanted = list(files(python.modules.lstrip("/"), python.modules))
    before = noted(root)
    refuse_others(root, wanted, before)
    note: Note = {}
    todo = []
    for file in wanted:
        note[file.path] = {file.sha256}
        if is_edited(root, file, before):
            new = replace(file, path=f"{file.path}.new")
            print(f"{root / file.path} was edited, and stays as it is; the new one: {root / new.path}")
            note[new.path] = {new.sha256}
            todo.append(new)
        else:
            todo.append(file)
    # First, so that what is interrupted can be repeated or taken away.
    put_note(root, {path: note.get(path, set()) | before.get(path, set()) for path in {**before, **note}})
    for file in todo:
        put(root, file)
    put_links_and_folders(root)
    for path in [path for path in before if path not in note]:
        remove(root, path, before[path])
    put_note(root, note)
    package = root / python.modules.lstrip("/") / "kdump_service"
    run(PYTHON, "-I", "-m", "compileall", "-q", str(package))
    if python.missing:
        packages = " ".join(DEPENDENCIES[name] for name in python.missing)
        print(f"{PYTHON} lacks {', '.join(python.missing)}. On Debian: apt install {packages}")
    if root == MACHINE:
        tell_systemd("try-restart")


def is_edited(root: Path, file: File, before: Note) -> bool:
    """Whether it is configuration that somebody has changed, or made a link to what lies elsewhere."""
    place = root / file.path
    if not file.path.startswith("etc/"):
        return False
    return place.is_symlink() or sha256_of(place) not in {"", file.sha256, *before.get(file.path, ())}


def put_note(root: Path, note: Note) -> None:
    """Remember what was installed."""
    text = "".join(f"{digest}  /{path}\n" for path in note for digest in sorted(note[path]))
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
    try:
        subprocess.run(command, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)


# Away again


def uninstall(root: Path, python: Python) -> None:
    """Remove what `install` installed; what was edited, state and dumps stay. Raises CannotInstall."""
    if root == MACHINE and status_of(PACKAGE) not in ("", "config-files"):
        raise CannotInstall(f"the package {PACKAGE} is installed: remove that, with what installed it")
    before = noted(root)
    if not before:
        raise CannotInstall(
            f"nothing is known of an installation by make install: /{NOTE} does not exist or is damaged.\n"
            "To install once more writes it anew."
        )
    if root == MACHINE:
        tell_systemd("disable", "--now", "--quiet")
        run("/usr/bin/kdump-service", "unreserve")
    for path, digests in before.items():
        if not remove(root, path, digests):
            print(f"{root / path} was edited, and stays")
    for path in LINKS:
        if is_our_link(root, path):
            remove(root, path)
    package = root / python.modules.lstrip("/") / "kdump_service"
    for folder in sorted(package.rglob("*/"), reverse=True):
        if folder.name == "__pycache__":
            shutil.rmtree(folder)
        else:
            remove_if_empty(folder)
    remove_if_empty(package)
    remove(root, NOTE)
    for path in FOLDERS:
        remove_if_empty(root / path)
    if root == MACHINE:
        tell_systemd()
    print("Dumps stay, and so do the settings in /etc/kdump-service.conf.d and /var/lib/kdump-service.")


def remove(root: Path, path: str, digests: Collection[str] = ()) -> bool:
    """Remove a file or link, and the folder that it was in, if that is empty then, and has our name or is one
    for additions to a unit. With ``digests``, only what has one of these SHA-256; returns whether
    it is gone."""
    place = root / path
    if digests and os.path.lexists(place) and (place.is_symlink() or sha256_of(place) not in digests):
        return False
    place.unlink(missing_ok=True)
    folder = place.parent
    if is_ours(str(folder), b"") or folder.parent == root / UNITS:
        remove_if_empty(folder)
    return True


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
    if given.verb == "uninstall" and given.destdir is not None:
        parser.error(f"uninstall is for this machine alone; remove the folder {given.destdir} yourself")
    os.umask(0o022)
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
    except OSError as error:
        advice = "run this as root" if isinstance(error, PermissionError) else "mend that, and run this again"
        print(f"Not {given.verb}ed: {error.filename}: {error.strerror}; {advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
