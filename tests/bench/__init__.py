# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: this engine and makedumpfile on the same vmcores, in turns; prints, and fails on no figure.

`guests` makes the vmcores, `contestants` knows the command lines, `measure` runs them, `plan` says which are
run and what is to be reached, `report` prints and writes build/bench.json.
"""
