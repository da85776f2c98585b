# SPDX-License-Identifier: LGPL-2.1-or-later
"""The log of made buffers. That of real kernels is compared with crash's in tests/vm."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys

import pytest

from kdump_service.errors import BadVmcore
from kdump_service.vmcore.printk import (
    KernelLog,
    LogRecord,
    format_record,
    panic_message,
    read_log,
    record_as_dict,
)
from kdump_service.vmcore.vmcoreinfo import VmcoreInfo
from tests.builders import printk_log_buf, printk_ring
from tests.builders.printk_log_buf import PrintkLogBuf
from tests.builders.printk_ring import (
    COMMITTED,
    DESC_BYTES,
    DESCS,
    FAILED_LPOS,
    FINALIZED,
    ID_MASK,
    INFO_BYTES,
    INFOS,
    NO_LPOS,
    RESERVED,
    REUSABLE,
    RING,
    PrintkRing,
)


class Memory:
    """Pieces of kernel memory by their address."""

    def __init__(self, pieces: dict[int, bytes], byte_order: str = "<") -> None:
        self._pieces = pieces
        self._byte_order = byte_order

    def read(self, address: int, length: int, /) -> bytes:
        for start, content in self._pieces.items():
            if start <= address and address + length <= start + len(content):
                return content[address - start : address - start + length]
        raise BadVmcore(f"kernel address {address:#x} is not mapped")

    def unsigned(self, address: int, length: int, /) -> int:
        return int.from_bytes(self.read(address, length), "little" if self._byte_order == "<" else "big")


def _log(
    keys: dict[str, str], pieces: dict[int, bytes], byte_order: str = "<"
) -> tuple[list[LogRecord], KernelLog]:
    """The records, and the log that has been read to its end."""
    info = VmcoreInfo("".join(f"{key}={value}\n" for key, value in keys.items()).encode())
    log = read_log(info, Memory(pieces, byte_order), byte_order)
    return list(log), log


def _ring(memory: PrintkRing | bytes, keys: dict[str, str] | None = None) -> tuple[list[str], KernelLog]:
    byte_order = memory.byte_order if isinstance(memory, PrintkRing) else "<"
    pieces = {printk_ring.ADDRESS: bytes(memory)}
    records, log = _log(keys or printk_ring.VMCOREINFO, pieces, byte_order)
    return [record.text for record in records], log


def _buffer(memory: PrintkLogBuf | bytes) -> tuple[list[str], KernelLog]:
    records, log = _log(printk_log_buf.VMCOREINFO, {printk_log_buf.ADDRESS: bytes(memory)})
    return [record.text for record in records], log


# --- the ring of 5.10 and later -----------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_ring_records_with_all_that_they_say(byte_order: str) -> None:
    ring = PrintkRing(byte_order=byte_order)
    ring.print("task", level=4, caller_id=123)
    ring.print("interrupt", level=7, facility=3, caller_id=1 << 31 | 2)
    ring.print("device", device=("pci", "+pci:0000:00:1f.2"))
    records, log = _log(printk_ring.VMCOREINFO, {printk_ring.ADDRESS: bytes(ring)}, byte_order)
    assert records == [
        LogRecord(0, 1_500_000_000, 4, 0, "task", "T123"),
        LogRecord(1, 1_500_001_000, 7, 3, "interrupt", "C2"),
        LogRecord(2, 1_500_002_000, 6, 0, "device", "T1", "pci", "+pci:0000:00:1f.2"),
    ]
    assert (log.lost, log.damage) == (0, [])


def test_ring_that_nobody_has_printed_to() -> None:
    assert _ring(PrintkRing())[0] == []


def test_ring_that_went_round_many_times_keeps_the_newest() -> None:
    ring = PrintkRing()
    texts = [f"{number}:" + "x" * (number * 7 % 90) for number in range(100)]
    for text in texts:
        ring.print(text)
    found, log = _ring(ring)
    assert (found, log.lost) == (texts[-8:], 0)


@pytest.mark.parametrize("laps_before", [0, 1, 3])
def test_block_that_ends_exactly_at_the_end_of_the_ring(laps_before: int) -> None:
    """Also where the logical positions themselves wrap, which is at the end of the first lap."""
    ring = PrintkRing(size_bits=8)
    for _ in range(laps_before):
        ring.print("", exact_end=True)
    ring.print("makes room for the last")
    ring.print("before")
    ring.print("ends exactly", exact_end=True)
    ring.print("after")
    assert _ring(ring)[0][-3:] == ["before", "ends exactly", "after"]


def test_unfinished_records_are_left_out() -> None:
    ring = PrintkRing()
    for state in (COMMITTED, RESERVED, REUSABLE):
        ring.print(f"state {state}", state=state)
    ring.print("last")
    found, log = _ring(ring)
    assert found == [f"state {COMMITTED}", "last"]
    assert log.lost == 1  # one that was reusable had been replaced


def test_records_without_text() -> None:
    ring = PrintkRing()
    ring.print("", lpos=NO_LPOS)
    ring.print("found no room", lpos=FAILED_LPOS)
    found, log = _ring(ring)
    assert (found, log.lost) == ([""], 1)


def test_overwritten_text_is_not_another_records() -> None:
    ring = PrintkRing()
    ring.print("before")
    ring.print("ends exactly", exact_end=True)
    ring.print("stands where the first one stood")
    found, log = _ring(ring)
    assert (found, log.lost) == (["ends exactly", "stands where the first one stood"], 1)


def test_descriptor_that_was_just_being_reserved() -> None:
    """desc_reserve() moves head_id first; the slot still holds the record of the lap before."""
    ring = PrintkRing()
    for number in range(12):
        ring.print(f"line {number}")
    slot = ring.print("never came to be", state=RESERVED)
    state_var, info, begin, end = ring.slots[slot]
    ring.slots[slot] = (REUSABLE << 62 | state_var - 8 & ID_MASK, info, begin, end)
    found, log = _ring(ring)
    assert found == [f"line {number}" for number in range(5, 12)]
    assert (log.lost, log.damage) == (1, [])


@pytest.mark.parametrize("lines", [1, 7, 8, 20])
@pytest.mark.parametrize("damaged", ["head", "tail", "both"])
def test_damaged_head_or_tail_costs_nothing(lines: int, damaged: str) -> None:
    ring = PrintkRing()
    for number in range(lines):
        ring.print(f"line {number}")
    if damaged in ("head", "both"):
        ring.head = 0x1234_5678_9ABC
    if damaged in ("tail", "both"):
        ring.tail = 0x2345_6789_ABCD
    found, log = _ring(ring)
    assert found == [f"line {number}" for number in range(max(0, lines - 8), lines)]
    assert log.lost == 0
    assert log.damage == ["the log's head_id or tail_id is damaged; all descriptors were searched"]


def test_damaged_descriptor_among_others_is_counted() -> None:
    ring = PrintkRing()
    for number in range(20):
        ring.print(f"line {number}")
    _, info, begin, end = ring.slots[3]
    ring.slots[3] = (FINALIZED << 62 | 0x1234_5671, info, begin, end)
    whole = _ring(ring)
    ring.head = 0x1234_5678_9ABC
    searched = _ring(ring)
    assert whole[0] == searched[0] == [f"line {number}" for number in range(12, 20) if number % 8 != 3]
    assert (whole[1].lost, searched[1].lost) == (1, 1)


def test_lost_memory_costs_only_its_records() -> None:
    ring = PrintkRing(count_bits=5)
    for number in range(32):
        ring.print(f"line {number}")
    memory = bytes(ring)
    hole = INFOS + 10 * INFO_BYTES
    address = printk_ring.ADDRESS
    pieces = {address: memory[:hole], address + hole + INFO_BYTES: memory[hole + INFO_BYTES :]}
    records, log = _log(printk_ring.VMCOREINFO, pieces)
    assert [record.sequence for record in records] == [number for number in range(32) if number != 10]
    assert log.lost == 1


def test_ring_damage_costs_records_not_the_reader() -> None:
    ring = PrintkRing(count_bits=5)
    for number in range(32):
        ring.print(f"line {number}")
    memory = bytes(ring)
    chance = random.Random(1)
    for _ in range(300):
        damaged = bytearray(memory)
        for _ in range(20):
            damaged[chance.randrange(DESCS, len(damaged))] = chance.randrange(256)
        found, log = _ring(bytes(damaged))
        assert len(found) + log.lost <= 32 + 1


def test_ring_without_any_id_is_refused() -> None:
    ring = bytearray(bytes(PrintkRing()))
    ring[DESCS : DESCS + 8 * DESC_BYTES] = bytes(8 * DESC_BYTES)
    with pytest.raises(BadVmcore, match="hold no ids"):
        _ring(bytes(ring))


@pytest.mark.parametrize(
    "key",
    ["SYMBOL(prb)", "OFFSET(prb_desc_ring.infos)", "SIZE(printk_info)", "OFFSET(printk_info.caller_id)"],
)
def test_missing_keys_are_named(key: str) -> None:
    rest = {name: value for name, value in printk_ring.VMCOREINFO.items() if name != key}
    with pytest.raises(BadVmcore) as caught:
        _ring(PrintkRing(), rest)
    assert key in str(caught.value)


def test_members_outside_their_structure_are_refused() -> None:
    keys = printk_ring.VMCOREINFO | {"OFFSET(printk_info.text_len)": str(INFO_BYTES)}
    with pytest.raises(BadVmcore, match="members of printk_info lie outside its 96 bytes"):
        _ring(PrintkRing(), keys)


def test_ring_that_claims_too_much_is_refused() -> None:
    ring = bytearray(bytes(PrintkRing()))
    ring[RING + 8 : RING + 12] = b"\x3f\0\0\0"
    with pytest.raises(BadVmcore, match=r"claims 2\^63 records"):
        _ring(bytes(ring))


def test_ring_outside_the_core() -> None:
    with pytest.raises(BadVmcore, match="0x1234 is not mapped"):
        _ring(PrintkRing(), {**printk_ring.VMCOREINFO, "SYMBOL(prb)": "1234"})


def test_ring_of_early_boot_serves_where_the_one_in_use_cannot_be_read() -> None:
    early = PrintkRing(address=printk_ring.ADDRESS + (1 << 20))
    early.print("Linux version")
    keys = printk_ring.VMCOREINFO | {"SYMBOL(printk_rb_static)": f"{early.address + RING:x}"}
    pointer = struct.pack("<Q", 0xFFFF888077777000)
    pieces = {printk_ring.ADDRESS: pointer, early.address: bytes(early)}
    records, log = _log(keys, pieces)
    assert [record.text for record in records] == ["Linux version"]
    assert log.damage == [
        "kernel address 0xffff888077777008 is not mapped; what follows is the log of early boot"
    ]


def test_ring_in_use_is_preferred_to_that_of_early_boot() -> None:
    early = PrintkRing(address=printk_ring.ADDRESS + (1 << 20))
    early.print("Linux version")
    late = PrintkRing()
    late.print("Linux version")
    late.print("panic")
    keys = printk_ring.VMCOREINFO | {"SYMBOL(printk_rb_static)": f"{early.address + RING:x}"}
    records, _ = _log(keys, {printk_ring.ADDRESS: bytes(late), early.address: bytes(early)})
    assert [record.text for record in records] == ["Linux version", "panic"]


# --- the buffer of 4.19 to 5.9 ------------------------------------------------------------------------------


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_buffer_records_with_all_that_they_say(byte_order: str) -> None:
    buffer = PrintkLogBuf(byte_order=byte_order)
    buffer.print("task", level=4, caller_id=123)
    buffer.print("device", level=7, facility=3, words="SUBSYSTEM=acpi\0DEVICE=+acpi:PNP0A03:00")
    pieces = {printk_log_buf.ADDRESS: bytes(buffer)}
    records, log = _log(printk_log_buf.VMCOREINFO, pieces, byte_order)
    assert records == [
        LogRecord(0, 1_500_000_000, 4, 0, "task", "T123"),
        LogRecord(1, 1_500_001_000, 7, 3, "device", "T1", "acpi", "+acpi:PNP0A03:00"),
    ]
    assert (log.lost, log.damage) == (0, [])
    records, _ = _log(printk_log_buf.WITHOUT_CALLER, pieces, byte_order)
    assert [record.caller_id for record in records] == ["", ""]


@pytest.mark.parametrize("count", [1, 30, 31, 32, 33, 100, 1000])
def test_buffer_that_went_round_keeps_the_newest(count: int) -> None:
    buffer = PrintkLogBuf()
    texts = [f"{number}:" + "x" * (number * 7 % 190) for number in range(count)]
    for text in texts:
        buffer.print(text)
    found, log = _buffer(buffer)
    assert found == texts[-len(buffer.places) :]
    assert (log.lost, log.damage) == (0, [])


@pytest.mark.parametrize("count", [20, 1000])
@pytest.mark.parametrize("first", [None, 4, 2, 0xFFFFFFFF])
@pytest.mark.parametrize("following", [None, 0xFFFFFFF0])
def test_damaged_indices_cost_at_most_the_oldest(
    count: int, first: int | None, following: int | None
) -> None:
    buffer = PrintkLogBuf(size=8192)
    for number in range(count):
        buffer.print(f"line {number}")
    kept = len(buffer.places)
    buffer.first = buffer.first if first is None else first
    buffer.next = buffer.next if following is None else following
    found, log = _buffer(buffer)
    whole = [f"line {number}" for number in range(count - kept, count)]
    assert found[-kept:] == whole
    assert set(found[:-kept]) <= {
        f"line {count - kept - back}" for back in (1, 2)
    }  # left over, not yet overwritten
    assert log.damage == (
        []
        if first is following is None
        else ["log_first_idx or log_next_idx is damaged; the whole buffer was searched"]
    )


@pytest.mark.parametrize("damage", [b"\xff" * 24, bytes(24), b"A" * 300, bytes(300)])
def test_bad_record_costs_itself(damage: bytes) -> None:
    buffer = PrintkLogBuf(size=16384)
    for number in range(100):
        buffer.print(f"line {number}: " + "x" * 20)
    at = buffer.places[10]
    buffer.data[at : at + len(damage)] = damage
    found, log = _buffer(buffer)
    after = next(number for number, place in enumerate(buffer.places) if place >= at + len(damage))
    numbers = [int(text.split()[1].rstrip(":")) for text in found]
    assert numbers == [*range(10), *range(after, 100)]
    assert log.lost == 1


def test_lost_page_of_the_buffer_costs_its_records() -> None:
    buffer = PrintkLogBuf(size=16384)
    for number in range(400):
        buffer.print(f"line {number}")
    memory = bytes(buffer)
    pieces = {printk_log_buf.ADDRESS: memory[:4096], printk_log_buf.ADDRESS + 8192: memory[8192:]}
    records, log = _log(printk_log_buf.VMCOREINFO, pieces)
    texts = [record.text for record in records]
    assert texts[:50] == [f"line {number}" for number in range(50)]
    assert texts[-50:] == [f"line {number}" for number in range(350, 400)]
    assert log.lost == 1  # one place, however many records stood there


def test_buffer_damage_costs_records_not_the_reader() -> None:
    buffer = PrintkLogBuf()
    for number in range(200):
        buffer.print(f"line {number}")
    memory = bytes(buffer)
    chance = random.Random(2)
    for _ in range(300):
        damaged = bytearray(memory)
        for _ in range(10):
            damaged[chance.randrange(16, len(damaged))] = chance.randrange(256)
        assert len(_buffer(bytes(damaged))[0]) <= 200


def test_buffer_that_claims_too_much_is_refused() -> None:
    buffer = bytearray(bytes(PrintkLogBuf()))
    buffer[8:12] = b"\xff\xff\xff\xff"
    with pytest.raises(BadVmcore, match="claims 4294967295 bytes"):
        _buffer(bytes(buffer))


def test_kernel_that_names_no_log() -> None:
    with pytest.raises(BadVmcore, match="names no log"):
        _log({}, {})


# --- text and JSON ------------------------------------------------------------------------------------------


def test_text_as_dmesg_prints_it() -> None:
    record = LogRecord(1, 65_000_123_456, 4, 0, "first\nsecond\tpart\x07", "T7")
    assert format_record(record) == "[   65.000123] first\n               second\tpart\\x07\n"
    assert format_record(record, caller=True).splitlines() == [
        "[   65.000123][    T7] first",
        "                       second\tpart\\x07",
    ]


def test_text_of_a_caller_that_is_not_known() -> None:
    assert format_record(LogRecord(1, 0, 4, 0, "text"), caller=True) == "[    0.000000] text\n"


def test_characters_that_would_move_the_cursor() -> None:
    shown = format_record(LogRecord(1, 0, 4, 0, "\x1b[2J\u202eéß\\"))
    assert shown == "[    0.000000] \\x1b[2J\\xe2\\x80\\xaeéß\\\n"


def test_json() -> None:
    plain = record_as_dict(LogRecord(7, 1_500_999, 4, 0, "text"))
    assert plain == {"seq": 7, "time_usec": 1500, "level": 4, "facility": 0, "text": "text"}
    full = record_as_dict(LogRecord(7, 1_500_999, 4, 0, "a\nb", "C1", "usb", "c189:1"))
    assert json.loads(json.dumps(full)) == full
    assert full["caller"] == "C1"
    assert (full["subsystem"], full["device"]) == ("usb", "c189:1")


def test_panic_message() -> None:
    assert panic_message(LogRecord(1, 0, 0, 0, "Kernel panic - not syncing: why\nmore")) == (
        "Kernel panic - not syncing: why"
    )
    assert panic_message(LogRecord(1, 0, 0, 0, "user said: Kernel panic - not syncing")) == ""


def test_the_log_is_light() -> None:
    code = "import sys, kdump_service.vmcore.printk, kdump_service.vmcore.crash_identity; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.startswith("kdump_service.")}
    assert {name for name in ours if not name.startswith("kdump_service.vmcore")} == {"kdump_service.errors"}
    assert "numpy" not in done.stdout.split()
