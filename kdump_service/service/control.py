# SPDX-License-Identifier: LGPL-2.1-or-later
"""The brain of the daemon, in its event loop: what it is asked, what it notices, and what follows from it.

Nothing that may take long runs in the loop; see :mod:`kdump_service.service.lanes`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kdump_service.arm.images import candidate_paths
from kdump_service.arm.loader import Loader
from kdump_service.config import Config
from kdump_service.errors import KdumpError, KernelBusy, NotReady
from kdump_service.kernel.files import KernelFiles
from kdump_service.service.capture_images import BUILDING, BuildImage, CaptureImages
from kdump_service.service.crash_reports import report_crashes
from kdump_service.service.dump_keeper import DumpKeeper
from kdump_service.service.estimate import dump_bytes, estimate
from kdump_service.service.lanes import Lane, Lanes
from kdump_service.service.manager import Manager
from kdump_service.service.problems import Problem, Severity
from kdump_service.service.proof import Proof, proof_of
from kdump_service.service.readiness import Readiness
from kdump_service.service.rehearsal import rehearse_by_unit, tell_rehearsal, values_of
from kdump_service.service.reservation import AUTO, ReserveOptions, reserve
from kdump_service.service.settings_editor import SettingsEditor
from kdump_service.service.shared import Fresh
from kdump_service.service.shrinking import Shrinking
from kdump_service.service.state import SettingState, Status, View
from kdump_service.service.watch import Watcher
from kdump_service.store.dumps import StoredDump

__all__ = ["Announcer", "Control"]

logger = logging.getLogger(__name__)

_BUSY_TRIES = 30
_BUSY_PAUSE_SEC = 2.0
"""A load takes a second or two; a minute of tries covers any boot."""
_LONGEST_LOAD_SEC = 10.0
"""A check waits no longer for what is being loaded."""
_LONGEST_REFRESH_SEC = 10.0
"""Nor for dumps that are being deleted, or do not answer; it goes by what is known of them."""
_TIDYING = "deleting-old"
"""The activity that tells how far it got: many dumps of gigabytes take a while to delete."""
_BOOT_SEC = 120.0
"""After so long from the start, services such as feed a watchdog are up; there is no event for that."""
_UNFED = "watchdog-not-fed"
_OF_HARDWARE = {"memory-changed", "processors-changed", _UNFED}
_LIMITS = ("max_use_bytes", "max_dumps", "max_age_sec", "keep_free_bytes", "target")


class Announcer(Protocol):
    """Who is told of changes."""

    def announce_view(self, view: View) -> None:
        """Of the state."""

    def announce_config(self, config: Config) -> None:
        """Of the settings."""

    def announce_dumps(self, dumps: Sequence[StoredDump], same_bugs: Mapping[str, Sequence[str]]) -> None:
        """Of dumps that came, went or changed."""


class Control:
    """Made before the event loop runs; :meth:`start` begins."""

    def __init__(
        self,
        kernel_files: KernelFiles,
        loader: Loader,
        crash: Callable[[KernelFiles, str], None],
        on_status: Callable[[Status], None],
        build: BuildImage | None = None,
    ) -> None:
        """``crash`` crashes the machine to test what has this identity; ``on_status`` is for any thread.
        ``build`` builds the capture image."""
        self._files = kernel_files
        self._crash = crash
        self._on_status = on_status
        self._manager = Manager(kernel_files, loader, self._status_changed)
        self._editor = SettingsEditor(kernel_files.root, self._manager)
        self._readiness = Readiness(kernel_files, loader=loader)
        self._dumps = DumpKeeper(kernel_files.root)
        self._watcher = Watcher(kernel_files, self._something_changed)
        self._lanes = Lanes()
        self._shrinking = Shrinking(kernel_files, self, self._manager, self._lanes)
        self._images = CaptureImages(kernel_files.root, self, self._manager, self._lanes, build)
        self._looking = Fresh(self._look)
        self._checking = Fresh(self._check)
        self._refreshing = Fresh(self._refresh_dumps)
        self._requested = " ".join(
            word for word in kernel_files.command_line.split() if word.startswith("crashkernel=")
        )
        self._release = kernel_files.release
        self._problems: tuple[Problem, ...] = ()
        self._proof = Proof()
        self._reserving = asyncio.Lock()
        self._rehearsing = asyncio.Lock()
        self._activities: list[str] = []
        self._progress = -1.0
        self._watched: tuple[str, list[str]] = ("", [])
        self._tried_to_feed: set[str] = set()
        self._waiting_for_kernel = False
        self._expiry: asyncio.TimerHandle | None = None
        self._announcer: Announcer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    # From start to end

    async def start(self, announcer: Announcer) -> None:
        """Arm; returns when that is done or has failed. Everything else follows in the background."""
        self._loop = asyncio.get_running_loop()
        self._announcer = announcer
        await self.act("arming", self._manager.start)
        self._watcher.start(self.config(), [])
        self._watch()
        self._something_changed("configuration")  # between reading it and watching it
        self._lanes.in_background(self._look_around())

    async def _look_around(self) -> None:
        """After the start, what does not keep the machine from being armed."""
        await self._arm_when_kernel_is_free()
        await self._report_crashes()
        await self._keep_within_limits()
        await self._checking.get()
        if self._loop is not None:
            self._loop.call_later(_BOOT_SEC, lambda: self._something_changed("boot"))
        await self._shrink()

    async def _report_crashes(self) -> None:
        """Tell the journal of each crash that it has not been told of."""
        config = self.config()
        await self._lanes.run(
            Lane.STORE, lambda: report_crashes(self._files, config.target, config.crash_loop_limit)
        )

    def begin_to_reload(self) -> None:
        """As :meth:`reload`, for who cannot wait. Errors are told to the journal."""
        self._lanes.in_background(self.reload())

    def begin_to_stop(self) -> None:
        """Whatever is waited for may end from now on, since we do."""
        self._images.stop()

    async def stop(self, *, disarm: bool) -> None:
        """Let acts end, and unload the crash kernel if asked to."""
        self._watcher.stop()
        if disarm:
            try:
                await self._lanes.run(Lane.ACTS, self._manager.disarm)
            except KdumpError as error:
                logger.error("the crash kernel stays loaded: %s", error.explanation())

    def close(self) -> None:
        """Wait for what is under way; nothing more is begun."""
        self._lanes.close()

    # What clients ask: the machine

    def view(self) -> View:
        """The state, as far as it is known without looking."""
        # What somebody waits for is of more interest than what goes on beside it.
        activity = self._activities[-1] if self._activities else _TIDYING if self._progress >= 0 else ""
        return View(
            status=self._manager.status(),
            problems=self._problems,
            requested_reservation=self._requested,
            kernel_release=self._release,
            proven_level=self._proof.level,
            proven_time=self._proof.time,
            last_crash=self._dumps.newest,
            activity=activity,
            progress={_TIDYING: self._progress, BUILDING: self._images.progress}.get(activity, -1.0),
        )

    async def look(self) -> View:
        """The state now."""
        return await self._looking.get()

    async def arm(self) -> None:
        """Load the crash kernel. Raises CannotArm."""
        await self.act("arming", self._manager.arm)

    async def disarm(self) -> None:
        """Unload the crash kernel. Raises CannotArm."""
        await self.act("disarming", self._manager.disarm)

    async def reload(self) -> None:
        """Read the configuration anew. Raises ConfigError or CannotArm."""
        await self.act("arming", self._manager.reload)

    async def rebuild(self) -> None:
        """Build the capture image anew, if there is to be one, and load anew, whatever is loaded. Raises
        ImageNotBuilt or CannotArm."""
        await self._images.build_anew()
        await self.act("arming", self._manager.rebuild)

    async def check(self) -> Sequence[Problem]:
        """Look at everything, the target included."""
        # A verdict amid a load would be about neither what was loaded nor what will be.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._lanes.run(Lane.ACTS, lambda: None), _LONGEST_LOAD_SEC)
        return await self._checking.get()

    async def estimate(self) -> Mapping[str, int | str]:
        """How much memory and room a capture needs; the target is asked for its room."""
        await self._checking.get()
        records = self._dumps.records
        reserved = self._manager.status().reserved_bytes
        facts = self._readiness.target_facts
        return await self._lanes.run(
            Lane.QUESTIONS, lambda: estimate(self._files, self.config(), records, facts, reserved)
        )

    async def reserve(self, size: str, values: Mapping[str, Any]) -> Mapping[str, str | bool | list[str]]:
        """Set crashkernel= in the boot loader, take it back, or say how that would be. Raises KdumpError."""
        options = ReserveOptions.from_values(values)
        # In no lane: programs of the boot loader may have us reload, and wait for that.
        async with self._reserving:
            with self.doing("reserving"):
                recommended = 0
                if size in ("", AUTO) and not options.revert:
                    recommended = int((await self.estimate()).get("RecommendedBytes", 0))
                reserved = self._manager.status().reserved_bytes
                done = await asyncio.to_thread(reserve, self._files, size, options, recommended, reserved)
        self._lanes.in_background(self._looking.get())
        return done

    async def rehearse(self) -> Mapping[str, str | bool | int | float | list[str]]:
        """Crash and capture in a virtual machine what is armed. Raises CannotRehearse."""
        root = self._files.root
        # In no lane: the machine may be armed and looked at meanwhile.
        async with self._rehearsing:
            with self.doing("rehearsing"):
                rehearsal = await asyncio.to_thread(rehearse_by_unit, root)
                await self._lanes.run(Lane.STORE, lambda: tell_rehearsal(root, rehearsal))
        await self._looking.get()
        self._lanes.in_background(self._shrink())
        return values_of(rehearsal)

    async def test_crash(self) -> None:
        """Crash the machine. Raises NotReady, or ProgramFailed if it is still there after a while."""
        view = await self.look()
        fatal = [problem for problem in view.problems if problem.severity is Severity.FATAL]
        if fatal:
            raise NotReady(fatal[0].what.rstrip("."), fatal[0].remedy)
        if not view.ready:
            raise NotReady("the crash kernel is not loaded", "Run: kdumpctl arm")
        await self.act("crashing", lambda: self._crash(self._files, self._manager.identity))

    # What clients ask: the settings

    def config(self) -> Config:
        """What is in force."""
        return self._manager.config

    def settings(self) -> list[SettingState]:
        """Each setting, in the order of the manual."""
        return self._editor.states()

    async def set_setting(self, key: str, value: Any) -> None:
        """Raises ConfigError or CannotArm."""
        await self.act("", lambda: self._editor.set_value(key, value))

    async def reset_setting(self, key: str) -> None:
        """Raises ConfigError or CannotArm."""
        await self.act("", lambda: self._editor.reset_value(key))

    # What clients ask: dumps

    async def open_dump(self, name: str, what: str) -> int:
        """A file descriptor. Raises DumpMissing, InvalidArgument or TargetUnusable."""
        return await self._lanes.run(Lane.STORE, lambda: self._dumps.open_file(name, what))

    async def delete_dump(self, name: str) -> None:
        """Raises DumpMissing or TargetUnusable."""
        with self.doing("deleting"):
            try:
                await self._lanes.run(Lane.STORE, lambda: self._dumps.delete(name))
            finally:
                await self._refreshing.get()

    async def keep_dump(self, name: str, kept: bool) -> None:
        """Raises DumpMissing or TargetUnusable."""
        await self._lanes.run(Lane.STORE, lambda: self._dumps.keep(name, kept))
        await self._refreshing.get()

    # Looking

    async def _look(self) -> View:
        config, records = self.config(), self._dumps.records

        def look() -> tuple[list[Problem], Proof]:
            proof = proof_of(self._files.root, self._manager.identity, records)
            found = self._readiness.quick(config, self._manager.status(), proof)
            return found, proof

        try:
            found, self._proof = await self._lanes.run(Lane.QUESTIONS, look)
        except Exception:  # an edge: what is wrong with one check must not hide the state
            logger.exception("the checks failed")
            return self.view()
        self._problems = tuple(found)
        unfed = {problem.what for problem in found if problem.code == _UNFED} - self._tried_to_feed
        if unfed:
            self._tried_to_feed |= unfed  # once: what does not help would not help again
            self._lanes.in_background(self._arm_for_new_hardware())
        return self.announce()

    async def _check(self) -> tuple[Problem, ...]:
        config, records = self.config(), self._dumps.records

        def check() -> None:
            status = self._manager.status()
            predicted = dump_bytes(self._files, config, records, status.reserved_bytes)
            self._readiness.check(config, status, predicted)

        with self.doing("checking"):
            await asyncio.gather(self._lanes.run(Lane.CHECKS, check), self._refreshed_if_quick())
        await self._looking.get()
        return self._problems

    async def _refreshed_if_quick(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._refreshing.get(), _LONGEST_REFRESH_SEC)

    async def _refresh_dumps(self) -> None:
        target = self.config().target

        def refresh() -> dict[str, list[str]]:
            self._dumps.refresh(target)
            self._readiness.learn(self._dumps.records)
            return self._dumps.same_bugs()

        same_bugs = await self._lanes.run(Lane.STORE, refresh)
        if self._announcer is not None:
            self._announcer.announce_dumps(self._dumps.dumps, same_bugs)
        await self._looking.get()

    async def _keep_within_limits(self) -> None:
        """Delete what the settings of [Store] ask for, and come back when a dump gets too old."""
        config = self.config()
        try:
            await self._lanes.run(Lane.STORE, lambda: self._dumps.apply_limits(config, self._tidied))
        finally:
            self._progress = -1.0
            self.announce()
        await self._refreshing.get()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        seconds = self._dumps.seconds_to_next_expiry(self.config())
        if seconds is not None and self._loop is not None:
            self._expiry = self._loop.call_later(
                seconds + 1, lambda: self._lanes.in_background(self._keep_within_limits())
            )

    async def _target_came(self) -> None:
        """Or went. What it holds was not within the limits that could not be looked at before."""
        await self._look_at_target()
        await self._keep_within_limits()

    async def _look_at_target(self) -> None:
        """It may have come back with dumps that nobody was told of."""
        await self._report_crashes()
        await self._checking.get()  # which looks at the dumps, too

    def _tidied(self, done: int, total: int) -> None:
        """Called in the thread that deletes."""
        self._progress = done / total
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.announce)

    def _something_changed(self, kind: str) -> None:
        """Called by the watcher, in the loop."""
        match kind:
            case "configuration":
                self._lanes.in_background(self.act("", self._manager.configuration_changed))
            case "images":
                self._lanes.in_background(self.act("", self._manager.packages_changed))
            case "hotplug":
                self._lanes.in_background(self._arm_for_new_hardware())
            case "mounts":
                # The target may lie on another device now.
                self._lanes.in_background(self.act("", self._manager.images_changed))
                self._lanes.in_background(self._target_came())
            case "boot":
                # By now udev knows the target's device by a name that lasts, also where it began anew.
                self._lanes.in_background(self.act("", self._manager.images_changed))
            case "target":
                self._lanes.in_background(self._look_at_target())
            case _:
                self._lanes.in_background(self._looking.get())

    # Acting

    async def act(self, activity: str, act: Callable[[], object]) -> None:
        """One of the acts that change what is armed or configured; they wait for one another."""
        before = self.config()
        try:
            with self.doing(activity):
                await self._lanes.run(Lane.ACTS, act)
        finally:
            after = self.config()
            if self._announcer is not None:
                self._announcer.announce_config(after)
            self._lanes.in_background(self._follow(before, after))

    async def _follow(self, before: Config, after: Config) -> None:
        """What else a change of settings asks for."""
        if before.shrink != after.shrink:
            self._shrinking.switched()
        self._images.build_what_is_wanted()
        self._lanes.in_background(self._arm_when_kernel_is_free())
        await self._looking.get()
        self._watch()
        if any(getattr(before, name) != getattr(after, name) for name in _LIMITS):
            await self._keep_within_limits()
        if before.target != after.target:
            await self._checking.get()
        if self._shrinking.waits:
            await self._shrink()

    async def _shrink(self) -> None:
        """Give back memory that captures do not need, if Shrink= asks for it."""
        await self._refreshing.get()  # records that are not known yet may tell of a greater need
        if await self._shrinking.shrink(self._dumps.records):
            await self._arm_when_kernel_is_free()

    def _watch(self) -> None:
        """Watch what decides now."""
        status, config = self._manager.status(), self.config()
        images = [*candidate_paths(self._release, config), status.kernel, status.image]
        if (config.target, images) != self._watched:
            self._watched = (config.target, images)
            self._watcher.update(config, images)

    async def _arm_when_kernel_is_free(self) -> None:
        """Another program may be loading a kernel just now; the kernel has no event for its end."""
        if self._waiting_for_kernel:
            return
        self._waiting_for_kernel = True
        try:
            for _ in range(_BUSY_TRIES):
                if self._manager.status().reason != KernelBusy.reason:
                    return
                await asyncio.sleep(_BUSY_PAUSE_SEC)
                with contextlib.suppress(KdumpError):  # told to the journal by the manager
                    await self.arm()
        finally:
            self._waiting_for_kernel = False

    async def _arm_for_new_hardware(self) -> None:
        """What is loaded describes the memory and processors of then, where the kernel does not adapt it."""
        view = await self._looking.get()
        if not _OF_HARDWARE.isdisjoint(problem.code for problem in view.problems):
            with contextlib.suppress(KdumpError):  # told to the journal by the manager
                await self.act("arming", self._manager.hardware_changed)

    @contextlib.contextmanager
    def doing(self, activity: str) -> Iterator[None]:
        """Clients are told of this activity while it lasts; an empty one has no name."""
        if activity:
            self._activities.append(activity)
            self.announce()
        try:
            yield
        finally:
            if activity:
                self._activities.remove(activity)
                self.announce()

    def announce(self) -> View:
        """Tell of what is known now."""
        view = self.view()
        if self._announcer is not None:
            self._announcer.announce_view(view)
        return view

    def _status_changed(self, status: Status) -> None:
        """Called in the worker threads or the main one."""
        self._on_status(status)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.announce)
