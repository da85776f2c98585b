# SPDX-License-Identifier: LGPL-2.1-or-later
"""Root folders as distributions leave them behind, as far as boot loaders go, and programs that act on them.

The programs do what the real ones do to files, by the shell and by text tools; each notes that it was run.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from kdump_service.errors import ProgramFailed

MACHINE_ID = "0123456789abcdef0123456789abcdef"
OTHER_ID = "fedcba9876543210fedcba9876543210"
RELEASE = "6.1.0-30-amd64"
ROOT = "root=UUID=1111-2222"

_DEBIAN_MKCONFIG = """#! /bin/sh
for x in ${sysconfdir}/default/grub.d/*.cfg ; do
  if [ -e "${x}" ]; then
    . "${x}"
  fi
done
"""
_U_BOOT_UPDATE = """#!/bin/sh
for file in /usr/share/u-boot-menu/conf.d/*.conf /etc/u-boot-menu/conf.d/*.conf
do
    . "${file}"
done
"""


class BootTree:
    """A root folder, and the programs in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ran: list[str] = []
        self.failing: set[str] = set()
        self.write("proc/cmdline", f"BOOT_IMAGE=/boot/vmlinuz-{RELEASE} {ROOT} ro quiet\n")
        self.write("etc/machine-id", f"{MACHINE_ID}\n")

    def write(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        """Write a file, with its folders."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)
        return path

    def read(self, name: str) -> str:
        """A file's text."""
        return (self.path / name).read_bytes().decode()

    def all_files(self) -> dict[str, bytes]:
        """Every file but those of the service itself."""
        return {
            str(path.relative_to(self.path)): path.read_bytes()
            for path in sorted(self.path.rglob("*"))
            if path.is_file() and "kdump-service/" not in str(path.relative_to(self.path))
        }

    def program(self, name: str, text: str = "#!/bin/sh\n", folder: str = "usr/sbin") -> None:
        """Install a program, which is found but not run: :meth:`run` does its work."""
        self.write(f"{folder}/{name}", text, 0o755)

    # What programs do

    def run(self, command: Sequence[str]) -> None:
        """As kdump_service.process.run, in this folder."""
        self.ran.append(shlex.join(command))
        if command[0] in self.failing:
            raise ProgramFailed(f"{shlex.join(command)}: exit status 1: made to fail")
        match command[0]:
            case "update-grub":
                self._make_menu("boot/grub/grub.cfg")
            case "grub2-mkconfig":
                self._make_menu(command[2].lstrip("/"))
            case "grubby":
                self._grubby(command[1:])
            case "u-boot-update":
                self._make_extlinux()
            case "kernel-install" | "mkinitcpio":
                self._make_image()
            case other:
                raise AssertionError(f"nobody taught the test what {other} does")

    def _sourced(self, patterns: Sequence[str], names: Sequence[str], before: str = "") -> list[str]:
        files = [path for pattern in patterns for path in sorted(self.path.glob(pattern))]
        script = [before, *(f". {shlex.quote(str(path))}" for path in files)]
        script += [f"printf '%s\\n' \"${{{name}:-}}\"" for name in names]
        done = subprocess.run(
            ["sh", "-e", "-c", "\n".join(script)], capture_output=True, text=True, check=True
        )
        return done.stdout.split("\n")

    def _make_menu(self, menu: str) -> None:
        sources = ["etc/default/grub"]
        if any("grub.d/*.cfg" in self.read(str(path.relative_to(self.path)))
               for path in self.path.glob("usr/sbin/grub*-mkconfig")):  # fmt: skip
            sources.append("etc/default/grub.d/*.cfg")
        every, normal = self._sourced(sources, ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"])[:2]
        self.write(
            menu,
            "### BEGIN /etc/grub.d/10_linux ###\nmenuentry 'Linux' {\n"
            f"\tlinux\t/boot/vmlinuz-{RELEASE} {ROOT} ro {every} {normal}\n}}\n"
            "menuentry 'Linux, recovery' {\n"
            f"\tlinux\t/boot/vmlinuz-{RELEASE} {ROOT} ro single {every}\n}}\n",
        )

    def _grubby(self, options: Sequence[str]) -> None:
        given = dict(option.lstrip("-").split("=", 1) for option in options)
        assert given["update-kernel"] == "ALL"

        def changed(line: str) -> str:
            words = [word for word in line.split() if word.split("=")[0] != given["remove-args"]]
            return " ".join([*words, given["args"]])

        for path in self.path.glob("boot/loader/entries/*.conf"):
            text = path.read_text()
            if "$kernelopts" not in text:
                path.write_text(
                    re.sub("(?m)^options (.*)$", lambda found: f"options {changed(found[1])}", text)
                )
        environment = self.path / "boot/grub2/grubenv"
        if environment.exists() and "kernelopts=" in environment.read_text():
            text = environment.read_text().rstrip("#")
            text = re.sub("(?m)^kernelopts=(.*)$", lambda found: f"kernelopts={changed(found[1])}", text)
            environment.write_text(text.ljust(1024, "#"))
        # It does the same to these two, where we have been before.
        for name, pattern in (("etc/default/grub", '(?m)^(GRUB_CMDLINE_LINUX=")(.*)(")$'),
                              ("etc/kernel/cmdline", "(?m)^()(.+)()$")):  # fmt: skip
            path = self.path / name
            if path.exists():
                new = re.sub(pattern, lambda found: found[1] + changed(found[2]) + found[3], path.read_text())
                path.write_text(new)

    def _make_extlinux(self) -> None:
        sources = [
            "etc/default/u-boot",
            "usr/share/u-boot-menu/conf.d/*.conf",
            "etc/u-boot-menu/conf.d/*.conf",
        ]
        [parameters, *_] = self._sourced(sources, ["U_BOOT_PARAMETERS"])
        if not parameters and (self.path / "etc/kernel/cmdline").exists():
            parameters = self.read("etc/kernel/cmdline").strip()
        self.write("boot/extlinux/extlinux.conf", f"label l0\n\tappend {ROOT} {parameters or 'ro quiet'}\n")

    def _make_image(self) -> None:
        sources = [
            self.path / name for name in ("etc/kernel/cmdline", "usr/lib/kernel/cmdline", "proc/cmdline")
        ]
        command_line = next(path for path in sources if path.exists()).read_text()
        self.write(f"efi/EFI/Linux/{MACHINE_ID}-{RELEASE}.efi", f"MZ {command_line}")


def debian_grub(tree: BootTree) -> BootTree:
    """Debian and Ubuntu, with kdump-tools' drop-in and another one beside it."""
    tree.program("update-grub")
    tree.program("grub-mkconfig", _DEBIAN_MKCONFIG)
    tree.write(
        "etc/default/grub",
        'GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet splash"\n'
        'GRUB_CMDLINE_LINUX="crashkernel=1G net.ifnames=0"\n',
    )
    tree.write(
        "etc/default/grub.d/kdump-tools.cfg",
        'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT crashkernel=384M-:128M"\n',
    )
    tree.write(
        "etc/default/grub.d/10_cloud.cfg",
        "GRUB_CMDLINE_LINUX_DEFAULT=\"$GRUB_CMDLINE_LINUX_DEFAULT a='b c'\"\n",
    )
    tree.run(["update-grub"])
    tree.ran.clear()
    return tree


def suse_grub(tree: BootTree) -> BootTree:
    """openSUSE: one file, no drop-ins."""
    tree.program("grub2-mkconfig", "#! /bin/sh\n. /etc/default/grub\n")
    tree.write(
        "etc/default/grub",
        "# If you change this file, run grub2-mkconfig\nGRUB_DISTRIBUTOR=\n"
        'GRUB_CMDLINE_LINUX_DEFAULT="splash=silent crashkernel=72M,low crashkernel=1G,high quiet"\n'
        'GRUB_CMDLINE_LINUX=""\n',
        0o600,
    )
    tree.run(["grub2-mkconfig", "-o", "/boot/grub2/grub.cfg"])
    tree.ran.clear()
    return tree


def fedora(tree: BootTree, *, grubby: bool = True, kernelopts: bool = False) -> BootTree:
    """Fedora and RHEL: GRUB with entries of the Boot Loader Specification."""
    tree.program("grub2-mkconfig", "#! /bin/sh\n. /etc/default/grub\n")
    tree.program("kernel-install", folder="usr/bin")
    if grubby:
        tree.program("grubby")
    options = f"{ROOT} ro rhgb quiet crashkernel=2G-64G:256M,64G-:512M"
    tree.write(
        "etc/default/grub",
        'GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX="rhgb quiet crashkernel=2G-64G:256M,64G-:512M"\n'
        "GRUB_ENABLE_BLSCFG=true\n",
    )
    tree.write("boot/grub2/grub.cfg", "### BEGIN /etc/grub.d/10_linux ###\ninsmod blscfg\nblscfg\n")
    environment = "# GRUB Environment Block\nsaved_entry=1\n" + (
        f"kernelopts={options}\n" if kernelopts else ""
    )
    tree.write("boot/grub2/grubenv", environment.ljust(1024, "#"), 0o600)
    for name in (f"{MACHINE_ID}-6.11.0-1.fc41.x86_64", f"{MACHINE_ID}-0-rescue"):
        tree.write(
            f"boot/loader/entries/{name}.conf",
            "title Fedora\nversion 6.11\nlinux /vmlinuz-6.11\n"
            f"options {'$kernelopts' if kernelopts else options}\ngrub_class fedora\n",
        )
    if not kernelopts:
        tree.write("etc/kernel/cmdline", f"{options}\n")
    return tree


def systemd_boot(tree: BootTree) -> BootTree:
    """Debian with systemd-boot: entries of kernel-install on the ESP, and one of another system."""
    tree.program("kernel-install", "#!/bin/sh\nadd remove inspect\n", folder="usr/bin")
    tree.write(
        f"boot/efi/loader/entries/{MACHINE_ID}-{RELEASE}.conf",
        f"title      Debian\nmachine-id {MACHINE_ID}\nsort-key   debian\n"
        f"options    {ROOT} ro quiet systemd.machine_id={MACHINE_ID}\nlinux      /x/linux\n",
    )
    tree.write(
        f"boot/efi/loader/entries/{OTHER_ID}-6.9.conf",
        f"title Other\nmachine-id {OTHER_ID}\noptions {ROOT} ro\nlinux /y/linux\n",
    )
    tree.write("boot/efi/loader/entries/by-hand.conf", f"linux /v\noptions {ROOT} rescue\n")
    tree.write("boot/efi/loader/entries/windows.conf", "title Windows\nefi /EFI/Microsoft/bootmgfw.efi\n")
    return tree


def unified_image(tree: BootTree, *, add_all: bool = False) -> BootTree:
    """kernel-install with layout=uki, whose command line is that of the running kernel up to now."""
    text = "\x7fELF add-all" if add_all else "#!/bin/sh\nadd remove inspect\n"
    tree.program("kernel-install", text, folder="usr/bin")
    tree.write("etc/kernel/install.conf", "layout=uki\n")
    tree.write(f"usr/lib/modules/{RELEASE}/modules.dep", "")
    tree.write(f"boot/vmlinuz-{RELEASE}", "MZ")
    tree.write(f"efi/EFI/Linux/{MACHINE_ID}-{RELEASE}.efi", "MZ old")
    return tree


def u_boot_menu(tree: BootTree) -> BootTree:
    """Debian on a board with U-Boot."""
    tree.program("u-boot-update", _U_BOOT_UPDATE)
    tree.write("etc/default/u-boot", '#U_BOOT_PARAMETERS="ro quiet"\n')
    tree.run(["u-boot-update"])
    tree.ran.clear()
    return tree


def raspberry_pi(tree: BootTree) -> BootTree:
    """Raspberry Pi OS 12."""
    tree.write("boot/firmware/cmdline.txt", f"console=tty1 {ROOT} rootwait\n")
    tree.write(
        "boot/cmdline.txt", "DO NOT EDIT THIS FILE\nThe file has moved to /boot/firmware/cmdline.txt\n"
    )
    return tree
