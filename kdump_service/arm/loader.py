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

from kdump_service import errors
from kdump_service.arm.images import CaptureImages
from kdump_service.kernel import syscall
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes
from kdump_service.record import write_atomically

__all__ = ["FileIdentity", "LoadRequest", "Loader", "explain"]

logger = logging.getLogger(__name__)

ARMED_FILE = "run/kdump-service/armed.json"

# What the kernel answers when a signature is missing, wrong, or made with a key that it does not hold
# (kernel/kexec_file.c: kimage_validate_signature; crypto/asymmetric_keys: verify_pefile, pkcs7).
_SIGNATURE_ERRNOS = frozenset(
    {errno.EKEYREJECTED, errno.ENOKEY, errno.EBADMSG, errno.ENODATA, errno.ENOPKG, errno.ELIBBAD,
     errno.EKEYREVOKED, errno.EKEYEXPIRED}
)  # fmt: skip


@dataclass(frozen=True)
class FileIdentity:
    """A file as it was when looked at; any change of its content changes size, time or inode."""

    path: str
    inode: int
    size_bytes: int
    modified_nsec: int

    @classmethod
    def of(cls, path: Path) -> FileIdentity:
        """Look at a file. Raises ImageUnreadable."""
        try:
            status = path.stat()
        except OSError as error:
            raise errors.ImageUnreadable(f"{path}: {error.strerror}") from error
        return cls(str(path), status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class LoadRequest:
    """Kernel, initramfs and command line of a crash kernel, complete."""

    kernel: FileIdentity
    initramfs: FileIdentity
    command_line: str

    @classmethod
    def of(cls, images: CaptureImages, command_line: str) -> LoadRequest:
        """A request for these images as they are now. Raises ImageUnreadable."""
        return cls(FileIdentity.of(images.kernel), FileIdentity.of(images.initramfs), command_line)


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
        if not self._kernel_files.crash_loaded:
            return None
        try:
            document = json.loads(self._memory.read_text(encoding="utf-8"))
            if document["boot_id"] != self._kernel_files.boot_id:
                return None
            return LoadRequest(
                FileIdentity(**document["kernel"]),
                FileIdentity(**document["initramfs"]),
                str(document["command_line"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s: cannot be read, loading anew, ignoring: %s", self._memory, error)
            return None

    def reserved_bytes(self) -> int:
        """Memory reserved for a crash kernel. Raises KernelBusy while another program loads one."""
        try:
            return self._kernel_files.crash_size_bytes
        except OSError as error:
            raise errors.KernelBusy(
                "another program is loading a kernel now", "Try again: kdumpctl arm"
            ) from error

    def load(self, request: LoadRequest) -> None:
        """Load, replacing what is there. Raises CannotArm or one of its kinds; then nothing is loaded."""
        if not self._kernel_files.supports_crash_kernel:
            raise errors.NotSupported(
                "this kernel cannot hold a crash kernel",
                "Boot a kernel that is built with CONFIG_CRASH_DUMP.",
            )
        reserved_bytes = self.reserved_bytes()
        if reserved_bytes == 0:
            raise _no_reservation(self._kernel_files.command_line)
        self._forget()
        try:
            with open(request.kernel.path, "rb") as kernel, open(request.initramfs.path, "rb") as initramfs:
                try:
                    self._load(kernel.fileno(), initramfs.fileno(), request.command_line)
                except OSError as error:
                    raise explain(error, request, self._kernel_files, reserved_bytes) from error
        except OSError as error:
            raise errors.ImageUnreadable(f"{error.filename}: {error.strerror}") from error
        self._remember(request)

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

    def _remember(self, request: LoadRequest) -> None:
        document = {"boot_id": self._kernel_files.boot_id, **dataclasses.asdict(request)}
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
        "Add crashkernel=256M to the kernel command line of the boot loader and reboot (on Debian: "
        "GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub).",
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
            "Load a kernel that the distribution signed, or enrol the key that signed this one (mokutil).",
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
