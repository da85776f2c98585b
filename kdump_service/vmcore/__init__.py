# SPDX-License-Identifier: LGPL-2.1-or-later
"""Read a crashed kernel's memory: functions over bytes, without policy."""
