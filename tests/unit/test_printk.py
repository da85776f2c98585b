# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log of made rings. That of real kernels is compared with crash's in tests/vm."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.kernel_memory import KernelMemory
from kdump_service.vmcore.printk import LogRecord, format_record, panic_message, read_log
from kdump_service.vmcore.reader import Vmcore
from tests.builders.elf_core import ElfCore, Segment
from tests.builders.printk_ring import ADDRESS, COMMITTED, RESERVED, REUSABLE, VMCOREINFO, PrintkRing


def _read(
    tmp_path: Path, memory: bytes, byte_order: str = "<", vmcoreinfo: dict[str, str] = VMCOREINFO
) -> list[LogRecord]:
    core = ElfCore([Segment(0x100000, memory, ADDRESS)], vmcoreinfo, byte_order)
    path = tmp_path / "core"
    path.write_bytes(bytes(core))
    with Vmcore(path) as vmcore:
        return list(read_log(vmcore.vmcoreinfo, KernelMemory(vmcore, byte_order), byte_order))


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_records_in_order(tmp_path: Path, byte_order: str) -> None:
    ring = PrintkRing(byte_order=byte_order)
    for number in range(5):
        ring.print(f"line {number}", level=number)
    records = _read(tmp_path, bytes(ring), byte_order)
    assert [(record.text, record.level, record.sequence) for record in records] == [
        (f"line {number}", number, number) for number in range(5)
    ]


def test_ring_that_went_round_many_times_keeps_the_newest(tmp_path: Path) -> None:
    ring = PrintkRing()
    texts = [f"{number}:" + "x" * (number * 7 % 90) for number in range(100)]
    for text in texts:
        ring.print(text)
    assert [record.text for record in _read(tmp_path, bytes(ring))] == texts[-8:]


def test_block_that_ends_exactly_at_the_end_of_the_ring(tmp_path: Path) -> None:
    ring = PrintkRing(lpos=512)
    ring.print("before")
    ring.print("ends exactly", exact_end=True)
    ring.print("after")
    assert [record.text for record in _read(tmp_path, bytes(ring))] == ["before", "ends exactly", "after"]


def test_unfinished_records_are_left_out(tmp_path: Path) -> None:
    ring = PrintkRing()
    for state in (COMMITTED, RESERVED, REUSABLE):
        ring.print(f"state {state}", state=state)
    ring.print("last")
    assert [record.text for record in _read(tmp_path, bytes(ring))] == [f"state {COMMITTED}", "last"]


def test_overwritten_text_is_not_another_records(tmp_path: Path) -> None:
    ring = PrintkRing()
    ring.print("before")
    ring.print("ends exactly", exact_end=True)
    ring.print("stands where the first one stood")
    assert [record.text for record in _read(tmp_path, bytes(ring))] == [
        "ends exactly",
        "stands where the first one stood",
    ]


def test_damage_costs_records_not_the_reader(tmp_path: Path) -> None:
    ring = PrintkRing(count_bits=5)
    for number in range(32):
        ring.print(f"line {number}")
    memory = bytes(ring)
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(memory)
        for _ in range(20):
            damaged[chance.randrange(4096, len(damaged))] = chance.randrange(256)
        assert len(_read(tmp_path, bytes(damaged))) <= 32


@pytest.mark.parametrize("key", ["SYMBOL(prb)", "OFFSET(prb_desc_ring.infos)", "SIZE(printk_info)"])
def test_missing_keys_are_named(tmp_path: Path, key: str) -> None:
    rest = {name: value for name, value in VMCOREINFO.items() if name != key}
    with pytest.raises(BadVmcore) as caught:
        _read(tmp_path, bytes(PrintkRing()), vmcoreinfo=rest)
    assert key in str(caught.value)


def test_ring_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    ring = bytearray(bytes(PrintkRing()))
    ring[264:268] = b"\x3f\0\0\0"
    with pytest.raises(BadVmcore, match=r"claims 2\^63 records"):
        _read(tmp_path, bytes(ring))


def test_ring_outside_the_core(tmp_path: Path) -> None:
    with pytest.raises(BadVmcore, match="0x1234 is in no segment"):
        _read(tmp_path, bytes(PrintkRing()), vmcoreinfo={**VMCOREINFO, "SYMBOL(prb)": "1234"})


def test_text_as_dmesg_prints_it() -> None:
    record = LogRecord(1, 65_000_123_456, 4, 0, "first\nsecond\tpart\x07")
    assert format_record(record) == "[   65.000123] first\n               second\tpart\\x07\n"


def test_panic_message() -> None:
    assert panic_message(LogRecord(1, 0, 0, 0, "Kernel panic - not syncing: why\nmore")) == (
        "Kernel panic - not syncing: why"
    )
    assert panic_message(LogRecord(1, 0, 0, 0, "user said: Kernel panic - not syncing")) == ""
