# SPDX-License-Identifier: LGPL-2.1-or-later
"""The daemon's brain: state, reasons, new records. It knows no D-Bus type."""
