# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open a memory image of any format that is known, by what it begins with."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from kdump_service.dumpfile.flattened import FLATTENED_SIGNATURE, FlattenedFile
from kdump_service.dumpfile.kdump_format import SIGNATURE
from kdump_service.dumpfile.kdump_reader import KdumpFile
from kdump_service.errors import BadVmcore
from kdump_service.vmcore import elf
from kdump_service.vmcore.page_source import ElfPages, PageSource
from kdump_service.vmcore.reader import ByteSource, PlainFile, Vmcore

__all__ = ["OpenedImage", "open_image"]

_ELF_MAGIC = b"\x7fELF"
_LZ4_MAGIC = b"\x04\x22\x4d\x18"
_FOREIGN = {
    b"\x1f\x8b": ("gzip", "gzip -d"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstd -d"),
    b"\xfd7zXZ\0": ("xz", "xz -d"),
    b"BZh": ("bzip2", "bzip2 -d"),
    b"\x02\x21\x4c\x18": ("the legacy format of lz4", "lz4 -d"),
}
"""What files are compressed with that can only be read from their beginning, and what unpacks them."""
_MAGIC_BYTES = 16
_KNOWN = "Known are ELF cores and kdump-compressed files, also flattened by makedumpfile or in LZ4 frames."


class OpenedImage(NamedTuple):
    """A memory image that is open for reading. Use as a context manager."""

    image: Vmcore | KdumpFile
    """A MemoryImage, which also has the notes."""
    pages: PageSource
    format: str
    """``elf`` or ``kdump``."""
    wrapping: str
    """``lz4``, ``flattened``, or empty."""
    truncated: bool
    """Whether the end of the file is missing."""

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *exception: object) -> None:
        self.image.__exit__(*exception)

    @property
    def incomplete(self) -> bool:
        """Whether the file says that its writer did not come to the end, or ends too early."""
        if isinstance(self.image, KdumpFile):
            return self.truncated or self.image.incomplete
        return self.truncated or bool(self.image.header.flags & elf.ELF_FLAGS_INCOMPLETE)


def open_image(path: Path, *, descriptor: int | None = None, file: ByteSource | None = None) -> OpenedImage:
    """Open a memory image, also one whose end is missing. ``descriptor``: see PlainFile. ``file`` is where
    the bytes come from if not from a file at ``path``, which is then its name; it is closed with the image.

    Raises OSError, or BadVmcore with the path in front.
    """
    with ExitStack() as opened:
        file = file or PlainFile(path, descriptor)
        opened.callback(file.close)
        try:
            file, wrapping, truncated = _unwrapped(file)
            magic = file.read(0, _MAGIC_BYTES)
            if truncated and len(magic) < _MAGIC_BYTES:
                raise BadVmcore("was cut off before the first bytes of the dump")
            if not magic.startswith((_ELF_MAGIC, SIGNATURE)):
                raise _unknown(magic, wrapping)
        except BadVmcore as error:
            raise BadVmcore(f"{path}: {error}", error.hint) from error
        opened.pop_all()  # whoever takes the file closes it, also if that fails
        if magic.startswith(SIGNATURE):
            dump = KdumpFile(path, file)
            return OpenedImage(dump, dump, "kdump", wrapping, truncated)
        core = Vmcore(path, file)
        opened.push(core)
        try:
            pages = ElfPages(core)
        except BadVmcore as error:
            raise BadVmcore(f"{path}: {error}", error.hint) from error
        opened.pop_all()
        return OpenedImage(core, pages, "elf", wrapping, truncated)


def _unwrapped(file: ByteSource) -> tuple[ByteSource, str, bool]:
    """The file or its content, what it was wrapped in, and whether that ends too early."""
    magic = file.read(0, _MAGIC_BYTES)
    if magic == FLATTENED_SIGNATURE:
        flattened = FlattenedFile(file)
        # Ours writes these bytes last, and nothing but this format.
        if flattened.truncated and not any(flattened.read(0, len(SIGNATURE))):
            flattened.put_back(SIGNATURE)
        return flattened, "flattened", flattened.truncated
    if magic.startswith(_LZ4_MAGIC):
        from kdump_service.dumpfile.lz4_file import Lz4File  # noqa: PLC0415  (optional codec)

        frames = Lz4File(file)
        return frames, "lz4", frames.truncated
    return file, "", False


def _unknown(magic: bytes, wrapping: str) -> BadVmcore:
    if not magic:
        return BadVmcore("is empty")
    where = f"has an unknown format within {wrapping}: " if wrapping else ""
    for prefix, (name, command) in _FOREIGN.items():
        if magic.startswith(prefix):
            return BadVmcore(f"{where}is compressed with {name}", f"Unpack it with {command} first.")
    return BadVmcore(f"{where}begins with {magic.hex(' ')}, which is no known format", _KNOWN)
