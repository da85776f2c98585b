# SPDX-License-Identifier: LGPL-2.1-or-later
"""What drgn finds in a dump, as JSON on standard output: `drgn_report.py VMCORE VMLINUX COMM [MODULE...]`.

A program of its own, since drgn keeps its file mapped and its types alive as long as the process lives.
"""

import json
import sys

from drgn import FaultError, Program, StackTrace
from drgn.helpers.linux.panic import panic_message
from drgn.helpers.linux.pid import for_each_task


def functions(trace: StackTrace) -> list[str]:
    """Names from the innermost frame outwards, "?" for a frame without one."""
    return [frame.name or "?" for frame in trace]


def report(vmcore: str, vmlinux: str, planted: str, modules: list[str]) -> dict[str, object]:
    """The task that crashed must be there, in a torn dump too; of the others, those that can be read."""
    program = Program()
    program.set_core_dump(vmcore)
    program.load_debug_info([vmlinux, *modules])
    thread = program.crashed_thread()
    trace = thread.stack_trace()
    crashed = {
        "comm": thread.object.comm.string_().decode(errors="replace"),
        "pid": thread.object.pid.value_(),
        "stack": functions(trace),
        "stack_text": str(trace),
    }
    pids: list[int] = []
    count = 0
    unreadable = ""
    try:
        for other in for_each_task(program):
            count += 1
            if other.comm.string_().decode(errors="replace") == planted:
                pids.append(other.pid.value_())
    except FaultError as error:
        # How far the list went says the rest.
        unreadable = str(error)
    names = program["init_uts_ns"].name
    return {
        "panic_message": (panic_message(program) or b"").decode(errors="replace"),
        **crashed,
        "tasks": count,
        "planted_pids": pids,
        "unreadable": unreadable,
        "release": names.release.string_().decode(),
        "nodename": names.nodename.string_().decode(),
        "version": names.version.string_().decode(),
    }


if __name__ == "__main__":
    json.dump(report(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]), sys.stdout)
