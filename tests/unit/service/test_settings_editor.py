# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
from pathlib import Path

import pytest

from kdump_service.arm.loader import Loader
from kdump_service.config import Config
from kdump_service.drop_in import DROP_IN_FILE
from kdump_service.errors import ConfigError, ImageMissing, ReservationTooSmall
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.manager import Manager
from kdump_service.service.settings_editor import SettingsEditor
from kdump_service.service.state import ArmState
from tests.builders.machine_disks import small_image_machine
from tests.builders.machine_root import FakeKernel, MachineRoot


class _Bench:
    def __init__(self, path: Path) -> None:
        self.machine = MachineRoot(path)
        self.kernel = FakeKernel(self.machine)
        files = KernelFiles(path)
        self.manager = Manager(files, Loader(files, self.kernel.load, self.kernel.unload))
        self.editor = SettingsEditor(path, self.manager)

    @property
    def file(self) -> str:
        path = self.machine.path / DROP_IN_FILE
        return path.read_text() if path.exists() else ""


@pytest.fixture
def bench(tmp_path: Path) -> _Bench:
    made = _Bench(tmp_path)
    made.manager.start()
    return made


def test_what_the_capture_boot_reads_loads_nothing(bench: _Bench) -> None:
    bench.editor.set_value("Contents", "user")
    assert bench.manager.config.contents == "user"
    assert len(bench.kernel.loads) == 1
    assert '"contents": "user"' in (bench.machine.path / "var/lib/kdump-service/capture.json").read_text()


def test_what_is_loaded_is_loaded_anew(bench: _Bench) -> None:
    bench.editor.set_value("CommandLineAppend", "word")
    assert bench.kernel.loads[-1][1].endswith(" word")
    bench.editor.reset_value("CommandLineAppend")
    assert not bench.kernel.loads[-1][1].endswith(" word")


def test_refused_by_the_kernel_and_undone(bench: _Bench) -> None:
    before = bench.manager.status()
    bench.kernel.failures = [errno.EADDRNOTAVAIL]
    with pytest.raises(ReservationTooSmall):
        bench.editor.set_value("CommandLineAppend", "word")
    config = Config(environment="rootfs")  # as the machine is made
    assert (bench.file, bench.manager.status(), bench.manager.config) == ("", before, config)
    assert bench.machine.path.joinpath("sys/kernel/kexec_crash_loaded").read_text() == "1\n"


def test_images_that_are_not_there_are_undone(bench: _Bench) -> None:
    with pytest.raises(ImageMissing, match="/boot/none does not exist"):
        bench.editor.set_value("Image", "/boot/none")
    assert (bench.file, bench.manager.status().reason) == ("", "")
    assert len(bench.kernel.loads) == 1


def test_not_armed_before_and_not_after(bench: _Bench) -> None:
    bench.machine.write("sys/kernel/kexec_crash_size", "0\n")
    bench.machine.set_loaded(False)
    bench.manager.status()
    bench.editor.set_value("CommandLineAppend", "word")
    assert "CommandLineAppend=word" in bench.file
    assert bench.manager.status().state is ArmState.NOT_ARMED


def test_disarmed_on_request_stays_so(bench: _Bench) -> None:
    bench.manager.disarm()
    bench.editor.set_value("CommandLineAppend", "word")
    assert bench.manager.status().reason == "disarmed"
    waits = {state.setting.key: state.waits for state in bench.editor.states()}
    assert waits["CommandLineAppend"].startswith("The crash kernel is not loaded: Disarmed on request")
    assert waits["Contents"] == ""
    bench.manager.arm()
    assert bench.kernel.loads[-1][1].endswith(" word")


def test_a_setting_that_heals_the_configuration(bench: _Bench) -> None:
    bench.machine.write("etc/kdump-service.conf", "[Dump]\nFormat=elf\nCompression=zlib\n")
    with pytest.raises(ConfigError):
        bench.manager.reload()
    bench.editor.set_value("Compression", "lz4")
    assert (bench.manager.config.format, bench.manager.config.compression) == ("elf", "lz4")
    assert bench.manager.status().reason == ""


def test_another_file_that_is_broken_is_named(bench: _Bench) -> None:
    bench.machine.write("etc/kdump-service.conf", "[Dump]\nThreads=many\n")
    with pytest.raises(
        ConfigError, match=r"^/etc/kdump-service\.conf:2: Threads=: 'many' is not a whole number"
    ):
        bench.editor.set_value("Contents", "user")
    assert bench.file == ""


def test_a_file_that_counts_more_is_named(bench: _Bench) -> None:
    bench.machine.write("run/kdump-service.conf.d/99.conf", "[Kernel]\nCommandLineAppend=more\n")
    with pytest.raises(
        ConfigError, match=r"^/run/kdump-service\.conf\.d/99\.conf:2: CommandLineAppend= is set"
    ):
        bench.editor.set_value("CommandLineAppend", "ours")
    assert (bench.file, len(bench.kernel.loads)) == ("", 1)


def test_where_the_capture_boot_cannot_be_told_it_is_undone(bench: _Bench) -> None:
    capture = bench.machine.path / "var/lib/kdump-service/capture.json"
    capture.unlink()
    capture.mkdir()
    with pytest.raises(ConfigError, match="the capture boot cannot be told of it: "):
        bench.editor.set_value("Contents", "user")
    assert (bench.file, bench.manager.config.contents) == ("", "kernel")
    waits = {state.setting.key: state.waits for state in bench.editor.states()}
    assert waits["Contents"].startswith("The capture boot cannot be told: ")
    capture.rmdir()
    bench.editor.set_value("Contents", "user")
    assert {state.waits for state in bench.editor.states()} == {""}


@pytest.mark.parametrize(
    ("key", "value"), [("Nonsense", "x"), ("Threads", "2"), ("Contents", 1), ("DumpLevel", True)]
)
def test_what_is_no_setting_or_no_value(bench: _Bench, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key):
        bench.editor.set_value(key, value)
    assert bench.file == ""


def test_what_could_not_be_loaded_is_not_in_use_yet(bench: _Bench) -> None:
    """A file asks for a kernel that is not there; what was loaded before is kept."""
    bench.machine.write("etc/kdump-service.conf", "[Kernel]\nKernel=/nonexistent\n")
    with pytest.raises(ImageMissing):
        bench.manager.reload()
    waits = {state.setting.key: state.waits for state in bench.editor.states()}
    assert waits["Kernel"].startswith("What was loaded before is still in use: ")
    assert "/nonexistent" in waits["Kernel"]
    assert waits["Contents"] == ""


def test_what_is_not_in_the_image_yet_waits_for_the_build(tmp_path: Path) -> None:
    machine = small_image_machine(tmp_path, built=True)
    kernel, files = FakeKernel(machine), KernelFiles(tmp_path)
    manager = Manager(files, Loader(files, kernel.load, kernel.unload))
    editor = SettingsEditor(tmp_path, manager)
    manager.start()
    assert {state.waits for state in editor.states()} == {""}
    editor.set_value("ExtraDrivers", "xfs")
    waits = {state.setting.key: state.waits for state in editor.states()}
    assert "built" in waits["ExtraDrivers"]
    assert waits["Kernel"] == ""
