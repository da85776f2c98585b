# SPDX-License-Identifier: LGPL-2.1-or-later
"""Load the crash kernel, and know whether what is loaded is what is wanted.

A :class:`LoadRequest` names everything that a load takes, with the identity of its files. The last
request that succeeded is kept in ``/run``, so that a daemon that was killed or restarted can tell that the
kernel still holds what it wants, and leaves it alone: a reload would leave the machine unarmed for as long
as it takes.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from kdump_service import errors
from kdump_service.arm.images import memory_bytes_of
from kdump_service.atomic_file import write_atomically
from kdump_service.file_identity import FileIdentity
from kdump_service.folders import RUN_FOLDER
from kdump_service.image.archive import small_archive
from kdump_service.kernel import syscall
from kdump_service.kernel.crashkernel import aligned
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.hardware import Hardware
from kdump_service.quantity import format_bytes

__all__ = ["FileIdentity", "LoadRequest", "Loader", "explain", "least_reservation_bytes", "opened_initramfs"]

logger = logging.getLogger(__name__)

ARMED_FILE = f"{RUN_FOLDER}/armed.json"

_LEAST_FREE_BYTES = 16 << 20
"""What a capture kernel needs beside its image and its initramfs to come as far as to its panic=. Measured
with Debian's 6.1 and a small image: with 1 MiB it hangs, with 5 it ends in a panic, and reboots."""

# What the kernel answers when a signature is missing, wrong, or made with a key that it does not hold
# (kernel/kexec_file.c: kimage_validate_signature; crypto/asymmetric_keys: verify_pefile, pkcs7).
_SIGNATURE_ERRNOS = frozenset(
    {errno.EKEYREJECTED, errno.ENOKEY, errno.EBADMSG, errno.ENODATA, errno.ENOPKG, errno.ELIBBAD,
     errno.EKEYREVOKED, errno.EKEYEXPIRED}
)  # fmt: skip


_NO_SHIM = (
    # The boot loader shim hands the distribution's own key to the kernel, and only with Secure Boot.
    "The keys of distributions' kernels are trusted where Secure Boot is on and shim started the boot "
    "loader: switch it on, or take lockdown= off the kernel command line."
)


@dataclass(frozen=True)
class LoadRequest:
    """Kernel, initramfs and command line of a crash kernel, complete."""

    kernel: FileIdentity
    initramfs: FileIdentity
    command_line: str
    added_files: tuple[tuple[str, str], ...] = ()
    """Path and text of each file that is put into the initramfs on the way: what changes with settings and
    boots."""


Syscalls = Callable[[int, int | None, str], None]


class Loader:
    """Loads and unloads; remembers across restarts what is loaded."""

    def __init__(
        self,
        kernel_files: KernelFiles,
        load: Syscalls = syscall.load_crash_kernel,
        unload: Callable[[], None] = syscall.unload_crash_kernel,
    ) -> None:
        self._kernel_files = kernel_files
        self._load = load
        self._unload = unload
        self._memory = kernel_files.root / ARMED_FILE

    def loaded_request(self) -> LoadRequest | None:
        """What is loaded, if we loaded it in this boot; None if nothing is or nobody knows what."""
        loaded = self._remembered()
        return loaded[0] if loaded is not None else None

    def hardware_of_the_load(self) -> Hardware | None:
        """What the machine had when that was loaded; None if nothing is, or nobody knows."""
        loaded = self._remembered()
        return loaded[1] if loaded is not None else None

    def reserved_bytes(self) -> int:
        """Memory reserved for a crash kernel. Raises KernelBusy while another program loads one."""
        try:
            return self._kernel_files.crash_size_bytes
        except OSError as error:
            raise errors.KernelBusy(
                "another program is loading a kernel now", "Try again: kdumpctl arm"
            ) from error

    def load(self, request: LoadRequest) -> None:
        """Load, replacing what is there. Raises CannotArm or one of its kinds. Then :meth:`loaded_request`
        still tells what is loaded, if anything is: the kernel drops it before it reads the new files, but not
        where it does not come so far."""
        if not self._kernel_files.supports_crash_kernel:
            raise errors.NotSupported(
                "this kernel cannot hold a crash kernel",
                "Boot a kernel that is built with CONFIG_CRASH_DUMP.",
            )
        reserved_bytes = self.reserved_bytes()
        if reserved_bytes == 0:
            raise _no_reservation(self._kernel_files.command_line)
        _check_reservation(request, reserved_bytes)
        # Before the load: what is plugged meanwhile may be in it or not, and is then loaded anew.
        hardware = Hardware.of(self._kernel_files)
        try:
            with open(request.kernel.path, "rb") as kernel, opened_initramfs(request) as initramfs:
                before = self._remembered()
                self._forget()  # only now: until here nothing has happened to what is loaded
                try:
                    self._load(kernel.fileno(), initramfs.fileno(), request.command_line)
                except OSError as error:
                    if before is not None and self._kernel_files.crash_loaded:
                        # Not permitted, or busy (kernel/kexec_file.c): what is loaded was not touched.
                        self._remember(*before)
                    raise explain(error, request, self._kernel_files, reserved_bytes) from error
        except OSError as error:
            raise errors.ImageUnreadable(f"{error.filename}: {error.strerror}") from error
        self._remember(request, hardware)

    def unload(self) -> None:
        """Unload; succeeds also where nothing is loaded. Raises CannotArm."""
        if not self._kernel_files.crash_loaded:
            self._forget()
            return
        try:
            self._unload()
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise errors.KernelBusy("another program is loading a kernel now", "Try again.") from error
            raise errors.NotPrivileged(
                f"the kernel refuses to unload the crash kernel: {error.strerror}",
                _privilege_hint(self._kernel_files),
            ) from error
        self._forget()

    def _remembered(self) -> tuple[LoadRequest, Hardware] | None:
        if not self._kernel_files.crash_loaded:
            return None
        try:
            document = json.loads(self._memory.read_text(encoding="utf-8"))
            if document["boot_id"] != self._kernel_files.boot_id:
                return None
            request = LoadRequest(
                FileIdentity(**document["kernel"]),
                FileIdentity(**document["initramfs"]),
                str(document["command_line"]),
                tuple((str(path), str(text)) for path, text in document["added_files"]),
            )
            hardware = document["hardware"]
            return request, Hardware(int(hardware["memory_blocks"]), str(hardware["processors"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s: cannot be read, loading anew, ignoring: %s", self._memory, error)
            return None

    def _remember(self, request: LoadRequest, hardware: Hardware) -> None:
        document = {
            "boot_id": self._kernel_files.boot_id,
            **dataclasses.asdict(request),
            "hardware": dataclasses.asdict(hardware),
        }
        try:
            self._memory.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            write_atomically(self._memory, json.dumps(document, indent=2) + "\n")
        except OSError as error:
            # Armed all the same; the next start cannot know it and will load once more.
            logger.warning("%s: cannot be written, ignoring: %s", self._memory, error)

    def _forget(self) -> None:
        try:
            self._memory.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s: cannot be removed, ignoring: %s", self._memory, error)


def opened_initramfs(request: LoadRequest) -> BinaryIO:
    """The initramfs with the added files behind it, in memory: the kernel takes one open file."""
    if not request.added_files:
        return open(request.initramfs.path, "rb")
    with open(request.initramfs.path, "rb") as image:
        descriptor = os.memfd_create("kdump-initramfs")
        with open(descriptor, "wb") as whole:
            size = os.fstat(image.fileno()).st_size
            copied = 0
            while copied < size:
                done = os.sendfile(whole.fileno(), image.fileno(), copied, size - copied)
                if done == 0:
                    raise OSError(errno.EIO, "the file became shorter", request.initramfs.path)
                copied += done
            whole.seek(size + -size % 4)  # where an archive may begin
            whole.write(small_archive(dict(request.added_files)))
            whole.flush()
            # Anew and for reading alone: the kernel takes no file that somebody could still write to.
            return open(f"/proc/self/fd/{descriptor}", "rb")


def _no_reservation(command_line: str) -> errors.NoReservation:
    asked = [word for word in command_line.split() if word.startswith("crashkernel=")]
    if asked:
        return errors.NoReservation(
            f"the kernel was asked for {' '.join(asked)} but has reserved nothing",
            "See: journalctl -k --grep crashkernel. Ask for less, or for a size that this machine's memory "
            "can hold, and reboot.",
        )
    return errors.NoReservation(
        "no memory is reserved for a crash kernel",
        "Run: kdumpctl reserve, which adds crashkernel= to the boot loader's configuration, and reboot.",
    )


def least_reservation_bytes(request: LoadRequest) -> int:
    """In less than that, what is loaded would hang instead of starting; 0 where the kernel's image does not
    tell."""
    kernel_bytes = memory_bytes_of(Path(request.kernel.path))
    return kernel_bytes + request.initramfs.size_bytes + _LEAST_FREE_BYTES if kernel_bytes else 0


def _check_reservation(request: LoadRequest, reserved_bytes: int) -> None:
    """The kernel loads what just fits. It would then die before it knows panic=, and hang for ever: better
    not armed, and rebooted by production's own panic=."""
    needed = least_reservation_bytes(request)
    if reserved_bytes < needed:
        raise errors.ReservationTooSmall(
            f"{request.kernel.path} with {request.initramfs.path} would hang in the "
            f"{format_bytes(reserved_bytes)} reserved by crashkernel=: they need "
            f"{format_bytes(aligned(needed))} to start at all, and more to save anything",
            "Reserve more: kdumpctl reserve auto",
        )


def _privilege_hint(kernel_files: KernelFiles) -> str:
    if kernel_files.kexec_loading_disabled:
        return f"{kernel_files.kexec_loading_disabled}; only a reboot changes that."
    if os.geteuid() != 0:
        return "Run it as root."
    return "Check that the process has CAP_SYS_BOOT, and the log of the security module (journalctl -k)."


def explain(
    error: OSError, request: LoadRequest, kernel_files: KernelFiles, reserved_bytes: int
) -> errors.CannotArm:
    """Turn the errno of kexec_file_load(2) into what an administrator can act on.

    Source: kexec_file_load(2) and kernel/kexec_file.c, Linux 6.1 to 6.12.
    """
    code = error.errno
    kernel = request.kernel.path
    images = f"{kernel} with {request.initramfs.path}"
    if code in (errno.EADDRNOTAVAIL, errno.ENOMEM):
        needed = format_bytes(request.kernel.size_bytes + request.initramfs.size_bytes)
        # ENOMEM is also the running system's own memory: the kernel reads both files whole, then places them.
        short = " If the machine is short of memory now, free some." if code == errno.ENOMEM else ""
        return errors.ReservationTooSmall(
            f"{images} ({needed} compressed) do not fit into the {format_bytes(reserved_bytes)} reserved by "
            "crashkernel=",
            f"Ask for more, for example crashkernel=256M, on the kernel command line and reboot.{short}",
        )
    if code == errno.ENOSYS:
        return errors.NotSupported(
            f"this kernel cannot load a crash kernel from files ({error.strerror})",
            "Boot a kernel that is built with CONFIG_KEXEC_FILE.",
        )
    locked = kernel_files.lockdown not in ("", "none") or kernel_files.secure_boot
    if code in _SIGNATURE_ERRNOS or (
        code == errno.EPERM and locked and not kernel_files.kexec_loading_disabled
    ):
        why = (
            "Secure Boot is on" if kernel_files.secure_boot else f"lockdown={kernel_files.lockdown or 'none'}"
        )
        return errors.SignatureRefused(
            f"the kernel refuses {kernel}: its signature is missing or not trusted ({error.strerror}; {why})",
            _NO_SHIM
            if code == errno.EPERM and not kernel_files.secure_boot
            else "Load a kernel that the distribution signed, or enrol the key that signed this one "
            "(mokutil).",
        )
    if code == errno.EPERM:
        return errors.NotPrivileged(
            "the kernel refuses to load a crash kernel", _privilege_hint(kernel_files)
        )
    if code == errno.EACCES:
        return errors.NotPrivileged(
            f"a security module does not let the kernel read {images}",
            "See its log: journalctl -k, or ausearch -m avc under SELinux.",
        )
    if code == errno.EBUSY:
        return errors.KernelBusy("another program is loading a kernel now", "Try again: kdumpctl arm")
    if code in (errno.ENOEXEC, errno.EINVAL):
        return errors.ImageRefused(
            f"{kernel} is no kernel image that this kernel can start ({error.strerror})",
            "Reinstall the kernel's package, or set Kernel=: arm64 takes an uncompressed Image only, ppc64le "
            "and riscv vmlinux.",
        )
    if code in (errno.EIO, errno.EBADF, errno.EFAULT, errno.ETXTBSY, errno.EFBIG, errno.EISDIR):
        return errors.ImageUnreadable(
            f"{images} cannot be read: {error.strerror}", "Reinstall the kernel's package."
        )
    return errors.CannotArm(f"loading {images} failed: {error.strerror}", "See: journalctl -k --grep kexec")
