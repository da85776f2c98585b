# SPDX-License-Identifier: LGPL-2.1-or-later
"""The only importer of the D-Bus library: adapters between the bus and the daemon's brain."""
