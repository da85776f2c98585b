# SPDX-License-Identifier: LGPL-2.1-or-later
"""The package's life: installed, upgraded while the machine is armed, removed, purged, installed again.

That it installs without network and with what it depends on, each machine of tests/vm shows: it was made so.
"""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .apt import download
from .conftest import MachineFactory, OpenDumpOf, RestoredFactory
from .disk import project_disk
from .kexec_calls import follow_kexec_calls, kexec_calls
from .lab import Lab
from .machine import PLANTED_COMMAND, SERVICE, Machine
from .package import MODULES, newer
from .test_crashes import crashed
from .tool import run_tool
from .tree import SUITE, base_tree

NOTE = "/usr/lib/kdump-service/installed.sha256"
LOADED = "cat /sys/kernel/kexec_crash_loaded"
ARMED = "cat /run/kdump-service/armed.json; stat -c %i:%z /run/kdump-service/armed.json"
STATE = "dpkg-query --show --showformat='${Version} ${db:Status-Status}' kdump-service"
CHECK = f"busctl call -j {SERVICE} org.kdump.Kdump1 Check"
CONTENTS_LOG = f"busctl set-property {SERVICE} org.kdump.Kdump1.Settings Contents s log"
PACKAGE = "/root/kdump-service.deb"
NEW = "99"  # newer than any
# There is no network, and there are no lists of packages: what is needed is there, or apt refuses.
APT = "DEBIAN_FRONTEND=noninteractive apt-get -qq --yes --no-install-recommends"
# Dumps: one where dumps are to go, and one whose target had failed.
DUMPS = ("/var/crash/2026-11-30T10:00:00Z-host", "/var/lib/kdump-service/crash/2026-11-30T11:00:00Z-host")
# What has a name of ours, but for what the harness has put there.
NOT_OURS = (
    "'*kdump-test-agent*'",
    "'*/kdump-test.conf'",
    "'/usr/local/lib/kdump-test*'",
    "/etc/systemd/system/kdump-capture.target.wants",  # has the agent in it
    "'/run/udev/links/*kdump.test'",
    "/var/lib/kdump-service",  # has dumps in it
    "'/var/crash/*'",  # their names have the machine's
)
LEFT = (
    f"find /etc /usr /var /run -iname '*kdump*' {' '.join(f'-not -path {path}' for path in NOT_OURS)} | sort"
)
PutNewer = Callable[[Machine, str], None]


@pytest.fixture
def put_newer(lab: Lab, tmp_path: Path) -> PutNewer:
    """Put a newer package into a machine, in which one module is another: the version itself, or any."""

    def put(machine: Machine, changed: str) -> None:
        machine.put(PACKAGE, newer(lab.package.file, NEW, tmp_path, changed).read_bytes())

    return put


def _codes(machine: Machine) -> set[str]:
    [problems] = json.loads(machine.run(CHECK).stdout)["data"]
    return {problem[0] for problem in problems}


def _pid(machine: Machine) -> int:
    return int(machine.run("systemctl show -P MainPID kdump.service").stdout)


@pytest.mark.guest(seconds=1)
def test_package_is_reproducible_and_without_errors(lab: Lab, tmp_path: Path) -> None:
    """Built in another folder, by another user's environment, at another time: the same bytes."""
    folder = tmp_path / "a folder/of-another-length"
    elsewhere = {
        "KDUMP_DEB_FOLDER": str(folder),
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
        "TZ": "Pacific/Kiritimati",
        "USER": "somebody",
    }
    build = ["sh", "-c", "umask 077; exec make --silent deb"]
    subprocess.run(build, check=True, cwd=lab.package.repo, env={**os.environ, **elsewhere})
    [again] = folder.glob("*.deb")
    assert again.read_bytes() == lab.package.file.read_bytes()
    [changes] = folder.glob("*.changes")
    judged = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error", changes],
        check=False,
        capture_output=True,
        text=True,
    )
    assert judged.returncode == 0, judged.stdout + judged.stderr


@pytest.mark.promise("upgrade-stays-armed", "restart-stays-armed")
@pytest.mark.guest(seconds=1)
def test_upgrade_while_armed(restored: RestoredFactory, put_newer: PutNewer) -> None:
    """Between the halves of an upgrade the old daemon says that its files were replaced. After it the new one
    runs, and the kernel holds what it held: what went into the image is the same, and none is built."""
    with restored() as machine:
        put_newer(machine, "daemon.py")
        loaded, old = machine.run(ARMED).stdout, _pid(machine)
        follow_kexec_calls(machine)
        machine.run(f"dpkg --unpack {PACKAGE}")
        assert "program-replaced" in _codes(machine)
        assert _pid(machine) == old
        machine.run("dpkg --configure -a")
        assert _pid(machine) not in (old, 0)
        assert not {"program-replaced", "image-outdated"} & _codes(machine)
        assert kexec_calls(machine) == []
        assert machine.run(ARMED).stdout == loaded
        assert machine.run(STATE).stdout == f"{NEW} installed"


@pytest.mark.promise("upgrade-stays-armed", "nmi")
@pytest.mark.guest(captures=1)
def test_crash_amid_an_upgrade(restored: RestoredFactory, put_newer: PutNewer, open_dump: OpenDumpOf) -> None:
    """Everything on the disk is of another version, and what is loaded is not. What crashes is an NMI."""
    with restored() as machine:
        put_newer(machine, "__init__.py")
        machine.run(f"dpkg --unpack {PACKAGE} && sync")
        assert machine.run("kdump-service --version").stdout == f"kdump-service {NEW}\n"
        opened = open_dump(machine, crashed(machine, "nmi"))
    drgn = opened.drgn(PLANTED_COMMAND)
    assert "NMI" in drgn.panic_message
    assert "unknown_nmi_error" in drgn.stack


@pytest.mark.promise("package-comes-and-goes", "stop-disarms")
@pytest.mark.guest(seconds=1)
def test_purged_and_installed_again(lab: Lab, restored: RestoredFactory) -> None:
    """Purging disarms, and leaves dumps and nothing else; installing arms, though nobody asks for it."""
    with restored() as machine:
        folders = " ".join(DUMPS)
        machine.run(f"mkdir -p {folders} && for folder in {folders}; do echo x >$folder/vmcore; done")
        machine.run(CONTENTS_LOG)
        machine.run("dpkg --purge kdump-service")
        assert machine.run(LOADED).stdout == "0\n"
        assert machine.run(LEFT).stdout == ""
        assert machine.run("ls -A /var/lib/kdump-service").stdout == "crash\n"
        for folder in DUMPS:
            assert machine.run(f"cat {folder}/vmcore").stdout == "x\n"
        # To build an image takes a minute here.
        machine.run("mkdir /etc/kdump-service.conf.d")
        machine.put("/etc/kdump-service.conf.d/environment.conf", b"[Image]\nEnvironment=rootfs\n")
        machine.put(PACKAGE, lab.package.file.read_bytes())
        machine.run(f"{APT} install {PACKAGE}")
        machine.wait_until_armed()
        assert machine.status()["State"] == "armed"
        assert machine.run("systemctl is-enabled kdump.service").stdout == "enabled\n"
        assert machine.run(f"ls /{MODULES}/__pycache__").stdout


# What takes more than one machine may: `make test-all PART=packages`

BUILD_SEC = 1200.0  # an initramfs by initramfs-tools: ten minutes under emulation beside other machines
SUITES = (SUITE, "trixie")
IMAGE = "busctl get-property org.kdump.Kdump1 /org/kdump/Kdump1 org.kdump.Kdump1 Image"
BUILT = "journalctl --no-pager -o cat -u 'kdump-build-image@*' | grep -c 'Capture image built'"
CONFIGURED = (  # what GRUB's menu would have, evaluated as grub-mkconfig does
    "(. /etc/default/grub; for f in /etc/default/grub.d/*.cfg; do . $f; done; "
    'echo "$GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT") | grep -o "crashkernel=[^ ]*" || :'
)


def _sources(lab: Lab) -> bytes:
    """What `make install` needs of a checkout, as a tar file."""
    folders = ("kdump_service", "units", "dbus", "packaging")
    names = run_tool("git", "-C", lab.package.repo, "ls-files", "-z", "--", *folders).split("\0")
    packed = ["tar", "-C", str(lab.package.repo), "-c", *filter(None, names)]
    return subprocess.run(packed, check=True, stdout=subprocess.PIPE).stdout


def _that_cannot_be_installed(package: Path, folder: Path) -> Path:
    """The same package, whose installation ends when it has begun, and what it replaces was to be removed."""
    run_tool("dpkg-deb", "--raw-extract", package, folder / "broken")
    script = folder / "broken/DEBIAN/preinst"
    script.write_text("#!/bin/sh\nexit 1\n")
    script.chmod(0o755)
    run_tool("dpkg-deb", "--root-owner-group", "--build", folder / "broken", folder / "broken.deb")
    return folder / "broken.deb"


def _nothing(root: Path) -> None:
    """A machine that has never had the project."""


def _machine_without_it(lab: Lab, suite: str, *packages: str) -> Machine:
    tree = base_tree(lab.cache, suite, packages)
    return lab.machine(disk=project_disk(lab.cache, tree, _nothing))


def _built(machine: Machine) -> int:
    return int(machine.run(BUILT, check=False).stdout)


def _wait_for_the_image(machine: Machine) -> str:
    """The image, when one of our own is loaded and none is being built."""
    machine.wait_until(f"{IMAGE} | grep -q /var/lib/kdump-service/images/", timeout_sec=BUILD_SEC)
    machine.wait_until("! systemctl is-active --quiet 'kdump-build-image@*'")
    return str(machine.status()["Image"])


@pytest.mark.part("packages")
@pytest.mark.promise("package-comes-and-goes", "upgrade-stays-armed", "image-is-current")
@pytest.mark.guest(boots=3, captures=2)
@pytest.mark.parametrize("suite", SUITES)
def test_whole_life(lab: Lab, put_newer: PutNewer, suite: str) -> None:
    """Installed for the first time, upgraded, crashed with what is loaded then, crashed in the middle of the
    next change with the root file system as it is then, removed, installed again, purged."""
    with _machine_without_it(lab, suite) as machine:
        machine.wait_for_boot()
        machine.put(PACKAGE, lab.package.file.read_bytes())
        machine.run(f"{APT} install {PACKAGE}")
        first = _wait_for_the_image(machine)
        assert _built(machine) == 1

        put_newer(machine, "__init__.py")
        machine.run(f"{APT} install {PACKAGE}")
        machine.wait_until(f"! {IMAGE} | grep -q {first}", timeout_sec=BUILD_SEC)
        second = _wait_for_the_image(machine)
        assert _built(machine) == 2
        assert "image-outdated" not in _codes(machine)

        machine.run("journalctl --sync")  # what was built is counted after the crash, too
        machine.crash()
        machine.wait_for_boot()
        machine.wait_until_armed()
        [dump] = machine.dumps()
        assert dump.record["state"] == "complete"
        assert machine.status()["Image"] == second
        assert _built(machine) == 2

        machine.put("/etc/kdump-service.conf.d/environment.conf", b"[Image]\nEnvironment=rootfs\n")
        machine.run("systemctl reload kdump.service")
        machine.put(PACKAGE, lab.package.file.read_bytes())
        machine.run(f"dpkg --unpack --force-downgrade {PACKAGE} && sync")
        machine.crash()
        machine.wait_for_boot()
        machine.run("dpkg --configure -a")
        machine.wait_until_armed()
        dumps = machine.dumps()
        assert [each.record["state"] for each in dumps] == ["complete", "complete"]
        assert all(Path(each.path).name in machine.run("kdumpctl list").stdout for each in dumps)

        machine.run(f"{APT} remove kdump-service")
        assert machine.run(LOADED).stdout == "0\n"
        # What stays as configuration does no harm.
        hook = machine.run("/etc/kernel/postinst.d/zz-kdump-service $(uname -r)")
        assert (hook.stdout, hook.stderr) == ("", "")
        machine.run("rm /etc/kdump-service.conf.d/environment.conf")
        machine.run(f"{APT} install {PACKAGE}")
        _wait_for_the_image(machine)
        assert len(json.loads(machine.run("kdumpctl list --json").stdout)) == 2

        machine.run(f"{APT} purge kdump-service")
        assert machine.run(LEFT).stdout == ""
        assert machine.dumps() == dumps
        machine.run("test ! -e /var/lib/kdump-service")


@pytest.mark.part("packages")
@pytest.mark.promise("package-comes-and-goes", "reserve-and-revert")
@pytest.mark.guest(boots=1)
@pytest.mark.parametrize("suite", SUITES)
def test_takes_the_place_of_kdump_tools_and_gives_it_back(lab: Lab, tmp_path: Path, suite: str) -> None:
    """One of the two is installed, and one of the two says what is reserved, whichever came last."""
    with _machine_without_it(lab, suite, "kdump-tools", "grub-pc") as machine:
        machine.wait_for_boot()
        theirs = machine.run(CONFIGURED).stdout
        assert theirs.count("crashkernel=") == 1
        machine.put(PACKAGE, lab.package.file.read_bytes())
        # kdump-tools has the initramfs built anew when it goes, and when it comes.
        machine.run(f"{APT} install {PACKAGE}", timeout_sec=BUILD_SEC)
        machine.wait_until_armed()
        assert machine.run("dpkg-query -W -f '${db:Status-Status}' kdump-tools").stdout == "config-files"
        assert "rival-service" not in _codes(machine)
        assert machine.run(CONFIGURED).stdout == theirs
        machine.run("mkdir -p /boot/grub && kdumpctl reserve --yes 300M")
        assert machine.run(CONFIGURED).stdout == "crashkernel=300M\n"
        tree = base_tree(lab.cache, suite)
        [file] = download(tree.root, tree.lists, ["kdump-tools"], tmp_path)
        machine.put("/root/broken.deb", _that_cannot_be_installed(file, tmp_path).read_bytes())
        machine.run("echo kdump-service deinstall | dpkg --set-selections")
        failed = machine.run("dpkg --install /root/broken.deb", check=False)
        assert "will remove kdump-service in favour of kdump-tools" in failed.stdout + failed.stderr
        assert machine.run(CONFIGURED).stdout == "crashkernel=300M\n"
        machine.run("echo kdump-service install | dpkg --set-selections")
        machine.put("/root/kdump-tools.deb", file.read_bytes())
        machine.run(f"{APT} install /root/kdump-tools.deb", timeout_sec=BUILD_SEC)
        assert machine.run(CONFIGURED).stdout == theirs
        assert machine.run("dpkg-query -W -f '${db:Status-Status}' kdump-service").stdout == "config-files"


@pytest.mark.part("packages")
@pytest.mark.promise("package-comes-and-goes")
@pytest.mark.guest(seconds=1)
def test_make_install_and_the_package_keep_apart(lab: Lab, restored: RestoredFactory) -> None:
    """What is installed without a package does not replace it, and is replaced by it, both ways round."""
    with restored() as machine:
        machine.put("/root/sources.tar", _sources(lab))
        machine.run("mkdir /root/sources && tar -C /root/sources -xf /root/sources.tar")
        install = "python3 -I /root/sources/packaging/install.py install"
        refused = machine.run(install, check=False)
        assert (refused.status, "the package kdump-service is installed" in refused.stderr) == (1, True)
        machine.run(f"{APT} remove kdump-service")
        refused = machine.run(install, check=False)
        assert (refused.status, "dpkg --purge kdump-service" in refused.stderr) == (1, True)
        machine.run("dpkg --purge kdump-service")
        machine.run(install)
        machine.run("systemctl start kdump.service")
        assert machine.run("kdumpctl --version").stdout
        extra, mine = f"/{MODULES}/of_another_version.py", "/usr/bin/mine"
        machine.run(f"echo x >{extra}; cp {extra} {mine}; sha256sum {extra} >>{NOTE}")
        # Lines that it did not write: of what has changed, and of another package.
        machine.run(f"echo '{'0' * 64}  {mine}' >>{NOTE}; sha256sum /usr/bin/env >>{NOTE}")
        machine.put(PACKAGE, lab.package.file.read_bytes())
        machine.run(f"dpkg --unpack {PACKAGE}")
        refused = machine.run("python3 -I /root/sources/packaging/install.py uninstall", check=False)
        assert (refused.status, "is installed: remove that" in refused.stderr) == (1, True)
        machine.run(f"{APT} install {PACKAGE}")
        machine.wait_until_armed()
        assert machine.run("dpkg --verify kdump-service | grep -v /usr/share", check=False).stdout == ""
        machine.run(f"test ! -e {extra} && test ! -e {NOTE} && test -e {mine} && env true && rm {mine}")
        # A copy that pip has put before it is not what is run.
        other = "$(python3 -c 'import site; print(site.getsitepackages()[0])')/kdump_service"
        machine.run(f"mkdir -p {other} && echo 'raise SystemExit(1)' >{other}/__init__.py")
        machine.run("kdumpctl --version && systemctl restart kdump.service")
        machine.run(f"rm -r {other} && {APT} purge kdump-service && {install}")
        uninstalled = machine.run("python3 -I /root/sources/packaging/install.py uninstall")
        assert "Dumps stay" in uninstalled.stdout
        assert machine.run(LOADED).stdout == "0\n"


@pytest.mark.part("packages")
@pytest.mark.promise("test-proves")
@pytest.mark.guest(boots=3, captures=1)
def test_autopkgtest_crashes_its_testbed(lab: Lab, machine_factory: MachineFactory) -> None:
    """The package's own test, as autopkgtest runs it: it is called anew after each reboot."""
    script = lab.package.repo / "packaging/debian/tests/crash"
    with machine_factory(boot_loader="grub-bios") as machine:

        def put() -> None:
            for name, content in (
                ("/root/crash", script.read_bytes()),
                ("/tmp/autopkgtest-reboot", b"#!/bin/sh\necho $1 >/root/mark\n"),
                ("/tmp/autopkgtest-reboot-prepare", b"#!/bin/sh\necho $1 >/root/mark\n"),
            ):
                machine.put(name, content)
                machine.run(f"chmod +x {name}")

        machine.wait_for_boot()
        put()
        machine.run("/root/crash")
        machine.reboot()
        put()
        machine.spawn("AUTOPKGTEST_REBOOT_MARK=$(cat /root/mark) /root/crash")
        machine.wait_for_boot(timeout_sec=BUILD_SEC)  # it has an image built first
        said = machine.run("AUTOPKGTEST_REBOOT_MARK=$(cat /root/mark) /root/crash")
        assert machine.run("cat /root/mark").stdout == "crashed\n"
        assert "test" in said.stdout
