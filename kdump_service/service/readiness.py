# SPDX-License-Identifier: LGPL-2.1-or-later
"""Would a crash now be captured? All checks together, in the order of what they find."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from kdump_service.arm.loader import Loader
from kdump_service.config import Config
from kdump_service.errors import ReservationTooSmall
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.mounts import holder_of
from kdump_service.quantity import parse_utc
from kdump_service.record import DumpRecord
from kdump_service.service.checks.aftermath import (
    crash_loop_problems,
    failed_test_problems,
    journal_problems,
)
from kdump_service.service.checks.arming import configuration_problems, image_problems, state_problems
from kdump_service.service.checks.capture_boot import (
    capture_unit_problems,
    command_line_problems,
    root_problems,
)
from kdump_service.service.checks.hardware import (
    hotplug_problems,
    watchdog_problems,
)
from kdump_service.service.checks.panic_triggers import panic_problems
from kdump_service.service.checks.program import loaded_modules, program_problems
from kdump_service.service.checks.reservation import (
    boot_loader_problems,
    memory_span_bytes,
    size_problems,
)
from kdump_service.service.checks.rivals import rival_problems
from kdump_service.service.checks.target import (
    TargetFacts,
    ask_target,
    free_bytes_at,
    mount_problems,
    target_problems,
)
from kdump_service.service.estimate import reservation_need
from kdump_service.service.problems import Problem, found, worst_first
from kdump_service.service.proof import Proof
from kdump_service.service.shrunk import shrunk_in_this_boot
from kdump_service.service.state import Status

__all__ = ["Readiness"]

_UNPROVEN = Proof()


class Readiness:
    """Runs the checks. Keeps what only a device can tell until the next :meth:`check`.

    For several threads: while one waits in :meth:`check` for the target, :meth:`quick` gives others what it
    answered before.
    """

    def __init__(
        self,
        kernel_files: KernelFiles,
        ask_target: Callable[[str], TargetFacts] = ask_target,
        loader: Loader | None = None,
        free_bytes_at: Callable[[str], int | None] = free_bytes_at,
    ) -> None:
        self._free_bytes_at = free_bytes_at
        self._kernel_files = kernel_files
        self._ask_target = ask_target
        self._loader = loader or Loader(kernel_files)
        self._modules = loaded_modules()
        self._records: Sequence[DumpRecord] = ()
        self._answer: tuple[str, TargetFacts, int | None] | None = None
        """Target that was asked, its facts, and the size that a dump was predicted to have."""

    @property
    def target_facts(self) -> TargetFacts | None:
        """What the target answered at the last :meth:`check`; None if it was not asked yet."""
        return None if self._answer is None else self._answer[1]

    def learn(self, records: Iterable[DumpRecord]) -> None:
        """The crashes on record: how long captures took, what they used, how often they came."""
        self._records = tuple(records)

    def quick(self, config: Config, status: Status, proof: Proof = _UNPROVEN) -> list[Problem]:
        """What kernel and local files say, and what the target answered last. Some milliseconds.

        ``proof``: what is known of what is armed.
        """
        return worst_first(self._quick(config, status, proof))

    def check(self, config: Config, status: Status, predicted_bytes: int | None) -> list[Problem]:
        """Everything, the target asked anew. Returns within ten seconds, whatever the target does.

        ``predicted_bytes``: what a dump would take at most, as
        :func:`kdump_service.service.estimate.dump_bytes` has it; None if that is not known.
        """
        root = self._kernel_files.root
        facts = self._ask_target(str(root / config.target.lstrip("/")))
        self._answer = (config.target, facts, predicted_bytes)
        return self.quick(config, status)

    def _quick(self, config: Config, status: Status, proof: Proof) -> list[Problem]:
        files = self._kernel_files
        loaded = self._loader.loaded_request()
        shrunk = shrunk_in_this_boot(files, status.reserved_bytes)
        problems: list[Problem] = []
        checks: tuple[tuple[str, Callable[[], Iterable[Problem]]], ...] = (
            ("the state", lambda: state_problems(status)),
            ("the configuration", lambda: configuration_problems(files.root, config)),
            ("the loaded images", lambda: image_problems(files, loaded)),
            ("the capture's units", lambda: capture_unit_problems(files.root)),
            ("the capture's command line", lambda: command_line_problems(status.command_line)),
            ("the root file system", lambda: root_problems(files) if status.environment == "rootfs" else ()),
            (
                "the reservation",
                lambda: size_problems(
                    files.command_line,
                    status.reserved_bytes,
                    reservation_need(files, config, self._records, loaded, status.reserved_bytes),
                    memory_span_bytes(files, status.reserved_bytes),
                    shrunk,
                    too_small=status.reason == ReservationTooSmall.reason,
                ),
            ),
            ("the boot loader's configuration", lambda: boot_loader_problems(files)),
            ("the target's mount", lambda: mount_problems(files, self._true_target(config))),
            ("the target", lambda: self._target_problems(config)),
            ("other tools", lambda: rival_problems(files)),
            ("watchdogs", lambda: watchdog_problems(files, status, self._longest_capture_sec())),
            ("memory and processors", self._hotplug),
            ("what makes the kernel panic", lambda: panic_problems(files)),
            ("the program's own files", lambda: program_problems(self._modules)),
            ("the last test", lambda: failed_test_problems(proof)),
            (
                "crashes before",
                lambda: crash_loop_problems(self._crash_times(), config.crash_loop_limit, time.time()),
            ),
            ("the journal's configuration", lambda: journal_problems(files.root)),
        )
        for subject, check in checks:
            try:
                problems += check()
            except (OSError, ValueError) as error:
                # One file that cannot be read hides no other fault.
                problems.append(
                    found(
                        "check-failed",
                        f"Cannot look at {subject}: {error}.",
                        "See that this file can be read.",
                    )
                )
        told = {problem.code for problem in problems[:1] if status.reason}
        # What the state says already is not said twice.
        return problems[:1] + [problem for problem in problems[1:] if problem.code not in told]

    def _true_target(self, config: Config) -> str:
        """The target without symbolic links, if it was asked; else as it is configured."""
        if self._answer is None or self._answer[0] != config.target:
            return config.target
        return self._true_path(self._answer[1])

    def _true_path(self, facts: TargetFacts) -> str:
        return facts.path.removeprefix(str(self._kernel_files.root).rstrip("/")) or "/"

    def _target_problems(self, config: Config) -> Iterable[Problem]:
        if self._answer is None or self._answer[0] != config.target:
            return ()
        return target_problems(config, self._with_room_of_now(self._answer[1]), self._answer[2], os.geteuid())

    def _with_room_of_now(self, facts: TargetFacts) -> TargetFacts:
        """Room goes without an event."""
        holder = holder_of(self._true_path(facts), self._kernel_files.mounts)
        if facts.free_bytes is None or holder is None or holder.may_hang:
            return facts
        return replace(facts, free_bytes=self._free_bytes_at(facts.path) or facts.free_bytes)

    def _hotplug(self) -> Iterable[Problem]:
        then = self._loader.hardware_of_the_load()
        return hotplug_problems(self._kernel_files, then) if then is not None else ()

    def _longest_capture_sec(self) -> float:
        return max((record.seconds_to_saved for record in self._records), default=0.0)

    def _crash_times(self) -> list[float]:
        times = []
        for record in self._records:
            if record.test:
                continue  # somebody asked for it
            try:
                times.append(float(parse_utc(record.crash_time)))
            except ValueError:  # the crashed kernel did not tell
                continue
        return times
