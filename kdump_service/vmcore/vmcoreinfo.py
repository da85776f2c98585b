# SPDX-License-Identifier: LGPL-2.1-or-later
"""VMCOREINFO: what the crashed kernel says of itself, as lines ``KEY=value``.

Written by the kernel in kernel/vmcore_info.c (kernel/crash_core.c before 6.9). A key that is absent means
that the kernel does not say, never that it is old.
"""

from __future__ import annotations

from kdump_service.errors import BadVmcore

__all__ = ["VmcoreInfo"]

_MOST_TIME_DIGITS = 11
"""Until the year 5138; what is larger is damage, and no calendar takes it."""


class VmcoreInfo:
    """The keys and values; typed readers for those that are used."""

    def __init__(self, content: bytes) -> None:
        self._values: dict[str, str] = {}
        for line in content.rstrip(b"\0").decode("utf-8", "replace").splitlines():
            key, separator, value = line.partition("=")
            if separator:
                self._values[key] = value

    def __len__(self) -> int:
        return len(self._values)

    def has(self, key: str) -> bool:
        """Whether the whole key, such as ``NUMBER(PG_slab)``, is there."""
        return key in self._values

    def text(self, key: str) -> str:
        """The value as it stands, empty if absent."""
        return self._values.get(key, "")

    def symbol(self, name: str) -> int:
        """SYMBOL(name): a virtual address. Raises BadVmcore if absent."""
        return self._number(f"SYMBOL({name})", 16)

    def offset(self, member: str) -> int:
        """OFFSET(struct.member), in bytes. Raises BadVmcore if absent."""
        return self._number(f"OFFSET({member})", 10)

    def size(self, struct: str) -> int:
        """SIZE(struct), in bytes. Raises BadVmcore if absent."""
        return self._number(f"SIZE({struct})", 10)

    def length(self, array: str) -> int:
        """LENGTH(array), in elements. Raises BadVmcore if absent."""
        return self._number(f"LENGTH({array})", 10)

    def number(self, name: str) -> int:
        """NUMBER(name), which the kernel prints signed, or in hexadecimal with 0x. Raises BadVmcore if
        absent."""
        return self._number(f"NUMBER({name})", 0)

    def _number(self, key: str, base: int) -> int:
        try:
            return int(self._values[key], base)
        except KeyError:
            raise BadVmcore(f"VMCOREINFO has no {key}") from None
        except ValueError:
            raise BadVmcore(f"VMCOREINFO: {key}={self._values[key]!r} is no number") from None

    @property
    def page_bytes(self) -> int:
        """PAGESIZE: 4096 if absent. Raises BadVmcore if it is none that Linux has."""
        value = self.text("PAGESIZE") or "4096"
        if value not in ("4096", "8192", "16384", "32768", "65536"):
            raise BadVmcore(f"VMCOREINFO: PAGESIZE={value!r} is no page size")
        return int(value)

    @property
    def release(self) -> str:
        """OSRELEASE: the crashed kernel's ``uname -r``."""
        return self.text("OSRELEASE")

    @property
    def build_id(self) -> str:
        """BUILD-ID (5.9 and later): what debuginfod and symbol packages are found by."""
        return self.text("BUILD-ID")

    @property
    def crash_time(self) -> int | None:
        """CRASHTIME: seconds since the epoch by the crashed kernel's clock; None if absent or nonsense."""
        value = self.text("CRASHTIME")
        if not (value.isascii() and value.isdigit() and len(value) <= _MOST_TIME_DIGITS):
            return None
        return int(value)
