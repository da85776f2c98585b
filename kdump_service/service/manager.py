# SPDX-License-Identifier: LGPL-2.1-or-later
"""Keeps the machine armed: the acts that the bus, signals and start-up ask for, and the state they leave.

All acts are synchronous and may take seconds (the kernel copies and verifies images); the daemon runs them
one after the other in a worker thread. Each ends in a new Status, which listeners are handed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from kdump_service import log
from kdump_service.arm.loader import Loader, LoadRequest
from kdump_service.arm.plan import plan_load, write_capture_settings
from kdump_service.config import Config, read_config
from kdump_service.errors import CannotArm, ConfigError, KdumpError
from kdump_service.kernel.files import KernelFiles
from kdump_service.quantity import format_bytes
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
        self._config = Config()
        self._config_errors: list[ConfigError] = []
        self._disarmed_on_request = False
        self._reserved_bytes = 0
        self._status = Status()
        self._lock = threading.RLock()
        """Guards _status: acts run in a worker thread, questions are answered in the main thread."""

    @property
    def config(self) -> Config:
        """The configuration in force."""
        return self._config

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
        self._config, self._config_errors = read_config(self._kernel_files.root)
        self._log_config_errors()
        try:
            self.arm()
        except KdumpError as error:
            logger.debug("not armed at start: %s", error)  # arm() has told the journal

    def reload(self) -> None:
        """Read the configuration anew and load what it asks for now.

        Raises ConfigError, and then the old configuration stays in force, or CannotArm.
        """
        config, config_errors = read_config(self._kernel_files.root)
        if config_errors:
            self._config_errors = config_errors
            self._log_config_errors()
            self._publish(self._with_remark(self._status))
            raise ConfigError("\n".join(str(error) for error in config_errors), config_errors[0].hint)
        self._config, self._config_errors = config, []
        if self._disarmed_on_request:
            logger.info("configuration read; staying disarmed, as requested")
            return
        self.arm()

    def arm(self) -> None:
        """Load the crash kernel unless exactly what is wanted is loaded. Raises CannotArm or its kinds."""
        self._disarmed_on_request = False
        loaded = self._loader.loaded_request()
        try:
            self._reserved_bytes = self._loader.reserved_bytes()
            wanted = plan_load(self._kernel_files, self._config)
            if loaded != wanted:
                self._publish(replace(self._status, state=ArmState.ARMING, reason="", explanation=""))
                self._load(wanted, loaded)
        except CannotArm as error:
            self._not_armed(error)
            raise
        finally:
            self._save_capture_settings()  # also for what another program may have loaded
        self._armed(wanted, adopted=loaded == wanted)

    def disarm(self) -> None:
        """Unload the crash kernel, and stay so until the next arm or restart. Raises CannotArm."""
        self._loader.unload()
        self._disarmed_on_request = True
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

    def _load(self, wanted: LoadRequest, loaded: LoadRequest | None) -> None:
        try:
            self._loader.load(wanted)
        except CannotArm:
            # The kernel has dropped what was loaded. An older image that still exists is better than none.
            if loaded is not None and self._restore(loaded):
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
        try:
            write_capture_settings(self._kernel_files, self._config)
        except OSError as error:
            # The capture boot then uses what was written before, or defaults.
            logger.warning("settings of the capture boot cannot be written, ignoring: %s", error)

    def _armed(self, request: LoadRequest, *, adopted: bool) -> None:
        status = Status(
            state=ArmState.ARMED,
            loaded=self._kernel_files.crash_loaded,
            reserved_bytes=self._reserved_bytes,
            kernel=request.kernel.path,
            image=request.initramfs.path,
            command_line=request.command_line,
        )
        self._publish(self._with_remark(status))
        how = "was already loaded" if adopted else "loaded"
        log.event(
            logger,
            logging.INFO,
            log.MessageId.ARMED,
            f"Armed: {request.kernel.path} {how} into {format_bytes(status.reserved_bytes)} reserved",
            KDUMP_KERNEL=request.kernel.path,
            KDUMP_IMAGE=request.initramfs.path,
            KDUMP_COMMAND_LINE=request.command_line,
            KDUMP_RESERVED_BYTES=status.reserved_bytes,
        )

    def _not_armed(self, error: CannotArm) -> None:
        loaded = self._kernel_files.crash_loaded
        status = Status(
            # After a failed change the previous crash kernel may have been loaded again.
            state=ArmState.ARMED if loaded and self._loader.loaded_request() else ArmState.NOT_ARMED,
            reason=error.reason,
            explanation=error.explanation(),
            loaded=loaded,
            reserved_bytes=self._reserved_bytes,
        )
        current = self._loader.loaded_request()
        if current is not None:
            status = replace(
                status,
                kernel=current.kernel.path,
                image=current.initramfs.path,
                command_line=current.command_line,
            )
        self._publish(status)
        log.event(
            logger,
            logging.ERROR,
            log.MessageId.NOT_ARMED,
            f"Not armed: {error.explanation()}",
            KDUMP_REASON=error.reason,
            KDUMP_RESERVED_BYTES=status.reserved_bytes,
        )

    def _with_remark(self, status: Status) -> Status:
        """The status, with what is wrong although the machine is armed, if anything is."""
        if status.reason:
            return status
        if self._config_errors:
            first = self._config_errors[0]
            return replace(status, reason=first.reason, explanation=first.explanation())
        if self._kernel_files.root_is_encrypted:
            return replace(status, reason="root-encrypted", explanation=_ROOT_ENCRYPTED)
        return status

    def _log_config_errors(self) -> None:
        for error in self._config_errors:
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
