# SPDX-License-Identifier: LGPL-2.1-or-later
from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest

from kdump_service.engine import processors, vital
from kdump_service.engine.survey import Survey, survey_pages
from kdump_service.engine.vital import vital_parts
from kdump_service.pfn import PfnBitmap
from kdump_service.vmcore.elf import Note
from tests.builders.kallsyms import WAYS
from tests.builders.machine_memory import X86_64, Aarch64, Machine
from tests.builders.processors import CURRENT, NUMBER, OFFSETS, PRESENT, Processors
from tests.unit.machine_image import ImageOfMachine
from tests.unit.machine_pages import PagesOfMachine

PFN = 0x400
MACHINES = [X86_64(), X86_64(levels=5), Aarch64(), Aarch64(65536)]


@pytest.fixture(autouse=True)
def _no_tops(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies at the top of memory shall not be vital for that alone."""
    monkeypatch.setattr(vital, "_EARLY_BYTES", 0)


def _survey(image: ImageOfMachine) -> Survey:
    return survey_pages(image, PagesOfMachine(image), 31, workers=1)


def _vital(machine: Machine, *, loads: bool = True) -> set[int]:
    """Of the frames that tests may use."""
    image = ImageOfMachine(machine, loads=loads)
    survey = _survey(image)
    return _frames(vital_parts(image, survey.existing, survey.kept), machine)


def _frames(parts: Iterable[PfnBitmap], machine: Machine) -> set[int]:
    """Each is in one part only."""
    runs = (run for part in parts for array in part.runs() for run in array.tolist())
    frames = list(itertools.chain(*(range(first, first + count) for first, count in runs)))
    assert len(set(frames)) == len(frames)
    return {frame for frame in frames if frame < machine.first_kernel_pfn}


@pytest.mark.parametrize("architecture", MACHINES, ids=["4 levels", "5 levels", "aarch64", "64K"])
@pytest.mark.parametrize("loads", [True, False], ids=["ELF", "kdump"])
@pytest.mark.parametrize("way", WAYS)
def test_what_each_processor_was_at(architecture: X86_64 | Aarch64, loads: bool, way: str) -> None:
    machine = Machine(architecture)
    current = "__entry_task" if architecture.e_machine == 183 else "current_task"
    made = Processors(machine, 3, pfn=PFN, way=way, current=current)
    assert _vital(machine, loads=loads) == made.each[0].frames | made.each[1].frames | made.each[2].frames


def test_of_what_is_not_kept_nothing_is_read() -> None:
    """It may be broken, and kill who reads it."""
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN, current="pcpu_hot")
    first, second = made.each
    machine.pages.hwpoison(first.task[0])
    machine.pages.hwpoison(second.data[1])  # which has the pointer to its task
    image = ImageOfMachine(machine)
    survey = _survey(image)
    image.made.reads.clear()
    found = _frames(vital_parts(image, survey.existing, survey.kept), machine)
    # The registers lead to the stacks all the same.
    assert found == (first.frames | second.frames) - {first.task[0], second.data[1], *second.task}
    read = {
        pfn
        for address, length in image.made.reads
        for pfn in range(address // 4096, (address + length - 1) // 4096 + 1)
    }
    assert not read & {first.task[0], second.data[1]}


def test_what_cannot_be_read_costs_itself() -> None:
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN)
    broken, sound = made.each
    image = ImageOfMachine(machine, missing=[broken.task[0]])
    survey = _survey(image)
    found = _frames(vital_parts(image, survey.existing, survey.kept), machine)
    assert found == broken.frames | sound.frames


def test_without_page_tables_there_are_segments() -> None:
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN)
    image = ImageOfMachine(machine)
    survey = _survey(image)
    image = ImageOfMachine(machine, missing=[machine.root_physical // 4096])
    found = _frames(vital_parts(image, survey.existing, survey.kept), machine)
    assert found == (made.each[0].frames | made.each[1].frames) - {*made.each[0].stack, *made.each[1].stack}


def test_registers_of_an_interrupt_and_of_a_user() -> None:
    """Its own stack is found by the task."""
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN)
    interrupt = range(0x800, 0x804)
    machine.stack_pointers = [machine.direct(0x803 * 4096 + 0x18), 0x7FFD8A3B2C48]
    assert _vital(machine) == made.each[0].frames | made.each[1].frames | {*interrupt}


def test_without_symbols_the_registers_lead_to_stacks() -> None:
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN)
    machine.vmcoreinfo.pop("SYMBOL(kallsyms_names)")
    assert _vital(machine) == {*made.each[0].stack, *made.each[1].stack}


@pytest.mark.parametrize("loads", [True, False], ids=["ELF", "kdump"])
@pytest.mark.parametrize("architecture", [X86_64(), Aarch64()], ids=["x86_64", "aarch64"])
def test_registers_that_lead_nowhere(architecture: X86_64 | Aarch64, loads: bool) -> None:
    machine = Machine(architecture)
    lowest = machine.direct(0)
    machine.stack_pointers = [
        *(0, 1, 8, 4096, 0x7FFFFFFFF000, 1 << 47, 1 << 63, 0xFFFF << 48, (1 << 64) - 8, (1 << 64) - 1),
        *(lowest - 8, machine.direct(1 << 40), machine.image_virtual - 8, 0x8000123456789ABC),
    ]
    assert _vital(machine, loads=loads) == set()


def test_notes_that_are_too_short() -> None:
    machine = Machine()
    machine.stack_pointers = [machine.direct(0x800 * 4096)]
    image = ImageOfMachine(machine)
    survey = _survey(image)
    rsp = 112 + 19 * 8
    for length in (0, 1, 112, rsp, rsp + 7):
        image.notes[0] = Note("CORE", 1, bytes(length))
        assert not _frames(vital_parts(image, survey.existing, survey.kept), machine)


@pytest.mark.parametrize("symbol", ["__per_cpu_offset", "nr_cpu_ids", "__cpu_present_mask", "current_task"])
@pytest.mark.parametrize("value", [0, 1 << 63, (1 << 64) - 1])
def test_symbols_that_lead_nowhere(symbol: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    made = Processors(machine, 2, pfn=PFN)
    monkeypatch.setattr(processors, "kernel_symbols", lambda *_: made.symbols | {symbol: value})
    assert _vital(machine) >= {*made.each[0].stack, *made.each[1].stack}


@pytest.mark.parametrize("value", [0, 8, 1 << 47, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1], ids=hex)
def test_pointers_that_lead_nowhere(value: int) -> None:
    """To the data of one processor, the task of another; what the third was at is found."""
    machine = Machine()
    made = Processors(machine, 3, pfn=PFN)
    made.write(OFFSETS, value, 8)
    machine.write(made.each[1].data[0] * 4096 + CURRENT, value.to_bytes(8, "little"))
    assert _vital(machine) >= made.each[2].frames | {*made.each[0].stack, *made.each[1].data}


def test_more_processors_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    made = Processors(machine, 3, pfn=PFN)
    made.write(NUMBER, (1 << 32) - 1, 4)
    for place in range(PRESENT, PRESENT + 0x1000, 8):
        made.write(place, (1 << 64) - 1, 8)
    everything = made.each[0].frames | made.each[1].frames | made.each[2].frames
    assert _vital(machine) == everything
    monkeypatch.setattr(processors, "_MOST_PROCESSORS", 2)
    assert _vital(machine) == everything - made.each[2].frames
