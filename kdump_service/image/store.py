# SPDX-License-Identifier: LGPL-2.1-or-later
"""The images that were built, and whether one of them is still what is wanted.

An image is two files in the folder: ``NAME.img``, and ``NAME.json``, its manifest, which is written last: an
image without one does not exist. NAME is a hash of the recipe and of the content of each file that went in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdump_service.atomic_file import sync_folder, write_atomically
from kdump_service.errors import ImageUnreadable
from kdump_service.file_identity import FileIdentity, content_hashes
from kdump_service.folders import STATE_FOLDER
from kdump_service.image.modules import find_firmware
from kdump_service.image.recipe import Recipe

__all__ = ["IMAGES_FOLDER", "ImageStore", "Manifest", "Source", "sha256_of"]

logger = logging.getLogger(__name__)

IMAGES_FOLDER = f"{STATE_FOLDER}/images"
_KEPT = 3
"""The armed one, the last good one before it, and one for a kernel that is installed and not booted yet."""


@dataclass(frozen=True)
class Source:
    """A file of the machine that went into an image."""

    size_bytes: int
    modified_sec: int
    """Whole seconds: what every file system and every copy keeps."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is known of an image."""

    recipe: Recipe
    sources: Mapping[str, Source]
    """By path."""
    image_sha256: str
    image_bytes: int
    unpacked_bytes: int
    """What lies in memory when it is unpacked, for as long as the capture boot lives."""
    peak_bytes: int
    """What lies in memory at once while it is unpacked."""
    built: str
    """When, UTC."""
    build_seconds: float
    packing: str
    """``squashfs``, or ``cpio`` where no squashfs could be made."""
    missing_firmware: tuple[str, ...] = ()
    """What drivers of the image may ask for and was not installed: an image with it is another one."""
    path: Path = field(default=Path(), compare=False)

    @property
    def identity(self) -> str:
        """SHA-256, hexadecimal, over the recipe and the content of all sources."""
        text = json.dumps(
            [self.recipe.to_json(), sorted((path, each.sha256) for path, each in self.sources.items())]
        )
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of the manifest's file."""
        return {
            "recipe": self.recipe.to_json(),
            "sources": {
                path: [each.size_bytes, each.modified_sec, each.sha256] for path, each in self.sources.items()
            },
            "image_sha256": self.image_sha256,
            "image_bytes": self.image_bytes,
            "unpacked_bytes": self.unpacked_bytes,
            "peak_bytes": self.peak_bytes,
            "built": self.built,
            "build_seconds": self.build_seconds,
            "packing": self.packing,
            "missing_firmware": self.missing_firmware,
        }

    @classmethod
    def from_json(cls, document: dict[str, Any], path: Path) -> Manifest:
        """The opposite; ``path`` is the image's. Raises ValueError, TypeError or KeyError."""
        return cls(
            recipe=Recipe.from_json(document["recipe"]),
            sources={
                name: Source(int(size), int(modified), str(digest))
                for name, (size, modified, digest) in document["sources"].items()
            },
            image_sha256=str(document["image_sha256"]),
            image_bytes=int(document["image_bytes"]),
            unpacked_bytes=int(document["unpacked_bytes"]),
            peak_bytes=int(document["peak_bytes"]),
            built=str(document["built"]),
            build_seconds=float(document["build_seconds"]),
            packing=str(document["packing"]),
            missing_firmware=tuple(map(str, document.get("missing_firmware", ()))),
            path=path,
        )


class ImageStore:
    """Images below a root folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.folder = root / IMAGES_FOLDER

    def manifests(self) -> list[Manifest]:
        """Of all images, the newest first. What cannot be read does not exist."""
        found = []
        for path in self.folder.glob("*.json"):
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
                found.append(Manifest.from_json(document, path.with_suffix(".img")))
            except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                logger.warning("%s: cannot be used, ignoring: %r", path, error)
        return sorted(found, key=lambda manifest: manifest.built, reverse=True)

    def current(self, recipe: Recipe) -> Manifest | None:
        """The image that is wanted: of this recipe, whole, and made of files that are still the same."""
        for manifest in self.manifests():
            if (
                manifest.recipe.serves(recipe)
                and not self.changed_source(manifest)
                and self.is_whole(manifest)
            ):
                return manifest
        return None

    def last_good(self, release: str) -> Manifest | None:
        """The newest whole image for kernels of this release, whatever it was made of."""
        return next(
            (each for each in self.manifests() if each.recipe.release == release and self.is_whole(each)),
            None,
        )

    def changed_source(self, manifest: Manifest) -> str:
        """The first file that is not what went into the image, or would go in now; empty if there is none.
        Files are read only if their size or time is another."""
        for path, source in manifest.sources.items():
            real = self._root / path.lstrip("/")
            try:
                status = real.stat()
                if (status.st_size, int(status.st_mtime)) == (source.size_bytes, source.modified_sec):
                    continue
                if status.st_size != source.size_bytes or sha256_of(real) != source.sha256:
                    return path
            except OSError:
                return path
        for name in manifest.missing_firmware:
            if (found := find_firmware(self._root, manifest.recipe.release, name)) is not None:
                return f"/{found.relative_to(self._root)}"
        return ""

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether the image is what was built. It is read if it is not the file of the last time."""
        try:
            file = FileIdentity.of(manifest.path)
        except ImageUnreadable as error:
            logger.warning("%s", error)
            return False
        whole = (
            file.size_bytes == manifest.image_bytes
            and content_hashes([file], self._root)[file] == manifest.image_sha256
        )
        if not whole:
            logger.warning("%s: is not what was built, and is not used", manifest.path)
        return whole

    def keep(self, manifest: Manifest, image: Path) -> Manifest:
        """Take a built image in: the file is moved, the manifest written; older ones go. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        final = self.folder / f"{manifest.identity[:16]}.img"
        image.rename(final)
        sync_folder(self.folder)
        document = json.dumps(manifest.to_json(), indent=1) + "\n"
        write_atomically(final.with_suffix(".json"), document)
        self._prune(final)
        return Manifest.from_json(json.loads(document), final)

    def _prune(self, newest: Path) -> None:
        """Keep a few, but of each kernel that is installed at least one."""
        seen: set[str] = set()
        for number, manifest in enumerate(self.manifests()):
            release = manifest.recipe.release
            first_of_kernel = release not in seen and (self._root / "usr/lib/modules" / release).is_dir()
            seen.add(release)
            if manifest.path != newest and number >= _KEPT and not first_of_kernel:
                self._remove(manifest.path)
        known = {manifest.path.stem for manifest in self.manifests()}
        for path in self.folder.iterdir():
            if re.fullmatch(r"[0-9a-f]{16}\.img", path.name) and path.stem not in known:
                self._remove(path)

    def _remove(self, image: Path) -> None:
        # The manifest first: an image without one does not exist.
        for path in (image.with_suffix(".json"), image):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def sha256_of(path: Path) -> str:
    """Of a file's content, hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
