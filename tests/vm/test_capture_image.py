# SPDX-License-Identifier: LGPL-2.1-or-later
"""The small capture image: it saves what it should without the crashed system's root, and it is never
stale."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from .conftest import RestoredFactory
from .disk import list_folder
from .machine import STATUS, Machine

CONFIG = "/etc/kdump-service.conf.d/test.conf"
IMAGES = "/var/lib/kdump-service/images"
FALLBACK = "/var/lib/kdump-service/crash"
BUILD_UNITS = "'kdump-build-image@*'"
BUILDS = f"journalctl -b --no-pager -o cat -u {BUILD_UNITS}"
BUILD_IS_UNDER_WAY = f"systemctl list-units --no-legend --all {BUILD_UNITS} | grep -q activating"
SOURCE = "/usr/lib/python3/dist-packages/kdump_service/quantity.py"
BUILD_SEC = 1200  # two minutes on an idle host, by emulation


def codes(machine: Machine) -> set[str]:
    return {code for code, *_ in machine.status()["Problems"]}


def image(machine: Machine) -> str:
    return str(machine.status()["Image"])


ROOT = b"/dev/vda / ext4 errors=remount-ro 0 1\n"


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """The image of a disk with an empty file system of its own."""
    disk = tmp_path / "second.img"
    with disk.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mke2fs", "-q", "-F", "-m", "0", "-t", "ext4", "-L", "dumps", disk], check=True)
    return disk


def dump_to_the_second_disk(machine: Machine) -> None:
    """Have the target on it."""
    machine.put("/etc/fstab", ROOT + b"LABEL=dumps /srv ext4 defaults 0 2\n")
    machine.put(CONFIG, b"[Target]\nTarget=/srv/dumps\n")
    machine.wait_until("test -e /dev/disk/by-label/dumps")
    machine.run("systemctl daemon-reload && mount /srv && systemctl reload kdump.service")
    assert image(machine).startswith(IMAGES)


@pytest.mark.promise("root-destroyed", "small-image", "back-soon")
@pytest.mark.guest(captures=1)
def test_root_is_destroyed_before_the_crash(restored: RestoredFactory, second: Path) -> None:
    """The target lies on another disk, and needs nothing of the root."""
    with restored(disks=[second]) as machine:
        dump_to_the_second_disk(machine)
        machine.end_at_reset()
        asked = time.monotonic()
        # In one go: nothing can be started any more from what was the root.
        machine.crash_by(
            "dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct status=none; echo c >/proc/sysrq-trigger"
        )
        saved = machine.wait_for_console("kdump: Dump saved: /srv/dumps/", since=asked)
        machine.wait_until_off(since=saved.at, timeout_sec=60)
    [name] = list_folder(second, "/dumps")
    assert "Z-kdump-test" in name


@pytest.mark.promise("target-missing", "never-lose-the-log")
@pytest.mark.guest(captures=1)
def test_target_is_gone_in_the_capture_boot(restored: RestoredFactory, second: Path) -> None:
    """Log and record go where production finds them."""
    with restored(disks=[second]) as machine:
        dump_to_the_second_disk(machine)
        machine.run("dd if=/dev/zero of=/dev/vdb bs=1M count=8 oflag=direct status=none")
        machine.put("/etc/fstab", ROOT)
        machine.run("sync")
        machine.end_at_reset()
        asked = machine.crash("sysrq")
        machine.wait_until_off(since=asked)
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert "sysrq: Trigger a crash" in machine.get(f"{dump.path}/dmesg.txt").decode()
        assert machine.listing("/srv") == {}  # nothing is written below its mount point


@pytest.mark.promise("target-full", "never-lose-the-log")
@pytest.mark.guest(captures=1)
def test_target_has_no_room_for_the_log(restored: RestoredFactory, second: Path) -> None:
    """It goes whole where there is room, with its record; on the target nothing is begun."""
    with restored(disks=[second]) as machine:
        dump_to_the_second_disk(machine)
        machine.run("mkdir -p /srv/dumps")
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /srv) - (64 << 10))) /srv/filler && sync")
        machine.end_at_reset()
        asked = machine.crash("sysrq")
        machine.wait_until_off(since=asked)
        [dump] = machine.dumps(FALLBACK)
        assert dump.record["state"] == "failed"
        assert dump.record["panic_message"] == "Kernel panic - not syncing: sysrq triggered crash"
        assert [problem["reason"] for problem in dump.record["problems"]] == ["target-full"]
        log = machine.get(f"{dump.path}/dmesg.txt").decode()
        assert "Linux version " in log.splitlines()[0]
        assert "sysrq: Trigger a crash" in log
    assert list_folder(second, "/dumps") == {}


@pytest.mark.promise("target-stalls", "never-hang", "never-lose-the-log", "back-soon")
@pytest.mark.guest(captures=1)
def test_target_stops_to_answer(restored: RestoredFactory, second: Path) -> None:
    """Amid the image, for good: the log is there by then, and nothing waits for the disk.

    Production's root, where the last record would go, is not found any more: mount(8) asks each disk for its
    UUID, and so this one."""
    with restored(disks=[second]) as machine:
        dump_to_the_second_disk(machine)
        settings = b"[Target]\nTarget=/srv/dumps\nStallTimeoutSec=10\n[Dump]\nContents=everything\n"
        # So slow that it is far from its end.
        machine.put(CONFIG, settings + b"CompressionLevel=19\n")
        machine.run("systemctl reload kdump.service && sync")
        machine.end_at_reset()
        asked = machine.crash("sysrq")
        machine.wait_for_console("kdump: Saving: ", since=asked)
        machine.stop_disk()
        ended = machine.wait_for_console("kdump: Final action: reboot at once", since=asked)
        machine.wait_until_off(since=ended.at, timeout_sec=30)
    [name] = list_folder(second, "/dumps")
    found = list_folder(second, f"/dumps/{name}")
    assert found["dmesg.txt"] > 10_000
    assert found["record.json"] > 1000


@pytest.mark.promise("image-damaged", "root-serves")
@pytest.mark.guest(seconds=200)
@pytest.mark.part("images")
def test_damaged_image_is_not_armed_and_built_anew(restored: RestoredFactory) -> None:
    """Changed, cut short, gone: the machine is armed all the same, with what there is."""
    with restored() as machine:
        path = image(machine)
        of_this_start = "_SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID kdump.service)"
        for damage, told in (
            (f"printf x | dd of={path} bs=1 seek=9999 conv=notrunc status=none", "is not what was built"),
            (f"truncate -s 1M {path}", "is not what was built"),
            (f"rm {path}", "No such file or directory"),
        ):
            machine.run(f"systemctl stop kdump.service {BUILD_UNITS}; {damage}")
            machine.run("systemctl start kdump.service")
            assert machine.run("cat /sys/kernel/kexec_crash_loaded").stdout == "1\n"
            assert "root=" in machine.status()["CommandLine"]
            machine.run(f"journalctl --no-pager -o cat {of_this_start} | grep '{told}'")
            machine.wait_until(BUILD_IS_UNDER_WAY)
        assert codes(machine) & {"image-building"}
        progress = "busctl get-property org.kdump.Kdump1 /org/kdump/Kdump1 org.kdump.Kdump1 Progress"
        machine.wait_until(f"{progress} | awk '{{ exit !($2 > 0 && $2 < 1) }}'", timeout_sec=BUILD_SEC)
        in_force = f'"Image":{{"type":"s","data":"{IMAGES}'
        machine.wait_until(f"{STATUS} | grep -q '{in_force}'", timeout_sec=BUILD_SEC)
        assert not codes(machine) & {"image-building", "image-outdated", "image-not-built"}


def upgraded_under_a_build(machine: Machine) -> str:
    """Another version of a program that is in the image comes, as an upgrade of the package does it, and a
    setting is changed while the image is built anew. Returns the image that serves meanwhile."""
    before = image(machine)
    machine.run(f"echo '# newer' >>{SOURCE} && touch /var/lib/dpkg/status")
    machine.wait_until(f"{STATUS} | grep -q image-outdated")
    assert image(machine) == before
    assert machine.run("cat /sys/kernel/kexec_crash_loaded").stdout == "1\n"
    machine.wait_until(BUILD_IS_UNDER_WAY)
    machine.run("kdumpctl config set CommandLineAppend kdump_test.word")
    assert "kdump_test.word" in machine.status()["CommandLine"]
    assert image(machine) == before
    return before


@pytest.mark.promise("image-is-current", "settings-at-once")
@pytest.mark.guest(seconds=30)
def test_what_went_in_changes(restored: RestoredFactory) -> None:
    """The image is built anew, and the old one serves meanwhile. The end of the build, which is minutes here,
    is a case of its own."""
    with restored() as machine:
        upgraded_under_a_build(machine)


@pytest.mark.promise("image-is-current", "settings-at-once")
@pytest.mark.guest(seconds=120)
@pytest.mark.part("images")
def test_what_was_built_anew_serves(restored: RestoredFactory) -> None:
    """With what was configured while it was built."""
    with restored() as machine:
        before = upgraded_under_a_build(machine)
        machine.wait_until(
            f"{STATUS} | grep -o '{IMAGES}/[0-9a-f]*' | grep -v {Path(before).stem}",
            timeout_sec=BUILD_SEC,
        )
        assert not codes(machine) & {"image-building", "image-outdated", "image-not-built"}
        assert "kdump_test.word" in machine.status()["CommandLine"]


def drivers_of_the_image(machine: Machine) -> set[str]:
    """Of what is armed, by its manifest."""
    manifest = json.loads(machine.get(str(Path(image(machine)).with_suffix(".json"))))
    return set(manifest["recipe"]["drivers"])


@pytest.mark.promise("image-is-current")
@pytest.mark.guest(boots=1, captures=1, seconds=300)
@pytest.mark.part("images")
def test_settings_of_the_image_change_while_it_is_built(restored: RestoredFactory) -> None:
    """What was asked for first is built, and then what is asked for by now; whatever is the newest serves."""
    with restored() as machine:
        before = image(machine)
        machine.run("kdumpctl config set ExtraDrivers nfs")
        machine.wait_until(f"{BUILDS} | grep 'capture image: collecting'", timeout_sec=BUILD_SEC)
        assert image(machine) == before
        machine.run("kdumpctl config set ExtraDrivers 'nfs overlay'")
        assert image(machine) == before
        assert "image-outdated" in codes(machine)
        machine.wait_until(
            f"test $({BUILDS} | grep -c 'Capture image built') = 2 && ! {BUILD_IS_UNDER_WAY}",
            timeout_sec=2 * BUILD_SEC,
        )
        machine.wait_until(f"! {STATUS} | grep -e image-outdated -e {before}")
        assert {"nfs", "overlay"} <= drivers_of_the_image(machine)
        # Each was loaded when it was there; the first one did not have what is asked for.
        armed = machine.run("journalctl -b -u kdump.service -o cat --no-pager | grep -c 'loaded anew'").stdout
        assert armed == "2\n"
        machine.crash("sysrq")
        machine.wait_for_boot()
        [dump] = machine.dumps()
        assert (dump.record["state"], dump.record["problems"]) == ("complete", [])


PACK = "/usr/lib/python3/dist-packages/kdump_service/image/pack.py"


@pytest.mark.promise("driver-hangs", "never-hang")
@pytest.mark.guest(boots=1, captures=1, seconds=200)
@pytest.mark.part("images")
def test_driver_that_hangs_in_the_capture_boot(restored: RestoredFactory) -> None:
    """Before there is systemd, whose deadline would end it: the machine is back all the same. After half a
    minute, for this once, instead of ten."""
    with restored() as machine:
        release = machine.boots[0].release
        before = image(machine)
        machine.run(
            f"sed -i 's/^_DEADLINE_SEC = .*/_DEADLINE_SEC = 30/' {PACK} && grep -q '_SEC = 30' {PACK}"
        )
        machine.put_module("never_returns", f"/usr/lib/modules/{release}/updates")
        machine.run("depmod && kdumpctl config set ExtraDrivers never_returns")
        machine.wait_until(
            f"{STATUS} | grep -o '{IMAGES}/[0-9a-f]*' | grep -v {Path(before).stem}",
            timeout_sec=BUILD_SEC,
        )
        machine.wait_until(f"! {STATUS} | grep image-outdated && ! {BUILD_IS_UNDER_WAY}")
        assert "never_returns" in drivers_of_the_image(machine)
        machine.run("sync")
        crashed = machine.crash("sysrq")
        told = machine.wait_for_console("no systemd after 30 seconds, rebooting", since=crashed)
        machine.wait_for_event("SHUTDOWN", since=told.at, timeout_sec=10)
        machine.wait_for_boot()
        machine.wait_until_armed()
        assert machine.dumps() == []


@pytest.mark.promise("build-fails")
@pytest.mark.guest(seconds=200)
@pytest.mark.part("images")
def test_build_that_fails_leaves_the_machine_armed(restored: RestoredFactory) -> None:
    """No room for a build, a disk that gets full amid it, a build that is killed: told, with what to do; the
    state is not worse than before."""
    with restored() as machine:
        before = image(machine)
        machine.run("fallocate -l $(($(stat -f -c '%a * %S' /) - (200 << 20))) /filler")
        machine.run(
            f"echo '# newer' >>{SOURCE} && kdumpctl reload",
            check=False,
        )
        machine.wait_until(f"{STATUS} | grep -q image-not-built")
        said = machine.run("kdumpctl check", check=False).stdout
        assert "a build needs" in said
        assert image(machine) == before
        machine.run("rm /filler")
        machine.spawn("kdumpctl rebuild")
        machine.wait_until(f"{BUILDS} | grep 'capture image: collecting'", timeout_sec=BUILD_SEC)
        machine.run("fallocate -l $(($(stat -f -c '%f * %S' /) - (20 << 20))) /filler")
        machine.wait_until(f"! {BUILD_IS_UNDER_WAY}", timeout_sec=BUILD_SEC)
        machine.wait_until(f"{STATUS} | grep -q image-not-built")
        said = machine.run("kdumpctl check", check=False).stdout
        assert "No space left on device" in said, said
        assert "Make room in /var." in said
        machine.run(f"rm /filler && ! ls -d {IMAGES}/build-*")
        assert (image(machine), machine.run("cat /sys/kernel/kexec_crash_loaded").stdout) == (before, "1\n")
        machine.spawn("kdumpctl rebuild")
        machine.wait_until(BUILD_IS_UNDER_WAY)
        machine.run(f"systemctl kill --signal=KILL {BUILD_UNITS}")
        machine.wait_until(f"! {BUILD_IS_UNDER_WAY}")
        machine.wait_until(f"{STATUS} | grep -q image-not-built")
        assert (image(machine), machine.run("cat /sys/kernel/kexec_crash_loaded").stdout) == (before, "1\n")


@pytest.mark.promise("root-serves", "build-fails")
@pytest.mark.guest(seconds=20)
def test_without_dracut(restored: RestoredFactory) -> None:
    """The root file system serves, and the state says why."""
    with restored() as machine:
        machine.run(
            f"mv /usr/bin/dracut /usr/bin/dracut.away && rm -r {IMAGES} && systemctl restart kdump.service"
        )
        assert codes(machine) & {"image-tools-missing"}
        assert "root=" in machine.status()["CommandLine"]
