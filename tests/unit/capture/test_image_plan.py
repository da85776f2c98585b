# SPDX-License-Identifier: LGPL-2.1-or-later
"""What is decided before the first page is written."""

from pathlib import Path

from kdump_service.capture.image import plan_image
from kdump_service.dump_options import DumpOptions
from kdump_service.vmcore.reader import Vmcore
from tests.unit.dumpfile.small_core import small_core


def test_big_endian_memory_is_saved_in_the_format_that_can_hold_it(tmp_path: Path) -> None:
    """A dump in another format than configured is better than none, and the record says why."""
    with Vmcore(small_core(tmp_path / "vmcore", [(0x100, 0x100)], byte_order=">")) as source:
        plan = plan_image(
            source, DumpOptions(0, "kdump", "zlib", 6), 1 << 30, lambda what: lambda *done: None
        )
    assert (plan.options.format, plan.options.codec, plan.dump.format.file_name) == ("elf", "none", "vmcore")
    [(reason, decision)] = [each for each in plan.decisions if "big-endian" in each[1]]
    assert (reason, "saved as an ELF core" in decision) == ("bad-configuration", True)
