# SPDX-License-Identifier: LGPL-2.1-or-later
"""Open a dump that is still being uploaded, to read it back."""

from __future__ import annotations

from pathlib import Path

from kdump_service.dumpfile.open_image import OpenedImage, open_image
from kdump_service.errors import TargetFull, TargetUnusable
from kdump_service.targets.contract import Upload

__all__ = ["open_upload"]


class _Uploaded:
    """The bytes of an upload, as a ByteSource."""

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self.size_bytes = self.stored_bytes = upload.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """See ByteSource."""
        try:
            return self._upload.read_at(offset, length)
        except (TargetFull, TargetUnusable) as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        """Nothing: the upload goes on."""


def open_upload(upload: Upload) -> OpenedImage:
    """Open what was uploaded until now, to the end of which all has been written. The upload must be able to
    READ_BACK. Raises OSError, or BadVmcore if the bytes that come back are no dump."""
    return open_image(Path("the dump that was written"), file=_Uploaded(upload))
