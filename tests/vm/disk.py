# SPDX-License-Identifier: LGPL-2.1-or-later
"""The machine's disk: a base tree, the installed project and the test's own hand, as one ext4 image.

QEMU's -kernel boots it; boot_disk.py makes disks with partitions and boot loaders. Also reads files out of
such an image, and puts some in, while no machine runs on it.
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .cache import Cache, digest, digest_tree, slow_step
from .package import Package
from .tool import run_tool
from .tree import Tree

__all__ = [
    "AGENT_IN_CAPTURE",
    "KEPT_DISKS",
    "SIZE_MIB",
    "WORDS",
    "Disk",
    "Firmware",
    "Install",
    "Stage",
    "copy_image",
    "extract",
    "list_folder",
    "make_file_system",
    "make_root",
    "project_disk",
    "read_file",
    "stage",
    "take_folder",
    "write_files",
]

Firmware = Literal["direct", "bios", "uefi", "secure-boot"]
"""What starts the kernel: QEMU itself, or this firmware by way of the disk's boot loader."""

Install = Package | Callable[[Path], None]
"""The project's package, or what puts files under the given root, for machines that have something else."""

HERE = Path(__file__).parent
SIZE_MIB = 3072  # sparse; the tree takes 400 MB, a dump without compression at most the machine's memory
KEPT_DISKS = 4  # of a kind: those of one state of the project, for several suites, and of the one before

# A word on the kernel command line, which the capture boot inherits: it decides whether the agent runs there
# too.
AGENT_IN_CAPTURE = "kdump_test.agent_in_capture"

# Of every kernel command line here: messages on the serial console, nothing that emulation makes slow, and
# network interfaces called eth0.
WORDS = ("ro", "console=ttyS0", "mitigations=off", "net.ifnames=0")

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
ENABLED = ("kdump-test-agent.service", "kdump-test-agent-capture.service")


@dataclass(frozen=True)
class Disk:
    """A disk image to copy from, never to boot, and what boots it."""

    image: Path
    tree: Tree
    firmware: Firmware = "direct"
    root: str = "/dev/vda"  # the root file system as root= on the kernel command line names it
    root_offset: int = 0  # bytes before the root file system: 0 on a disk without partitions


@dataclass(frozen=True)
class Stage:
    """What comes on top of a base tree: a package, and files in a folder; `key` stands for all of it."""

    root: Path
    key: str
    package: Package | None


def _add_harness(root: Path, files: Mapping[str, str]) -> None:
    """Add the guest agent, the planted command and the settings that keep a test machine quiet."""
    for name, text in files.items():
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
    """What needs the whole tree: enable units, open root's login."""
    # The package enables its unit itself; what a machine has in its place is enabled here.
    other = (root / "etc/systemd/system/kdump.service").exists()
    units = (*ENABLED, "kdump.service") if other else ENABLED
    run_tool("systemctl", f"--root={root}", "enable", *units)
    shadow = root / "etc/shadow"
    opened = shadow.read_text().replace("root:*:", "root::", 1)
    shadow.write_text(opened)


@contextlib.contextmanager
def stage(cache: Cache, install: Install, files: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """What `install` installs, the test's hand, and `files` (path -> text) in place of the usual ones."""
    with tempfile.TemporaryDirectory(prefix="kdump-stage-", dir=cache.folder) as temporary:
        root = Path(temporary) / "root"
        root.mkdir()
        package = install if isinstance(install, Package) else None
        if not isinstance(install, Package):
            install(root)
        _add_harness(root, {**FILES, **(files or {})})
        key = digest(digest_tree(root), Path(__file__).read_bytes(), package.key if package else "")
        yield Stage(root, key, package)


# What the service finds out in the machines themselves: one disk of virtio with ext4. Were it to find
# anything else, it would build the image anew there, which takes minutes under emulation;
# test_capture_image.py looks.
# Beside them the driver of a watchdog, for test_changing_machines.py: more than is needed will do.
WATCHDOG_DRIVER = "i6300esb"
DRIVERS = ("crc32c_generic", "ext4", "libcrc32c", "loop", "squashfs", "virtio_blk", "virtio_pci")

BUILD_CAPTURE_IMAGE = """
import sys
from pathlib import Path
from kdump_service.image.build import build_image
from kdump_service.image.recipe import Recipe
build_image(Path("/"), Recipe(sys.argv[1], tuple(sys.argv[3:]), watchdog_drivers=tuple(sys.argv[2].split())))
"""


def build_capture_image(root: Path, release: str) -> None:
    """Build the capture image as the service in the machine would, which there takes a minute."""
    mounts = (
        f"mount -t proc proc {root}/proc && mount --rbind /dev {root}/dev && mount -t tmpfs tmp {root}/tmp"
    )
    command = ("python3", "-I", "-c", BUILD_CAPTURE_IMAGE, release, WATCHDOG_DRIVER, *DRIVERS)
    inside = ("chroot", str(root), *command)
    with slow_step("build the capture image"):
        run_tool("unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *inside)


def make_root(tree: Tree, staged: Stage, root: Path) -> None:
    """Make `root`: the base tree with what is staged on top.

    A copy and no links: whoever makes or removes another link to a file changes its ctime, and a build of an
    image that is under way takes it for replaced under its hands: that image is never current.
    """
    run_tool("cp", "-a", "--reflink=auto", tree.root, root)
    if staged.package is not None:
        with slow_step("install the project's package"):
            staged.package.install(root)
    run_tool("cp", "-a", "--no-preserve=ownership", "--remove-destination", f"{staged.root}/.", f"{root}/")
    _finish(root)
    if (root / "usr/bin/dracut").exists() and (root / "usr/bin/kdump-service").exists():
        for modules in sorted((root / "usr/lib/modules").iterdir()):
            build_capture_image(root, modules.name)


def make_file_system(root: Path, image: Path, *, offset: int = 0, uuid: str = "random") -> None:
    """Put an ext4 file system with the files of `root` into `image`, `offset` bytes from its start."""
    run_tool(
        *("mke2fs", "-q", "-F", "-t", "ext4", "-U", uuid, "-E", f"offset={offset}"),
        *("-d", root, image, f"{SIZE_MIB}M"),
    )


def project_disk(cache: Cache, tree: Tree, install: Install) -> Disk:
    """The disk of `tree` with what `install` installs; from the cache if it holds these very files."""
    with stage(cache, install) as staged:

        def build(folder: Path) -> None:
            root = folder / "root"
            make_root(tree, staged, root)
            make_file_system(root, folder / "disk.img")
            shutil.rmtree(root)

        key = digest(tree.key, staged.key)
        entry = cache.entry("disk", key, build, doing="disk image with the project", keep=KEPT_DISKS)
    return Disk(image=entry / "disk.img", tree=tree)


def copy_image(image: Path, copy: Path) -> None:
    """A copy that takes only the room of what is written in it."""
    run_tool("cp", "--reflink=auto", "--sparse=always", image, copy)


def _file_system(image: Path, offset: int) -> str:
    """The root file system in the image, as e2fsprogs' programs take it."""
    return f"{image}?offset={offset}" if offset else str(image)


def _debugfs(file_system: str, *requests: str, write: bool = False) -> str:
    options = ["-w"] if write else []
    done = subprocess.run(
        ["debugfs", *options, "-f", "-", file_system],
        check=True,
        input="\n".join(requests) + "\n",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


def _replay_journal(file_system: str) -> None:
    """A machine that was killed left its last changes in the file system's journal."""
    subprocess.run(["e2fsck", "-p", file_system], check=False, capture_output=True)


def extract(image: Path, guest_path: str, host_path: Path, *, offset: int = 0) -> None:
    """Copy a file out of the image of a machine that is off; holes stay holes."""
    file_system = _file_system(image, offset)
    _replay_journal(file_system)
    said = _debugfs(file_system, f'dump "{guest_path}" "{host_path}"')
    if not host_path.exists():
        raise FileNotFoundError(f"{guest_path} in {image}: {said}")
    run_tool("fallocate", "--dig-holes", host_path)


def read_file(image: Path, guest_path: str, *, offset: int = 0) -> bytes:
    """The content of a file in the image of a machine that is off."""
    with tempfile.TemporaryDirectory(prefix="kdump-read-") as folder:
        copy = Path(folder) / "copy"
        extract(image, guest_path, copy, offset=offset)
        return copy.read_bytes()


def list_folder(image: Path, guest_path: str, *, offset: int = 0) -> dict[str, int]:
    """What lies in a folder in the image of a machine that is off: name -> size in bytes, 0 for folders.

    Nothing, if there is no such folder.
    """
    file_system = _file_system(image, offset)
    _replay_journal(file_system)
    # /<inode>/<mode>/<user>/<group>/<name>/<size, but of a folder>/ (debugfs(8), ls -p)
    rows = (line.split("/") for line in _debugfs(file_system, f'ls -p "{guest_path}"').splitlines())
    entries = {row[5]: int(row[6] or 0) for row in rows if len(row) == 8}
    return {name: size for name, size in entries.items() if name not in (".", "..")}


def take_folder(image: Path, guest_path: str, host_folder: Path, *, offset: int = 0) -> None:
    """Copy a folder with all that is in it out of the image of a machine that is off, into `host_folder`."""
    file_system = _file_system(image, offset)
    _replay_journal(file_system)
    host_folder.mkdir(parents=True, exist_ok=True)
    said = _debugfs(file_system, f'rdump "{guest_path}" "{host_folder}"')
    if not (host_folder / Path(guest_path).name).exists():
        raise FileNotFoundError(f"{guest_path} in {image}: {said}")


def write_files(image: Path, files: Mapping[str, bytes], *, offset: int = 0) -> None:
    """Put files (guest path -> content; owner root, mode 0644) into the image of a machine that is off."""
    for name, content in files.items():
        with tempfile.NamedTemporaryFile(prefix="kdump-write-") as source:
            source.write(content)
            source.flush()
            parents = [str(parent) for parent in reversed(Path(name).parents)][1:]
            _debugfs(
                _file_system(image, offset),
                *(f'mkdir "{parent}"' for parent in parents),
                f'rm "{name}"',
                f'write "{source.name}" "{name}"',
                f'sif "{name}" mode 0100644',
                f'sif "{name}" uid 0',
                f'sif "{name}" gid 0',
                write=True,
            )
