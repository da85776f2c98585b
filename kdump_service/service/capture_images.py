# SPDX-License-Identifier: LGPL-2.1-or-later
"""When the capture image is built: as soon as another is wanted, one at a time; then it is loaded at once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from kdump_service.errors import ImageNotBuilt, KdumpError
from kdump_service.image.layout import BUILD_STATUS_FILE
from kdump_service.image.recipe import Recipe
from kdump_service.kernel.inotify import NAMES, Inotify
from kdump_service.service.acting import Acting
from kdump_service.service.image_builder import build_progress
from kdump_service.service.lanes import Lane, Lanes
from kdump_service.service.manager import Manager

__all__ = ["BUILDING", "BuildImage", "CaptureImages"]

logger = logging.getLogger(__name__)

BUILDING = "building-image"
"""The activity."""

_MOST_BUILDS_IN_A_ROW = 3
"""A change during a build asks for another; what never ends to change must not be built for ever."""
_REST_SEC = 600.0
"""After so many builds, one more is tried so much later: packages are installed for a while, not for ever."""


class BuildImage(Protocol):
    """Who builds the capture image."""

    def __call__(self, release: str, *, anew: bool) -> None:
        """For the kernel of this release; ``anew`` also if the one that is there is current. Raises
        ImageNotBuilt."""


class CaptureImages:
    """Has images built. All of it runs in the event loop."""

    def __init__(
        self, root: Path, acting: Acting, manager: Manager, lanes: Lanes, build: BuildImage | None
    ) -> None:
        """``build``: None where none can be built."""
        self.progress = -1.0
        """How far the build is that is under way, from 0 to 1; -1 if that is not known."""
        self._root = root
        self._acting = acting
        self._manager = manager
        self._lanes = lanes
        self._build = build
        self._building = False
        self._builds_in_a_row = 0
        """Since no image was wanted."""
        self._rest: asyncio.TimerHandle | None = None
        self._stopping = False

    def stop(self) -> None:
        """The daemon ends, and with it whoever waits for a build. What builds goes on; how that ends is
        for the next daemon to tell."""
        self._stopping = True

    def build_what_is_wanted(self) -> None:
        """In the background, if anything is, and nothing is being built."""
        wanted = self._manager.wanted_image
        if wanted is not None:
            self._lanes.in_background(self._follow_recipe(wanted))

    async def build_anew(self) -> None:
        """Whatever is there, if there is to be an image; does not load it. Raises ImageNotBuilt."""
        release = self._manager.buildable_image
        if not release or self._build is None:
            return
        build = self._build
        try:
            with self._acting.doing(BUILDING), self._following():
                await self._lanes.run(Lane.BUILD, lambda: build(release, anew=True))
        except ImageNotBuilt as error:
            missing, refused = self._manager.missing_image, error
            if missing is not None:  # else the one that is there does
                await self._lanes.run(Lane.ACTS, lambda: self._manager.image_not_built(missing, refused))
                await self._acting.look()
            raise

    async def _follow_recipe(self, wanted: Recipe) -> None:
        """Have the image built that is wanted, and load it; at once the next, if it is outdated by then."""
        build = self._build
        if build is None or self._building:
            return
        self._building = True
        self._builds_in_a_row += 1
        try:
            if self._builds_in_a_row > _MOST_BUILDS_IN_A_ROW:
                self._try_again_later()
                raise ImageNotBuilt(
                    "what goes into it changes while it is built, again and again",
                    "See what changes: journalctl -u 'kdump-build-image@*'",
                )
            with self._acting.doing(BUILDING), self._following():
                await self._lanes.run(Lane.BUILD, lambda: build(wanted.release, anew=False))
        except ImageNotBuilt as error:
            if self._stopping:
                return
            refused = error
            await self._lanes.run(Lane.ACTS, lambda: self._manager.image_not_built(wanted, refused))
        else:
            with contextlib.suppress(KdumpError):  # told to the journal by the manager
                await self._acting.act("arming", self._manager.image_built)
        finally:
            self._building = False
        if self._manager.wanted_image is None:
            self._builds_in_a_row = 0
        else:
            self.build_what_is_wanted()
        await self._acting.look()

    def _try_again_later(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
        again = self._acting.act
        self._rest = asyncio.get_running_loop().call_later(
            _REST_SEC, lambda: self._lanes.in_background(again("arming", self._manager.packages_changed))
        )

    @contextlib.contextmanager
    def _following(self) -> Iterator[None]:
        """Clients are told meanwhile how far the build is, by its own word."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as stack:
            try:
                inotify = stack.enter_context(Inotify())
                inotify.watch(str((self._root / BUILD_STATUS_FILE).parent), NAMES)
            except OSError as error:
                logger.warning("how far the build is cannot be told: %s", error)
            else:
                loop.add_reader(inotify.fileno(), self._look_how_far, inotify)
                stack.callback(loop.remove_reader, inotify.fileno())
            try:
                yield
            finally:
                self.progress = -1.0

    def _look_how_far(self, inotify: Inotify) -> None:
        for _ in inotify.read():
            pass
        self.progress = build_progress(self._root)
        self._acting.announce()
