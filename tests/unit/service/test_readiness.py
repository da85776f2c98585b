# SPDX-License-Identifier: LGPL-2.1-or-later
"""Each fault, put into a healthy machine one at a time, is found by its code, and nothing else is."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_service import process
from kdump_service.arm.loader import Loader
from kdump_service.errors import KdumpError
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_utc
from kdump_service.record import DumpRecord
from kdump_service.service.checks.hardware import watchdog_problems
from kdump_service.service.checks.target import TargetFacts, ask_target, free_bytes_at
from kdump_service.service.manager import Manager
from kdump_service.service.problems import PROBLEM_CODES, Problem, Severity
from kdump_service.service.proof import Level, Proof
from kdump_service.service.readiness import Readiness
from kdump_service.service.state import ArmState, Status, View
from tests.builders.hanging_mount import HangingMount, can_mount
from tests.builders.machine_disks import Disks, put_image
from tests.builders.machine_root import BOOT_ID, RELEASE, FakeKernel, MachineRoot
from tests.hang import HANG_SEC, wait_until

ROOT_MOUNT = "1 0 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw"


class _Bench:
    """A machine that is armed, and its readiness."""

    def __init__(self, path: Path) -> None:
        self.machine = MachineRoot(path)
        self.files = KernelFiles(path)
        self.kernel = FakeKernel(self.machine)
        self.loader = Loader(self.files, self.kernel.load, self.kernel.unload)
        self.manager = Manager(self.files, self.loader)
        self.manager.start()
        self.readiness = Readiness(self.files, loader=self.loader)
        self.predicted_bytes = 1 << 20
        self.readiness.quick(self.manager.config, self.manager.status())

    def problems(self, **status: object) -> list[Problem]:
        now = replace(self.manager.status(), **status)  # type: ignore[arg-type]
        return self.readiness.check(self.manager.config, now, self.predicted_bytes)

    def codes(self, **status: object) -> list[str]:
        return [problem.code for problem in self.problems(**status)]

    def configure(self, text: str) -> None:
        self.machine.write("etc/kdump-service.conf", text)
        self.manager.reload()

    def facts(self, facts: TargetFacts) -> None:
        """Answers that no file system of a test gives."""
        self.readiness = Readiness(self.files, lambda path: facts, self.loader, lambda path: facts.free_bytes)


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    return _Bench(tmp_path)


def test_healthy_machine_has_no_problem(bench: _Bench) -> None:
    assert bench.problems() == []
    assert bench.readiness.quick(bench.manager.config, bench.manager.status()) == []


def test_looking_is_quick_and_starts_no_process(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """By processor time, and by the files that are opened, of which no machine has more than others."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a process"))
    opened: list[object] = []
    looking = True

    def on_event(event: str, arguments: tuple[object, ...]) -> None:
        if looking and event == "open":
            opened.append(arguments[0])

    sys.addaudithook(on_event)  # for the rest of the process
    bench.readiness.quick(bench.manager.config, bench.manager.status())
    looking = False
    began = time.process_time()
    for _ in range(20):
        bench.readiness.quick(bench.manager.config, bench.manager.status())
    assert (time.process_time() - began) / 20 < 0.05
    assert 0 < len(opened) < 100, opened


# Faults that files show. Each: the code, and what is done to the healthy machine.

Fault = Callable[[_Bench], object]


def _write(name: str, content: str) -> Fault:
    return lambda bench: bench.machine.write(name, content)


def _sysctl(name: str, value: int) -> Fault:
    return lambda bench: bench.machine.set_sysctl(name, value)


def _remove(name: str) -> Fault:
    return lambda bench: (bench.machine.path / name).unlink()


def _link(name: str, to: str) -> Fault:
    def make(bench: _Bench) -> None:
        path = bench.machine.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(to)

    return make


def _command_line(words: str) -> Fault:
    return _write("proc/cmdline", words + "\n")


def _mounts(*lines: str) -> Fault:
    return lambda bench: bench.machine.set_mounts(ROOT_MOUNT, *lines)


def _target(target: str, *lines: str) -> Fault:
    def make(bench: _Bench) -> None:
        bench.configure(f"[Target]\nTarget={target}\n")
        bench.machine.set_mounts(ROOT_MOUNT, *lines)

    return make


def _both(*faults: Fault) -> Fault:
    def make(bench: _Bench) -> None:
        for fault in faults:
            fault(bench)

    return make


def _no_modules(bench: _Bench) -> None:
    shutil.rmtree(bench.machine.path / "usr/lib/modules")


def _kernel_of_another_release(bench: _Bench) -> None:
    text = b"6.12.9-other (builder@host) #1\0"
    head = bytearray(0x400)
    head[0x202:0x206] = b"HdrS"
    head[0x20E:0x210] = struct.pack("<H", 0x300 - 0x200)
    head[0x300 : 0x300 + len(text)] = text
    bench.machine.write("boot/kernel-of-mine", bytes(head))
    bench.machine.write("usr/lib/modules/6.12.9-other/modules.dep", "")
    image = f"[Image]\nImage=/boot/initrd.img-{RELEASE}\n"
    bench.configure(f"[Kernel]\nKernel=/boot/kernel-of-mine\n{image}")


def _small_image(*, disk: bool = True, dracut: bool = True, image: bool = True, old: bool = False) -> Fault:
    """The capture boot is to run in the small image, and what is said is missing."""

    def make(bench: _Bench) -> None:
        if disk:
            Disks(bench.machine).virtio()
        if dracut:
            bench.machine.write("usr/bin/dracut", "")
            bench.machine.write("usr/lib/dracut/modules.d/99kdump-service/module-setup.sh", "")
        if image:
            put_image(bench.machine)
        if old:
            bench.machine.write("usr/bin/kdump-service", "#!/usr/bin/python3 -I\n# of a newer version\n")
        bench.machine.set_environment("initramfs")
        bench.manager.reload()

    return make


def test_small_image_that_is_current_is_no_problem(bench: _Bench) -> None:
    _small_image()(bench)
    assert (bench.problems(), bench.manager.status().environment) == ([], "initramfs")


def _no_journal(bench: _Bench) -> None:
    (bench.machine.path / "var/log/journal").rmdir()


def _hardware(memory_blocks: int = 8, present: str = "0-1") -> Fault:
    def make(bench: _Bench) -> None:
        bench.machine.set_memory_blocks(memory_blocks)
        bench.machine.write("sys/devices/system/cpu/present", present + "\n")

    return make


def _watchdog(**kind: object) -> Fault:
    described = {"identity": "iTCO_wdt", "timeout_sec": 30, **kind}
    return lambda bench: bench.machine.add_watchdog("watchdog0", **described)  # type: ignore[arg-type]


def _crashes(count: int, seconds_to_saved: float = 5.0, **values: int) -> Fault:
    def make(bench: _Bench) -> None:
        now = time.time()
        bench.readiness.learn(
            DumpRecord(
                f"crash-{number}",
                crash_time=format_utc(now - 60 * number),
                kernel_release=RELEASE,
                seconds_to_saved=seconds_to_saved,
                **values,  # type: ignore[arg-type]
            )
            for number in range(count)
        )

    return make


def _shrunk(bench: _Bench) -> None:
    """By the service, in this boot, and then by another program."""
    bench.machine.write("sys/kernel/kexec_crash_size", f"{176 << 20}\n")
    note = {"boot_id": BOOT_ID, "from_bytes": 256 << 20, "to_bytes": 192 << 20}
    bench.machine.write("run/kdump-service/shrunk.json", json.dumps(note))
    bench.manager.rebuild()


def _sparse_initramfs(bench: _Bench) -> None:
    os.truncate(bench.machine.path / f"boot/initrd.img-{RELEASE}", 80 << 20)
    bench.manager.reload()


def _encrypted(device: str) -> Fault:
    return _write(f"sys/dev/block/{device}/dm/uuid", "CRYPT-LUKS2-abc-luks\n")


GRUB_WITHOUT = "menuentry 'Debian' {\n\tlinux /boot/vmlinuz root=/dev/vda ro quiet\n}\n"
BLS_WITHOUT = "title Fedora\nlinux /vmlinuz\noptions root=/dev/vda ro\n"

FAULTS: list[tuple[str, Fault]] = [
    ("image-stale", _write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")),
    ("image-stale", _write(f"boot/vmlinuz-{RELEASE}", "another kernel")),
    ("image-stale", _remove(f"boot/vmlinuz-{RELEASE}")),
    ("image-mismatch", _kernel_of_another_release),
    ("image-not-supported", _small_image(disk=False)),
    ("image-tools-missing", _small_image(image=False, dracut=False)),
    ("image-tools-missing", _small_image(dracut=False, old=True)),
    ("image-building", _small_image(image=False)),
    ("image-outdated", _small_image(old=True)),
    ("modules-missing", _no_modules),
    ("loading-locked", _sysctl("kexec_load_disabled", 1)),
    ("loading-locked", _sysctl("kexec_load_limit_panic", 0)),
    ("bad-configuration", _write("etc/kdump-service.conf", "[Dump]\nContents=nonsense\n")),
    ("configuration-not-loaded", _write("etc/kdump-service.conf", "[Dump]\nContents=user\n")),
    ("reservation-reduced", _command_line("root=/dev/vda crashkernel=512M")),
    ("reservation-reduced", _command_line("root=/dev/vda crashkernel=1G,high crashkernel=72M,low")),
    ("reservation-low", _crashes(1, memory_total_kib=220680, memory_available_low_water_kib=1000)),
    ("reservation-shrunk", _shrunk),
    ("reservation-tight", _sparse_initramfs),
    (
        "reservation-tight",
        _both(_crashes(1, memory_total_kib=220680, memory_available_low_water_kib=120680), _sparse_initramfs),
    ),
    ("reservation-not-kept", _write("boot/grub/grub.cfg", GRUB_WITHOUT)),
    (
        "reservation-not-kept",
        _both(_remove("boot/grub/grub.cfg"), _write("boot/loader/entries/f.conf", BLS_WITHOUT)),
    ),
    ("reservation-not-kept", _write("etc/default/grub", "#GRUB_CMDLINE_LINUX=crashkernel=256M\n")),
    (
        "reservation-not-kept",
        _both(_remove("etc/default/grub"), _write("etc/kernel/cmdline", "root=/dev/vda\n")),
    ),
    ("reservation-after-reboot", _command_line("root=/dev/vda")),
    ("capture-unit-missing", _remove("usr/lib/systemd/system/kdump-capture.service")),
    ("capture-unit-missing", _remove("usr/lib/systemd/system/kdump-capture.target")),
    ("capture-unit-missing", _link("etc/systemd/system/kdump-capture.service", "/dev/null")),
    ("capture-unit-missing", _write("etc/systemd/system/kdump-capture.target", "")),
    ("capture-unit-missing", _remove("usr/bin/kdump-service")),
    ("capture-not-started", lambda b: b.configure("[Kernel]\nCommandLineRemove=systemd.unit\n")),
    (
        "capture-not-started",
        lambda b: b.configure("[Kernel]\nCommandLineAppend=systemd.unit=rescue.target\n"),
    ),
    ("capture-not-started", lambda b: b.configure("[Kernel]\nCommandLineAppend=init=/bin/bash\n")),
    ("root-encrypted", _encrypted("254:0")),
    ("target-missing-mount", _write("etc/fstab", "/dev/vdb /var/crash xfs defaults 0 0\n")),
    (
        "target-missing-mount",
        _write("etc/systemd/system/var-crash.mount", "[Mount]\nWhat=/dev/vdb\nWhere=/var/crash\n"),
    ),
    ("target-mounted-by-hand", _target("/srv/c", "2 1 8:1 / /srv rw shared:1 - xfs /dev/vdb rw")),
    ("target-needs-network", _target("/srv/c", "2 1 0:9 / /srv rw - nfs4 server:/export rw")),
    (
        "target-encrypted",
        _both(
            _target("/srv/c", "2 1 8:1 / /srv rw - xfs /dev/vdb rw"),
            _write("etc/fstab", "/dev/vdb /srv xfs defaults\n"),
            _encrypted("8:1"),
        ),
    ),
    ("target-volatile", _target("/tmp/c", "2 1 0:9 / /tmp rw shared:1 - tmpfs tmpfs rw")),
    ("target-volatile", lambda b: b.configure("[Image]\nEnvironment=rootfs\n[Target]\nTarget=/var/tmp/c\n")),
    ("target-read-only", lambda b: b.machine.set_mounts("1 0 254:0 / / rw - ext4 /dev/vda ro")),
    ("target-read-only", lambda b: b.machine.set_mounts("1 0 254:0 / / ro - ext4 /dev/vda rw")),
    ("target-not-folder", _write("var/crash", "a file")),
    ("target-not-folder", _both(_target("/srv/file/crash"), _write("srv/file", "a file"))),
    ("target-full", lambda b: setattr(b, "predicted_bytes", 1 << 60)),
    ("target-full", lambda b: b.facts(TargetFacts("/var/crash", free_bytes=128 << 20))),
    ("target-exposed", lambda b: b.facts(TargetFacts("/var/crash", 0o40755, owner=4711, free_bytes=1 << 40))),
    ("target-exposed", lambda b: b.facts(TargetFacts("/var/crash", 0o40777, os.geteuid(), 1 << 40))),
    ("target-exposed", lambda b: b.facts(TargetFacts("/var/crash", 0o41777, os.geteuid(), 1 << 40))),
    ("target-unreachable", lambda b: b.facts(TargetFacts("/var/crash", silent=True, trouble="late"))),
    ("target-unreachable", lambda b: b.facts(TargetFacts("/var/crash", trouble="Input/output error"))),
    (
        "rival-service",
        _both(
            _write("usr/sbin/kdump-config", "#!/bin/sh\n"),
            _write("lib/systemd/system/kdump-tools.service", "[Service]\n"),
            _link("etc/systemd/system/basic.target.wants/kdump-tools.service", "/lib/kdump-tools.service"),
        ),
    ),
    (
        "rival-service",
        _both(
            _write("usr/sbin/kdump-config", "#!/bin/sh\n"),
            _write("etc/rc3.d/S01kdump-tools", ""),
        ),
    ),
    (
        "rival-service",
        _write("usr/lib/systemd/system/kdump.service", "[Service]\nExecStart=/usr/bin/kdumpctl\n"),
    ),
    ("rival-service", _write("lib/udev/rules.d/50-kdump-tools.rules", 'SUBSYSTEM=="memory"\n')),
    (
        "rival-service",
        _command_line(f"BOOT_IMAGE=/boot/vmlinuz-{RELEASE} root=/dev/vda crashkernel=256M rd.earlykdump"),
    ),
    ("watchdog-too-short", _watchdog()),
    ("watchdog-too-short", _both(_watchdog(timeout_sec=90), _crashes(1, seconds_to_saved=300.0))),
    ("memory-changed", _hardware(memory_blocks=10)),
    ("memory-changed", _hardware(memory_blocks=7)),
    ("processors-changed", _hardware(present="0-3")),
    ("trigger-without-detector", _sysctl("soft_watchdog", 0)),
    ("trigger-without-detector", _sysctl("nmi_watchdog", 0)),
    ("trigger-without-detector", _sysctl("hung_task_timeout_secs", 0)),
    ("trigger-without-detector", _write("sys/module/rcupdate/parameters/rcu_cpu_stall_suppress", "1\n")),
    ("panic-notifiers-first", _write("sys/module/kernel/parameters/crash_kexec_post_notifiers", "Y\n")),
    ("panic-on-oops-off", _sysctl("panic_on_oops", 0)),
    ("sysrq-crash-off", _sysctl("sysrq", 438)),
    ("sysrq-crash-off", _sysctl("sysrq", 0)),
    ("crash-loop", _crashes(3)),
    ("journal-volatile", _no_journal),
    ("journal-volatile", _write("etc/systemd/journald.conf.d/v.conf", "[Journal]\nStorage=volatile\n")),
]


@pytest.mark.parametrize(("code", "fault"), FAULTS, ids=[f"{n}-{code}" for n, (code, _) in enumerate(FAULTS)])
@pytest.mark.promise("check-tells")
def test_each_fault_is_found_by_its_code(bench: _Bench, code: str, fault: Fault) -> None:
    fault(bench)
    problems = bench.problems()
    assert [problem.code for problem in problems] == [code]
    [problem] = problems
    assert problem.what.endswith(".")
    assert len(problem.remedy) > 6
    assert str(bench.machine.path) not in problem.what + problem.remedy


def test_measured_or_not_the_reservation_has_to_do_for_unpacking(bench: _Bench) -> None:
    _sparse_initramfs(bench)
    [problem] = bench.problems()
    assert "432 MiB would be safe. No capture was measured yet." in problem.what  # 65 and 80 * 4.5
    assert problem.remedy.startswith("Try it: kdumpctl test. Or set crashkernel=432M")
    _crashes(1, memory_total_kib=220680, memory_available_low_water_kib=120680)(bench)
    [problem] = bench.problems()
    assert "nobody measures while the kernel unpacks" in problem.what
    assert problem.remedy.startswith("Set crashkernel=432M")
    # Who follows one advice gets no other.
    _crashes(1, memory_total_kib=220680, memory_available_low_water_kib=1000)(bench)
    [problem] = bench.problems()
    assert (problem.code, problem.remedy[:21]) == ("reservation-low", "Set crashkernel=432M ")


def test_faults_of_a_test_are_all_codes_but_those_of_other_tests() -> None:
    elsewhere = {
        "not-yet-armed", "disarmed", "unloaded-by-others", "check-failed", "watchdog-not-fed", "test-failed",
        "program-replaced",
    }  # fmt: skip
    of_errors = {each.reason for each in _kinds_of_errors(KdumpError)}
    assert set(PROBLEM_CODES) - {code for code, _ in FAULTS} <= elsewhere | of_errors


def _kinds_of_errors(kind: type[KdumpError]) -> Iterator[type[KdumpError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds_of_errors(each)


# What the state says


@pytest.mark.parametrize(
    ("state", "loaded", "reason", "severity"),
    [
        (ArmState.STARTING, False, "", Severity.FATAL),
        (ArmState.ARMING, False, "", Severity.FATAL),
        (ArmState.NOT_ARMED, False, "no-reservation", Severity.FATAL),
        (ArmState.NOT_ARMED, False, "disarmed", Severity.FATAL),
        (ArmState.NOT_ARMED, False, "a-word-of-tomorrow", Severity.FATAL),
        # A newer image was refused, the one before is loaded again.
        (ArmState.ARMED, True, "reservation-too-small", Severity.WARNING),
        (ArmState.ARMED, True, "root-encrypted", Severity.WARNING),
    ],
)
def test_reason_of_the_state_comes_first(
    bench: _Bench, state: ArmState, loaded: bool, reason: str, severity: Severity
) -> None:
    bench.machine.set_sysctl("panic_on_oops", 0)
    problems = bench.problems(state=state, loaded=loaded, reason=reason, explanation="It is so. Do that.")
    assert [problem.code for problem in problems] == [reason or "not-yet-armed", "panic-on-oops-off"]
    assert problems[0].severity is severity
    if reason:
        assert (problems[0].what, problems[0].remedy) == ("It is so.", "Do that.")


def test_what_others_unloaded(bench: _Bench) -> None:
    bench.machine.set_loaded(False)
    [problem] = bench.problems()
    assert (problem.code, problem.severity) == ("unloaded-by-others", Severity.FATAL)


def test_every_failure_to_load_is_a_code(bench: _Bench) -> None:
    for code in (errno.EADDRNOTAVAIL, errno.ENOSYS, errno.EKEYREJECTED, errno.EPERM, errno.ENOEXEC,
    errno.EBUSY, errno.EIO, errno.ENOTBLK):  # fmt: skip
        bench.machine.set_loaded(False)
        bench.kernel.failures = [code]
        with pytest.raises(KdumpError) as caught:
            bench.manager.arm()
        [problem] = bench.problems()
        assert problem.code == caught.value.reason
        assert problem.code in PROBLEM_CODES
        assert problem.severity is Severity.FATAL


def test_said_by_the_state_is_not_said_twice(bench: _Bench) -> None:
    bench.machine.write("sys/dev/block/254:0/dm/uuid", "CRYPT-LUKS2-abc-luks\n")
    bench.manager.arm()
    assert bench.manager.status().reason == "root-encrypted"
    assert bench.codes() == ["root-encrypted"]


def test_worst_come_first(bench: _Bench) -> None:
    bench.machine.set_sysctl("sysrq", 0)
    bench.machine.set_sysctl("soft_watchdog", 0)
    (bench.machine.path / "usr/bin/kdump-service").unlink()
    assert bench.codes() == ["capture-unit-missing", "trigger-without-detector", "sysrq-crash-off"]


def test_what_cannot_be_read_hides_nothing(bench: _Bench) -> None:
    bench.machine.set_sysctl("panic_on_oops", 0)
    path = bench.machine.path / "etc/fstab"
    path.unlink()
    path.mkdir()  # reading it is EISDIR
    problems = bench.problems()
    assert [problem.code for problem in problems] == ["check-failed", "panic-on-oops-off"]
    assert "fstab" in next(problem.what for problem in problems if problem.code == "check-failed")


# What is no problem


@pytest.mark.parametrize(
    "harmless",
    [
        _crashes(3, test=True),
        _write("sys/devices/system/memory/crash_hotplug", "1\n"),
        _command_line("root=/dev/vda crashkernel=1G-4G:192M,4G-:1G"),
        _command_line("root=/dev/vda crashkernel=256M crashkernel=1G,cma"),
        _command_line("root=/dev/vda crashkernel=1G crashkernel=256M"),
        _command_line("root=/dev/vda crashkernel=0x10000000@16M"),
        _sysctl("sysrq", 8),
        _sysctl("hardlockup_panic", 0),
        _both(_sysctl("hung_task_panic", 0), _sysctl("hung_task_timeout_secs", 0)),
        _watchdog(active=False),
        _watchdog(identity="Software Watchdog"),
        _watchdog(timeout_sec=120),
        _both(_watchdog(), _write("etc/systemd/system.conf.d/w.conf", "[Manager]\nRuntimeWatchdogSec=30s\n")),
        _both(
            _write("sys/module/kernel/parameters/crash_kexec_post_notifiers", "Y\n"),
            _write("sys/bus/vmbus/drivers_probe", ""),
        ),
        _both(
            _write("usr/sbin/kdump-config", "#!/bin/sh\n"),
            _write("lib/systemd/system/kdump-tools.service", "[Service]\n"),
            _link("etc/systemd/system/basic.target.wants/kdump-tools.service", "/lib/kdump-tools.service"),
            _write("etc/default/kdump-tools", "USE_KDUMP=0\n"),
        ),
        # Removed, and not purged: a unit is made of the script that stays, by a generator.
        _both(
            _write("etc/rc3.d/S01kdump-tools", ""),
            _write("run/systemd/generator.late/kdump-tools.service", "[Service]\n"),
            _link("etc/systemd/system/basic.target.wants/kdump-tools.service", "/lib/kdump-tools.service"),
        ),
        _both(
            _write("usr/sbin/kdump-config", "#!/bin/sh\n"),
            _write("lib/systemd/system/kdump-tools.service", "[Service]\n"),
            _link("etc/systemd/system/basic.target.wants/kdump-tools.service", "/lib/kdump-tools.service"),
            _link("etc/systemd/system/kdump-tools.service", "/dev/null"),
        ),
        _both(
            _write("lib/udev/rules.d/50-kdump-tools.rules", "x"),
            _link("etc/udev/rules.d/50-kdump-tools.rules", "/dev/null"),
        ),
        _both(_no_journal, _write("etc/systemd/journald.conf", "[Journal]\nStorage=persistent\n")),
        _both(
            _target("/srv/c", "2 1 8:1 / /srv rw - xfs /dev/vdb rw"),
            _write("etc/fstab", "/dev/vdb /srv xfs defaults\n"),
        ),
        _both(
            _target("/srv/c", "2 1 8:1 / /srv rw - xfs /dev/vdb rw"),
            _write("run/systemd/generator.late/srv.mount", "[Mount]\nWhere=/srv\n"),
        ),
        # Fedora: entries name a variable, the menu or its environment has the value.
        _both(
            _remove("boot/grub/grub.cfg"),
            _remove("etc/default/grub"),
            _write("boot/loader/entries/f.conf", "linux /vmlinuz\noptions $kernelopts $tuned_params\n"),
            _write("boot/grub2/grubenv", "# GRUB Env\nkernelopts=root=/dev/vda crashkernel=256M\n"),
        ),
        # Nothing is known of the boot loader.
        _both(_remove("boot/grub/grub.cfg"), _remove("etc/default/grub")),
        _both(_remove("proc/modules"), _no_modules),
        lambda b: b.facts(TargetFacts("/var/crash", 0o40700, os.geteuid(), 1 << 40)),
        _crashes(2),
        _both(_write("etc/kdump-service.conf", "[Dump]\nContents=log\n"), lambda b: b.manager.reload(),
              lambda b: setattr(b, "predicted_bytes", 1 << 60)),
    ],
)  # fmt: skip
def test_what_is_no_problem(bench: _Bench, harmless: Fault) -> None:
    harmless(bench)
    assert bench.problems() == []


def test_kernel_that_follows_hotplug_itself(bench: _Bench) -> None:
    _hardware(memory_blocks=10, present="0-3")(bench)
    bench.machine.write("sys/devices/system/memory/crash_hotplug", "1\n")
    assert bench.codes() == ["processors-changed"]
    bench.machine.write("sys/devices/system/cpu/crash_hotplug", "1\n")
    assert bench.codes() == []


def test_hotplug_is_known_after_a_restart_and_forgotten_with_a_load(bench: _Bench) -> None:
    _hardware(memory_blocks=10)(bench)
    bench.readiness = Readiness(bench.files, loader=bench.loader)
    assert bench.codes() == ["memory-changed"]
    bench.loader.load(bench.loader.loaded_request())  # type: ignore[arg-type]
    assert bench.codes() == []


def test_what_is_plugged_during_the_load_is_noticed(bench: _Bench) -> None:
    """The header that is loaded may have been made before it came."""

    def load(kernel_fd: int, initramfs_fd: int | None, command_line: str) -> None:
        bench.kernel.load(kernel_fd, initramfs_fd, command_line)
        _hardware(memory_blocks=10)(bench)

    request = bench.loader.loaded_request()
    assert request is not None
    bench.loader = Loader(bench.files, load, bench.kernel.unload)
    bench.loader.load(request)
    bench.readiness = Readiness(bench.files, loader=bench.loader)
    assert bench.codes() == ["memory-changed"]


# The target


def test_target_answers(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    assert ask_target(str(folder)).mode is None
    folder.mkdir(mode=0o750)
    link = tmp_path / "link"
    link.symlink_to(folder)
    facts = ask_target(str(link))
    assert (facts.path, facts.mode, facts.owner, facts.trouble) == (str(folder), 0o40750, os.geteuid(), "")
    status = os.statvfs(folder)
    assert facts.free_bytes == pytest.approx(status.f_bavail * status.f_frsize, rel=0.1)
    assert ask_target(str(folder / "not" / "yet")).free_bytes == pytest.approx(facts.free_bytes, rel=0.1)
    assert ask_target("-x").path.endswith("/-x")


def test_target_behind_a_link_is_looked_for_where_it_is(bench: _Bench) -> None:
    _target("/var/dumps")(bench)
    _link("var/dumps", str(bench.machine.path / "srv/dumps"))(bench)
    (bench.machine.path / "srv/dumps").mkdir(parents=True)
    assert bench.codes() == []
    bench.machine.set_mounts(ROOT_MOUNT, "2 1 0:9 / /srv rw - tmpfs tmpfs rw")
    assert bench.codes() == ["target-volatile"]


def test_quick_repeats_what_the_target_answered(bench: _Bench) -> None:
    bench.facts(TargetFacts("/var/crash", free_bytes=128 << 20))
    assert bench.codes() == ["target-full"]
    quick = bench.readiness.quick(bench.manager.config, bench.manager.status())
    assert [problem.code for problem in quick] == ["target-full"]
    assert quick[0].severity is Severity.FATAL
    other = replace(bench.manager.config, target="/srv/elsewhere")
    codes = [problem.code for problem in bench.readiness.quick(other, bench.manager.status())]
    assert codes == ["configuration-not-loaded"]


def test_room_that_goes_is_noticed_without_asking_the_target_again(bench: _Bench) -> None:
    room = 1 << 40
    asked = []

    def ask(path: str) -> TargetFacts:
        asked.append(path)
        return TargetFacts(path, free_bytes=room)

    bench.readiness = Readiness(bench.files, ask, bench.loader, lambda path: room)
    assert bench.codes() == []
    room = 128 << 20
    quick = bench.readiness.quick(bench.manager.config, bench.manager.status())
    assert [(problem.code, problem.severity) for problem in quick] == [("target-full", Severity.FATAL)]
    assert len(asked) == 1


def test_room_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    found = free_bytes_at(str(tmp_path / "not" / "yet"))
    assert found == pytest.approx(status.f_bavail * status.f_frsize, rel=0.1)


def test_failed_test_of_what_is_armed_is_a_problem(bench: _Bench) -> None:
    config, status = bench.manager.config, bench.manager.status()
    failed = Proof(Level.FAILED, "2026-11-23T04:00:00Z")
    [problem] = bench.readiness.quick(config, status, failed)
    assert (problem.code, problem.severity) == ("test-failed", Severity.WARNING)
    assert "2026-11-23T04:00:00Z" in problem.what
    assert bench.readiness.quick(config, status, Proof(Level.TESTED, failed.time)) == []


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount FUSE")
def test_dead_file_system_is_a_problem_not_a_wait(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdump_service.service.checks.target.ANSWER_SEC", 1.0)
    folder = bench.machine.path / "var/crash"
    folder.mkdir(parents=True)
    with HangingMount(folder):
        problems = bench.problems()
        assert [(problem.code, problem.severity) for problem in problems] == [
            ("target-unreachable", Severity.FATAL)
        ]
        # The process that asked sleeps uninterruptibly; another one is not sent after it.
        assert bench.codes() == ["target-unreachable"]
        assert len(process._left_behind) == 1
    # The kernel tells nobody but the parent that the process has gone.
    wait_until(lambda: bench.codes() == [])
    assert process._left_behind == {}


def test_program_that_does_not_answer(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no FUSE can be had: a command that never answers stands for the dead file system."""
    monkeypatch.setattr("kdump_service.service.checks.target.ANSWER_SEC", 0.3)
    monkeypatch.setattr(
        "kdump_service.service.checks.target.run",
        lambda command, *, timeout_sec: process.run(["sleep", "60"], timeout_sec=timeout_sec),
    )
    started = time.monotonic()
    assert bench.codes() == ["target-unreachable"]
    assert time.monotonic() - started < HANG_SEC


@pytest.mark.parametrize(("environment", "command_line", "timeout_sec", "codes"), [
    # The small image was loaded before the watchdog was started.
    ("initramfs", "quiet", 40, ["watchdog-not-fed"]), ("initramfs", "quiet", 10, ["watchdog-not-fed"]),
    ("initramfs", "systemd.watchdog_sec=40", 40, []), ("rootfs", "systemd.watchdog_sec=40", 40, []),
    # Too short for a boot to come to PID 1.
    ("initramfs", "systemd.watchdog_sec=20", 20, ["watchdog-too-short"]),
    ("rootfs", "systemd.watchdog_sec=20", 20, ["watchdog-too-short"]),
    ("initramfs", "quiet", 600, []), ("rootfs", "quiet", 40, ["watchdog-too-short"]),
])  # fmt: skip
def test_watchdogs_that_run(
    tmp_path: Path, environment: str, command_line: str, timeout_sec: int, codes: list[str]
) -> None:
    machine = MachineRoot(tmp_path)
    machine.add_watchdog("watchdog0", identity="i6300ESB timer", timeout_sec=timeout_sec)
    loaded = Status(ArmState.ARMED, loaded=True, environment=environment, command_line=command_line)
    found = watchdog_problems(KernelFiles(tmp_path), loaded, 20.0)
    assert [problem.code for problem in found] == codes


@pytest.mark.parametrize(("state", "loaded", "ready"), [
    (ArmState.ARMED, True, True), (ArmState.ARMING, True, True), (ArmState.ARMING, False, False),
    (ArmState.NOT_ARMED, True, False), (ArmState.STARTING, True, False),
])  # fmt: skip
def test_ready_while_the_next_is_prepared(state: ArmState, loaded: bool, ready: bool) -> None:
    """What was loaded before stays until the kernel takes the next."""
    assert View(Status(state, loaded=loaded)).ready is ready
    fatal = Problem("some-code", Severity.FATAL, "Something.", "Do something.")
    assert not View(Status(state, loaded=loaded), problems=(fatal,)).ready
