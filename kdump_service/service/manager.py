# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the machine armed: the acts that the bus, signals and changes ask for, and the state they leave.

All acts are synchronous and may take seconds (the kernel copies and verifies images); the daemon runs them
one after the other in a worker thread. Each ends in a new Status, which listeners are handed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from kdump_service import log
from kdump_service.arm.environment import CaptureEnvironment, NothingBuiltYet
from kdump_service.arm.identity import armed_identity
from kdump_service.arm.loader import Loader, LoadRequest
from kdump_service.arm.plan import plan_load, write_capture_settings
from kdump_service.config import Config, ConfigFiles, read_config_files
from kdump_service.errors import CannotArm, ConfigError, ImageMissing, ImageNotBuilt, KdumpError, NotReady
from kdump_service.image.recipe import Recipe
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes, format_seconds
from kdump_service.service.state import ArmState, Status

__all__ = ["Manager"]

logger = logging.getLogger(__name__)

_ROOT_ENCRYPTED = (
    "The root file system is encrypted: if the capture boot has to ask for a passphrase, it waits for it "
    "without a limit. Have it unlocked without a question, by a TPM or a key file."
)


class Manager:
    """The state machine of arming."""

    def __init__(
        self,
        kernel_files: KernelFiles,
        loader: Loader,
        on_change: Callable[[Status], None] = lambda status: None,
    ) -> None:
        self._kernel_files = kernel_files
        self._loader = loader
        self._on_change = on_change
        self._files = ConfigFiles(Config(), [], {})
        """What is in force, and where it comes from; errors are those that were found last."""
        self._identity = ""
        self._environment: CaptureEnvironment | None = None
        """Of the last plan; None where none could be made."""
        self._to_build_first: Recipe | None = None
        """The image without which the machine cannot be armed at all."""
        self._not_built: tuple[Recipe, ImageNotBuilt] | None = None
        """The recipe that could not be followed, and why."""
        self._not_for_capture = ""
        self._last_load_was_good = False
        self._disarmed_on_request = False
        self._reserved_bytes = 0
        self._status = Status()
        self._lock = threading.RLock()
        """Guards _status: acts run in a worker thread, questions are answered in the main thread."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._files.config

    @property
    def config_files(self) -> ConfigFiles:
        """The same, with the lines that set it, and what is wrong in the files."""
        return self._files

    @property
    def identity(self) -> str:
        """Of what is armed, by :func:`kdump_service.arm.identity.armed_identity`; empty if unknown."""
        return self._identity

    @property
    def missing_image(self) -> Recipe | None:
        """The capture image that should be there and is not; None also if somebody wants the machine
        disarmed."""
        if self._disarmed_on_request:
            return None
        return self._environment.wanted if self._environment is not None else self._to_build_first

    @property
    def wanted_image(self) -> Recipe | None:
        """The capture image that should be built now: one that is missing and was not tried in vain."""
        missing = self.missing_image
        return None if self._not_built is not None and self._not_built[0] == missing else missing

    @property
    def buildable_image(self) -> str:
        """The release of the kernel for which a capture image can be built; empty if none can."""
        return self._environment.buildable if self._environment is not None else ""

    @property
    def armed_as_configured(self) -> bool:
        """Whether the last load of what the configuration asks for went well, and is still there."""
        return self._last_load_was_good and self.status().state is ArmState.ARMED

    @property
    def not_in_image(self) -> str:
        """Why the image that is loaded does not hold what the settings ask for; empty if it does."""
        environment = self._environment
        return "" if environment is None or environment.wanted is None else self._status.explanation

    @property
    def not_for_capture(self) -> str:
        """Why the capture boot would not see the configuration in force; empty if it would."""
        return self._not_for_capture

    def status(self) -> Status:
        """The state, true at the time of asking: what others did to the kernel shows."""
        with self._lock:
            loaded = self._kernel_files.crash_loaded
            status = replace(self._status, loaded=loaded)
            if status.state is ArmState.ARMED and not loaded:
                status = replace(
                    status,
                    state=ArmState.NOT_ARMED,
                    reason="unloaded-by-others",
                    explanation="Another program unloaded the crash kernel. Run: kdumpctl arm",
                )
            self._publish(status)
            return status

    def start(self) -> None:
        """Read the configuration and arm. Never raises: what is wrong becomes the status.

        Where lines of the configuration cannot be used, the rest of it is used: a machine with a typo in
        its configuration is still armed, and says so.
        """
        self._files = read_config_files(self._kernel_files.root)
        self._log_config_errors()
        try:
            self.arm()
        except KdumpError as error:
            logger.debug("not armed at start: %s", error)  # arm() has told the journal

    def reload(self) -> None:
        """Read the configuration anew and load what it asks for now.

        Raises ConfigError, and then the old configuration stays in force, or CannotArm.
        """
        self.take(read_config_files(self._kernel_files.root))

    def take(self, files: ConfigFiles) -> None:
        """Put these into force, and load what they ask for. Raises ConfigError or CannotArm."""
        if files.errors:
            self._files = replace(self._files, errors=files.errors)
            self._log_config_errors()
            self._publish(self._with_remark(self._status))
            raise ConfigError("\n".join(str(error) for error in files.errors), files.errors[0].hint)
        self._put_into_force(files)

    def take_back(self, files: ConfigFiles) -> None:
        """Put what was in force before into force again, whatever is wrong with it. Raises CannotArm."""
        self._put_into_force(files)

    def configuration_changed(self) -> None:
        """As :meth:`reload`, if the files really say something else. Raises ConfigError or CannotArm."""
        files = read_config_files(self._kernel_files.root)
        if [str(error) for error in files.errors] == [str(error) for error in self._files.errors] and (
            files.errors or files.config == self._files.config
        ):
            if not files.errors:
                self._files = files  # the same settings, on other lines
            return
        self.take(files)

    def packages_changed(self) -> None:
        """As :meth:`images_changed`; an image that could not be built is tried again, since what kept it from
        being built may be what has changed."""
        self._not_built = None
        self.images_changed()

    def images_changed(self) -> None:
        """Load what the files are now, unless somebody wants the machine disarmed. Raises CannotArm."""
        if not self._disarmed_on_request:
            self.arm()

    def hardware_changed(self) -> None:
        """Load anew for the memory and processors of now, unless somebody wants the machine disarmed. Raises
        CannotArm.
        """
        if not self._disarmed_on_request:
            self.rebuild()

    def image_built(self) -> None:
        """A new capture image is there: load it, unless somebody wants the machine disarmed. Raises
        CannotArm."""
        self._not_built = None
        self.images_changed()

    def image_not_built(self, wanted: Recipe, error: ImageNotBuilt) -> None:
        """It could not be built: say so, and do not try again before something is different."""
        self._not_built = (wanted, error)
        log.event(
            logger,
            logging.WARNING,
            log.MessageId.IMAGE_NOT_BUILT,
            f"Capture image not built: {error.explanation()}",
            KDUMP_REASON=error.reason,
        )
        status = self._status
        if status.state is ArmState.NOT_ARMED and self._to_build_first == wanted:
            if not self._disarmed_on_request:
                self._publish(replace(status, reason=error.reason, explanation=error.explanation()))
        elif self._environment is not None and (
            status.reason in ("", self._environment.remark, ImageNotBuilt.reason)
        ):
            # Any other reason is of more weight than why it is not the image that was wanted.
            self._publish(self._with_remark(replace(status, reason="", explanation="")))

    def arm(self) -> None:
        """Load the crash kernel unless exactly what is wanted is loaded. Raises CannotArm or its kinds."""
        self._arm(anew=False)

    def rebuild(self) -> None:
        """Load the crash kernel, whatever is loaded; a capture image that could not be built is tried again.
        Raises CannotArm or its kinds."""
        self._not_built = None
        self._arm(anew=True)

    def loaded_request(self) -> LoadRequest | None:
        """What is loaded; None if nothing is, or nobody knows what."""
        return self._loader.loaded_request()

    def while_unloaded(self, act: Callable[[], object]) -> None:
        """Do what the kernel allows only while nothing is loaded; what was loaded is loaded again, whatever
        comes of it. Raises NotReady where nothing is, CannotArm where it cannot be unloaded or not be loaded
        again, and what ``act`` raises."""
        loaded = self._loader.loaded_request()
        if loaded is None:
            raise NotReady("the crash kernel is not loaded", "Run: kdumpctl arm")
        before = self.status()
        self._publish(replace(before, state=ArmState.ARMING, reason="", explanation=""))
        try:
            self._loader.unload()
        except CannotArm:
            self._publish(before)
            raise
        try:
            act()
        finally:
            self._load_again(loaded, before)

    def _load_again(self, request: LoadRequest, before: Status) -> None:
        try:
            self._reserved_bytes = self._loader.reserved_bytes()
            self._loader.load(request)
        except CannotArm as error:
            logger.warning("The crash kernel cannot be loaded again as it was: %s", error)
            self._arm(anew=True)
            return
        loaded = self._kernel_files.crash_loaded
        self._publish(replace(before, loaded=loaded, reserved_bytes=self._reserved_bytes))

    def disarm(self) -> None:
        """Unload the crash kernel, and stay so until the next arm or restart. Raises CannotArm."""
        with self._lock:  # who asks in between would take it for another program's doing
            self._loader.unload()
            self._disarmed_on_request = True
            self._identity = ""
            self._publish(
                Status(
                    ArmState.NOT_ARMED,
                    "disarmed",
                    "Disarmed on request. To arm again: kdumpctl arm",
                    self._kernel_files.crash_loaded,
                    self._reserved_bytes,
                )
            )
        log.event(logger, logging.INFO, log.MessageId.DISARMED, "Crash kernel unloaded on request")

    def _put_into_force(self, files: ConfigFiles) -> None:
        self._files = files
        if self._disarmed_on_request:
            logger.info("configuration read; staying disarmed, as requested")
            return
        self.arm()

    def _arm(self, *, anew: bool) -> None:
        self._disarmed_on_request = False
        before = self._status
        loaded = self._loader.loaded_request()
        self._environment, self._to_build_first = None, None
        try:
            self._reserved_bytes = self._loader.reserved_bytes()
            plan = plan_load(self._kernel_files, self.config)
            wanted, self._environment = plan.request, plan.environment
            if anew or loaded != wanted:
                self._publish(replace(self._status, state=ArmState.ARMING, reason="", explanation=""))
                self._load(wanted, loaded)
        except NothingBuiltYet as error:
            self._to_build_first = error.wanted
            if self._not_built is None or self._not_built[0] != error.wanted:
                self._not_armed(error)
                raise
            not_built = self._not_built[1]
            self._not_armed(not_built)
            raise ImageMissing(str(not_built), not_built.hint) from error
        except CannotArm as error:
            self._not_armed(error)
            raise
        finally:
            self._save_capture_settings()  # also for what another program may have loaded
        self._armed(wanted)
        if loaded is not None and (anew or _images(loaded) != _images(wanted)):
            self._log_armed(log.MessageId.IMAGE_REBUILT, "loaded anew")
        elif before.state is not ArmState.ARMED or loaded != wanted:
            how = "was already loaded" if loaded == wanted else "loaded"
            self._log_armed(log.MessageId.ARMED, how)

    def _load(self, wanted: LoadRequest, loaded: LoadRequest | None) -> None:
        try:
            self._loader.load(wanted)
        except CannotArm:
            # Refused by the kernel, which has dropped what was loaded, and not before it was asked. An older
            # image that still exists is better than none.
            dropped = loaded is not None and self._loader.loaded_request() != loaded
            if loaded is not None and dropped and self._restore(loaded):
                logger.warning("the new crash kernel was refused; the previous one is loaded again")
            raise

    def _restore(self, previous: LoadRequest) -> bool:
        try:
            self._loader.load(previous)
        except CannotArm as error:
            logger.warning("the previous crash kernel cannot be loaded again, either: %s", error)
            return False
        return True

    def _save_capture_settings(self) -> None:
        current = self._loader.loaded_request()
        root = self._kernel_files.root
        self._identity = armed_identity(current, self.config.target, root) if current else ""
        try:
            write_capture_settings(self._kernel_files, self.config, self._identity)
            self._not_for_capture = ""
        except OSError as error:
            # The capture boot then uses what was written before, or defaults.
            logger.warning("settings of the capture boot cannot be written, ignoring: %s", error)
            self._not_for_capture = f"{error.filename or root}: {error.strerror}"

    def _armed(self, request: LoadRequest) -> None:
        self._last_load_was_good = True
        status = Status(
            state=ArmState.ARMED,
            loaded=self._kernel_files.crash_loaded,
            reserved_bytes=self._reserved_bytes,
            kernel=request.kernel.path,
            image=request.initramfs.path,
            command_line=request.command_line,
            environment="initramfs" if request.added_files else "rootfs",
        )
        self._publish(self._with_remark(status))

    def _log_armed(self, message_id: log.MessageId, how: str) -> None:
        status = self._status
        uptime_sec = self._kernel_files.uptime_sec()
        log.event(
            logger,
            logging.INFO,
            message_id,
            f"Armed: {status.kernel} {how} into {format_bytes(status.reserved_bytes)} reserved; the kernel "
            f"runs for {format_seconds(uptime_sec)}",
            KDUMP_KERNEL=status.kernel,
            KDUMP_IMAGE=status.image,
            KDUMP_COMMAND_LINE=status.command_line,
            KDUMP_RESERVED_BYTES=status.reserved_bytes,
            KDUMP_UPTIME_SECONDS=round(uptime_sec, 1),
        )

    def _not_armed(self, error: CannotArm | ImageNotBuilt) -> None:
        self._last_load_was_good = False
        loaded = self._kernel_files.crash_loaded
        current = self._loader.loaded_request()
        status = Status(
            # After a failed change the previous crash kernel may have been loaded again.
            state=ArmState.ARMED if loaded and current else ArmState.NOT_ARMED,
            reason=error.reason,
            explanation=error.explanation(),
            loaded=loaded,
            reserved_bytes=self._reserved_bytes,
        )
        if current is not None:
            status = replace(
                status,
                kernel=current.kernel.path,
                image=current.initramfs.path,
                command_line=current.command_line,
                environment="initramfs" if current.added_files else "rootfs",
            )
        self._publish(status)
        fields: dict[str, str | int] = {
            "KDUMP_REASON": error.reason,
            "KDUMP_RESERVED_BYTES": status.reserved_bytes,
        }
        if status.state is ArmState.ARMED:
            log.event(
                logger,
                logging.WARNING,
                log.MessageId.STILL_ARMED,
                f"What is asked for cannot be loaded, and {status.kernel} stays loaded as it was: "
                f"{error.explanation()}",
                **fields,
                KDUMP_KERNEL=status.kernel,
                KDUMP_IMAGE=status.image,
            )
        else:
            log.event(
                logger,
                logging.ERROR,
                log.MessageId.NOT_ARMED,
                f"Not armed: {error.explanation()}",
                **fields,
            )

    def _with_remark(self, status: Status) -> Status:
        """The status, with what is wrong although the machine is armed, if anything is."""
        if status.reason:
            return status
        if self._files.errors:
            first = self._files.errors[0]
            return replace(status, reason=first.reason, explanation=first.explanation())
        environment = self._environment
        if environment is not None and environment.remark:
            if self._not_built is not None and self._not_built[0] == environment.wanted:
                error = self._not_built[1]
                return replace(status, reason=error.reason, explanation=error.explanation())
            return replace(status, reason=environment.remark, explanation=environment.explanation)
        if status.environment == "rootfs" and self._kernel_files.root_is_encrypted:
            return replace(status, reason="root-encrypted", explanation=_ROOT_ENCRYPTED)
        return status

    def _log_config_errors(self) -> None:
        for error in self._files.errors:
            log.event(
                logger,
                logging.ERROR,
                log.MessageId.BAD_CONFIGURATION,
                error.explanation(),
                KDUMP_REASON=error.reason,
            )

    def _publish(self, status: Status) -> None:
        with self._lock:
            if status != self._status:
                self._status = status
                self._on_change(status)


def _images(request: LoadRequest) -> tuple[object, object]:
    return request.kernel, request.initramfs
