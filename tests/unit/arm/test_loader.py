# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from kdump_service import errors
from kdump_service.arm.loader import FileIdentity, Loader, LoadRequest
from kdump_service.arm.plan import mount_point_of, plan_load, write_capture_settings
from kdump_service.config import Config
from kdump_service.kernel import syscall
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.syscall import KEXEC_FILE_LOAD_NUMBERS
from tests.builders.machine_root import BOOT_ID, RELEASE, FakeKernel, MachineRoot


@pytest.fixture
def machine(tmp_path: Path) -> MachineRoot:
    return MachineRoot(tmp_path)


@pytest.fixture
def kernel(machine: MachineRoot) -> FakeKernel:
    return FakeKernel(machine)


def _loader(machine: MachineRoot, kernel: FakeKernel) -> Loader:
    return Loader(KernelFiles(machine.path), kernel.load, kernel.unload)


def _request(machine: MachineRoot) -> LoadRequest:
    return plan_load(KernelFiles(machine.path), Config(environment="rootfs")).request


def test_what_was_loaded_is_known_to_the_next_daemon(machine: MachineRoot, kernel: FakeKernel) -> None:
    request = _request(machine)
    assert _loader(machine, kernel).loaded_request() is None
    _loader(machine, kernel).load(request)
    assert _loader(machine, kernel).loaded_request() == request
    _loader(machine, kernel).unload()
    assert _loader(machine, kernel).loaded_request() is None


def test_a_changed_file_is_another_request(machine: MachineRoot, kernel: FakeKernel) -> None:
    before = _request(machine)
    machine.write(f"boot/initrd.img-{RELEASE}", "rebuilt initramfs")
    assert _request(machine) != before


def test_memory_of_an_earlier_boot_is_not_believed(machine: MachineRoot, kernel: FakeKernel) -> None:
    _loader(machine, kernel).load(_request(machine))
    machine.write("proc/sys/kernel/random/boot_id", "ffffffff-ffff-ffff-ffff-ffffffffffff\n")
    assert _loader(machine, kernel).loaded_request() is None


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", json.dumps({"boot_id": BOOT_ID, "kernel": 3})])
def test_damaged_memory_means_load_anew(machine: MachineRoot, kernel: FakeKernel, text: str) -> None:
    machine.set_loaded(True)
    machine.write("run/kdump-service/armed.json", text)
    assert _loader(machine, kernel).loaded_request() is None


@pytest.mark.parametrize(
    ("code", "kind", "word"),
    [
        (errno.EADDRNOTAVAIL, errors.ReservationTooSmall, "256 MiB reserved"),
        (errno.ENOMEM, errors.ReservationTooSmall, "crashkernel=256M"),
        (errno.ENOSYS, errors.NotSupported, "CONFIG_KEXEC_FILE"),
        (errno.EKEYREJECTED, errors.SignatureRefused, "signature"),
        (errno.ENOKEY, errors.SignatureRefused, "mokutil"),
        (errno.ENODATA, errors.SignatureRefused, "signature"),
        (errno.EPERM, errors.NotPrivileged, "CAP_SYS_BOOT"),
        (errno.EACCES, errors.NotPrivileged, "security module"),
        (errno.EBUSY, errors.KernelBusy, "kdumpctl arm"),
        (errno.ENOEXEC, errors.ImageRefused, "no kernel image"),
        (errno.EINVAL, errors.ImageRefused, "no kernel image"),
        (errno.EIO, errors.ImageUnreadable, "cannot be read"),
        (errno.ETXTBSY, errors.ImageUnreadable, "cannot be read"),
        (errno.ENOTBLK, errors.CannotArm, "journalctl -k"),
    ],
)
@pytest.mark.promise("kernel-refuses")
def test_each_errno_says_what_to_do(
    machine: MachineRoot, kernel: FakeKernel, code: int, kind: type[errors.CannotArm], word: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: 0)
    kernel.failures = [code]
    with pytest.raises(errors.CannotArm) as caught:
        _loader(machine, kernel).load(_request(machine))
    assert type(caught.value) is kind
    assert word in caught.value.explanation()
    assert _loader(machine, kernel).loaded_request() is None


def _x86_image(init_size_mib: int) -> bytes:
    """The head of a bzImage (Documentation/arch/x86/boot.rst)."""
    head = bytearray(0x1000)
    head[0x202:0x208] = b"HdrS" + (0x20F).to_bytes(2, "little")
    head[0x260:0x264] = (init_size_mib << 20).to_bytes(4, "little")
    return bytes(head)


def _arm64_image(image_size_mib: int) -> bytes:
    """The head of an Image (Documentation/arch/arm64/booting.rst)."""
    head = bytearray(64)
    head[0x10:0x18] = (image_size_mib << 20).to_bytes(8, "little")
    head[0x38:0x3C] = b"ARM\x64"
    return bytes(head)


@pytest.mark.parametrize("image", [_x86_image, _arm64_image])
@pytest.mark.promise("reservation-too-small")
def test_what_just_fits_is_not_loaded(
    machine: MachineRoot, kernel: FakeKernel, image: Callable[[int], bytes]
) -> None:
    """The kernel would take it, and the capture kernel would hang. What is loaded already stays."""
    _loader(machine, kernel).load(_request(machine))
    loads = len(kernel.loads)
    machine.write(f"boot/vmlinuz-{RELEASE}", image(52))
    with open(machine.path / f"boot/initrd.img-{RELEASE}", "wb") as initramfs:
        initramfs.truncate(20 << 20)
    for reserved_mib, armed in ((72, False), (87, False), (88, True), (256, True)):
        machine.write("sys/kernel/kexec_crash_size", f"{reserved_mib << 20}\n")
        if armed:
            _loader(machine, kernel).load(_request(machine))
            continue
        with pytest.raises(
            errors.ReservationTooSmall, match=f"hang in the {reserved_mib}.*need 96"
        ) as caught:
            _loader(machine, kernel).load(_request(machine))
        assert caught.value.hint == "Reserve more: kdumpctl reserve auto"
        assert len(kernel.loads) == loads
        assert (machine.path / "sys/kernel/kexec_crash_loaded").read_text() == "1\n"
    assert len(kernel.loads) == loads + 2


@pytest.mark.parametrize("missing", ["kernel", "initramfs", "initramfs with settings", "memory"])
def test_what_is_loaded_is_known_after_a_refusal_before_the_kernel_was_asked(
    machine: MachineRoot, kernel: FakeKernel, missing: str
) -> None:
    before = _request(machine)
    _loader(machine, kernel).load(before)
    wanted = replace(before, command_line="other")
    nowhere = FileIdentity(str(machine.path / "nowhere"), 1, 1, 1)
    if missing == "kernel":
        wanted = replace(wanted, kernel=nowhere)
    elif missing == "initramfs":
        wanted = replace(wanted, initramfs=nowhere)
    elif missing == "initramfs with settings":
        wanted = replace(wanted, initramfs=nowhere, added_files=(("a", "b"),))
    else:
        machine.write("sys/kernel/kexec_crash_size", f"{72 << 20}\n")
        wanted = replace(wanted, kernel=FileIdentity.of(machine.write("large", _x86_image(60))))
    with pytest.raises(errors.CannotArm):
        _loader(machine, kernel).load(wanted)
    assert len(kernel.loads) == 1
    assert _loader(machine, kernel).loaded_request() == before


def test_what_was_loaded_is_forgotten_before_the_kernel_drops_it(
    machine: MachineRoot, kernel: FakeKernel
) -> None:
    """Who is killed amid the system call must not be told of it as loaded."""
    memory = machine.path / "run/kdump-service/armed.json"
    seen: list[bool] = []

    def load(kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
        seen.append(memory.exists())
        kernel.load(kernel_fd, initrd_fd, command_line)

    loader = Loader(KernelFiles(machine.path), load, kernel.unload)
    loader.load(_request(machine))
    loader.load(_request(machine))
    assert seen == [False, False]
    assert memory.exists()


@pytest.mark.promise("kernel-refuses")
def test_eperm_under_lockdown_is_a_matter_of_signatures(machine: MachineRoot, kernel: FakeKernel) -> None:
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    kernel.failures = [errno.EPERM]
    with pytest.raises(errors.SignatureRefused, match="lockdown=integrity"):
        _loader(machine, kernel).load(_request(machine))


@pytest.mark.parametrize(("name", "value"), [("kexec_load_disabled", "1"), ("kexec_load_limit_panic", "0")])
def test_eperm_with_loading_switched_off(
    machine: MachineRoot, kernel: FakeKernel, name: str, value: str
) -> None:
    machine.write("sys/kernel/security/lockdown", "none [integrity] confidentiality\n")
    machine.write(f"proc/sys/kernel/{name}", value + "\n")
    kernel.failures = [errno.EPERM]
    with pytest.raises(errors.NotPrivileged) as caught:
        _loader(machine, kernel).load(_request(machine))
    assert f"kernel.{name} is {value}" in caught.value.hint


def test_no_reservation_says_what_to_add(tmp_path: Path) -> None:
    machine = MachineRoot(tmp_path, crash_size=0)
    request = _request(machine)
    with pytest.raises(errors.NoReservation) as caught:
        _loader(machine, FakeKernel(machine)).load(request)
    assert "was asked for crashkernel=256M but has reserved nothing" in str(caught.value)
    machine.write("proc/cmdline", "root=/dev/vda\n")
    with pytest.raises(errors.NoReservation) as caught:
        _loader(machine, FakeKernel(machine)).load(request)
    assert "kdumpctl reserve" in caught.value.hint


def test_kernel_without_crash_dump(tmp_path: Path) -> None:
    machine = MachineRoot(tmp_path, crash_size=None)
    with pytest.raises(errors.NotSupported, match="cannot hold a crash kernel"):
        _loader(machine, FakeKernel(machine)).load(_request(machine))


def test_new_place_of_the_attributes_wins(machine: MachineRoot) -> None:
    machine.write("sys/kernel/kexec/crash_size", "1048576\n")
    machine.write("sys/kernel/kexec/crash_loaded", "1\n")
    files = KernelFiles(machine.path)
    assert (files.crash_size_bytes, files.crash_loaded) == (1 << 20, True)


def test_images_of_other_distributions(machine: MachineRoot) -> None:
    (machine.path / f"boot/vmlinuz-{RELEASE}").unlink()
    (machine.path / f"boot/initrd.img-{RELEASE}").unlink()
    machine.write(f"usr/lib/modules/{RELEASE}/vmlinuz", "kernel")
    machine.write(f"boot/initramfs-{RELEASE}.img", "initramfs")
    request = _request(machine)
    assert request.kernel.path.endswith(f"usr/lib/modules/{RELEASE}/vmlinuz")
    assert request.initramfs.path.endswith(f"boot/initramfs-{RELEASE}.img")


def test_missing_images_name_every_place_that_was_tried(machine: MachineRoot) -> None:
    (machine.path / f"boot/vmlinuz-{RELEASE}").unlink()
    with pytest.raises(errors.ImageMissing, match=f"/boot/vmlinuz-{RELEASE}, /usr/lib/modules") as caught:
        _request(machine)
    assert "Kernel=" in caught.value.hint
    with pytest.raises(errors.ImageMissing, match="kernel image /elsewhere does not exist"):
        plan_load(KernelFiles(machine.path), Config(kernel="/elsewhere"))


def test_capture_settings_name_the_machine(machine: MachineRoot) -> None:
    write_capture_settings(KernelFiles(machine.path), Config(target="/t"))
    path = machine.path / "var/lib/kdump-service/capture.json"
    document = json.loads(path.read_text())
    assert (document["boot_id"], document["host"], document["config"]["target"]) == (
        BOOT_ID,
        "testhost",
        "/t",
    )
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_mtime_ns
    write_capture_settings(KernelFiles(machine.path), Config(target="/t"))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("path", "mount_point"),
    [
        ("/var/crash", "/var"),
        ("/var/crash/not yet", "/var"),
        ("/varnish", "/"),
        ("/a b/c", "/a b"),
        ("/var", "/var"),
    ],
)
def test_mount_point_of_the_target(machine: MachineRoot, path: str, mount_point: str) -> None:
    machine.write(
        "proc/self/mountinfo",
        "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n23 22 8:2 / /var rw shared:1 - ext4 /dev/sda2 rw\n"
        "24 22 8:3 / /a\\040b rw - nfs4 server:/dead rw\n",
    )
    assert mount_point_of(path, KernelFiles(machine.path).mount_points) == mount_point


def test_every_supported_architecture_has_a_number() -> None:
    assert KEXEC_FILE_LOAD_NUMBERS == {
        "x86_64": 320, "aarch64": 294, "riscv64": 294, "ppc64le": 382, "s390x": 381,
    }  # fmt: skip


def test_architecture_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "sparc64")
    with pytest.raises(OSError, match="no system call number known for sparc64") as caught:
        syscall.unload_crash_kernel()
    assert caught.value.errno == errno.ENOSYS
