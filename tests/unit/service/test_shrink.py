# SPDX-License-Identifier: LGPL-2.1-or-later
"""Shrink=: how much is given back, and that the machine is armed afterwards, whatever goes wrong."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.config import Config
from kdump_service.errors import InvalidArgument, KdumpError, NotReady, ProgramFailed, ReservationTooSmall
from kdump_service.kernel.files import KernelFiles
from kdump_service.log import MessageId
from kdump_service.record import DumpRecord, DumpState
from kdump_service.service import shrink, shrink_unit
from kdump_service.service.estimate import estimate
from kdump_service.service.manager import Manager
from kdump_service.service.readiness import Readiness
from kdump_service.service.rehearsal import REHEARSALS_FILE
from kdump_service.service.shrink import shrink_by_unit, sufficient_bytes, tell_shrink
from kdump_service.service.shrink_unit import REQUEST_FILE, RESULT_FILE, Request, answer_request
from kdump_service.service.shrunk import SHRUNK_FILE
from kdump_service.service.state import ArmState
from tests.builders.machine_disks import small_image_machine
from tests.builders.machine_root import RELEASE, FakeCrashSize, FakeKernel, MachineRoot

MIB = 1 << 20
REPOSITORY = Path(__file__).parents[3]
SIZE = "sys/kernel/kexec_crash_size"
# 97.7 MiB used, 40.5 uncounted, a quarter more, rounded up: 176 MiB.
MEASURED = 176 * MIB


def _record(**values: object) -> DumpRecord:
    described: dict[str, object] = {
        "state": DumpState.COMPLETE,
        "kernel_release": RELEASE,
        "memory_total_kib": 220680,
        "memory_available_low_water_kib": 120680,
        "pages": 1000,
        **values,
    }
    return DumpRecord("crash", **described)  # type: ignore[arg-type]


class _Bench:
    """An armed machine, on which systemd runs the unit's own code, and the kernel's file is at its edge."""

    def __init__(self, machine: MachineRoot, monkeypatch: pytest.MonkeyPatch) -> None:
        path = machine.path
        self.machine = machine
        self.files = KernelFiles(path)
        self.kernel = FakeKernel(self.machine)
        self.size = FakeCrashSize(self.machine)
        self.loader = Loader(self.files, self.kernel.load, self.kernel.unload)
        self.manager = Manager(self.files, self.loader)
        self.manager.start()
        self.unit_fails = False
        edge = SimpleNamespace(open=os.open, close=os.close, O_WRONLY=os.O_WRONLY, write=self.size.write)
        monkeypatch.setattr(shrink_unit, "os", edge)
        monkeypatch.setattr(shrink, "run", self._run)

    def _run(self, command: list[str], *, timeout_sec: float) -> str:
        assert command == ["systemctl", "start", "kdump-shrink.service"]
        if self.unit_fails or not answer_request(self.machine.path):
            raise ProgramFailed("systemctl start kdump-shrink.service: exit status 1")
        return ""

    @property
    def reserved(self) -> int:
        return int((self.machine.path / SIZE).read_text())

    def wanted(self, *records: DumpRecord, config: Config | None = None) -> int:
        loaded = self.manager.loaded_request()
        assert loaded is not None
        return sufficient_bytes(self.files, config or Config(), records, loaded, self.reserved)

    def shrink(self, size: int = MEASURED) -> None:
        before = self.reserved
        self.manager.while_unloaded(
            lambda: tell_shrink(before, shrink_by_unit(self.files, size, before), size)
        )

    def problems(self, *records: DumpRecord) -> dict[str, str]:
        readiness = Readiness(self.files, loader=self.loader)
        readiness.learn(records)
        found = readiness.quick(self.manager.config, self.manager.status())
        return {problem.code: f"{problem.severity}: {problem.what} {problem.remedy}" for problem in found}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    return _Bench(MachineRoot(tmp_path / "machine"), monkeypatch)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    """With the small image."""
    return _Bench(small_image_machine(tmp_path / "machine"), monkeypatch)


# How far


def test_to_what_was_measured(bench: _Bench) -> None:
    assert bench.wanted(_record()) == MEASURED
    # The most of all captures, and those that were cut off count, too.
    incomplete = _record(state=DumpState.INCOMPLETE, memory_available_low_water_kib=100680)
    assert bench.wanted(_record(), incomplete) == 208 * MIB


@pytest.mark.parametrize(
    "records",
    [
        [],
        [_record(kernel_release="6.2.0-other")],
        [_record(memory_available_low_water_kib=0)],
        [_record(memory_total_kib=0)],
        [_record(state=DumpState.INCOMPLETE)],
        [_record(state=DumpState.FAILED)],
        # The log alone took less than the image will.
        [_record(pages=0)],
        # More than is reserved; all of it; all but crumbs.
        [_record(memory_available_low_water_kib=1)],
        [_record(memory_available_low_water_kib=60680)],
        [_record(memory_available_low_water_kib=70680)],
    ],
    ids=["none", "other-kernel", "no-mark", "no-total", "cut", "failed", "log", "more", "all", "crumbs"],
)
def test_nothing_is_given_back(bench: _Bench, records: list[DumpRecord]) -> None:
    assert bench.wanted(*records) == 0


def test_captures_in_another_environment_tell_nothing(bench: _Bench) -> None:
    small = _record(environment="initramfs")
    assert bench.wanted(small) == 0
    rootfs = _record(environment="rootfs")
    assert bench.wanted(rootfs) == MEASURED
    assert (
        bench.wanted(rootfs, _record(environment="initramfs", memory_available_low_water_kib=1)) == MEASURED
    )


def test_a_capture_of_the_log_tells_what_one_of_the_log_needs(bench: _Bench) -> None:
    assert bench.wanted(_record(pages=0), config=Config(contents="log")) == MEASURED


def _rehearse(bench: _Bench, low_water_kib: int, passed: bool | None = True) -> None:
    measure = {
        "time": "", "release": RELEASE, "memory_total_kib": 220680, "memory_low_water_kib": low_water_kib,
    }  # fmt: skip
    told = measure if passed is None else {**measure, "passed": passed}
    bench.machine.write(REHEARSALS_FILE, json.dumps([told]))


@pytest.mark.parametrize("passed", [True, False, None])
def test_a_rehearsal_can_only_raise_the_need(small: _Bench, passed: bool | None) -> None:
    """QEMU has none of this machine's devices, whose drivers take memory."""
    _rehearse(small, 180680, passed)
    assert small.wanted() == 0
    # Nor does it measure what the capture of a crash left out.
    assert small.wanted(_record(memory_available_low_water_kib=0)) == 0
    assert small.wanted(_record(state=DumpState.INCOMPLETE)) == 0
    assert small.wanted(_record()) == MEASURED
    _rehearse(small, 100680, passed)
    assert small.wanted(_record()) == 208 * MIB


def test_a_test_crash_counts(bench: _Bench) -> None:
    assert bench.wanted(_record(test=True)) == MEASURED


def test_never_below_what_unpacking_the_image_takes(bench: _Bench) -> None:
    record = _record(memory_available_low_water_kib=200680)
    assert bench.wanted(record) == 176 * MIB  # 65 and 96, where 80 were measured
    with open(bench.machine.path / f"boot/initrd.img-{RELEASE}", "r+b") as file:
        file.truncate(30 * MIB)
    bench.manager.rebuild()
    assert bench.wanted(record) == 208 * MIB  # 65 and 30 * 4.5


def test_never_below_what_the_kernel_itself_takes(bench: _Bench) -> None:
    """Into less than that, it would not be loaded again."""
    head = bytearray(0x264)
    head[0x202:0x208] = b"HdrS\x0f\x02"
    head[0x260:0x264] = (176 * MIB).to_bytes(4, "little")  # init_size
    bench.machine.write(f"boot/vmlinuz-{RELEASE}", bytes(head))
    bench.manager.rebuild()
    assert bench.wanted(_record()) == 208 * MIB  # 176, 16, and the initramfs


def test_machine_without_reservation(bench: _Bench) -> None:
    bench.machine.write(SIZE, "0\n")
    assert bench.wanted(_record()) == 0


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("kexec_load_disabled", 1, 0),
        ("kexec_load_limit_panic", 2, 0),
        ("kexec_load_limit_panic", 3, MEASURED),
        ("kexec_load_limit_panic", -1, MEASURED),
    ],
)
def test_not_where_it_could_not_be_loaded_again(bench: _Bench, name: str, value: int, wanted: int) -> None:
    bench.machine.set_sysctl(name, value)
    assert bench.wanted(_record()) == wanted


@pytest.mark.parametrize(
    ("words", "areas", "wanted"),
    [
        ("crashkernel=1G,high crashkernel=128M,low", 2, 304 * MIB),
        ("crashkernel=1G,high crashkernel=0,low", 1, MEASURED),
        ("crashkernel=1G,high", 2, 0),
        ("crashkernel=1G", 2, 0),  # nothing of that size was free below 4 GiB
        ("crashkernel=1G", 0, 0),  # the kernel does not tell
        ("crashkernel=512M,cma crashkernel=1G", 1, MEASURED),
    ],
)
def test_two_areas(bench: _Bench, words: str, areas: int, wanted: int) -> None:
    bench.machine.write("proc/cmdline", f"root=/dev/vda {words}\n")
    bench.machine.write("proc/iomem", "00-00 : System RAM\n" + "  00-00 : Crash kernel\n" * areas)
    bench.machine.write(SIZE, f"{1024 * MIB}\n")
    assert bench.wanted(_record()) == wanted
    if areas == 2 and wanted:
        bench.size.low_bytes = 128 * MIB
        bench.shrink(wanted)
        assert bench.reserved == wanted


# Doing it


def test_given_back_and_loaded_again(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    before = bench.manager.status()
    with caplog.at_level(logging.INFO):
        bench.shrink()
    assert bench.size.written == [MEASURED]
    assert bench.reserved == MEASURED
    after = bench.manager.status()
    assert (after.state, after.loaded, after.reserved_bytes) == (ArmState.ARMED, True, MEASURED)
    assert (after.command_line, after.image) == (before.command_line, before.image)
    assert bench.kernel.loads[0] == bench.kernel.loads[1]
    [entry] = [each for each in caplog.records if "given back" in each.getMessage()]
    assert entry.getMessage().startswith("80.0 MiB of memory given back to production until the next")
    fields = entry.journal_fields  # type: ignore[attr-defined]
    assert fields["MESSAGE_ID"] == MessageId.RESERVATION_SHRUNK
    assert fields["KDUMP_GIVEN_BACK_BYTES"] == 80 * MIB
    for left in (REQUEST_FILE, ".shrink-request.json.new"):
        assert not (bench.machine.path / left).exists()
    # Nobody takes it for the kernel's doing, and nothing more is given back.
    assert bench.problems(_record()) == {}
    assert bench.wanted(_record()) == 0
    figures = estimate(bench.files, Config(), [_record()], None, MEASURED)
    assert (figures["ReservedBytes"], figures["RecommendedBytes"]) == (MEASURED, MEASURED)


def _refused(code: int) -> Callable[[_Bench], None]:
    def prepare(bench: _Bench) -> None:
        bench.size.failure = code

    return prepare


def _no_unit(bench: _Bench) -> None:
    bench.unit_fails = True


def _no_room(bench: _Bench) -> None:
    (bench.machine.path / f"{RESULT_FILE}/in-the-way").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (_refused(errno.EBUSY), "another program is loading a kernel now"),
        (_refused(errno.EINVAL), r"kexec_crash_size: made to fail"),
        (_refused(errno.ENOMEM), r"kexec_crash_size: made to fail"),
        (_no_unit, r"systemctl start kdump-shrink\.service: exit status 1"),
        (_no_room, r"kdump-shrink\.service cannot be asked: .*Is a directory"),
    ],
    ids=["busy", "larger", "memory", "unit", "room"],
)
def test_refused_and_armed_as_before(bench: _Bench, prepare: Callable[[_Bench], None], said: str) -> None:
    prepare(bench)
    before = bench.manager.status()
    with pytest.raises(KdumpError, match=said):
        bench.shrink()
    assert bench.reserved == 256 * MIB
    assert bench.manager.status() == before
    assert len(bench.kernel.loads) == 2
    assert bench.problems(_record()) == {}


def test_what_cannot_be_unloaded_stays_loaded(bench: _Bench) -> None:
    def refuse() -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    manager = Manager(bench.files, Loader(bench.files, bench.kernel.load, refuse))
    manager.start()
    before = manager.status()
    asked: list[None] = []
    with pytest.raises(KdumpError, match="refuses to unload"):
        manager.while_unloaded(lambda: asked.append(None))
    assert (manager.status(), asked, len(bench.kernel.loads)) == (before, [], 1)


def test_nothing_is_done_where_nothing_is_armed(bench: _Bench) -> None:
    bench.manager.disarm()
    with pytest.raises(NotReady):
        bench.shrink()
    assert bench.manager.status().reason == "disarmed"


def test_while_it_lasts_the_state_is_true(bench: _Bench) -> None:
    seen = []
    bench.manager.while_unloaded(lambda: seen.append(bench.manager.status()))
    assert [(status.state, status.reason, status.loaded) for status in seen] == [(ArmState.ARMING, "", False)]


# Too far


def test_what_does_not_fit_any_more_is_told_loudly(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.kernel.failures = [errno.EADDRNOTAVAIL, errno.EADDRNOTAVAIL]
    with pytest.raises(ReservationTooSmall):
        bench.shrink()
    assert bench.manager.status().state is ArmState.NOT_ARMED
    problems = bench.problems(_record())
    assert problems["reservation-too-small"].startswith("fatal")
    assert problems["reservation-shrunk"].startswith("warning: 176 MiB of 256 MiB are left reserved")
    assert "Reboot" in problems["reservation-shrunk"]
    assert "Not armed" in caplog.text


def test_refused_once_is_tried_again(bench: _Bench) -> None:
    bench.kernel.failures = [errno.EBUSY]
    bench.shrink()
    status = bench.manager.status()
    assert (status.state, status.reserved_bytes) == (ArmState.ARMED, MEASURED)


def test_less_than_was_to_be_left(bench: _Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.size.takes_more = 16 * MIB
    bench.shrink()
    assert bench.manager.status().reserved_bytes == 160 * MIB
    [entry] = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert entry.getMessage().startswith("160 MiB are left reserved, where 176 MiB were to be left: a reboot")
    assert list(bench.problems(_record())) == ["reservation-shrunk"]


def test_a_greater_need_later(bench: _Bench) -> None:
    bench.shrink()
    assert bench.problems(_record()) == {}
    assert list(bench.problems(_record(memory_available_low_water_kib=80680))) == ["reservation-shrunk"]
    # More than the next boot will bring, too.
    problems = bench.problems(_record(memory_available_low_water_kib=1))
    assert sorted(problems) == ["reservation-low", "reservation-shrunk"]
    assert problems["reservation-low"].startswith("warning: 256 MiB are reserved")


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"boot_id": "another", "from_bytes": 268435456, "to_bytes": 1}', '{"from_bytes": "x"}'],
)
def test_a_note_of_another_boot_or_none(bench: _Bench, text: str) -> None:
    """So it is somebody else who shrank it."""
    bench.machine.write(SIZE, f"{MEASURED}\n")
    bench.machine.write(SHRUNK_FILE, text)
    bench.manager.rebuild()
    assert list(bench.problems(_record())) == ["reservation-reduced"]


def test_twice_in_a_boot(bench: _Bench) -> None:
    bench.shrink(220 * MIB)
    bench.shrink()
    assert json.loads((bench.machine.path / SHRUNK_FILE).read_text())["from_bytes"] == 256 * MIB
    assert bench.problems(_record()) == {}


# The unit


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"id": "a"}', '{"id": 1, "size_bytes": 184549376}',
        '{"id": "a", "size_bytes": true}', '{"id": "a", "size_bytes": "184549376"}',
        '{"id": "a", "size_bytes": 184549376.0}',
    ],
)  # fmt: skip
def test_no_request(bench: _Bench, text: str) -> None:
    bench.machine.set_loaded(False)
    bench.machine.write(REQUEST_FILE, text)
    with pytest.raises(InvalidArgument):
        answer_request(bench.machine.path)
    assert bench.size.written == []


@pytest.mark.parametrize("size", [-1, 0, 1, 64 * MIB - 1, 225 * MIB, 256 * MIB, 1 << 70])
def test_sizes_that_the_unit_does_not_write(bench: _Bench, size: int) -> None:
    bench.machine.set_loaded(False)
    bench.machine.write(REQUEST_FILE, Request("a", size).to_json())
    assert not answer_request(bench.machine.path)
    assert bench.size.written == []
    error = json.loads((bench.machine.path / RESULT_FILE).read_text())["error"]
    assert error["text"].startswith("256 MiB are reserved, which are not shrunk to")


def test_unit_looks_again(bench: _Bench) -> None:
    bench.machine.write(REQUEST_FILE, Request("a", MEASURED).to_json())
    assert not answer_request(bench.machine.path)  # loaded
    bench.machine.set_loaded(False)
    with pytest.raises(InvalidArgument, match="nothing was asked for"):
        answer_request(bench.machine.path)  # a request is for one time
    bench.machine.write(REQUEST_FILE, Request("a", MEASURED).to_json())
    (bench.machine.path / SIZE).unlink()
    assert not answer_request(bench.machine.path)
    answer = json.loads((bench.machine.path / RESULT_FILE).read_text())
    assert answer["error"]["text"] == "no memory is reserved for a crash kernel"
    assert bench.size.written == []


def test_the_file_may_have_moved(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 7.0: /sys/kernel/kexec/crash_size, with a link at the old place at best."""
    bench.machine.set_loaded(False)
    folder = bench.machine.path / "sys/kernel/kexec"
    folder.mkdir()
    shutil.move(bench.machine.path / SIZE, folder / "crash_size")
    monkeypatch.setattr(bench.size, "_path", folder / "crash_size")
    bench.machine.write(REQUEST_FILE, Request("a", MEASURED).to_json())
    assert answer_request(bench.machine.path)
    assert int((folder / "crash_size").read_text()) == MEASURED


def test_another_answer_is_not_ours(bench: _Bench) -> None:
    bench.machine.write(RESULT_FILE, '{"id": "a", "result": {"after_bytes": 1}}')
    bench.unit_fails = True
    with pytest.raises(ProgramFailed):
        bench.shrink()


def test_the_unit_may_write_where_it_has_to_and_waits_for_nothing() -> None:
    unit = (REPOSITORY / "units/kdump-shrink.service").read_text()
    [paths] = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert {path.lstrip("-") for path in paths.split()} == {
        f"/{Path(REQUEST_FILE).parent}", f"/{SIZE}", "/sys/kernel/kexec/crash_size",
    }  # fmt: skip
    assert f"ConditionPathExists=/{REQUEST_FILE}" in unit
    assert "DefaultDependencies=no" in unit
    assert "CapabilityBoundingSet=\n" in unit
    assert not re.search(r"^(After|Requires|Wants|PrivateTmp)=", unit, re.MULTILINE)
