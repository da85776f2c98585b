# SPDX-License-Identifier: LGPL-2.1-or-later
"""Write dump files and read them back: functions over bytes, without paths or policy."""
