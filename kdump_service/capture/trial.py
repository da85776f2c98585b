# SPDX-License-Identifier: LGPL-2.1-or-later
"""Entry of the verb ``capture-trial``: a whole capture of a vmcore in a folder, without a crash.

A capture image is built and proven by it: it tells which files a capture loads, so that these and no others
go into the image; and what it saves from inside the image must be what it saves outside.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdump_service.capture.pipeline import Capture, Surroundings
from kdump_service.capture.small_numpy import load_numpy
from kdump_service.capture_settings import CAPTURE_SETTINGS_FILE, CaptureSettings
from kdump_service.config import Config
from kdump_service.kernel.files import KernelFiles

__all__ = ["run_capture_trial"]

FORMS = (("kdump", "zstd"), ("kdump", "zlib"), ("elf", "none"), ("elf", "lz4"))
"""Each brings code of its own."""

_NAMES = ("utf-8", "surrogateescape")

# What the verb `capture` loads beside this one. systemd's C extensions, the entry, and what a fault would
# need.
_LOADED_BY_THE_VERB = (
    "kdump_service.__main__",
    "kdump_service.capture.main",
    "kdump_service.capture.plain_copy",
    "kdump_service.kernel.reboot",
    # What a rehearsal's first boot needs to load the crash kernel.
    "ctypes",
    "systemd.daemon",
    "systemd.journal",
    "subprocess",
    "traceback",
)


def run_capture_trial(folder: str) -> int:
    """Capture ``proc/vmcore`` below ``folder`` in each form, into folders below it.

    Prints one line of JSON: ``captures``, by form: the record's state, its problems, and the SHA-256 of what
    each file but the record holds; ``files``: each file that the interpreter has loaded. Exit code 0 if all
    captures are complete and went without a problem.
    """
    logging.getLogger("kdump_service").addHandler(logging.NullHandler())
    root = Path(folder)
    loaded = _LoadedFiles()
    captures = {f"{form}-{codec}": _capture(root, form, codec, loaded.note) for form, codec in FORMS}
    for name in _LOADED_BY_THE_VERB:
        __import__(name)
    loaded.note()
    for form, captured in captures.items():
        for problem in captured["problems"]:
            print(f"{form}: {problem}", file=sys.stderr)
    print(json.dumps({"captures": captures, "files": loaded.all()}))
    good = all(each["state"] == "complete" and not each["problems"] for each in captures.values())
    return 0 if good else 1


def _capture(root: Path, form: str, codec: str, end_of_child: Callable[[], object]) -> dict[str, Any]:
    target = f"/trial-{form}-{codec}"
    config = Config(target=target, keep_free_bytes=0, format=form, compression=codec, threads=1)
    settings = CaptureSettings(host="trial", small_image=True, config=config)
    path = root / CAPTURE_SETTINGS_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings.to_json())
    surroundings = Surroundings(KernelFiles(root), notify=lambda text: None, end_of_child=end_of_child)
    record = Capture(surroundings).run()
    digests = {}
    for path in sorted((root / target.lstrip("/") / record.name).iterdir()):
        if path.name != "record.json":
            digests[path.name] = _digest(path, record.compression)
    problems = [f"{problem.stage}: {problem.message}" for problem in record.problems]
    return {"state": record.state, "problems": problems, "files": digests}


def _digest(path: Path, codec: str) -> str:
    """Of what a file holds. A page has several right encodings, and which one ISA-L takes differed in 2 of
    100 trials (measured, isal 1.9.1)."""
    if codec == "zlib" and path.name == "vmcore":
        load_numpy()
        from kdump_service.engine.verify import digest_of_pages  # noqa: PLC0415

        return digest_of_pages(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _LoadedFiles:
    """What this process and its children have loaded."""

    def __init__(self) -> None:
        self._file = os.fdopen(os.memfd_create("loaded"), "rb+", buffering=0)

    def note(self) -> None:
        """Add what is loaded in the process that calls this. A child shares the place in the file."""
        self._file.write("".join(f"{path}\0" for path in sorted(_loaded_files())).encode(*_NAMES))

    def all(self) -> list[str]:
        """All of it, in order."""
        self._file.seek(0)
        return sorted(set(self._file.read().decode(*_NAMES).split("\0")) - {""})


def _loaded_files() -> set[str]:
    """Modules, libraries, and what the interpreter itself looks for. Not the compiled form of modules: the
    image has its own, and that of the machine goes and comes at each upgrade."""
    found = set()
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if isinstance(path, str) and Path(path).is_file():
            found.add(path)
    standard = Path(os.__file__).parent
    # By these the interpreter knows where it lives (Modules/getpath.py).
    found |= {
        str(landmark) for landmark in (standard / "os.py", standard / "lib-dynload") if landmark.exists()
    }
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:  # inside an image that is tried there is no /proc, and nobody asks for the list
        maps = ""
    found |= {path for line in maps.splitlines() if (path := line[73:]).startswith("/") and ".so" in path}
    return found
