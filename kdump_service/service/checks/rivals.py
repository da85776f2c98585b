# SPDX-License-Identifier: LGPL-2.1-or-later
"""Other tools that load a crash kernel: each load replaces what the other one loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from kdump_service.kernel.cmdline import split_words
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.unit_files import UnitFiles
from kdump_service.service.problems import Problem, found

__all__ = ["rival_problems"]

# Without its program, what starts Debian's kdump-tools does nothing: a package that is removed and not purged
# leaves its script and the links to it.
_KDUMP_TOOLS = "kdump-tools.service"
_KDUMP_TOOLS_PROGRAM = "usr/sbin/kdump-config"
# Units that load a crash kernel, and the packages that bring them. kdump.service itself is ours; the packages
# of Fedora and SUSE that have one of the same name conflict with this one.
_UNITS = (
    (_KDUMP_TOOLS, "kdump-tools (Debian, Ubuntu)"),
    ("kdump-early.service", "kdump (SUSE)"),
    ("kdumpst-init.service", "kdumpst"),
    ("kdump-steamos.service", "kdump-steamos"),
)
# Rules of udev that load anew when memory or processors are plugged, also while their service is disabled.
_RULES = (
    ("50-kdump-tools.rules", "kdump-tools (Debian, Ubuntu)"),
    ("70-kdump.rules", "kdump (SUSE)"),
    ("98-kexec.rules", "kdump-utils or kexec-tools (Fedora, RHEL)"),
)
_RULE_FOLDERS = ("etc/udev/rules.d", "run/udev/rules.d", "usr/lib/udev/rules.d", "lib/udev/rules.d")


def rival_problems(kernel_files: KernelFiles) -> Iterator[Problem]:
    """What is set up to run at boot or at hotplug, by the files that say so."""
    root = kernel_files.root
    files = UnitFiles(root)
    for unit, package in _UNITS:
        link = files.is_enabled(unit)
        if link and not files.is_masked(unit) and not (unit == _KDUMP_TOOLS and _does_nothing(root)):
            yield _rival(f"{unit} of {package} is enabled ({link})", f"Run: systemctl disable --now {unit}")
    if "ExecStart=" in files.text("kdump.service") and "kdump-service" not in files.text("kdump.service"):
        path = files.find("kdump.service")
        where = f"/{path.relative_to(root)}" if path else "kdump.service"
        yield _rival(
            f"{where} is another tool's", "Remove that tool's package, then run: systemctl daemon-reload"
        )
    # Debian's script of SysV, which systemd runs where there is no unit of the same name.
    script = next(iter(sorted(root.glob("etc/rc[2-5].d/S*kdump-tools"))), None)
    if script is not None and files.find(_KDUMP_TOOLS) is None and not _does_nothing(root):
        yield _rival(
            f"/{script.relative_to(root)} of kdump-tools is there", "Run: update-rc.d kdump-tools disable"
        )
    for name, package in _RULES:
        paths = [root / folder / name for folder in _RULE_FOLDERS]
        path = next((path for path in paths if path.is_symlink() or path.is_file()), None)
        # A link to /dev/null in /etc switches a rule off (udev(7)).
        if path is not None and path.is_file() and path.stat().st_size:
            yield _rival(
                f"/{path.relative_to(root)} of {package} loads a crash kernel at hotplug of memory or "
                "processors",
                f"Remove that package, or run: ln -s /dev/null /etc/udev/rules.d/{name}",
            )
    # dracut's module earlykdump loads from the initramfs (dracut-early-kdump.sh).
    if "rd.earlykdump" in split_words(kernel_files.command_line):
        yield _rival(
            "rd.earlykdump on the kernel command line loads a crash kernel from the initramfs",
            "Remove rd.earlykdump from the boot loader's configuration.",
        )


def _does_nothing(root: Path) -> bool:
    """Debian's kdump-tools, where its program is gone, or with USE_KDUMP=0, also if its unit is enabled."""
    if not (root / _KDUMP_TOOLS_PROGRAM).exists():
        return True
    try:
        text = (root / "etc/default/kdump-tools").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return False
    values = re.findall(r"^\s*USE_KDUMP=[\"']?(\w*)", text, re.MULTILINE)
    return values[-1:] == ["0"]


def _rival(what: str, remedy: str) -> Problem:
    return found(
        "rival-service",
        f"{what}: whoever loads last replaces what the other loaded, unnoticed.",
        remedy,
    )
