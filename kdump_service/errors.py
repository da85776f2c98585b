# SPDX-License-Identifier: LGPL-2.1-or-later
"""The error tree: one class for each thing that a caller does differently.

Every class has one reason code (a stable word that programs compare), one D-Bus error name and one
exit code of the command line. The message says what happened and where; ``hint`` says what to do.
"""

from __future__ import annotations

__all__ = [
    "AlreadyRunning",
    "BadCommandLine",
    "BadVmcore",
    "CannotArm",
    "CannotRehearse",
    "ConfigError",
    "DumpMissing",
    "ImageMissing",
    "ImageNotBuilt",
    "ImageRefused",
    "ImageUnreadable",
    "InvalidArgument",
    "KdumpError",
    "KernelBusy",
    "NoReservation",
    "NotAuthorized",
    "NotPrivileged",
    "NotReady",
    "NotSupported",
    "ProgramFailed",
    "ReservationTooSmall",
    "ServiceUnreachable",
    "SignatureRefused",
    "TargetFull",
    "TargetUnusable",
    "VerificationFailed",
    "WorkerFailed",
    "describe",
    "error_class",
]

DBUS_ERROR_PREFIX = "org.kdump.Kdump1.Error."


class KdumpError(Exception):
    """Root of the tree. ``hint`` is one sentence in the imperative, or empty."""

    reason = "internal-error"
    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @classmethod
    def dbus_name(cls) -> str:
        """The D-Bus error name, which is the class's own name behind a fixed prefix."""
        return DBUS_ERROR_PREFIX + cls.__name__

    def explanation(self) -> str:
        """What happened and what to do about it, as one line."""
        return f"{self}. {self.hint}" if self.hint else str(self)


class ConfigError(KdumpError):
    """A setting cannot be used; the message begins with ``file:line:``."""

    reason = "bad-configuration"
    exit_code = 10


class CannotArm(KdumpError):
    """The crash kernel could not be loaded, for a reason that has no class of its own."""

    reason = "load-failed"
    exit_code = 20


class NoReservation(CannotArm):
    """No memory is reserved for a crash kernel."""

    reason = "no-reservation"
    exit_code = 21


class ReservationTooSmall(CannotArm):
    """Memory is reserved, but kernel and image do not fit into it."""

    reason = "reservation-too-small"
    exit_code = 22


class NotSupported(CannotArm):
    """The running kernel has no kexec_file_load(2), or we know no number for it on this architecture."""

    reason = "not-supported"
    exit_code = 23


class SignatureRefused(CannotArm):
    """The kernel accepts only signed images, and this one is not signed by a key that it trusts."""

    reason = "signature-refused"
    exit_code = 24


class NotPrivileged(CannotArm):
    """The caller lacks CAP_SYS_BOOT, or loading was switched off until the next boot."""

    reason = "not-privileged"
    exit_code = 25


class ImageMissing(CannotArm):
    """No kernel or initramfs was found for the running kernel."""

    reason = "image-missing"
    exit_code = 26


class ImageUnreadable(CannotArm):
    """Kernel or initramfs is there but cannot be read."""

    reason = "image-unreadable"
    exit_code = 27


class ImageRefused(CannotArm):
    """The kernel says that this is no kernel image it can start."""

    reason = "image-refused"
    exit_code = 28


class BadCommandLine(CannotArm):
    """The capture command line is longer than the capture kernel accepts."""

    reason = "bad-command-line"
    exit_code = 29


class KernelBusy(CannotArm):
    """Another program is loading a kernel at this moment."""

    reason = "kernel-busy"
    exit_code = 30


class AlreadyRunning(KdumpError):
    """Another instance of the daemon owns the bus name."""

    reason = "already-running"
    exit_code = 31


class NotReady(KdumpError):
    """A test crash was asked for, and a problem is known that would keep it from being captured."""

    reason = "not-ready"
    exit_code = 32


class ImageNotBuilt(KdumpError):
    """The capture image could not be built, or did not prove itself."""

    reason = "image-not-built"
    exit_code = 33


class CannotRehearse(KdumpError):
    """There is nothing that could be rehearsed, or no virtual machine to do it in."""

    reason = "cannot-rehearse"
    exit_code = 34


class BadVmcore(KdumpError):
    """The memory image is missing, truncated or not what its headers say."""

    reason = "bad-vmcore"
    exit_code = 40


class TargetUnusable(KdumpError):
    """The target is missing, read-only or otherwise refuses to be written."""

    reason = "target-unusable"
    exit_code = 41


class TargetFull(KdumpError):
    """The target has less room than the dump needs."""

    reason = "target-full"
    exit_code = 42


class VerificationFailed(KdumpError):
    """What was read back from the target is not what was written."""

    reason = "verification-failed"
    exit_code = 43


class WorkerFailed(KdumpError):
    """A process of the dump engine met a fault of ours."""

    reason = "worker-failed"
    exit_code = 44


class DumpMissing(KdumpError):
    """There is no such dump, or it has no such file (any more)."""

    reason = "dump-missing"
    exit_code = 45


class InvalidArgument(KdumpError):
    """A caller passed a word that has no meaning here."""

    reason = "invalid-argument"
    exit_code = 46


class ProgramFailed(KdumpError):
    """An external program could not be started, failed, or ran out of time."""

    reason = "program-failed"
    exit_code = 50


class ServiceUnreachable(KdumpError):
    """The daemon does not answer on the bus."""

    reason = "service-unreachable"
    exit_code = 60


class NotAuthorized(KdumpError):
    """The caller does not have the right for this act."""

    reason = "not-authorized"
    exit_code = 61


def describe(error: BaseException) -> str:
    """The error and its causes, outermost first: ``effect: cause: cause of the cause``."""
    parts: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = str(current) or type(current).__name__
        if not isinstance(current, (KdumpError, OSError)):
            text = f"{type(current).__name__}: {text}"
        told = (
            isinstance(current, OSError)
            and current.strerror is not None
            and current.strerror in " ".join(parts)
        )
        if not told:
            parts.append(text)
        current = current.__cause__
    return ": ".join(parts)


def error_class(dbus_name: str) -> type[KdumpError]:
    """The class behind a D-Bus error name; the root of the tree for names of a newer daemon."""
    pending: list[type[KdumpError]] = [KdumpError]
    while pending:
        candidate = pending.pop()
        if candidate.dbus_name() == dbus_name:
            return candidate
        pending += candidate.__subclasses__()
    return KdumpError
