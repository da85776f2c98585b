# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where a dump goes: open, write, commit or leave as incomplete."""
