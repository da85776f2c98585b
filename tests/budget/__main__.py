# SPDX-License-Identifier: LGPL-2.1-or-later
"""python -m tests.budget FOLDER (--tier test | --part NAME): what a run took, and whether it may."""

import argparse
import sys
from pathlib import Path

from .judge import judge, of_part, report
from .ledger import BrokenLedger, read_ledger
from .limits import read_budget


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 1 where the run took too much, or the ledger does not say."""
    budget = read_budget()
    parser = argparse.ArgumentParser(prog="python -m tests.budget", description=__doc__)
    parser.add_argument("folder", type=Path, help="what $KDUMP_TEST_LEDGER was during the run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tier", choices=["test"], help="judge `make test`")
    which.add_argument("--part", choices=list(budget.parts), help="judge this part of `make test-all`")
    options = parser.parse_args(arguments)
    try:
        invocations = of_part(read_ledger(options.folder), options.part)
    except BrokenLedger as error:
        print(error, file=sys.stderr)
        return 1
    verdict = judge(invocations, options.part, budget)
    for line in (*report(invocations, budget), *verdict.notes):
        print(line)
    for excess in verdict.errors:
        print(f"error: {excess}", file=sys.stderr)
    return 1 if verdict.errors else 0


if __name__ == "__main__":
    sys.exit(main())
