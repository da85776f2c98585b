# SPDX-License-Identifier: LGPL-2.1-or-later
"""inotify(7) through ctypes: libc's three calls, and the events as they come.

Why not a library: Debian 12 does not package inotify_simple, and its pyinotify needs asyncore, which Python
3.12 dropped. inotify_simple finds libc by ctypes.util.find_library(), which runs programs to do so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

__all__ = ["CONTENT", "NAMES", "Event", "Inotify"]

# include/uapi/linux/inotify.h
_ATTRIB = 0x4
_CLOSE_WRITE = 0x8
_MOVED_FROM = 0x40
_MOVED_TO = 0x80
_CREATE = 0x100
_DELETE = 0x200
_DELETE_SELF = 0x400
_MOVE_SELF = 0x800
_UNMOUNT = 0x2000
_Q_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ONLYDIR = 0x01000000
_EXCL_UNLINK = 0x04000000

NAMES = _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
"""Names that come and go in a folder."""
CONTENT = _CLOSE_WRITE | _ATTRIB
"""Files that were written, or whose owner, mode or times were changed."""
_ITSELF = _DELETE_SELF | _MOVE_SELF | _ONLYDIR | _EXCL_UNLINK

_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 << 10

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"inotify: {os.strerror(code)}")
    return result


@dataclass(frozen=True)
class Event:
    """What happened to a folder or to a name in it."""

    watch: int
    """As :meth:`Inotify.watch` returned it; -1 with an overflow."""
    mask: int
    name: str
    """Empty where it is the folder itself."""

    @property
    def overflow(self) -> bool:
        """Events were lost."""
        return bool(self.mask & _Q_OVERFLOW)

    @property
    def folder_gone(self) -> bool:
        """The watched folder was removed, renamed or unmounted."""
        return bool(self.mask & (_DELETE_SELF | _MOVE_SELF | _UNMOUNT | _IGNORED))


class Inotify:
    """One inotify instance; closed at the end of its with block."""

    def __init__(self) -> None:
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """For an event loop: readable when there are events."""
        return self._descriptor

    def watch(self, folder: str, mask: int) -> int:
        """Watch a folder for NAMES, CONTENT or both, and for its own end. Raises OSError.

        The same folder gives the same number again, with the new mask.
        """
        return _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(folder), mask | _ITSELF))

    def forget(self, watch: int) -> None:
        """Watch no longer. What the kernel has forgotten itself, since the folder is gone, is no error."""
        if _libc.inotify_rm_watch(self._descriptor, watch) < 0 and ctypes.get_errno() != errno.EINVAL:
            code = ctypes.get_errno()
            raise OSError(code, f"inotify: {os.strerror(code)}")

    def read(self) -> Iterator[Event]:
        """The events that are there now; does not wait."""
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            watch, mask, _, length = _HEADER.unpack_from(data, place)
            place += _HEADER.size
            name = data[place : place + length].split(b"\0")[0]
            place += length
            yield Event(watch, mask, os.fsdecode(name))

    def close(self) -> None:
        """Give the instance back; its watches end with it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Inotify:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
