# SPDX-License-Identifier: LGPL-2.1-or-later
"""The crashed kernel's log: its records, as text and as JSON.

Which of the two buffers the kernel has, VMCOREINFO says: see printk_ring and printk_log_buf. Only the
standard library is used here, since the log is saved before anything heavy is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.log_record import LogMemory, LogRecord
from kdump_service.vmcore.printk_log_buf import PrintkLogBuf
from kdump_service.vmcore.printk_ring import PrintkRing
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo

__all__ = ["KernelLog", "LogRecord", "format_record", "panic_message", "read_log", "record_as_dict"]

_PANIC = "Kernel panic - not syncing"
_EARLY_RING = "SYMBOL(printk_rb_static)"


class KernelLog(Iterator[LogRecord]):
    """The records, oldest first; what was lost is known when all have been read.

    Iterating raises BadVmcore if no buffer can be found or none of it can be read; a single bad record never
    costs the others.
    """

    def __init__(self, info: VmcoreInfo, memory: LogMemory, byte_order: str) -> None:
        self._info, self._memory, self._byte_order = info, memory, byte_order
        self._source: PrintkRing | PrintkLogBuf | None = None
        self._notes: list[str] = []
        self._records = self._read()

    def __iter__(self) -> KernelLog:
        return self

    def __next__(self) -> LogRecord:
        return next(self._records)

    @property
    def lost(self) -> int:
        """Records that were in the buffer but could not be read, or, in the buffer before 5.10, at least so
        many. Those that newer ones have replaced are not among them."""
        return self._source.lost if self._source else 0

    @property
    def damage(self) -> list[str]:
        """What was wrong with the buffer as a whole, as sentences; empty if nothing was."""
        return self._notes + (self._source.damage if self._source else [])

    def _read(self) -> Iterator[LogRecord]:
        # prb since 896fbe20b4e2, "printk: use the lockless ringbuffer" (5.10); log_buf before.
        if self._info.has("SYMBOL(prb)"):
            yield from self._read_rings()
        elif self._info.has("SYMBOL(log_buf)"):
            self._source = PrintkLogBuf(self._info, self._memory, self._byte_order)
            yield from self._source.records()
        else:
            raise BadVmcore("VMCOREINFO names no log: it has neither SYMBOL(prb) nor SYMBOL(log_buf)")

    def _read_rings(self) -> Iterator[LogRecord]:
        """The ring in use; if it cannot be read or is empty, the static one of early boot.

        setup_log_buf() leaves that as it is when it makes a larger one.
        """
        found = False
        try:
            for record in self._read_ring(self._memory.unsigned(self._info.symbol("prb"), 8)):
                found = True
                yield record
        except BadVmcore as error:
            early = self._read_early()
            if not early:
                raise
            self._notes.append(f"{error}; what follows is the log of early boot")
            yield from early
            return
        if not found:
            yield from self._read_early()

    def _read_ring(self, address: int) -> Iterator[LogRecord]:
        self._source = PrintkRing(self._info, self._memory, self._byte_order, address)
        yield from self._source.records()

    def _read_early(self) -> list[LogRecord]:
        """A few hundred records at most; none if that ring cannot be read either."""
        if not self._info.has(_EARLY_RING):
            return []
        try:
            return list(self._read_ring(self._info.symbol("printk_rb_static")))
        except BadVmcore:
            return []


def read_log(info: VmcoreInfo, memory: LogMemory, byte_order: str) -> KernelLog:
    """The log of the kernel that VMCOREINFO and memory are of; see KernelLog."""
    return KernelLog(info, memory, byte_order)


def format_record(record: LogRecord, *, caller: bool = False) -> str:
    """As dmesg prints it: ``[    5.123456] text``, further lines of the text indented as far as the first.

    With ``caller``, as a kernel with CONFIG_PRINTK_CALLER does: ``[    5.123456][  T123] text``. Control
    characters are shown as \\xNN, as the kernel does for readers of /dev/kmsg.
    """
    seconds, nanoseconds = divmod(record.timestamp_nsec, 1_000_000_000)
    stamp = f"[{seconds:5d}.{nanoseconds // 1000:06d}]"
    if caller and record.caller_id:
        stamp += f"[{record.caller_id:>6}]"
    stamp += " "
    lines = ["".join(map(_printable, line)) for line in record.text.split("\n")]
    return stamp + f"\n{' ' * len(stamp)}".join(lines) + "\n"


def _printable(character: str) -> str:
    if character.isprintable() or character == "\t":
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "backslashreplace"))


def record_as_dict(record: LogRecord) -> dict[str, str | int]:
    """For one JSON object per line; ``caller``, ``subsystem`` and ``device`` only where they are known."""
    result: dict[str, str | int] = {
        "seq": record.sequence,
        "time_usec": record.timestamp_nsec // 1000,
        "level": record.level,
        "facility": record.facility,
        "text": record.text,
    }
    optional = {"caller": record.caller_id, "subsystem": record.subsystem, "device": record.device}
    result.update({key: value for key, value in optional.items() if value})
    return result


def panic_message(record: LogRecord) -> str:
    """The line by which the kernel says why it panicked, if this record is that one; else empty."""
    return record.text.split("\n", 1)[0].strip() if record.text.startswith(_PANIC) else ""
