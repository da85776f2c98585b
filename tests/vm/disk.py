# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine's disk: a base tree, the installed project and the test's own hand, as one ext4 image.

Also reads files out of such an image, and puts some in, while no machine runs on it.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .cache import Cache, digest, digest_tree, slow_step
from .tree import Tree

__all__ = [
    "AGENT_IN_CAPTURE",
    "Disk",
    "Install",
    "copy_image",
    "extract",
    "install_with_make",
    "project_disk",
    "write_files",
]

Install = Callable[[Path], None]
"""Puts the project under the given root, as `make install DESTDIR=root` does."""

HERE = Path(__file__).parent
SIZE = "3G"  # sparse; the tree takes 400 MB, a dump without compression at most the machine's memory
KEPT_DISKS = 2

# A word on the kernel command line, which the capture boot inherits: it decides whether the agent runs there
# too.
AGENT_IN_CAPTURE = "kdump_test.agent_in_capture"

HOME = Path("usr/local/lib/kdump-test")

# Persistent journal: what the capture boot logged must be readable from production. No login prompts on the
# console, which the tests read line by line. A fixed machine id: without one systemd takes each boot for the
# first.
FILES = {
    "etc/hostname": "kdump-test\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 kdump-test\n",
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n",
    "etc/machine-id": "6b64756d7074657374206d616368696e\n",
    "etc/systemd/journald.conf.d/kdump-test.conf": "[Journal]\nStorage=persistent\n",
    "etc/systemd/system/kdump-test-agent.service": f"""\
[Unit]
Description=Hand of the test in this machine

[Service]
ExecStart=/usr/bin/python3 -I /{HOME}/guest_agent.py
Restart=on-failure
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
""",
    "etc/systemd/system/kdump-test-agent-capture.service": f"""\
[Unit]
Description=Hand of the test in this capture boot
DefaultDependencies=no
ConditionKernelCommandLine={AGENT_IN_CAPTURE}

[Service]
ExecStart=/usr/bin/python3 -I /{HOME}/guest_agent.py
OOMScoreAdjust=-1000

[Install]
WantedBy=kdump-capture.target
""",
}
MASKED = (
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
)
ENABLED = ("kdump.service", "kdump-test-agent.service", "kdump-test-agent-capture.service")


@dataclass(frozen=True)
class Disk:
    """A disk image to copy from, never to boot, and what boots it."""

    image: Path
    tree: Tree


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        shown = " ".join(str(word) for word in command)
        raise RuntimeError(f"{shown}: status {done.returncode}\n{done.stdout}")
    return done.stdout


def install_with_make(repo: Path) -> Install:
    """How a packager would put the project of the checkout `repo` under a root."""

    def install(root: Path) -> None:
        _run("make", "--no-print-directory", "-C", repo, "install", f"DESTDIR={root}")

    return install


def _add_harness(root: Path) -> None:
    """Add the guest agent, the planted command and the settings that keep a test machine quiet."""
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    home = root / HOME
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "guest_agent.py", home / "guest_agent.py")
    # A task is called what the file is called that it was started from, and /bin/sh is happy under any name.
    (home / "kdump-victim").symlink_to("/bin/sh")
    units = root / "etc/systemd/system"
    for unit in MASKED:
        (units / unit).symlink_to("/dev/null")


def _finish(root: Path) -> None:
    """What needs the whole tree: enable units, compile Python as a package would, open root's login."""
    _run("systemctl", f"--root={root}", "enable", *ENABLED)
    packages = "/usr/lib/python3/dist-packages"
    if (root / packages[1:] / "kdump_service").is_dir():
        # Under emulation the first import of uncompiled modules costs seconds.
        _run("chroot", root, "python3", "-m", "compileall", "-q", f"{packages}/kdump_service")
    shadow = root / "etc/shadow"
    opened = shadow.read_text().replace("root:*:", "root::", 1)
    shadow.unlink()  # the tree is hard links into the cache: replace, never write
    shadow.write_text(opened)
    shadow.chmod(0o640)


def project_disk(cache: Cache, tree: Tree, install: Install) -> Disk:
    """The disk of `tree` with what `install` installs; from the cache if it holds these very files."""
    with tempfile.TemporaryDirectory(prefix="kdump-stage-", dir=cache.folder) as temporary:
        staged = Path(temporary) / "root"
        staged.mkdir()
        with slow_step("install the project"):
            install(staged)
        _add_harness(staged)
        key = digest(tree.key, digest_tree(staged), Path(__file__).read_bytes())

        def build(folder: Path) -> None:
            root = folder / "root"
            _run("cp", "-al", tree.root, root)
            _run("cp", "-a", "--no-preserve=ownership", "--remove-destination", f"{staged}/.", f"{root}/")
            _finish(root)
            _run("mke2fs", "-q", "-t", "ext4", "-d", root, folder / "disk.img", SIZE)
            shutil.rmtree(root)

        entry = cache.entry("disk", key, build, doing="disk image with the project", keep=KEPT_DISKS)
    return Disk(image=entry / "disk.img", tree=tree)


def copy_image(image: Path, copy: Path) -> None:
    """A copy that takes only the room of what is written in it."""
    _run("cp", "--reflink=auto", "--sparse=always", image, copy)


def _debugfs(image: Path, *requests: str, write: bool = False) -> str:
    options = ["-w"] if write else []
    done = subprocess.run(
        ["debugfs", *options, "-f", "-", str(image)],
        check=True,
        input="\n".join(requests) + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def extract(image: Path, guest_path: str, host_path: Path) -> None:
    """Copy a file out of the image of a machine that is off; holes stay holes."""
    # A machine that was killed left its last changes in the file system's journal.
    subprocess.run(["e2fsck", "-p", str(image)], check=False, capture_output=True)
    said = _debugfs(image, f'dump "{guest_path}" "{host_path}"')
    if not host_path.exists():
        raise FileNotFoundError(f"{guest_path} in {image}: {said}")
    _run("fallocate", "--dig-holes", host_path)


def write_files(image: Path, files: Mapping[str, bytes]) -> None:
    """Put files (guest path -> content; owner root, mode 0644) into the image of a machine that is off."""
    for name, content in files.items():
        with tempfile.NamedTemporaryFile(prefix="kdump-write-") as source:
            source.write(content)
            source.flush()
            parents = [str(parent) for parent in reversed(Path(name).parents)][1:]
            _debugfs(
                image,
                *(f'mkdir "{parent}"' for parent in parents),
                f'rm "{name}"',
                f'write "{source.name}" "{name}"',
                f'sif "{name}" mode 0100644',
                f'sif "{name}" uid 0',
                f'sif "{name}" gid 0',
                write=True,
            )
