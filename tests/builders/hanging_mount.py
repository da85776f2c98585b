# SPDX-License-Identifier: LGPL-2.1-or-later
"""A file system that never answers: FUSE without a server behind it.

What asks it sleeps uninterruptibly, as with a dead disk: FUSE waits for the answer to a request that was
read, whatever signals come (fs/fuse/dev.c, request_wait_answer).
"""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from pathlib import Path
from types import TracebackType

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
_FUSE_INIT = 26  # include/uapi/linux/fuse.h
_READ_BYTES = 1 << 17


def can_mount() -> bool:
    """Whether this process may mount FUSE."""
    return os.geteuid() == 0 and os.access("/dev/fuse", os.R_OK | os.W_OK)


class HangingMount:
    """Mounted on a folder while the with block runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor = -1
        self._reader: threading.Thread | None = None

    def __enter__(self) -> HangingMount:
        self._descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        options = f"fd={self._descriptor},rootmode=40000,user_id=0,group_id=0"
        where = os.fsencode(self.folder)
        if _libc.mount(b"hanging", where, b"fuse.hanging", 0, options.encode()) != 0:
            code = ctypes.get_errno()
            os.close(self._descriptor)
            raise OSError(code, f"mount: {os.strerror(code)}")
        self._answer_init()
        self._reader = threading.Thread(target=self._swallow, daemon=True)
        self._reader.start()
        return self

    def _answer_init(self) -> None:
        request = os.read(self._descriptor, _READ_BYTES)
        _, opcode, unique = struct.unpack_from("IIQ", request)
        assert opcode == _FUSE_INIT
        # struct fuse_init_out: 7.31, no flags.
        answer = struct.pack("IIIIHHII", 7, 31, 0, 0, 1, 1, 4096, 1).ljust(64, b"\0")
        os.write(self._descriptor, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)

    def _swallow(self) -> None:
        """Read requests, so that they count as under way; never answer."""
        try:
            while os.read(self._descriptor, _READ_BYTES):
                pass
        except OSError:  # ENODEV: unmounted
            return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Aborts what waits; a sleeping read in the other thread holds the file open, the file that this
        # writes to (fs/fuse/control.c) does not need it closed.
        device = os.minor(_device_of(self.folder))
        control = Path("/sys/fs/fuse/connections")
        if not (control / str(device)).exists():
            _libc.mount(b"fusectl", os.fsencode(control), b"fusectl", 0, None)
        (control / str(device) / "abort").write_text("1")
        _libc.umount2(os.fsencode(self.folder), _MNT_DETACH)
        assert self._reader is not None
        self._reader.join(10)
        os.close(self._descriptor)


def _device_of(folder: Path) -> int:
    for line in Path("/proc/self/mountinfo").read_text().split("\n"):
        fields = line.split(" ")
        if len(fields) > 4 and fields[4] == str(folder):
            major, minor = map(int, fields[2].split(":"))
            return os.makedev(major, minor)
    raise AssertionError(f"{folder} is not mounted")
