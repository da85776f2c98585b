# SPDX-License-Identifier: LGPL-2.1-or-later
"""What can stand in the way of a dump, one subject to a module: functions from facts to problems."""
