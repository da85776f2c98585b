# SPDX-License-Identifier: LGPL-2.1-or-later
"""QEMU's command line: the board, the firmware, the disk and the lines out of the machine."""

import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .disk import Firmware
from .guest_agent import PORT_NAME

__all__ = [
    "OVMF",
    "UEFI_FLASH",
    "Memory",
    "firmware_arguments",
    "machine_arguments",
    "qemu_version",
    "wires",
]

# Debian's package ovmf. Its build with Secure Boot keeps the variables behind System Management Mode, which
# the flash and the chipset must then honour; of sleeping, which that build does not defend, it must know
# nothing. The .ms variables hold Microsoft's keys, with which Debian's shim is signed.
OVMF = Path("/usr/share/OVMF")
UEFI_FLASH: dict[Firmware, tuple[str, str]] = {
    "uefi": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
    "secure-boot": ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"),
}


def firmware_arguments(firmware: Firmware, variables: Path) -> list[str]:
    """QEMU's board for this firmware, whose variables are in the file `variables`."""
    if firmware not in UEFI_FLASH:
        return []  # SeaBIOS on the default board
    code, _ = UEFI_FLASH[firmware]
    secure = firmware == "secure-boot"
    return [
        *("-machine", f"q35,smm={'on' if secure else 'off'}"),
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
        *(("-global", "driver=cfi.pflash01,property=secure,value=on") if secure else ()),
        *(("-global", "ICH9-LPC.disable_s3=1") if secure else ()),
    ]


@dataclass(frozen=True)
class Memory:
    """The guest's memory in a file, for a snapshot: `shared` while it is made, else copied on write."""

    file: Path
    shared: bool


def machine_arguments(cpus: int, memory_mib: int, memory: Memory | None = None) -> list[str]:
    """QEMU with processors and memory, and the devices that every machine has, without its disk.

    Emulation and not KVM: virtualization inside a virtual machine is not to be had everywhere. A reset ends
    the process, and `Machine` starts another one: in the same one the kernel that comes next would be
    decompressed onto pages that the emulator has translated code of, whose every write it looks at. That took
    from 10 to 120 seconds, a new process takes 6.
    """
    return [
        *("qemu-system-x86_64", "-no-reboot"),
        *("-accel", "tcg,thread=multi", "-smp", str(cpus), "-m", str(memory_mib)),
        *("-nodefaults", "-no-user-config", "-display", "none", "-name", "kdump-test"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
        # By it a guest tells where its VMCOREINFO is (docs/specs/vmcoreinfo.rst of QEMU), if it wants to.
        *("-device", "vmcoreinfo"),
        *(_memory_arguments(memory_mib, memory) if memory else ()),
    ]


def _memory_arguments(memory_mib: int, memory: Memory) -> list[str]:
    """A machine that goes on from a snapshot would else see its clock jump: it stands still meanwhile."""
    share = "on" if memory.shared else "off"
    backend = f"memory-backend-file,id=memory,size={memory_mib}M,mem-path={memory.file},share={share}"
    return ["-object", backend, "-machine", "memory-backend=memory", "-rtc", "base=utc,clock=vm"]


def wires(image: Path, side_fd: int, qmp_fd: int) -> list[str]:
    """The root disk, a serial console on standard output, and two sockets that QEMU inherits."""
    return [
        *("-drive", f"if=none,id=root,format=raw,cache=unsafe,file={image}"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=side,fd={side_fd}"),
        *("-device", f"virtserialport,chardev=side,name={PORT_NAME}"),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
    ]


@functools.cache
def qemu_version() -> str:
    """The first line of what it says of itself."""
    said = subprocess.run(["qemu-system-x86_64", "--version"], check=True, capture_output=True, text=True)
    return said.stdout.splitlines()[0]
