# SPDX-License-Identifier: LGPL-2.1-or-later
"""reboot(2): no service is stopped, no file system unmounted, no cache written."""

from __future__ import annotations

import ctypes
import os

__all__ = ["end_at_once"]

# include/uapi/linux/reboot.h; the C library's reboot(3) takes nothing but the command.
_COMMANDS = {"reboot": 0x1234567, "poweroff": 0x4321FEDC, "halt": 0xCDEF0123}


def end_at_once(action: str) -> None:
    """End this kernel: ``reboot``, ``poweroff`` or ``halt``. Does not return. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.reboot.argtypes = [ctypes.c_uint]
    if libc.reboot(_COMMANDS[action]) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"reboot: {os.strerror(code)}")
