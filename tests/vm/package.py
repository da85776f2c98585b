# SPDX-License-Identifier: LGPL-2.1-or-later
"""The project's package for Debian, as `make deb` makes it: what the machines run is what users install.

It is built once for each content of its sources, and installed by apt, without network, in a copy of a tree
that has all that it depends on: what its control file asks for beyond that, apt refuses.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, digest
from .tool import run_tool

__all__ = ["BUILD_PACKAGES", "Package", "newer"]

# What reads like sources and is none: documentation, of which guests have nothing.
NO_SOURCES = ("*.md",)
BUILD_PACKAGES = ("debhelper", "dh-python", "pybuild-plugin-pyproject")
MODULES = "usr/lib/python3/dist-packages/kdump_service"
KEPT = 4  # of this state of the project, and of those before; 0.3 MB each


def _sources(repo: Path) -> list[str]:
    """The names of the files that packaging/build-deb makes the package of, without documentation."""
    script = (repo / "packaging/build-deb").read_text()
    match = re.search(r"^sources='(.+)'$", script, re.MULTILINE)
    assert match, "packaging/build-deb names no sources"
    left_out = (f":(exclude){pattern}" for pattern in NO_SOURCES)
    listed = run_tool("git", "-C", repo, "ls-files", "-z", "--", *match[1].split(), *left_out)
    return sorted(filter(None, listed.split("\0")))


@dataclass(frozen=True)
class Package:
    """The package of the checkout `repo`; nothing is built before it is asked for."""

    cache: Cache
    repo: Path

    @property
    def key(self) -> str:
        """Stands for what goes into it: its sources, and what builds it."""
        parts: list[str | bytes] = [
            run_tool("dpkg-query", "--show", *BUILD_PACKAGES),
            (self.repo / "packaging/build-deb").read_bytes(),
        ]
        for name in _sources(self.repo):
            path = self.repo / name
            parts += [name, oct(path.stat().st_mode), path.read_bytes()]
        return digest(*parts)

    @property
    def file(self) -> Path:
        """The package, built if it was not."""

        def build(folder: Path) -> None:
            subprocess.run(
                ["make", "--silent", "deb"],
                check=True,
                cwd=self.repo,
                env={**os.environ, "KDUMP_DEB_FOLDER": str(folder / "built")},
                stdout=subprocess.DEVNULL,
            )
            [file] = (folder / "built").glob("*.deb")
            file.rename(folder / file.name)
            shutil.rmtree(folder / "built")

        folder = self.cache.entry("package", self.key, build, doing="the project's package", keep=KEPT)
        [file] = folder.glob("*.deb")
        return file

    def install(self, root: Path) -> None:
        """Have the apt of the tree `root` install it, where no service is started and no network is."""
        copy = root / "tmp" / self.file.name
        shutil.copy(self.file, copy)
        mounts = f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev"
        install = ("apt-get", "-qq", "--yes", "--no-install-recommends", "install", f"/tmp/{copy.name}")
        run_tool(
            *("unshare", "--mount", "--net", "sh", "-c", f'{mounts} && exec "$@"', "sh"),
            *("env", "DEBIAN_FRONTEND=noninteractive", "chroot", root, *install),
        )
        copy.unlink()


def newer(package: Path, version: str, folder: Path, changed: str) -> Path:
    """The same package with a version `version`, in which the module `changed` is another: `__init__.py` says
    that it is of that version, any other has a line more."""
    tree = folder / f"package-{version}"
    run_tool("dpkg-deb", "--raw-extract", package, tree)
    control, module = tree / "DEBIAN/control", tree / MODULES / changed
    control.write_text(
        re.sub(r"^Version: .*", f"Version: {version}", control.read_text(), flags=re.MULTILINE)
    )
    text = module.read_text() + "# Changed.\n"
    module.write_text(re.sub(r"^__version__ = .*", f'__version__ = "{version}"', text, flags=re.MULTILINE))
    built = folder / f"kdump-service_{version}_all.deb"
    run_tool("dpkg-deb", "--root-owner-group", "--build", tree, built)
    shutil.rmtree(tree)
    return built


def _edit(path: Path, pattern: str, text: str) -> None:
    path.write_text(re.sub(pattern, text, path.read_text(), flags=re.MULTILINE))
