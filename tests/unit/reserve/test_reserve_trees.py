# SPDX-License-Identifier: LGPL-2.1-or-later
"""crashkernel= in the boot loaders of whole systems: planned, made, made again, and taken back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kdump_service.errors import ConfigError, KdumpError, ProgramFailed
from kdump_service.kernel.boot_loader import BootLoaderFiles
from kdump_service.kernel.crashkernel import requested
from kdump_service.reserve.apply import apply_plan
from kdump_service.reserve.files import put_text
from kdump_service.reserve.main import answer_request, take_back
from kdump_service.reserve.plan import Plan
from kdump_service.reserve.planner import make_plan
from kdump_service.reserve.request import REQUEST_FILE, RESERVE_AGAIN_FILE
from kdump_service.reserve.way_back import AGAIN, WAY_BACK_FILE, plan_way_back
from tests.builders.boot_trees import (
    MACHINE_ID,
    OTHER_ID,
    RELEASE,
    ROOT,
    BootTree,
    debian_grub,
    fedora,
    raspberry_pi,
    suse_grub,
    systemd_boot,
    u_boot_menu,
    unified_image,
)

OURS = ("crashkernel=256M",)
TWO = ("crashkernel=512M,cma", "crashkernel=1G-4G:192M,4G-:256M")
EXTLINUX = "boot/extlinux/extlinux.conf"
ENTRY = f"boot/loader/entries/{MACHINE_ID}-6.11.0-1.fc41.x86_64.conf"

SYSTEMS: dict[str, tuple[Callable[[BootTree], BootTree], str]] = {
    "debian-grub": (debian_grub, "grub"),
    "suse-grub": (suse_grub, "grub"),
    "fedora-grubby": (fedora, "grub-entries"),
    "fedora-no-grubby": (lambda tree: fedora(tree, grubby=False), "grub-entries"),
    "rhel8-kernelopts": (lambda tree: fedora(tree, kernelopts=True), "grub-entries"),
    "systemd-boot": (systemd_boot, "entries"),
    "unified-image": (unified_image, "unified-images"),
    "unified-image-add-all": (lambda tree: unified_image(tree, add_all=True), "unified-images"),
    "u-boot-menu": (u_boot_menu, "u-boot-menu"),
    "raspberry-pi": (raspberry_pi, "raspberry-pi"),
}


@pytest.fixture(params=list(SYSTEMS))
def system(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[BootTree, str]:
    make, kind = SYSTEMS[request.param]
    return make(BootTree(tmp_path)), kind


@pytest.fixture
def tree(tmp_path: Path) -> BootTree:
    return BootTree(tmp_path)


def _reserve(tree: BootTree, words: tuple[str, ...] = OURS) -> Plan:
    plan = make_plan(tree.path, words)
    assert apply_plan(tree.path, plan, tree.run) == []
    return plan


def _revert(tree: BootTree) -> Plan:
    plan = plan_way_back(tree.path)
    apply_plan(tree.path, plan, tree.run)
    return plan


def _next_boot(tree: BootTree) -> list[str]:
    """Command lines of this system among which the boot loader chooses."""
    lines = BootLoaderFiles(tree.path, []).next_boot()
    images = [path.read_text() for path in tree.path.glob("efi/EFI/Linux/*.efi")]
    ours = [line.text for line in lines if OTHER_ID not in line.file and "single" not in line.text]
    return [*ours, *images]


def _without_images(tree: BootTree) -> dict[str, bytes]:
    return {name: content for name, content in tree.all_files().items() if not name.endswith(".efi")}


class _Failing:
    """The programs of a tree. Some fail in some of their runs: in their first with the work done, in others
    before it."""

    def __init__(self, tree: BootTree, *names: str, runs: Sequence[int] = (1,)) -> None:
        self.tree = tree
        self.runs = dict.fromkeys(names, runs)
        self.ran: list[str] = []

    def __call__(self, command: Sequence[str]) -> None:
        """As BootTree.run."""
        name = command[0]
        self.ran.append(name)
        run = self.ran.count(name)
        failing = self.runs.get(name, ())
        if run == 1 or run not in failing:
            self.tree.run(command)
        if run in failing:
            raise ProgramFailed(f"{name}: exit status 1: made to fail, {run}")


# Each system


@pytest.mark.parametrize("words", [OURS, TWO])
def test_every_later_boot_has_the_words(system: tuple[BootTree, str], words: tuple[str, ...]) -> None:
    tree, kind = system
    plan = _reserve(tree, words)
    assert plan.boot_loader == kind
    lines = _next_boot(tree)
    assert lines
    for line in lines:
        assert requested(line) == list(words), line


def test_all_else_stays(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    before = [_others(line) for line in _next_boot(tree) if not line.startswith("MZ")]
    _reserve(tree)
    assert [_others(line) for line in _next_boot(tree) if not line.startswith("MZ")] == before


def _others(line: str) -> list[str]:
    return [word for word in line.split() if not word.startswith("crashkernel=")]


def test_looking_changes_nothing(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    before = tree.all_files()
    assert make_plan(tree.path, OURS).diff()
    assert (tree.all_files(), tree.ran) == (before, [])


def test_twice_is_as_once(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    _reserve(tree)
    after, tree.ran = tree.all_files(), []
    plan = make_plan(tree.path, OURS)
    assert (plan.changes, plan.commands, plan.diff()) == ((), (), "")
    assert apply_plan(tree.path, plan, tree.run) == []
    assert (tree.all_files(), tree.ran) == (after, [])


@pytest.mark.promise("reserve-and-revert", "grub", "systemd-boot", "u-boot", "unified-image")
def test_there_and_back(system: tuple[BootTree, str]) -> None:
    tree, kind = system
    before = _without_images(tree)
    _reserve(tree)
    _reserve(tree, TWO)
    assert _revert(tree).boot_loader == kind
    after = _without_images(tree)
    # u-boot-menu leaves an empty folder; what is in files is as it was.
    assert after == before
    assert not (tree.path / WAY_BACK_FILE).exists()
    with pytest.raises(ConfigError, match="nothing to take back"):
        plan_way_back(tree.path)


def test_the_removal_of_the_program_takes_it_back(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    before = _without_images(tree)
    take_back(tree.path, tree.run)  # nothing was set
    assert _without_images(tree) == before
    _reserve(tree)
    _reserve(tree, TWO)
    reserved = _without_images(tree)
    take_back(tree.path, tree.run)
    (tree.path / RESERVE_AGAIN_FILE).rename(tree.path / REQUEST_FILE)
    assert _without_images(tree) == before
    assert not (tree.path / WAY_BACK_FILE).exists()
    # Called off: what is left in /run is a request for what was reserved, as the package's script uses it.
    assert answer_request(tree.path, tree.run)
    assert {**_without_images(tree), WAY_BACK_FILE: b""} == {**reserved, WAY_BACK_FILE: b""}
    take_back(tree.path, tree.run)
    assert _without_images(tree) == before
    take_back(tree.path, tree.run)  # the second time there is nothing to reserve again
    assert not (tree.path / RESERVE_AGAIN_FILE).exists()


def test_the_plan_is_a_patch(system: tuple[BootTree, str], tmp_path: Path) -> None:
    """patch(1) makes of the files what the plan says that they become."""
    tree, _ = system
    plan = make_plan(tree.path, OURS)
    done = subprocess.run(
        ["patch", "-p1", "--no-backup-if-mismatch"], input=plan.diff(), text=True, capture_output=True,
        cwd=tree.path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    for change in plan.changes:
        assert tree.read(change.path.lstrip("/")) == change.after


def test_a_program_that_fails_leaves_all_as_it_was(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    plan = make_plan(tree.path, OURS)
    if not plan.commands:
        pytest.skip("nothing is run here")
    before = _without_images(tree)
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(tree.path, plan, _Failing(tree, plan.commands[-1][0]))
    assert _without_images(tree) == before
    assert not any(requested(line) == list(OURS) for line in _next_boot(tree))
    assert not (tree.path / WAY_BACK_FILE).exists()


def test_rights_of_files_stay(system: tuple[BootTree, str]) -> None:
    tree, _ = system
    for path in tree.path.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o777 == 0o644:
            path.chmod(0o664)  # more than the umask lets through
    plan = make_plan(tree.path, OURS)
    before = {
        change.path: (tree.path / change.path[1:]).stat().st_mode for change in plan.changes if change.before
    }
    apply_plan(tree.path, plan, tree.run)
    assert {path: (tree.path / path[1:]).stat().st_mode for path in before} == before


# What is particular


def test_debian_gets_a_drop_in_and_nothing_else(tree: BootTree) -> None:
    debian_grub(tree)
    plan = _reserve(tree)
    assert [change.path for change in plan.changes] == ["/etc/default/grub.d/zz-kdump-service.cfg"]
    assert tree.ran == ["update-grub"]
    [normal] = _next_boot(tree)
    assert normal.split()[-4:] == ["splash", "a='b", "c'", "crashkernel=256M"]


def test_a_drop_in_that_is_read_later_is_named(tree: BootTree) -> None:
    debian_grub(tree)
    tree.write("etc/default/grub.d/zzz.cfg", 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX crashkernel=1G"\n')
    plan = make_plan(tree.path, OURS)
    assert plan.notes == (
        "/etc/default/grub.d/zzz.cfg is read later and has crashkernel=, too: it wins. Remove that from it.",
    )
    [doubt] = apply_plan(tree.path, plan, tree.run)
    assert doubt == "Look into it before you reboot: /boot/grub/grub.cfg does not have crashkernel=256M."


def test_suse_has_one_line_edited(tree: BootTree) -> None:
    suse_grub(tree)
    diff = make_plan(tree.path, OURS).diff()
    changed = [line for line in diff.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert changed == [
        '-GRUB_CMDLINE_LINUX_DEFAULT="splash=silent crashkernel=72M,low crashkernel=1G,high quiet"',
        '+GRUB_CMDLINE_LINUX_DEFAULT="splash=silent quiet crashkernel=256M"',
    ]


def test_fedora_new_kernels_get_it_too(tree: BootTree) -> None:
    fedora(tree)
    _reserve(tree)
    assert tree.ran == ["grubby --update-kernel=ALL --remove-args=crashkernel --args=crashkernel=256M"]
    assert tree.read("etc/kernel/cmdline") == f"{ROOT} ro rhgb quiet crashkernel=256M\n"
    assert 'GRUB_CMDLINE_LINUX="rhgb quiet crashkernel=256M"' in tree.read("etc/default/grub")


def test_grubby_is_not_let_at_entries_of_others(tree: BootTree) -> None:
    fedora(tree)
    other = tree.write(f"boot/loader/entries/{OTHER_ID}-5.conf", "linux /v\noptions root=LABEL=other ro\n")
    plan = _reserve(tree)
    assert (tree.ran, other.read_text()) == ([], "linux /v\noptions root=LABEL=other ro\n")
    assert f"/boot/loader/entries/{OTHER_ID}-5.conf is left alone: it is another system's." in plan.notes


def test_grubby_that_does_not_do_it_is_noticed(tree: BootTree) -> None:
    fedora(tree)
    before = tree.all_files()
    with pytest.raises(
        ProgramFailed, match=r"^grubby: /boot/loader/entries/.* does not have crashkernel=256M"
    ):
        apply_plan(tree.path, make_plan(tree.path, OURS), lambda _: None)
    assert tree.all_files() == before


def test_a_full_environment_of_grub(tree: BootTree) -> None:
    fedora(tree, kernelopts=True)
    text = tree.read("boot/grub2/grubenv").rstrip("#")
    tree.write("boot/grub2/grubenv", text.replace(" quiet", " quiet " + "x" * (1023 - len(text))))
    with pytest.raises(ConfigError, match="GRUB's environment has no room"):
        make_plan(tree.path, TWO)


def test_entries_of_other_systems_are_left_alone(tree: BootTree) -> None:
    systemd_boot(tree)
    names = (f"{OTHER_ID}-6.9.conf", "windows.conf")
    before = [tree.read(f"boot/efi/loader/entries/{name}") for name in names]
    plan = _reserve(tree)
    assert [tree.read(f"boot/efi/loader/entries/{name}") for name in names] == before
    assert (
        plan.notes[0]
        == f"/boot/efi/loader/entries/{OTHER_ID}-6.9.conf is left alone: it is another system's."
    )
    assert "reboot before the next one is" in plan.notes[1]
    assert tree.read("boot/efi/loader/entries/by-hand.conf").endswith("rescue crashkernel=256M\n")


@pytest.mark.parametrize(
    ("add_all", "commands"),
    [
        (False, (("kernel-install", "add", RELEASE, f"/boot/vmlinuz-{RELEASE}"),)),
        (True, (("kernel-install", "add-all"),)),
    ],
)
def test_images_are_built_anew(tree: BootTree, add_all: bool, commands: object) -> None:
    unified_image(tree, add_all=add_all)
    plan = _reserve(tree)
    assert plan.commands == commands
    assert tree.read("etc/kernel/cmdline") == f"{ROOT} ro quiet crashkernel=256M\n"
    _revert(tree)
    assert not (tree.path / "etc/kernel/cmdline").exists()
    assert not requested(_next_boot(tree)[0])


def test_images_that_are_built_without_it_after_a_reboot_with_it(tree: BootTree) -> None:
    """kernel-install would take it from the running kernel."""
    unified_image(tree)
    _reserve(tree)
    tree.write("proc/cmdline", f"initrd=x {_next_boot(tree)[0].removeprefix('MZ ')}")
    plan = _revert(tree)
    assert not requested(_next_boot(tree)[0])
    assert plan.notes[0].startswith("/etc/kernel/cmdline stays, without crashkernel=")


@pytest.mark.parametrize("named", [True, False])
def test_what_uki_conf_says_is_changed_too(tree: BootTree, named: bool) -> None:
    unified_image(tree)
    tree.write("etc/kernel/uki-cmdline", f"{ROOT} ro\n")
    tree.write(
        "etc/kernel/uki.conf", f"[UKI]\nCmdline={'@/etc/kernel/uki-cmdline' if named else ROOT}\nSign=x\n"
    )
    _reserve(tree)
    file = "etc/kernel/uki-cmdline" if named else "etc/kernel/uki.conf"
    assert "crashkernel=256M\n" in tree.read(file)


def test_mkinitcpio_with_images(tree: BootTree) -> None:
    tree.program("mkinitcpio", folder="usr/bin")
    tree.write("etc/mkinitcpio.d/linux.preset", 'default_uki="/efi/EFI/Linux/arch-linux.efi"\n')
    tree.write("etc/kernel/cmdline", f"{ROOT} rw\n")
    plan = _reserve(tree)
    assert (plan.boot_loader, tree.ran) == ("unified-images", ["mkinitcpio -P"])


@pytest.mark.parametrize(
    ("files", "changed"),
    [
        ({}, "/etc/u-boot-menu/conf.d/zz-kdump-service.conf"),
        ({"etc/default/u-boot": 'U_BOOT_PARAMETERS="rw crashkernel=1G"\n'},
         "/etc/u-boot-menu/conf.d/zz-kdump-service.conf"),
        ({"etc/kernel/cmdline": f"{ROOT} rw\n"}, "/etc/kernel/cmdline"),
        ({"usr/sbin/u-boot-update": "#!/bin/sh\n"}, "/etc/default/u-boot"),
    ],
)  # fmt: skip
def test_ways_into_u_boot_menu(tree: BootTree, files: dict[str, str], changed: str) -> None:
    u_boot_menu(tree)
    for name, text in files.items():
        tree.write(name, text)
    plan = _reserve(tree)
    assert [change.path for change in plan.changes] == [changed]
    [line] = _next_boot(tree)
    assert requested(line) == list(OURS)
    assert ("quiet" in line) is (not any("rw" in text for text in files.values()))


@pytest.mark.promise("u-boot")
def test_extlinux_by_hand(tree: BootTree) -> None:
    text = f"default l0\nlabel l0\n\tappend {ROOT} ro\nlabel other\n\tappend root=/dev/other ro\n"
    tree.write("boot/extlinux/extlinux.conf", text)
    _reserve(tree)
    assert tree.read("boot/extlinux/extlinux.conf") == text.replace(
        f"{ROOT} ro", f"{ROOT} ro crashkernel=256M"
    )


def test_an_unknown_boot_loader_gets_the_words(tree: BootTree) -> None:
    before = tree.all_files()
    plan = make_plan(tree.path, TWO)
    assert (plan.boot_loader, plan.changes, plan.commands) == ("", (), ())
    assert plan.notes[0] == f"Add to the kernel's command line: {' '.join(TWO)}"
    assert tree.all_files() == before


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("run/ostree-booted", "rpm-ostree kargs --append-if-missing=crashkernel=256M"),
        ("etc/NIXOS", "boot.kernelParams"),
    ],
)
def test_systems_that_make_their_entries_anew(tree: BootTree, file: str, told: str) -> None:
    fedora(tree).write(file, "")
    plan = make_plan(tree.path, OURS)
    assert (plan.boot_loader, plan.changes) == ("", ())
    assert told in plan.notes[0]


def test_two_boot_loaders_get_it_both(tree: BootTree) -> None:
    debian_grub(systemd_boot(tree))
    plan = _reserve(tree)
    assert plan.boot_loader == "grub+entries"
    assert {requested(line)[0] for line in _next_boot(tree)} == set(OURS)


# Others change files, too


def test_what_others_added_stays_when_taken_back(tree: BootTree) -> None:
    fedora(tree)
    old = "crashkernel=2G-64G:256M,64G-:512M"
    _reserve(tree)
    entry = tree.path / ENTRY
    entry.write_text(entry.read_text().replace(" quiet", " quiet mitigations=off"))
    newer = tree.write(ENTRY.replace("6.11", "6.12"), "linux /v\noptions root=x crashkernel=256M\n")
    (tree.path / f"boot/loader/entries/{MACHINE_ID}-0-rescue.conf").unlink()
    plan = _revert(tree)
    assert f"options {ROOT} ro rhgb quiet mitigations=off {old}\n" in entry.read_text()
    assert newer.read_text() == f"linux /v\noptions root=x {old}\n"
    assert plan.notes == (f"/boot/loader/entries/{MACHINE_ID}-0-rescue.conf is gone, and stays so.",)


def test_a_newer_entry_gets_both_words_back(tree: BootTree) -> None:
    fedora(tree)
    two = "crashkernel=1G,high crashkernel=72M,low"
    tree.write("etc/kernel/cmdline", f"{ROOT} {two}\n")
    _reserve(tree)
    newer = tree.write(ENTRY.replace("6.11", "6.12"), "linux /v\noptions root=x crashkernel=256M\n")
    _revert(tree)
    assert newer.read_text() == f"linux /v\noptions root=x {two}\n"


def test_a_command_line_of_ours_that_somebody_changed(tree: BootTree) -> None:
    unified_image(tree)
    _reserve(tree)
    tree.write("proc/cmdline", f"{ROOT} crashkernel=256M\n")
    tree.write("etc/kernel/cmdline", f"{ROOT} ro crashkernel=1G\n")
    with pytest.raises(ConfigError, match=r"^/etc/kernel/cmdline: somebody else"):
        plan_way_back(tree.path)


def test_what_others_changed_of_it_is_not_taken_back(tree: BootTree) -> None:
    fedora(tree)
    _reserve(tree)
    entry = tree.path / ENTRY
    entry.write_text(entry.read_text().replace("=256M", "=512M"))
    before = tree.all_files()
    with pytest.raises(ConfigError, match=f"^/{ENTRY}: somebody else has changed it since"):
        plan_way_back(tree.path)
    assert tree.all_files() == before


def test_our_drop_in_edited_by_somebody(tree: BootTree) -> None:
    debian_grub(tree)
    plan = _reserve(tree)
    drop_in = tree.path / plan.changes[0].path.lstrip("/")
    drop_in.write_text(drop_in.read_text() + "GRUB_TIMEOUT=1\n")
    with pytest.raises(ConfigError, match="somebody else has changed it"):
        plan_way_back(tree.path)
    drop_in.unlink()
    assert _revert(tree).changes == ()


def test_a_file_that_changes_between_plan_and_act(tree: BootTree) -> None:
    suse_grub(tree)
    plan = make_plan(tree.path, OURS)
    tree.write("etc/default/grub", "GRUB_TIMEOUT=1\n")
    with pytest.raises(ConfigError, match="somebody else is changing it"):
        apply_plan(tree.path, plan, tree.run)
    assert tree.read("etc/default/grub") == "GRUB_TIMEOUT=1\n"


def test_a_file_that_cannot_be_written(tree: BootTree, monkeypatch: pytest.MonkeyPatch) -> None:
    fedora(tree, grubby=False)
    before = tree.all_files()

    def fail(root: Path, path: str, text: str | None) -> None:
        if path == "/etc/default/grub" and "256M" in (text or "") and "64G" not in (text or ""):
            raise ConfigError(f"{path}: cannot be written: Read-only file system")
        put_text(root, path, text)

    monkeypatch.setattr("kdump_service.reserve.apply.put_text", fail)
    with pytest.raises(KdumpError, match="Read-only"):
        apply_plan(tree.path, make_plan(tree.path, OURS), tree.run)
    assert tree.all_files() == before


def test_killed_in_the_middle_there_is_a_way_back(tree: BootTree) -> None:
    fedora(tree)
    before = tree.all_files()

    def die(_: object) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        apply_plan(tree.path, make_plan(tree.path, OURS), die)
    assert tree.all_files() != before
    _revert(tree)
    assert tree.all_files() == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "boot_loader": "", "words": []}']
)
def test_a_way_back_that_cannot_be_read(tree: BootTree, text: str) -> None:
    tree.write(WAY_BACK_FILE, text)
    with pytest.raises(ConfigError, match="cannot be read"):
        plan_way_back(tree.path)


def test_links_and_odd_bytes_survive(tree: BootTree) -> None:
    suse_grub(tree)
    true = tree.write("etc/sysconfig/grub", tree.read("etc/default/grub").encode() + b"# \xe4\xf6\r\n")
    (tree.path / "etc/default/grub").unlink()
    (tree.path / "etc/default/grub").symlink_to("/etc/sysconfig/grub")
    # The link leads out of the test's folder, so the reader is given what it would find there.
    (tree.path / "etc/default/grub").unlink()
    (tree.path / "etc/default/grub").symlink_to("../sysconfig/grub")
    before = true.read_bytes()
    _reserve(tree)
    assert (tree.path / "etc/default/grub").is_symlink()
    assert true.read_bytes().endswith(b"# \xe4\xf6\r\n")
    assert b"crashkernel=256M" in true.read_bytes()
    _revert(tree)
    assert true.read_bytes() == before


def test_what_is_kept_is_for_root_alone(tree: BootTree) -> None:
    debian_grub(tree)
    _reserve(tree)
    kept = tree.path / WAY_BACK_FILE
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["words"] == list(OURS)


@pytest.mark.parametrize("times", [1, 2])
def test_an_environment_that_grub_wrote_into_keeps_its_length(tree: BootTree, times: int) -> None:
    fedora(tree, kernelopts=True)
    name = "boot/grub2/grubenv"
    before = tree.read(name)

    def boot(text: str) -> str:
        return text.rstrip("#").replace("saved_entry=1", "saved_entry=1\nboot_success=1").ljust(1024, "#")

    _reserve(tree, ("crashkernel=256M",))
    tree.write(name, boot(tree.read(name)))
    if times == 2:
        _reserve(tree, TWO)
    _revert(tree)
    assert tree.read(name) == boot(before)


# More than one reserve


OLD = "crashkernel=2G-64G:256M,64G-:512M"
"""What Fedora has before."""


def _new_kernel(tree: BootTree, release: str) -> Path:
    """An entry as kernel-install makes it, from the command line that it is given."""
    return tree.write(
        ENTRY.replace("6.11.0", release),
        f"title Fedora\nlinux /vmlinuz-{release}\noptions {tree.read('etc/kernel/cmdline')}",
    )


def _append(tree: BootTree, name: str, text: str) -> None:
    tree.write(name, tree.read(name) + text)


def test_what_was_before_the_first_of_two_comes_back(tree: BootTree) -> None:
    fedora(tree)
    before = tree.all_files()
    _reserve(tree)
    newer = _new_kernel(tree, "6.12.0")
    _append(tree, "etc/default/grub", "GRUB_DISABLE_OS_PROBER=true\n")
    _reserve(tree, ("crashkernel=512M",))
    assert "crashkernel=512M\n" in newer.read_text()
    _revert(tree)
    assert newer.read_text().endswith(f"options {ROOT} ro rhgb quiet {OLD}\n")
    name = "etc/default/grub"
    after = tree.all_files()
    assert after.pop(str(newer.relative_to(tree.path)))
    assert after == {**before, name: before[name] + b"GRUB_DISABLE_OS_PROBER=true\n"}
    assert not (tree.path / WAY_BACK_FILE).exists()


def test_what_was_before_the_first_of_three_comes_back(tree: BootTree) -> None:
    fedora(tree, grubby=False)
    before = tree.all_files()
    added = b""
    newer = []
    for number, words in enumerate([OURS, TWO, ("crashkernel=1G,high", "crashkernel=72M,low")]):
        _reserve(tree, words)
        newer.append(_new_kernel(tree, f"6.1{number + 2}.0"))
        _append(tree, "etc/default/grub", f"ADDED_{number}=yes\n")
        added += f"ADDED_{number}=yes\n".encode()
        entry = tree.path / ENTRY
        entry.write_text(entry.read_text().replace(" quiet", f" quiet added={number}"))
    _revert(tree)
    after = tree.all_files()
    for each in newer:
        assert after.pop(str(each.relative_to(tree.path))).endswith(f" quiet {OLD}\n".encode())
    before["etc/default/grub"] += added
    before[ENTRY] = before[ENTRY].replace(b" quiet", b" quiet added=2 added=1 added=0")
    assert after == before


@pytest.mark.parametrize("words", [OURS, TWO])
def test_a_kernel_that_came_with_the_words_of_before_the_last(tree: BootTree, words: tuple[str, ...]) -> None:
    """As it does from the running kernel's command line, until the machine is rebooted."""
    fedora(tree)
    _reserve(tree, words)
    newer = _new_kernel(tree, "6.12.0")
    copied = newer.read_text()
    newer.unlink()
    _reserve(tree, ("crashkernel=1G",))
    newer.write_text(copied)
    _revert(tree)
    assert requested(newer.read_text().splitlines()[-1]) == [OLD]


def test_words_that_happen_to_be_ours_stay(tree: BootTree) -> None:
    """The administrator's own, which were there before."""
    fedora(tree)
    rescue = f"boot/loader/entries/{MACHINE_ID}-0-rescue.conf"
    tree.write(rescue, tree.read(rescue).replace(OLD, OURS[0]))
    before = tree.all_files()
    _reserve(tree)
    _revert(tree)
    assert tree.all_files() == before
    _reserve(tree)
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.all_files() == before


def test_words_that_happen_to_be_ours_are_not_given_to_others(tree: BootTree) -> None:
    systemd_boot(tree)
    by_hand = "boot/efi/loader/entries/by-hand.conf"
    tree.write(by_hand, f"linux /v\noptions {ROOT} crashkernel=256M\n")
    _reserve(tree)
    newer = tree.write(
        f"boot/efi/loader/entries/{MACHINE_ID}-7.0.conf", f"linux /v\noptions {ROOT} crashkernel=256M\n"
    )
    _revert(tree)
    assert newer.read_text() == f"linux /v\noptions {ROOT}\n"
    assert tree.read(by_hand).endswith("crashkernel=256M\n")


def test_words_that_somebody_put_in_between_come_back(tree: BootTree) -> None:
    """They are not ours; what is ours beside them is taken out."""
    fedora(tree)
    before = tree.read("etc/default/grub")
    _reserve(tree)
    _append(tree, "etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="crashkernel=300M"\n')
    entry = tree.path / ENTRY
    entry.write_text(entry.read_text().replace("=256M", "=300M"))
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.read("etc/default/grub") == before + 'GRUB_CMDLINE_LINUX_DEFAULT="crashkernel=300M"\n'
    assert f"options {ROOT} ro rhgb quiet crashkernel=300M\n" in entry.read_text()


def test_the_same_again_after_somebody_else(tree: BootTree) -> None:
    """What has the words already is noted as well."""
    fedora(tree)
    _reserve(tree)
    newer = _new_kernel(tree, "6.12.0")
    tree.write("etc/default/grub", tree.read("etc/default/grub").replace("=256M", "=300M"))
    _reserve(tree)
    _reserve(tree, TWO)
    _revert(tree)
    assert requested(newer.read_text().splitlines()[-1]) == [OLD]
    assert 'GRUB_CMDLINE_LINUX="rhgb quiet crashkernel=300M"' in tree.read("etc/default/grub")


def _label(name: str, words: str = "") -> str:
    return f"label {name}\n\tappend {ROOT} {name}{words and ' '}{words}\n"


def test_each_label_gets_its_own_words_back(tree: BootTree) -> None:
    text = _label("l0") + _label("l1", "crashkernel=1G") + _label("l2", "crashkernel=2G")
    tree.write(EXTLINUX, text)
    _reserve(tree)
    _append(tree, EXTLINUX, _label("l3", "crashkernel=256M"))
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.read(EXTLINUX) == text + _label("l3")


@pytest.mark.parametrize("added", ["", "crashkernel=32M", "crashkernel=1G,high crashkernel=72M,low"])
@pytest.mark.parametrize("edited", [False, True], ids=["", "edited"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_label_that_came_later_gets_back_what_it_had(
    tree: BootTree, times: int, edited: bool, added: str
) -> None:
    """Those in front of it and behind it get what they had, whatever else was edited."""
    first, last = _label("first", "crashkernel=1G quiet"), _label("last")
    tree.write(EXTLINUX, first + last)
    for number in range(times):
        _reserve(tree, (f"crashkernel={256 << number}M",))
        text = tree.read(EXTLINUX)
        if number == 0:
            text = text.replace("label last", _label("added", added) + "label last")
        tree.write(EXTLINUX, text.replace(" last", f" last e{number}") if edited else text)
    _revert(tree)
    labels = first + _label("added", added) + last
    for number in range(times if edited else 0):
        labels = labels.replace(" last", f" last e{number}")
    assert tree.read(EXTLINUX) == labels


def test_a_label_that_nobody_kept_words_for_loses_ours_alone(tree: BootTree) -> None:
    """A copy of another label, and one with words of its own."""
    text = _label("first", "crashkernel=1G") + _label("second", "crashkernel=1G")
    tree.write(EXTLINUX, text)
    _reserve(tree)
    _append(tree, EXTLINUX, _label("copy", OURS[0]) + _label("own", "crashkernel=32M"))
    _revert(tree)
    assert tree.read(EXTLINUX) == text + _label("copy") + _label("own", "crashkernel=32M")


def test_labels_that_are_not_ours_to_change(tree: BootTree) -> None:
    """Another system's keeps its words; ours with words that somebody gave it since is not taken back."""
    other = "label other\n\tappend root=/dev/sdz9 crashkernel=32M\n"
    tree.write(EXTLINUX, _label("ours") + other)
    _reserve(tree)
    _append(tree, EXTLINUX, "# checked\n")
    assert plan_way_back(tree.path).changes[0].after == _label("ours") + other + "# checked\n"
    tree.write(EXTLINUX, tree.read(EXTLINUX).replace("=256M", "=300M"))
    with pytest.raises(ConfigError, match=f"^/{EXTLINUX}: somebody else has changed it since"):
        plan_way_back(tree.path)
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.read(EXTLINUX) == _label("ours", "crashkernel=300M") + other + "# checked\n"


def test_a_menu_that_came_later(tree: BootTree) -> None:
    tree.write(EXTLINUX, _label("first", "crashkernel=1G"))
    _reserve(tree)
    labels = _label("copy", OURS[0]), _label("own", "crashkernel=32M")
    tree.write("extlinux/extlinux.conf", "".join(labels))
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.read("extlinux/extlinux.conf") == _label("copy") + labels[1]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("cmdline", [None, "", "crashkernel=128M"], ids=["none", "without", "with"])
def test_a_newer_entry_gets_the_words_of_no_other(tree: BootTree, cmdline: str | None, times: int) -> None:
    """It is made from /etc/kernel/cmdline, or without that from an entry that is not known."""
    systemd_boot(tree)
    if cmdline is not None:
        tree.write("etc/kernel/cmdline", f"{ROOT} ro {cmdline}\n")
    by_hand = tree.write("boot/efi/loader/entries/by-hand.conf", f"linux /v\noptions {ROOT} {OLD}\n")
    _reserve(tree)
    newer = tree.write(
        f"boot/efi/loader/entries/{MACHINE_ID}-7.0.conf", f"linux /v\noptions {ROOT} ro {OURS[0]}\n"
    )
    own = tree.write(
        f"boot/efi/loader/entries/{MACHINE_ID}-8.0.conf", f"linux /v\noptions {ROOT} crashkernel=32M\n"
    )
    if times == 2:
        _reserve(tree, TWO)
    _revert(tree)
    assert requested(newer.read_text().splitlines()[-1]) == ([cmdline] if cmdline else [])
    assert requested(own.read_text().splitlines()[-1]) == ["crashkernel=32M"]
    assert requested(by_hand.read_text().splitlines()[-1]) == [OLD]


DROP_IN = "etc/default/grub.d/zz-kdump-service.cfg"


def test_what_was_added_to_our_drop_in_stays(tree: BootTree) -> None:
    debian_grub(tree)
    before = tree.all_files()
    _reserve(tree)
    _append(tree, DROP_IN, "GRUB_TIMEOUT=1\n")
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.all_files() == {**before, DROP_IN: b"GRUB_TIMEOUT=1\n"}


@pytest.mark.parametrize(
    ("old", "new"), [("=256M", "=300M"), ("    sed -e", "    sed -E -e")], ids=["word", "half-a-line"]
)
def test_our_drop_in_that_was_rewritten_goes(tree: BootTree, old: str, new: str) -> None:
    """A part of it may be no shell; before the first reserve there was none."""
    debian_grub(tree)
    before = tree.all_files()
    _reserve(tree)
    tree.write(DROP_IN, tree.read(DROP_IN).replace(old, new))
    _reserve(tree, TWO)
    _revert(tree)
    assert tree.all_files() == before


def test_killed_in_a_second_one_there_is_a_way_back(
    system: tuple[BootTree, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has the words of the first one yet is ours, too."""
    tree, _ = system
    before = _without_images(tree)
    _reserve(tree)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("kdump_service.reserve.apply.put_text", die)
        apply_plan(tree.path, make_plan(tree.path, TWO), die)
    _revert(tree)
    after = _without_images(tree)
    assert after == before


# A program that fails after another one has done its work


@pytest.fixture
def two(tree: BootTree) -> BootTree:
    """GRUB and unified images, made from the files as they are."""
    unified_image(debian_grub(tree), add_all=True)
    tree.run(["kernel-install", "add-all"])
    tree.ran.clear()
    return tree


def test_what_a_program_made_is_made_again_from_the_files_of_before(two: BootTree) -> None:
    before = two.all_files()
    run = _Failing(two, "kernel-install")
    with pytest.raises(ProgramFailed, match=r"^kernel-install: exit status 1: made to fail, 1$"):
        apply_plan(two.path, make_plan(two.path, OURS), run)
    assert run.ran == ["update-grub", "kernel-install"] * 2
    assert two.all_files() == before
    with pytest.raises(ConfigError, match="nothing to take back"):
        plan_way_back(two.path)


def test_what_was_not_started_is_not_run(two: BootTree) -> None:
    before = two.all_files()
    run = _Failing(two, "update-grub")
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(two.path, make_plan(two.path, OURS), run)
    assert run.ran == ["update-grub"] * 2
    assert two.all_files() == before


@pytest.mark.parametrize(
    ("runs", "left"),
    [
        ({"kernel-install": (1, 2)}, "efi/EFI/Linux"),
        ({"kernel-install": (1,), "update-grub": (2,)}, "boot/grub/grub.cfg"),
    ],
)
def test_where_the_repetition_fails_too(
    two: BootTree, runs: dict[str, Sequence[int]], left: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = two.all_files()
    run = _Failing(two)
    run.runs = runs
    failed = [name for name, numbers in runs.items() if 2 in numbers]
    with pytest.raises(ProgramFailed, match=r"^kernel-install: .* fail, 1; and not all may") as caught:
        apply_plan(two.path, make_plan(two.path, OURS), run)
    assert str(caught.value).endswith(f" be as it was before: {failed[0]}: exit status 1: made to fail, 2")
    assert caught.value.hint == "When that is mended: kdumpctl reserve --revert"
    assert f"{failed[0]}: exit status 1: made to fail, 2" in caplog.text
    assert run.ran == ["update-grub", "kernel-install"] * 2
    changed = {name for name, content in two.all_files().items() if content != before.get(name)}
    assert changed
    assert all(name.startswith(left) for name in changed)
    plan = _revert(two)
    assert {change.path for change in plan.changes} == {f"/{DROP_IN}", "/etc/kernel/cmdline"}
    assert plan.diff() == ""
    assert plan.notes == (AGAIN,)
    assert two.all_files() == before
    with pytest.raises(ConfigError, match="nothing to take back"):
        plan_way_back(two.path)


def test_a_revert_that_fails_can_be_repeated(two: BootTree) -> None:
    before = two.all_files()
    _reserve(two)
    reserved = two.all_files()
    kept = two.read(WAY_BACK_FILE)
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(two.path, plan_way_back(two.path), _Failing(two, "kernel-install"))
    assert (two.all_files(), two.read(WAY_BACK_FILE)) == (reserved, kept)
    with pytest.raises(ProgramFailed, match="not all may be as it was before"):
        apply_plan(two.path, plan_way_back(two.path), _Failing(two, "kernel-install", runs=(1, 2)))
    assert two.read(DROP_IN).encode() == reserved[DROP_IN]
    _revert(two)
    assert two.all_files() == before


def test_a_second_one_that_fails_leaves_the_first(two: BootTree) -> None:
    before = two.all_files()
    _reserve(two)
    reserved = two.all_files()
    kept = two.read(WAY_BACK_FILE)
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(two.path, make_plan(two.path, TWO), _Failing(two, "kernel-install"))
    assert (two.all_files(), two.read(WAY_BACK_FILE)) == (reserved, kept)
    with pytest.raises(ProgramFailed, match="not all may be as it was before"):
        apply_plan(two.path, make_plan(two.path, TWO), _Failing(two, "kernel-install", runs=(1, 2)))
    assert two.all_files() != reserved
    # Either of the two: what was wanted first, or what was there before.
    plan = _reserve(two)
    assert (plan.diff(), bool(plan.notes)) == ("", True)
    assert two.all_files() == reserved
    assert make_plan(two.path, OURS).changes == ()
    with pytest.raises(ProgramFailed, match="not all may be as it was before"):
        apply_plan(two.path, make_plan(two.path, TWO), _Failing(two, "kernel-install", runs=(1, 2)))
    _revert(two)
    assert two.all_files() == before


@pytest.mark.parametrize("which", ["first", "second"])
def test_nothing_but_the_programs_fails_again(two: BootTree, which: str) -> None:
    """Then the same again would be the same again."""
    if which == "second":
        _reserve(two)
    before = two.all_files()
    words = TWO if which == "second" else OURS
    with pytest.raises(ProgramFailed, match="not all may be as it was before"):
        apply_plan(two.path, make_plan(two.path, words), _Failing(two, "kernel-install", runs=(1, 2)))
    plan = make_plan(two.path, OURS) if which == "second" else plan_way_back(two.path)
    run = _Failing(two, "update-grub")
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(two.path, plan, run)
    assert run.ran == ["update-grub"]
    again = make_plan(two.path, OURS) if which == "second" else plan_way_back(two.path)
    assert again == plan
    apply_plan(two.path, again, two.run)
    assert two.all_files() == before


@pytest.mark.parametrize("command", [2, 3, 4])
def test_killed_between_programs_there_is_a_way_back(two: BootTree, command: int) -> None:
    """The third and the fourth are repetitions, when the files are as before already."""
    before = two.all_files()
    failing = _Failing(two, "kernel-install")

    def run(what: Sequence[str]) -> None:
        if len(failing.ran) == command - 1:
            raise SystemExit
        failing(what)

    with pytest.raises(SystemExit):
        apply_plan(two.path, make_plan(two.path, OURS), run)
    _revert(two)
    assert two.all_files() == before


def test_killed_in_a_revert_it_can_be_repeated(two: BootTree) -> None:
    before = two.all_files()
    _reserve(two)

    def die(_: object) -> None:
        raise SystemExit

    with pytest.raises(SystemExit):
        apply_plan(two.path, plan_way_back(two.path), die)
    _revert(two)
    assert two.all_files() == before


def test_grubby_is_not_run_again(tree: BootTree) -> None:
    """It would put the words in once more; its files are brought back themselves."""
    fedora(tree)
    before = tree.all_files()
    run = _Failing(tree, "grubby")
    with pytest.raises(ProgramFailed, match=r"made to fail, 1$"):
        apply_plan(tree.path, make_plan(tree.path, OURS), run)
    assert run.ran == ["grubby"]
    assert tree.all_files() == before


def test_a_file_that_cannot_be_brought_back_is_named(
    two: BootTree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All else is brought back, and what programs make agrees with the files."""
    before = two.all_files()

    def fail(root: Path, path: str, text: str | None) -> None:
        if text is None and path == f"/{DROP_IN}":
            raise ConfigError(f"{path}: cannot be written: Read-only file system")
        put_text(root, path, text)

    with monkeypatch.context() as patch, pytest.raises(ProgramFailed) as caught:
        patch.setattr("kdump_service.reserve.apply.put_text", fail)
        apply_plan(two.path, make_plan(two.path, OURS), _Failing(two, "kernel-install"))
    named = f"/{DROP_IN}: cannot be written: Read-only file system"
    assert str(caught.value).endswith(f"not all may be as it was before: {named}")
    assert named in caplog.text
    assert not (two.path / "etc/kernel/cmdline").exists()
    assert OURS[0] in two.read("boot/grub/grub.cfg")
    _revert(two)
    assert two.all_files() == before


def test_a_memory_that_cannot_be_put_back_is_named(two: BootTree, monkeypatch: pytest.MonkeyPatch) -> None:
    before = two.all_files()

    def fail(*_: object) -> None:
        raise ConfigError(f"/{WAY_BACK_FILE} cannot be removed: Read-only file system")

    with monkeypatch.context() as patch, pytest.raises(ProgramFailed, match=r"Read-only file system$"):
        patch.setattr("kdump_service.reserve.way_back.restore_kept", fail)
        apply_plan(two.path, make_plan(two.path, OURS), _Failing(two, "kernel-install"))
    assert two.all_files() == before
    _revert(two)
    assert two.all_files() == before
