# SPDX-License-Identifier: LGPL-2.1-or-later
"""`make bench`: this engine and makedumpfile on the same vmcores, in turns; prints, and fails on no figure.

`guests` makes the vmcores (`content` and `guest_load` are their load), `contestants` knows the command lines,
`measure` runs them, `plan` says which are run and what is to be reached, `report` prints and makes the JSON.
`terabyte` is a synthetic machine, `capture` measures whole capture boots.

`capture_boot` is `make bench-capture`: whole crashes of machines with this project and with kdump-tools.
"""
