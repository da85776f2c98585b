# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from kdump_service.arm.command_line import NOT_INHERITED, added_words, capture_command_line, check_length
from kdump_service.arm.plan import plan_load
from kdump_service.config import Config
from kdump_service.errors import BadCommandLine
from kdump_service.kernel.cmdline import join_words, split_words, word_name
from kdump_service.kernel.files import KernelFiles
from tests.builders.machine_root import MachineRoot


def _kept(running: str, config: Config | None = None, machine: str = "x86_64") -> str:
    """The part of the line that does not come from the fixed words."""
    words = split_words(capture_command_line(running, machine, config or Config()))
    added = added_words(machine)
    return join_words(word for word in words if word not in added)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a b=c", ["a", "b=c"]),
        ("  a\t b \n", ["a", "b"]),
        ('a="x y" b', ['a="x y"', "b"]),
        ('"a=x y" b', ['"a=x y"', "b"]),
        ('dyndbg="file x +p; file y +p"', ['dyndbg="file x +p; file y +p"']),
        ("", []),
    ],
)
def test_split_as_the_kernel_does(line: str, words: list[str]) -> None:
    assert split_words(line) == words


def test_word_name() -> None:
    assert [word_name(word) for word in ("a", "a=b=c", '"a=x y"', 'a="x"')] == ["a"] * 4


def test_root_and_console_stay() -> None:
    line = "root=UUID=1-2 ro console=tty0 console=ttyS0,115200n8 rd.luks.uuid=x rootflags=subvol=@ apparmor=1"
    assert _kept(line) == line


@pytest.mark.parametrize(
    "word",
    [
        "BOOT_IMAGE=/vmlinuz",
        "crashkernel=256M", "crashkernel=1G,high", "crashkernel=128M,low", "hugepages=512",
        "hugepagesz=1G", "default_hugepagesz=1G", "resume=/dev/sda2", "resume_offset=1",
        "mem=4G", "memmap=2G!4G",
        "isolcpus=1-3", "nr_cpus=8", "maxcpus=4", "panic=0", "panic_on_warn=1", "panic-on-warn=1",
        "systemd.unit=rescue.target", "single", "3", "slub_debug=FZP",
        "log_buf_len=64M", "kfence.sample_interval=1",
        "sysctl.vm.nr_hugepages=9", "systemd.service_watchdogs=0", "break=top",
        "fsck.mode=force", "rdinit=/bin/sh",
        "transparent_hugepage_shmem=always", "oops=panic", "initrd=\\boot\\initrd", "ramoops.mem_size=1",
    ],
)  # fmt: skip
def test_not_inherited(word: str) -> None:
    assert _kept(f"root=/dev/vda {word} ro") == "root=/dev/vda ro"


def test_words_for_init_are_left_out() -> None:
    assert _kept("root=/dev/vda -- --log-level=debug") == "root=/dev/vda"
    assert _kept("", Config(command_line="root=/dev/vda -- single")) == "root=/dev/vda"


def test_what_is_there_already_is_not_added_twice() -> None:
    words = split_words(capture_command_line("irqpoll nokaslr fsck.mode=skip", "x86_64", Config()))
    assert words.count("irqpoll") == 1
    assert words[:2] == ["nokaslr", "fsck.mode=skip"]


@pytest.mark.parametrize(
    ("machine", "most"),
    [
        ("x86_64", 1985),
        ("aarch64", 2047),
        ("ppc64le", 2007),
        ("s390x", 4095),
        ("riscv64", 983),
        ("other", 983),
    ],
)
def test_a_line_that_would_be_cut_is_refused(machine: str, most: int) -> None:
    check_length("x" * most, machine)
    with pytest.raises(BadCommandLine, match=f"has {most + 1} bytes, and {machine} kernels take {most}"):
        check_length("x" * (most - 1) + "é", machine)


def test_similar_names_stay() -> None:
    assert (
        _kept("memory_corruption_check=1 resume_wait_not panicky")
        == "memory_corruption_check=1 resume_wait_not panicky"
    )


@pytest.mark.promise("never-hang")
def test_every_architecture_boots_into_the_capture_and_comes_back() -> None:
    for machine in ("x86_64", "aarch64", "ppc64le", "s390x", "riscv64"):
        words = added_words(machine)
        assert "systemd.unit=kdump-capture.target" in words
        assert "panic=5" in words
    assert "nomodeset" in added_words("x86_64", "rootfs")
    assert "nomodeset" not in added_words("x86_64", "initramfs")
    assert "irqpoll" in added_words("x86_64")
    assert "irqpoll" not in added_words("aarch64")


def test_configuration_removes_and_appends() -> None:
    config = Config(command_line_remove="nr_cpus quiet irqpoll", command_line_append="nr_cpus=2 mem=1G")
    words = split_words(capture_command_line("root=/dev/vda quiet", "x86_64", config))
    assert "nr_cpus=1" not in words
    assert "quiet" not in words
    assert words[-2:] == ["nr_cpus=2", "mem=1G"]


def test_configured_line_replaces_the_running_one() -> None:
    config = Config(command_line="root=/dev/other crashkernel=1G")
    assert _kept("root=/dev/vda quiet", config) == "root=/dev/other crashkernel=1G"


def test_no_name_stands_under_two_reasons() -> None:
    names = [name for group in NOT_INHERITED.values() for name in group]
    assert len(names) == len(set(names))


# For the small image


def _small(running: str, config: Config | None = None) -> list[str]:
    return split_words(capture_command_line(running, "x86_64", config or Config(), "initramfs"))


@pytest.mark.parametrize(
    "word",
    [
        "root=UUID=1-2", "root=/dev/mapper/vg-root", "rootflags=subvol=@", "rootfstype=ext4", "rootwait",
        "rootdelay=5", "ro", "rw", "init=/sbin/init", "rd.luks.uuid=x", "rd.lvm.lv=vg/root", "rd.md.uuid=x",
        "rd.neednet=1", "nfsroot=10.0.0.1:/root", "ip=dhcp", "netroot=iscsi:x", "ifname=eth0:aa",
        "bootdev=eth0", "luks.uuid=x", "cryptdevice=UUID=1:root", "cryptopts=target=a", "zfs=pool/root",
        "boot=live", "overlayroot=tmpfs", "fsck.repair=yes", "mount.usr=UUID=1", "roothash=ab",
        "systemd.verity=yes",
    ],
)  # fmt: skip
@pytest.mark.promise("small-image")
def test_small_image_knows_nothing_of_productions_root(word: str) -> None:
    words = _small(f"quiet {word} console=ttyS0,115200n8")
    assert word not in words
    assert {"quiet", "console=ttyS0,115200n8"} <= set(words)
    # A capture boot with the root file system needs them.
    assert word in split_words(capture_command_line(f"quiet {word}", "x86_64", Config()))


@pytest.mark.parametrize(
    "word",
    ["console=ttyS0,115200n8", "apparmor=1", "intel_iommu=on", "virtio_mmio.device=4K@0x1000:5", "rootless=1",
     "systemd.journald.forward_to_console=1", "earlycon", "random.trust_cpu=on", "net.ifnames=0", "iommu=pt"],
)  # fmt: skip
def test_small_image_keeps_what_is_of_the_machine(word: str) -> None:
    assert word in _small(f"root=/dev/vda {word}")


def test_small_image_has_its_own_root_in_memory() -> None:
    words = _small("root=/dev/vda rootfstype=ext4 ro")
    assert [word for word in words if word.startswith("root")] == ["rootfstype=ramfs"]
    assert "rootfstype=ramfs" not in split_words(capture_command_line("root=/dev/vda", "x86_64", Config()))
    assert set(added_words("x86_64", "initramfs")) <= set(words)


def test_configured_words_have_the_last_word_for_the_small_image() -> None:
    config = Config(
        command_line="root=/dev/x ro mine", command_line_append="rd.debug", command_line_remove="ro"
    )
    words = _small("ignored", config)
    assert words[:2] == ["root=/dev/x", "mine"]  # word for word, as the administrator wants it
    assert words[-1] == "rd.debug"
    assert "ro" not in words


def test_a_watchdog_that_runs_is_fed() -> None:
    def words(running: str, config: Config | None = None) -> list[str]:
        line = capture_command_line(running, "x86_64", config or Config(), "initramfs", watchdog_sec=30)
        return [word for word in split_words(line) if "watchdog_sec" in word]

    assert words("quiet") == ["systemd.watchdog_sec=30"]
    # Whoever says it for production means it.
    assert words("systemd.watchdog_sec=90s") == ["systemd.watchdog_sec=90s"]
    assert words("quiet", Config(command_line_remove="systemd.watchdog_sec")) == []
    assert "watchdog_sec" not in capture_command_line("quiet", "x86_64", Config(), "initramfs")


def test_the_shortest_time_of_the_watchdogs_that_run_counts(tmp_path: Path) -> None:
    machine = MachineRoot(tmp_path)
    machine.add_watchdog("watchdog0", identity="Software Watchdog", timeout_sec=10)
    machine.add_watchdog("watchdog1", identity="i6300ESB timer", timeout_sec=20, active=False)
    files, config = KernelFiles(tmp_path), Config(environment="rootfs")
    assert "watchdog_sec" not in plan_load(files, config).request.command_line
    machine.add_watchdog("watchdog2", identity="i6300ESB timer", timeout_sec=40)
    machine.add_watchdog("watchdog3", identity="iTCO_wdt", timeout_sec=60)
    assert "systemd.watchdog_sec=40" in split_words(plan_load(files, config).request.command_line)
