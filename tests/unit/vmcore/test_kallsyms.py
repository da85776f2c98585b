# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import pytest

from kdump_service.errors import BadVmcore
from kdump_service.vmcore import kallsyms
from kdump_service.vmcore.address_space import AddressSpace
from kdump_service.vmcore.kallsyms import kernel_symbols
from tests.builders.kallsyms import WAYS, Kallsyms
from tests.builders.machine_memory import Machine
from tests.unit.machine_image import ImageOfMachine

PLACE = 0x80000
"""Of the table, within the kernel's image."""
LONG = "_RNvMs0_" + "x" * 300
"""Two bytes tell its length."""


def _machine(symbols: dict[str, int], way: str = "relative") -> Machine:
    machine = Machine()
    table = Kallsyms(symbols, at=machine.symbol_address(PLACE), way=way)
    machine.write(machine.image_physical + PLACE, table.content)
    machine.vmcoreinfo |= table.vmcoreinfo
    return machine


def _symbols(way: str = "relative") -> dict[str, int]:
    text = Machine().symbol_address(0)
    low = 0 if way == "absolute per-cpu" else text + 0x70000
    return {
        "__per_cpu_start": low,
        "current_task": low + 0x1FB80,
        "_stext": text,
        LONG: text + 0x8000,
        "crash_notes_memory_init": text + 0x9000,
        "crash_notes": text + 0x1FFFF8,
        "notes": text + 0x1FFFFC,
    }


@pytest.mark.parametrize("way", WAYS)
def test_addresses(way: str) -> None:
    symbols = _symbols(way)
    space = AddressSpace(ImageOfMachine(_machine(symbols, way)))
    wanted = ["current_task", "__per_cpu_start", "crash_notes"]
    assert kernel_symbols(space, [*wanted, "no_such_symbol"]) == {name: symbols[name] for name in wanted}
    assert kernel_symbols(space, ["_stext", LONG]) == {name: symbols[name] for name in ("_stext", LONG)}


@pytest.mark.parametrize("piece", [400, 401, 450, 600])
def test_names_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(kallsyms, "_LONGEST", 400)
    monkeypatch.setattr(kallsyms, "_PIECE_BYTES", piece)
    text = Machine().symbol_address(0)
    symbols = _symbols() | {f"symbol_{number}": text + 0x10000 + number for number in range(300)}
    space = AddressSpace(ImageOfMachine(_machine(symbols)))
    assert kernel_symbols(space, list(symbols)) == symbols


@pytest.mark.parametrize(
    "key", ["names", "token_table", "token_index", "num_syms", "offsets"], ids=lambda key: f"no {key}"
)
@pytest.mark.parametrize("value", [None, "0", "ffffffffffffffff", "ffff888000000000"])
def test_table_that_is_not_there(key: str, value: str | None) -> None:
    """Absent, or where VMCOREINFO tells there is none."""
    machine = _machine(_symbols())
    machine.vmcoreinfo.pop(f"SYMBOL(kallsyms_{key})")
    if value:
        machine.vmcoreinfo[f"SYMBOL(kallsyms_{key})"] = value
    with pytest.raises(BadVmcore):
        kernel_symbols(AddressSpace(ImageOfMachine(machine)), ["crash_notes"])


def test_addresses_that_are_stored_in_no_known_way() -> None:
    machine = _machine(_symbols())
    machine.vmcoreinfo["SYMBOL(_stext)"] = f"{machine.symbol_address(0x1000):x}"
    with pytest.raises(BadVmcore, match="none of the known ways"):
        kernel_symbols(AddressSpace(ImageOfMachine(machine)), ["crash_notes"])


@pytest.mark.parametrize("damage", [b"\0", b"\1", b"\x7f", b"\x80", b"\xff"])
def test_damaged_names(damage: bytes) -> None:
    """Lengths that lead beyond the end, or on and on."""
    machine = _machine(_symbols())
    names = int(machine.vmcoreinfo["SYMBOL(kallsyms_names)"], 16) - machine.image_virtual
    machine.write(machine.image_physical + names, damage * 400)
    with pytest.raises(BadVmcore, match="_stext"):
        kernel_symbols(AddressSpace(ImageOfMachine(machine)), ["crash_notes"])


def test_count_that_is_a_lie() -> None:
    machine = _machine(_symbols())
    count = int(machine.vmcoreinfo["SYMBOL(kallsyms_num_syms)"], 16) - machine.image_virtual
    machine.write(machine.image_physical + count, b"\xff" * 4)
    found = kernel_symbols(AddressSpace(ImageOfMachine(machine)), ["crash_notes"])
    assert found == {"crash_notes": _symbols()["crash_notes"]}
