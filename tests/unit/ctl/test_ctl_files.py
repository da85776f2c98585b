# SPDX-License-Identifier: LGPL-2.1-or-later
"""What kdumpctl does with files: copies, bundles, symbols of kernels, pagers, completions."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection

from kdump_service.ctl import copying, pager
from kdump_service.ctl.agent import PasswordAgent
from kdump_service.ctl.copying import OutputFile, copy, open_output
from kdump_service.ctl.symbols import build_id_of, find_symbols, how_to_get
from kdump_service.errors import BadVmcore, TargetFull, TargetUnusable

REPOSITORY = Path(__file__).parents[3]
COMPLETION = REPOSITORY / "packaging/completion"


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    """A file of 64 MiB: 1 MiB of data, a hole, three bytes."""
    path = tmp_path / "source"
    with open(path, "wb") as file:
        file.write(os.urandom(1 << 20))
        file.seek(64 << 20)
        file.write(b"end")
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def _same(tmp_path: Path, target: Path) -> bool:
    return subprocess.run(["cmp", "-s", tmp_path / "source", target], check=False).returncode == 0


@pytest.mark.parametrize("by_range", [True, False])
def test_a_copy_is_sparse_and_private(
    tmp_path: Path, source: int, by_range: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not by_range:

        def refuse(*_: object) -> int:
            raise OSError(18, "Invalid cross-device link")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    told: list[tuple[int, int]] = []
    target = tmp_path / "copy"
    with open_output(str(target), force=False) as output:
        assert not target.exists()
        assert copy(source, output, lambda done, total: told.append((done, total))) == (64 << 20) + 3
    status = target.stat()
    assert _same(tmp_path, target)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_blocks * 512 < 4 << 20
    assert told[-1] == ((64 << 20) + 3, (64 << 20) + 3)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["copy", "source"]


def test_files_that_are_only_a_hole_or_empty(tmp_path: Path) -> None:
    for size in (0, 5 << 20):
        path = tmp_path / f"hole{size}"
        path.touch()
        os.truncate(path, size)
        descriptor = os.open(path, os.O_RDONLY)
        with open_output(str(tmp_path / f"copy{size}"), force=False) as output:
            copy(descriptor, output)
        os.close(descriptor)
        assert (tmp_path / f"copy{size}").stat().st_size == size


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path, source: int) -> None:
    target = tmp_path / "copy"
    for error in (KeyboardInterrupt, BadVmcore, SystemExit):
        with pytest.raises(error), open_output(str(target), force=False) as output:
            copy(source, output)
            raise error("")
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_what_exists_stays(tmp_path: Path, source: int) -> None:
    target = tmp_path / "copy"
    target.write_text("mine")
    with pytest.raises(TargetUnusable, match="File exists"), open_output(str(target), force=False):
        pass
    with pytest.raises(KeyboardInterrupt), open_output(str(target), force=True) as output:
        copy(source, output)
        assert target.read_text() == "mine"
        raise KeyboardInterrupt
    assert target.read_text() == "mine"
    with open_output(str(target), force=True) as output:
        copy(source, output)
    assert _same(tmp_path, target)


def test_what_comes_to_exist_meanwhile_stays(tmp_path: Path, source: int) -> None:
    target = tmp_path / "copy"
    with pytest.raises(TargetUnusable, match="File exists"), open_output(str(target), force=False) as output:
        copy(source, output)
        target.write_text("mine")
    assert target.read_text() == "mine"
    assert not (tmp_path / "copy.incomplete").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "copy").symlink_to(tmp_path / "nowhere")
    with pytest.raises(TargetUnusable), open_output(str(tmp_path / "copy"), force=False):
        pass
    (tmp_path / "other.incomplete").symlink_to(tmp_path / "victim")
    with pytest.raises(TargetUnusable), open_output(str(tmp_path / "other"), force=False):
        pass
    with open_output(str(tmp_path / "other"), force=True) as output:
        output.write(b"new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "other").read_text() == "new"


@pytest.mark.parametrize("where", ["", "no/such/folder"])
def test_where_nothing_can_be_written(tmp_path: Path, where: str) -> None:
    with pytest.raises(TargetUnusable), open_output(str(tmp_path / where), force=True):
        pass


def test_no_room(source: int) -> None:
    with pytest.raises(TargetFull), open_output("/dev/full", force=False) as output:
        copy(source, output)


def test_a_source_that_becomes_shorter(tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fstat

    def longer(descriptor: int) -> os.stat_result:
        status = list(real(descriptor))
        status[stat.ST_SIZE] += 5 if descriptor == source else 0
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", longer)
    for seekable in (True, False):
        descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
        with pytest.raises(BadVmcore, match="became shorter"):
            monkeypatch.setattr(copying, "_data_extents", lambda source, size: [(0, size)])
            copy(source, OutputFile("out", descriptor, seekable=seekable))
        os.close(descriptor)


def test_terminated_in_the_middle(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from kdump_service.ctl.copying import open_output, terminable\n"
        "with terminable(), open_output(sys.argv[1], force=False) as output:\n"
        "    output.write(b'some')\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False, timeout=30)
    assert done.returncode == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []


# Symbols

BUILD_ID = "3b43fad5034874490492495d552c0af6a5fab235"
RELEASE = "6.1.0-30-amd64"


def _elf(build_id: str, *, sections: bool, bits: int = 64, order: str = "<") -> bytes:
    """An ELF file with nothing but a build id, in a section or a segment; written by elf(5)."""
    note = struct.pack(f"{order}III4s", 4, len(build_id) // 2, 3, b"GNU\0") + bytes.fromhex(build_id)
    other = struct.pack(f"{order}III4s", 2, 3, 1, b"ab\0\0") + b"xyz\0"
    notes = other + note
    wide = bits == 64
    head_size = 64 if wide else 52
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    phentsize, shentsize = (56, 64) if wide else (32, 40)
    at = head_size
    head = ident + struct.pack(
        order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"),
        2, 62, 1, 0, 0 if sections else at, at if sections else 0, 0, head_size, phentsize,
        0 if sections else 1, shentsize, 1 if sections else 0, 0,
    )  # fmt: skip
    start = at + (shentsize if sections else phentsize)
    if sections:
        layout = "IIQQQQIIQQ" if wide else "IIIIIIIIII"
        table = struct.pack(order + layout, 0, 7, 0, 0, start, len(notes), 0, 0, 4, 0)
    elif wide:
        table = struct.pack(f"{order}IIQQQQQQ", 4, 0, start, 0, 0, len(notes), 0, 4)
    else:
        table = struct.pack(f"{order}IIIIIIII", 4, start, 0, 0, len(notes), 0, 0, 4)
    return head + table + notes


@pytest.mark.parametrize("sections", [True, False])
@pytest.mark.parametrize("bits", [64, 32])
@pytest.mark.parametrize("order", ["<", ">"])
def test_build_ids(tmp_path: Path, sections: bool, bits: int, order: str) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(_elf(BUILD_ID, sections=sections, bits=bits, order=order))
    with open(path, "rb") as file:
        assert build_id_of(file) == BUILD_ID


def test_build_id_of_a_real_program() -> None:
    with open(os.path.realpath(sys.executable), "rb") as file:
        section = ELFFile(file).get_section_by_name(".note.gnu.build-id")
        expected = next(section.iter_notes())["n_desc"] if isinstance(section, NoteSection) else ""
        file.seek(0)
        assert build_id_of(file) == expected


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", b"\x7fELF\x02\x01" + bytes(60)])
def test_what_has_no_build_id(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(content)
    with open(path, "rb") as file:
        try:
            assert build_id_of(file) == ""
        except ValueError as error:
            assert "ELF file" in str(error)


def test_a_damaged_file_ends_the_search_for_its_build_id(tmp_path: Path) -> None:
    whole = _elf(BUILD_ID, sections=True)
    for position in range(16, len(whole)):
        for value in (0x00, 0x7F, 0xFF):
            path = tmp_path / "vmlinux"
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            with open(path, "rb") as file:
                try:
                    build_id_of(file)
                except (ValueError, OSError):
                    continue


@pytest.mark.parametrize(
    "place",
    [
        f"usr/lib/debug/boot/vmlinux-{RELEASE}",
        f"usr/lib/debug/lib/modules/{RELEASE}/vmlinux",
        f"usr/lib/debug/.build-id/{BUILD_ID[:2]}/{BUILD_ID[2:]}.debug",
        f"lib/modules/{RELEASE}/build/vmlinux",
    ],
)
@pytest.mark.promise("debug-finds-symbols")
def test_symbols_are_found(tmp_path: Path, place: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_bytes(_elf(BUILD_ID, sections=True))
    found = find_symbols(RELEASE, BUILD_ID, root=tmp_path, debuginfod=False)
    assert (found.path, found.fits, found.rejected) == (path, True, [])
    if ".build-id" not in place:
        unknown = find_symbols(RELEASE, "", root=tmp_path, debuginfod=False)
        assert (unknown.path, unknown.fits) == (path, False)


@pytest.mark.promise("debug-finds-symbols")
def test_symbols_of_another_build_are_not_taken(tmp_path: Path) -> None:
    for place in (f"usr/lib/debug/boot/vmlinux-{RELEASE}", f"lib/modules/{RELEASE}/build/vmlinux"):
        (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / f"usr/lib/debug/boot/vmlinux-{RELEASE}").write_bytes(_elf("00" * 20, sections=True))
    (tmp_path / f"lib/modules/{RELEASE}/build/vmlinux").write_text("no ELF file")
    found = find_symbols(RELEASE, BUILD_ID, root=tmp_path, debuginfod=False)
    assert found.path is None
    assert [sentence.split(" ", 1)[1] for sentence in found.rejected] == [
        f"is of another build: its build id is {'00' * 20}, the kernel's {BUILD_ID}",
        "cannot be used: no ELF file",
    ]


@pytest.mark.parametrize(("release", "build_id"), [("../../../etc", ""), ("..", "../../x"), ("", "")])
def test_words_of_a_record_lead_nowhere(tmp_path: Path, release: str, build_id: str) -> None:
    found = find_symbols(release, build_id, root=tmp_path, debuginfod=False)
    assert (found.path, found.rejected) == (None, [])


def test_symbols_from_debuginfod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = tmp_path / "cache"
    fetched.write_bytes(_elf(BUILD_ID, sections=True))
    program = tmp_path / "bin/debuginfod-find"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ntest "$*" = "debuginfo {BUILD_ID}" && echo {fetched}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("DEBUGINFOD_URLS", raising=False)
    assert find_symbols(RELEASE, BUILD_ID, root=tmp_path).path is None
    monkeypatch.setenv("DEBUGINFOD_URLS", "https://debuginfod.example")
    assert find_symbols(RELEASE, BUILD_ID, root=tmp_path).path == fetched
    assert find_symbols(RELEASE, "ff" * 20, root=tmp_path).path is None


@pytest.mark.parametrize(
    ("os_release", "release", "advice"),
    [
        ("ID=debian\n", RELEASE, f"apt install linux-image-{RELEASE}-dbg"),
        ('ID=ubuntu\nID_LIKE="debian"\n', RELEASE, f"linux-image-{RELEASE}-dbgsym"),
        ("ID=fedora\n", "6.11.4-301.fc41.x86_64", "dnf debuginfo-install kernel-6.11.4-301.fc41.x86_64"),
        ('ID="almalinux"\nID_LIKE="rhel centos fedora"\n', "5.14.0", "dnf debuginfo-install kernel-5.14.0"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "6.4.0-1-default", "kernel-default-debuginfo"),
        ("", RELEASE, f"debug information of kernel {RELEASE}"),
    ],
)
def test_how_symbols_are_got(tmp_path: Path, os_release: str, release: str, advice: str) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text(os_release)
    text = how_to_get(release, BUILD_ID, root=tmp_path)
    assert advice in text
    assert BUILD_ID in text


# The pager


class _Terminal:
    def isatty(self) -> bool:
        return True

    def flush(self) -> None:
        pass


@pytest.mark.parametrize(
    ("environment", "command"),
    [
        ({}, ["less"]),
        ({"PAGER": "cat"}, []),
        ({"PAGER": ""}, []),
        ({"SYSTEMD_PAGER": "", "PAGER": "less"}, []),
        ({"PAGER": "less -X 'a b'"}, ["less", "-X", "a b"]),
        ({"PAGER": "no-such-pager"}, ["less"]),
        ({"PAGER": "'unbalanced"}, []),
        ({"PAGER": "vi", "SYSTEMD_PAGERSECURE": "1"}, ["less"]),
        ({"PAGER": "cat", "SYSTEMD_PAGERSECURE": "1"}, []),
    ],
)
def test_which_pager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], command: list[str]
) -> None:
    (tmp_path / "less").write_text("#!/bin/sh\n")
    (tmp_path / "less").chmod(0o755)
    for name in ("PAGER", "SYSTEMD_PAGER", "SYSTEMD_PAGERSECURE", "SUDO_UID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PATH": str(tmp_path), **environment}.items():
        monkeypatch.setenv(name, value)
    assert pager._command() == command


@pytest.mark.parametrize("reads", ["cat", "head -c 5", "true"])
def test_a_pager_gets_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str) -> None:
    program = tmp_path / "pager"
    program.write_text(
        f'#!/bin/sh\n{reads} > {tmp_path}/got\necho "$LESS" "$LESSSECURE" > {tmp_path}/options\n'
    )
    program.chmod(0o755)
    for name, value in (("SYSTEMD_PAGERSECURE", "0"), ("PAGER", str(program)), ("LESS", "none")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SYSTEMD_PAGER", raising=False)
    monkeypatch.setattr(sys, "stdout", _Terminal())
    text = "line\n" * 100_000  # more than a pipe holds
    pager.show(text)
    got = (tmp_path / "got").read_text()
    assert got == {"cat": text, "head -c 5": text[:5], "true": ""}[reads]
    assert (tmp_path / "options").read_text() == "FRSXMK \n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_pager_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGER", "false")
    pager.show("text")
    assert capsys.readouterr().out == "text\n"


# Completions


@pytest.fixture
def fake_kdumpctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kdumpctl that knows two dumps and two settings."""
    program = tmp_path / "bin/kdumpctl"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        '"list --quiet --no-legend --no-pager") echo "Mon 2026 complete 1 MiB oops 20261120T1-web";'
        ' echo "Mon 2026 missing - oops 20261121T1-web";;\n'
        '"config show --no-legend --no-pager") echo "Contents  user"; echo "KeepFree  128M";;\n'
        '"config get --allowed Contents") echo log; echo kernel;;\n'
        '"show") echo Name=x; echo CallTrace=a; echo CallTrace=b;;\n'
        "*) exit 60;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


COMPLETIONS = [
    (["d"], ["debug", "delete", "disarm", "dump"]),
    (["reb"], ["rebuild"]),
    (["info", "20261120"], ["20261120T1-web"]),
    (["delete", "20261120T1-web", "2026112"], ["20261120T1-web", "20261121T1-web"]),
    (["config", ""], ["get", "reset", "set", "show"]),
    (["config", "get", ""], ["Contents", "KeepFree"]),
    (["config", "reset", "Ke"], ["KeepFree"]),
    (["config", "set", "Contents", "k"], ["kernel"]),
    (["config", "set", "KeepFree", ""], []),
    (["show", "-p", "Call"], ["CallTrace"]),
    (["debug", "--debugger", "g"], ["gdb"]),
    (["keep", "--o"], ["--off"]),
    (["arm", ""], []),
]


@pytest.mark.usefixtures("fake_kdumpctl")
@pytest.mark.parametrize(("words", "expected"), COMPLETIONS)
def test_completion_of_bash(words: list[str], expected: list[str]) -> None:
    script = (
        'source "$1"; shift; COMP_WORDS=(kdumpctl "$@"); COMP_CWORD=$#; _kdumpctl; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", script, "bash", str(COMPLETION / "kdumpctl.bash"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    assert (sorted(done.stdout.split()), done.stderr) == (expected, "")


@pytest.mark.usefixtures("fake_kdumpctl")
@pytest.mark.parametrize(("words", "expected"), COMPLETIONS)
def test_completion_of_fish(tmp_path: Path, words: list[str], expected: list[str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    script = f"source {COMPLETION / 'kdumpctl.fish'}; complete -C '{' '.join(['kdumpctl', *words])}'"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        capture_output=True, text=True, check=True, timeout=30, env={**os.environ, "HOME": str(tmp_path)},
    )  # fmt: skip
    assert (sorted(line.split("\t")[0] for line in done.stdout.splitlines()), done.stderr) == (expected, "")


_ZSH = r"""
zmodload zsh/zpty
zpty z 'zsh -f -i'
zpty -w z 'PS1=; fpath=('$1' $fpath); autoload -Uz compinit; compinit -u -D; stty -echo
bindkey "^I" complete-word
_shown() { print -r -- "<<$BUFFER>>"; BUFFER= }; zle -N _shown; bindkey "^G" _shown; print REA""DY'
while zpty -r z line; do [[ $line == *READY* ]] && break; done
zpty -w -n z "$2"$'\t\a'
while zpty -r z line; do [[ $line == *'<<'*'>>'* ]] && { print -r -- $line; break }; done
zpty -d z
"""


@pytest.mark.usefixtures("fake_kdumpctl")
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("kdumpctl reb", "kdumpctl rebuild "),
        ("kdumpctl info 20261120", "kdumpctl info 20261120T1-web "),
        ("kdumpctl config g", "kdumpctl config get "),
        ("kdumpctl config reset Ke", "kdumpctl config reset KeepFree "),
        ("kdumpctl config set Contents k", "kdumpctl config set Contents kernel "),
        ("kdumpctl show -p Call", "kdumpctl show -p CallTrace "),
        ("kdumpctl keep --o", "kdumpctl keep --off "),
    ],
)
def test_completion_of_zsh(tmp_path: Path, typed: str, completed: str) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    done = subprocess.run(
        ["zsh", "-f", "-c", _ZSH, "zsh", str(COMPLETION), typed],
        capture_output=True, text=True, check=True, timeout=30,
        env={**os.environ, "HOME": str(tmp_path), "TERM": "dumb"},
    )  # fmt: skip
    assert f"<<{completed}>>" in done.stdout


@pytest.mark.parametrize(
    "command",
    [("shellcheck", "kdumpctl.bash"), ("bash", "-n", "kdumpctl.bash"), ("zsh", "-n", "_kdumpctl"),
     ("fish", "--no-execute", "kdumpctl.fish")],
    ids=" ".join,
)  # fmt: skip
def test_completions_are_sound(command: tuple[str, ...]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=COMPLETION, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The polkit agent on the terminal


@pytest.mark.parametrize(("user", "wanted"), [(1000, True), (0, True), (1000, False)])
def test_a_password_can_be_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: int, wanted: bool
) -> None:
    program = tmp_path / "pkttyagent"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        f"open({str(tmp_path / 'asked')!r}, 'w').write(' '.join(sys.argv[1:]))\n"
        "os.close(int(sys.argv[4]))\n"
        "signal.pause()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setattr(sys, "stdin", _Terminal())
    monkeypatch.setattr(sys, "stderr", _Terminal())
    with PasswordAgent(wanted=wanted):
        # It is registered before the first call that may need it.
        asked = (tmp_path / "asked").read_text() if user and wanted else ""
    if user and wanted:
        assert re.fullmatch(rf"--process {os.getpid()} --notify-fd \d+ --fallback", asked)
    else:
        assert not (tmp_path / "asked").exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
