# SPDX-License-Identifier: LGPL-2.1-or-later
"""Rehearsal: what is armed, crashed and captured in a virtual machine that is thrown away."""
