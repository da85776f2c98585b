# SPDX-License-Identifier: LGPL-2.1-or-later
"""reserve, from what a client asks for to the unit that does it, and back."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdump_service.errors import ConfigError, InvalidArgument, KdumpError, NotReady, ProgramFailed
from kdump_service.kernel.files import KernelFiles
from kdump_service.reserve.main import answer_request
from kdump_service.reserve.request import REQUEST_FILE, RESULT_FILE, Request, crashkernel_words
from kdump_service.service import reservation
from kdump_service.service.reservation import ReserveOptions, reserve, size_notes, wanted_words
from tests.builders.boot_trees import BootTree, debian_grub
from tests.builders.machine_root import MachineRoot

REPOSITORY = Path(__file__).parents[3]
GIB = 1 << 30
MEMORY = (8 * GIB - (100 << 20), 8 * GIB)
DROP_IN = "etc/default/grub.d/zz-kdump-service.cfg"


class _Bench:
    """A Debian machine, and the unit, which runs when it is started."""

    def __init__(self, path: Path) -> None:
        self.machine = MachineRoot(path)
        (path / "boot/grub/grub.cfg").unlink()
        self.tree = debian_grub(BootTree(path))
        self.tree.write("proc/cmdline", "root=/dev/vda ro quiet\n")
        self.started: list[str] = []
        self.requests: list[str] = []
        self.breaks = False
        (path / "run/kdump-service").mkdir(parents=True)

    def run(self, command: list[str], *, timeout_sec: float) -> str:
        """As systemctl does, for the daemon."""
        self.started.append(" ".join(command))
        path = self.tree.path / REQUEST_FILE
        assert path.stat().st_mode & 0o777 == 0o600
        self.requests.append(path.read_text())
        if self.breaks or not answer_request(self.tree.path, self.tree.run):
            raise ProgramFailed("systemctl start kdump-reserve.service: exit status 1")
        return ""

    def reserve(self, size: str = "256M", recommended: int = 0, **options: object) -> dict[str, object]:
        """The method Reserve."""
        values = {name.replace("_", "-"): value for name, value in options.items()}
        files = KernelFiles(self.tree.path)
        return dict(reserve(files, size, ReserveOptions.from_values(values), recommended, 0))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Bench:
    made = _Bench(tmp_path)
    monkeypatch.setattr(reservation, "run", made.run)
    return made


def test_the_whole_way(bench: _Bench) -> None:
    result = bench.reserve()
    assert bench.started == ["systemctl start kdump-reserve.service"]
    assert result["BootLoader"] == "grub"
    assert result["Words"] == "crashkernel=256M"
    assert result["Files"] == [f"/{DROP_IN}"]
    assert result["Commands"] == ["update-grub"]
    assert result["Applied"] is True
    assert result["Notes"] == ["To be reserved: 256 MiB."]
    assert "+GRUB_CMDLINE_LINUX_DEFAULT=" in str(result["Diff"])
    assert "crashkernel=256M" in bench.tree.read("boot/grub/grub.cfg")
    assert not (bench.tree.path / REQUEST_FILE).exists()


def test_a_dry_run(bench: _Bench) -> None:
    before = bench.tree.all_files()
    result = bench.reserve(dry_run=True)
    assert (result["Applied"], result["Commands"]) == (False, ["update-grub"])
    after = {name: text for name, text in bench.tree.all_files().items() if not name.startswith("run/")}
    assert after == before
    assert bench.tree.ran == []


def test_there_and_back(bench: _Bench) -> None:
    bench.reserve()
    assert bench.reserve("", revert=True, dry_run=True)["Files"] == [f"/{DROP_IN}"]
    result = bench.reserve("", revert=True)
    assert (result["Words"], result["Applied"], result["Notes"]) == ("", True, [])
    assert not (bench.tree.path / DROP_IN).exists()
    with pytest.raises(ConfigError, match="there is nothing to take back"):
        bench.reserve("", revert=True)


def test_what_the_unit_meets_is_what_the_caller_is_told(bench: _Bench) -> None:
    bench.tree.failing = {"update-grub"}
    with pytest.raises(ProgramFailed, match=r"^update-grub: exit status 1: made to fail"):
        bench.reserve()
    bench.breaks = True
    with pytest.raises(ProgramFailed, match=r"^systemctl start kdump-reserve\.service"):
        bench.reserve()
    assert not (bench.tree.path / REQUEST_FILE).exists()


def test_an_answer_to_somebody_else_is_none(bench: _Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, timeout_sec: float) -> str:
        bench.tree.write(RESULT_FILE, '{"id": "other", "result": {}}')
        return ""

    monkeypatch.setattr(reservation, "run", run)
    with pytest.raises(KdumpError, match="left no answer: it is of another request"):
        bench.reserve()


def test_where_the_request_cannot_be_written(bench: _Bench) -> None:
    (bench.tree.path / "run/kdump-service").rmdir()
    with pytest.raises(KdumpError, match="cannot be asked: "):
        bench.reserve()


def test_without_a_boot_loader(bench: _Bench) -> None:
    for path in bench.tree.path.glob("etc/default/*"):
        if path.is_file():
            path.unlink()
    result = bench.reserve()
    assert (result["BootLoader"], result["Applied"], result["Files"]) == ("", False, [])
    assert "Add to the kernel's command line: crashkernel=256M" in result["Notes"]  # type: ignore[operator]


# What is asked for


@pytest.mark.parametrize(
    ("size", "cma", "words"),
    [
        ("256M", None, ["crashkernel=256M"]),
        ("256M", "", ["crashkernel=256M,cma", "crashkernel=256M"]),
        ("256M@16M", "", ["crashkernel=256M,cma", "crashkernel=256M@16M"]),
        ("1G-:256M", "512M", ["crashkernel=512M,cma", "crashkernel=1G-:256M"]),
        ("auto", None, ["crashkernel=209M"]),
        ("", "", ["crashkernel=209M,cma", "crashkernel=209M"]),
    ],
)
def test_words(size: str, cma: str | None, words: list[str]) -> None:
    options = ReserveOptions(cma=cma)
    assert list(wanted_words(size, options, (208 << 20) + 1, MEMORY)) == words


@pytest.mark.parametrize(
    ("size", "cma", "why"),
    [
        (
            "8G",
            None,
            "the kernel of this machine would reserve nothing: '8G': this machine has 8.00 GiB only",
        ),
        ("1G-:9G", None, "is not less than this machine's"),
        ("256M;reboot", None, "the kernel does not take this"),
        ("256M crashkernel=1G", None, "the kernel does not take this"),
        ("256M\nX=1", None, "the kernel does not take this"),
        ("$(id)", None, "the kernel does not take this"),
        ("256M,cma", None, "which has to hold the crash kernel"),
        ("1G,high", "", "besides ,high reserves nothing"),
        ("1G-:256M", "", "does not follow from ranges"),
        ("256M", "1G-:1G", "as an area of CMA"),
        ("256M", "0", "as an area of CMA"),
        ("256M", "x", "as an area of CMA"),
        ("256M", "1G,cma crashkernel=1M", "as an area of CMA"),
    ],
)
def test_what_cannot_be_set(size: str, cma: str | None, why: str) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(why)):
        wanted_words(size, ReserveOptions(cma=cma), 0, MEMORY)


def test_nothing_to_recommend() -> None:
    with pytest.raises(NotReady, match="nothing yet"):
        wanted_words("auto", ReserveOptions(), 0, MEMORY)


def test_taking_back_takes_no_size() -> None:
    assert wanted_words("", ReserveOptions(revert=True), 0, MEMORY) == ()
    for size, cma in (("256M", None), ("", "")):
        with pytest.raises(InvalidArgument, match="has no size"):
            wanted_words(size, ReserveOptions(revert=True, cma=cma), 0, MEMORY)


@pytest.mark.parametrize(
    "values", [{"shell": "id"}, {"dry-run": "yes"}, {"cma": True}, {"dry_run": True}, {"": 1}]
)
def test_options_that_are_none(values: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="is no option of Reserve"):
        ReserveOptions.from_values(values)


@pytest.mark.parametrize(
    ("words", "notes"),
    [
        (
            ["crashkernel=5G"],
            ["To be reserved: 5.00 GiB.", "That is more than half of this machine's 8.00 GiB."],
        ),
        (
            ["crashkernel=1G-4G:1M,4G-:2M"],
            ["To be reserved: by the size of memory: 1.00 MiB from 1.00 GiB to less than 4.00 GiB; 2.00 MiB "
             "from 4.00 GiB on.", "On this machine, with 8.00 GiB: 2.00 MiB."],
        ),
        (
            ["crashkernel=1G-4G:1M"],
            ["To be reserved: by the size of memory: 1.00 MiB from 1.00 GiB to less than 4.00 GiB.",
             "On this machine, with 8.00 GiB: nothing."],
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_a_size(words: list[str], notes: list[str]) -> None:
    assert size_notes(words, MEMORY) == notes


def test_what_is_said_of_cma() -> None:
    notes = size_notes(["crashkernel=512M,cma", "crashkernel=256M"], MEMORY)
    assert notes[1] == "To be reserved besides: 512 MiB more, which processes may use until the crash."
    assert notes[-1].startswith("A kernel that does not know ,cma reserves the last word only")


# What the unit believes


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"id": "x"}', '{"id": 1, "words": [], "dry_run": true}',
     '{"id": "x", "words": "crashkernel=1M", "dry_run": true}',
     '{"id": "x", "words": ["quiet"], "dry_run": true}',
     '{"id": "x", "words": ["crashkernel=256M;id"], "dry_run": false}',
     '{"id": "x", "words": ["crashkernel=256M init=/bin/sh"], "dry_run": false}',
     '{"id": "x", "words": ["crashkernel=256M", "init=/bin/sh"], "dry_run": false}',
     '{"id": "x", "words": ["crashkernel=256M", "crashkernel=1G,cma"], "dry_run": false}',
     '{"id": "x", "words": [1], "dry_run": false}'],
)  # fmt: skip
def test_a_request_that_is_none(tmp_path: Path, text: str) -> None:
    tree = debian_grub(BootTree(tmp_path))
    tree.write(REQUEST_FILE, text)
    before = tree.all_files()
    with pytest.raises(InvalidArgument):
        answer_request(tmp_path, tree.run)
    assert (tree.all_files(), tree.ran) == (before, [])


def test_a_request_counts_once(tmp_path: Path) -> None:
    tree = debian_grub(BootTree(tmp_path))
    tree.write(REQUEST_FILE, Request("x", ("crashkernel=256M",)).to_json())
    assert answer_request(tmp_path, tree.run)
    with pytest.raises(InvalidArgument, match="nothing was asked for"):
        answer_request(tmp_path, tree.run)
    assert json.loads(tree.read(RESULT_FILE))["result"]["applied"] is True


@given(
    st.sampled_from(["256M", "1G-4G:192M,4G-:256M", "256M@16M"]), st.sampled_from([None, "64M", "0x100000"])
)
def test_a_request_is_read_as_it_is_written(size: str, cma: str | None) -> None:
    request = Request("id", crashkernel_words(size, cma), True)
    assert Request.from_json(request.to_json()) == request


def test_the_unit_may_write_where_it_has_to() -> None:
    unit = (REPOSITORY / "units/kdump-reserve.service").read_text()
    [paths] = re.findall(r"^ReadWritePaths=(.*)$", unit, re.MULTILINE)
    assert {path.lstrip("-") for path in paths.split()} == {
        "/etc", "/boot", "/efi", "/usr/lib/modules", f"/{Path(REQUEST_FILE).parent}",
    }  # fmt: skip
    assert f"ConditionPathExists=/{REQUEST_FILE}" in unit
