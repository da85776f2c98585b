# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only code that touches the running kernel: system calls, /proc, /sys."""
