# SPDX-License-Identifier: LGPL-2.1-or-later
"""Builds the capture image that this machine needs, and proves it: the verb ``build-image``.

What a capture loads is found by running one; the same run inside the image must save the same bytes. Nothing
that exists is touched before that: the image that is armed stays until the new one is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import py_compile
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard

from kdump_service import log
from kdump_service.atomic_file import write_atomically
from kdump_service.errors import ImageNotBuilt, KdumpError, ProgramFailed
from kdump_service.image.dracut import DRACUT, DRACUT_MODULE, collect, dracut_is_installed
from kdump_service.image.kernel_config import configuration_file, unpacks_lz4_among_archives
from kdump_service.image.layout import BUILD_ANEW_FILE, BUILD_STATUS_FILE
from kdump_service.image.modules import find_firmware, firmware_names, module_files
from kdump_service.image.pack import pack
from kdump_service.image.recipe import Recipe
from kdump_service.image.store import ImageStore, Manifest, Source, sha256_of
from kdump_service.image.wanted import wanted_recipe
from kdump_service.kernel.files import KernelFiles
from kdump_service.kernel.free_room import MAKE_ROOM, NO_ROOM, check_room, no_room_in
from kdump_service.process import run
from kdump_service.quantity import format_bytes, format_seconds, format_utc

__all__ = ["build_image", "run_build_image"]

logger = logging.getLogger(__name__)

SPECIMEN = "usr/lib/kdump-service/specimen.vmcore.zst"
_SPECIMEN_BYTES = 64 << 20
"""More than that is not unpacked."""
_NEEDED_BYTES = 300 << 20
"""A tree of 65 MB, the archive that dracut makes of it, four dumps of the specimen, the image; and some room
for others."""
_TRIAL_SEC = 300.0
_NO_FILES_TIME = -1
"""Of a source that cannot be current by size and time: its content is compared each time."""

_PYTHON_LINE = re.compile(rb"(#! ?/\S*python[0-9.]*)(?: (-[BEIOPRSbdqsuv]+))?(?=\n)")
"""With options of python(1) that take no argument: others can be put behind them."""

STAGES = {"trying": 0.0, "collecting": 0.14, "proving": 0.76, "packing": 0.84}
"""What part of a build's time has gone by when each begins; of one in an emulated Debian 12."""


def build_image(
    root: Path,
    recipe: Recipe,
    on_stage: Callable[[str], object] = lambda stage: None,
    *,
    anew: bool = False,
) -> Manifest:
    """Build, prove and keep, unless what is there is current; ``anew``, also then. Waits for another build's
    end. Raises ImageNotBuilt, with what to do; then nothing has changed.

    ``root`` is / but for tests of what comes before dracut, which works on the running system.
    """
    store = ImageStore(root)
    try:
        store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(store.folder):
            # Asked only here: the build that was waited for may have made what is wanted.
            current = None if anew else store.current(recipe)
            if current is not None:
                logger.info("The capture image is current: %s", current.path)
                return current
            if not dracut_is_installed(root):
                raise ImageNotBuilt(
                    "dracut is not installed", "Install it (Debian: dracut-core), or set Environment=rootfs."
                )
            _clear(store.folder)
            check_room(store.folder, _NEEDED_BYTES, ImageNotBuilt, "a build needs")
            with tempfile.TemporaryDirectory(prefix="build-", dir=store.folder) as folder:
                return _build(root, recipe, store, Path(folder), on_stage)
    except ProgramFailed as error:
        raise ImageNotBuilt(str(error), _hint(error)) from error
    except zstandard.ZstdError as error:
        raise ImageNotBuilt(f"/{SPECIMEN} is damaged: {error}", "Install kdump-service anew.") from error
    except OSError as error:
        hint = MAKE_ROOM if error.errno in NO_ROOM else ""
        raise ImageNotBuilt(f"{error.filename or store.folder}: {error.strerror}", hint) from error


def _hint(error: ProgramFailed, otherwise: str = "See: journalctl -u 'kdump-build-image@*'") -> str:
    """What to do about a program that failed."""
    return MAKE_ROOM if no_room_in(str(error)) else otherwise


def _build(
    root: Path,
    recipe: Recipe,
    store: ImageStore,
    work: Path,
    on_stage: Callable[[str], object],
) -> Manifest:
    started = time.monotonic()
    on_stage("trying")
    trial = work / "trial"
    _lay_out_specimen(root, trial)
    outside = _run_trial([], trial)
    on_stage("collecting")
    began_nsec = time.time_ns()
    tree = collect(recipe.release, recipe.all_drivers, outside["files"], work)
    sources = _sources(root, tree, recipe.release, began_nsec)
    missing = _missing_firmware(tree, recipe)
    _leave_out_python_sources(tree)
    on_stage("proving")
    _prove(tree, trial, outside["captures"])
    shutil.rmtree(trial)
    on_stage("packing")
    image = work / "image"
    packed = pack(
        tree, recipe.release, recipe.all_drivers, image, work,
        lz4_unpacks=unpacks_lz4_among_archives(root, recipe.release),
    )  # fmt: skip
    with open(image, "rb+") as file:
        os.fsync(file.fileno())
    manifest = Manifest(
        recipe=recipe,
        sources=sources,
        image_sha256=sha256_of(image),
        image_bytes=image.stat().st_size,
        unpacked_bytes=packed.unpacked_bytes,
        peak_bytes=packed.peak_bytes,
        built=format_utc(time.time()),
        build_seconds=round(time.monotonic() - started, 1),
        packing=packed.packing,
        missing_firmware=missing,
    )
    kept = store.keep(manifest, image)
    logger.info(
        "Capture image built for Linux %s in %s: %s, %s",
        recipe.release,
        format_seconds(kept.build_seconds),
        kept.path,
        format_bytes(kept.image_bytes),
    )
    return kept


# One build at a time, in an empty place


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits for the build that is under way, perhaps of another kernel's image; TimeoutStartSec= of the unit
    is the limit."""
    with open(folder / "lock", "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("Another build is under way, waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _clear(folder: Path) -> None:
    """What a build that was killed left behind."""
    for path in folder.glob("build-*"):
        shutil.rmtree(path)


# Trial runs


def _lay_out_specimen(root: Path, trial: Path) -> None:
    (trial / "proc").mkdir(parents=True)
    content = (root / SPECIMEN).read_bytes()
    vmcore = zstandard.ZstdDecompressor().decompress(content, max_output_size=_SPECIMEN_BYTES)
    with open(trial / "proc/vmcore", "wb") as file:
        for offset in range(0, len(vmcore), 4096):
            page = vmcore[offset : offset + 4096]
            if page.count(0) == len(page):  # a hole: nearly all of it is zeros
                file.seek(len(page), os.SEEK_CUR)
            else:
                file.write(page)
        file.truncate(len(vmcore))


def _run_trial(before: list[str], folder: Path) -> dict[str, Any]:
    """The captures and files of capture.trial.run_capture_trial."""
    said = run([*before, "/usr/bin/kdump-service", "capture-trial", str(folder)], timeout_sec=_TRIAL_SEC)
    try:
        result: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError) as error:
        raise ImageNotBuilt(
            f"the trial of a capture printed nothing that can be read: {said[-200:]!r}"
        ) from error
    return result


def _prove(tree: Path, trial: Path, expected: Mapping[str, Any]) -> None:
    """The capture inside the image saves what the one outside saved."""
    inside = tree / "run/trial"
    (inside / "proc").mkdir(parents=True)
    try:
        (trial / "proc/vmcore").rename(inside / "proc/vmcore")
        got = _run_trial(["chroot", str(tree)], Path("/run/trial"))["captures"]
    except ProgramFailed as error:
        raise ImageNotBuilt(
            f"a capture inside the new image fails: {error}",
            _hint(error, "Please report this, with your distribution's name."),
        ) from error
    finally:
        shutil.rmtree(inside)
    for form, captured in expected.items():
        if got.get(form) != captured:
            raise ImageNotBuilt(
                f"a capture inside the new image ({form}) does not save what one outside saves: "
                f"{got.get(form)} instead of {captured}",
                "Please report this, with your distribution's name.",
            )


# What goes in


def _sources(root: Path, tree: Path, release: str, began_nsec: int) -> dict[str, Source]:
    """The files of the machine that went in: those of the same path and content; and what decided about
    them. ``began_nsec``, since the epoch, is when dracut began to copy.

    A file that was replaced or removed since is in the manifest as what went in: so the image is outdated
    from the start, and is built again.
    """
    found = {}
    for folder, _, names in os.walk(tree):
        for name in names:
            inside = Path(folder) / name
            path = f"/{inside.relative_to(tree)}"
            if inside.is_symlink() or not inside.is_file():
                continue
            source = _source_of(root / path.lstrip("/"), inside)
            if source is None and _was_replaced(root, path, began_nsec):
                logger.info("%s has changed since it was copied: the image will be built again", path)
                source = Source(inside.stat().st_size, _NO_FILES_TIME, sha256_of(inside))
            if source is not None:
                found[path] = source
    decided = [root / path for path in (DRACUT, DRACUT_MODULE, SPECIMEN)]
    if (configuration := configuration_file(root, release)) is not None:
        decided.append(configuration)
    for outside in decided:
        found[f"/{outside.relative_to(root)}"] = _source(outside)
    return found


def _missing_firmware(tree: Path, recipe: Recipe) -> tuple[str, ...]:
    """What drivers of the image may ask for and dracut did not find."""
    names = firmware_names(module_files(recipe.release, recipe.all_drivers))
    return tuple(name for name in names if find_firmware(tree, recipe.release, name) is None)


def _source_of(outside: Path, inside: Path) -> Source | None:
    """The file outside, if it is what is inside."""
    try:
        source = _source(outside) if outside.is_file() else None
    except FileNotFoundError:  # removed just now
        return None
    if source is None or source.size_bytes != inside.stat().st_size or source.sha256 != sha256_of(inside):
        return None
    return source


def _was_replaced(root: Path, path: str, began_nsec: int) -> bool:
    """Whether a file that is not what is inside may have been so when it was copied. Those that dracut edits
    or makes differ, too, but nobody has changed them outside since ``began_nsec``, or the folder that would
    hold them. Only in /etc it makes some beside files that others write at any time."""
    outside = root / path.lstrip("/")
    if path.startswith("/etc/") and not outside.exists():
        return False
    for place in (outside, *outside.parents):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            # rename(2) and unlink(2) count, too. A time to come is of a clock that was set back.
            return began_nsec <= place.stat().st_ctime_ns <= time.time_ns()
    return False


def _source(path: Path) -> Source:
    status = path.stat()
    return Source(status.st_size, int(status.st_mtime), sha256_of(path))


def _leave_out_python_sources(tree: Path) -> None:
    """Modules in their compiled form alone, where the interpreter looks for such: beside the source's place.
    Without docstrings, too: a tenth of the image is saved, and 2 MB of the capture's memory."""
    level = 2 if _run_without_docstrings(tree / "usr/bin/kdump-service") else 0
    sources = list(tree.rglob("*.py"))
    for source in sources:
        py_compile.compile(
            str(source), str(source.with_suffix(".pyc")), dfile=f"/{source.relative_to(tree)}", doraise=True,
            optimize=level, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
        )  # fmt: skip
    for source in sources:  # only now: some are links to others
        source.unlink()
    for cached in list(tree.rglob("__pycache__")):
        shutil.rmtree(cached)


def _run_without_docstrings(program: Path) -> bool:
    """Have the program run by ``python -OO``: numpy asks for that before it adds to docstrings. False, and
    nothing done, if it begins in a way that is not known."""
    content = program.read_bytes()
    begin = _PYTHON_LINE.match(content)
    if begin is None:
        return False
    mode = program.stat().st_mode
    program.unlink()  # it may be one file with the system's own
    # The kernel hands over all that follows the interpreter as one argument (execve(2)).
    program.write_bytes(begin[1] + b" " + (begin[2] or b"-") + b"OO" + content[begin.end() :])
    program.chmod(mode)
    return True


# The verb


def run_build_image(release: str | None) -> int:
    """Entry of the verb ``build-image``: build what is wanted for the kernel of this release, or of the
    running one, if it is not there; returns the exit code."""
    log.to_journal()
    root = Path("/")
    try:
        recipe = wanted_recipe(KernelFiles(root), release)
        anew = (root / BUILD_ANEW_FILE).exists()
        (root / BUILD_ANEW_FILE).unlink(missing_ok=True)
        manifest = build_image(root, recipe, lambda stage: _tell(root, stage=stage), anew=anew)
    except KdumpError as error:
        _tell(root, error=str(error), hint=error.hint)
        logger.error("No capture image: %s", error.explanation())
        return error.exit_code
    _tell(root, image=str(manifest.path))
    return 0


def _tell(root: Path, **document: str) -> None:
    """For the daemon, which shows how far the build is, and what became of it."""
    told: dict[str, str | float] = {**document}
    if "stage" in document:
        logger.info("Building the capture image: %s", document["stage"])
        told["done"] = STAGES[document["stage"]]
    try:
        write_atomically(root / BUILD_STATUS_FILE, json.dumps(told) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written, ignoring: %s", BUILD_STATUS_FILE, error)
