# SPDX-License-Identifier: LGPL-2.1-or-later
"""What earlier versions wrote, as files, and the program that saves what this version writes.

Each folder below `states` is the root of a machine as one version left it, with nothing but what the service
wrote itself; `files.txt` lists it. tests/unit/test_earlier_states.py reads all of them with the present code.
Who changes what is written, adds a folder before the change, so that there is one of each form:

    python -m tests.earlier.save NAME      # root; boots and crashes a virtual machine
"""
