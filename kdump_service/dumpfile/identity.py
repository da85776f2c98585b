# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a kdump-compressed file says of the machine, as the memory image tells it."""

from __future__ import annotations

from typing import NamedTuple

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.elf import NT_PRSTATUS
from kdump_service.vmcore.memory_image import MemoryImage

__all__ = ["Identity", "identity_of"]


class Identity(NamedTuple):
    """What the headers say of the machine."""

    uts: dict[str, str]
    timestamp: int
    phys_base: int
    cpus: int
    notes: bytes
    """The note segment of /proc/vmcore, as it is."""
    vmcoreinfo: tuple[int, int]
    """Where in the notes the content of VMCOREINFO stands: offset and length; 0, 0 if there is none."""


def identity_of(image: MemoryImage) -> Identity:
    """What a kdump-compressed file says of the machine. What the image does not tell is left empty."""
    info = image.vmcoreinfo
    segment = image.note_segment
    content = next((note.content for note in image.notes if note.name == "VMCOREINFO"), b"").rstrip(b"\0")
    return Identity(
        uts=_uts_names(image),
        timestamp=info.crash_time or 0,
        phys_base=info.number("phys_base") if info.has("NUMBER(phys_base)") else 0,
        cpus=sum(note.kind == NT_PRSTATUS and note.name == "CORE" for note in image.notes),
        notes=segment,
        vmcoreinfo=(segment.find(content), len(content)) if content else (0, 0),
    )


_UTS_NAME_BYTES = 65  # __NEW_UTS_LEN + 1
_MACHINE_NAMES = {62: "x86_64", 183: "aarch64"}


def _uts_names(image: MemoryImage) -> dict[str, str]:
    """init_uts_ns.name, struct new_utsname; from VMCOREINFO alone where the memory cannot be read."""
    info = image.vmcoreinfo
    names = ("sysname", "nodename", "release", "version", "machine", "domainname")
    # None is left empty: libkdumpfile tells the architecture only by a header whose names are all there.
    told = dict.fromkeys(names, "(none)") | {
        "sysname": "Linux",
        "release": info.release or "(none)",
        "machine": _MACHINE_NAMES.get(image.machine, "(none)"),
    }
    try:
        # 5.11 exports the member's offset (ca4a9241cc5e); before, a kref of 4 bytes stood in front.
        member = "OFFSET(uts_namespace.name)"
        offset = info.offset("uts_namespace.name") if info.has(member) else 4
        data = AddressSpace(image).read(info.symbol("init_uts_ns") + offset, len(names) * _UTS_NAME_BYTES)
    except BadVmcore:
        return told
    read = {}
    for index, name in enumerate(names):
        field_bytes = data[index * _UTS_NAME_BYTES : (index + 1) * _UTS_NAME_BYTES]
        read[name] = field_bytes.split(b"\0")[0].decode("utf-8", "replace")
    # Else it is not the structure that it was taken for.
    return read if read["release"] == info.release else told
