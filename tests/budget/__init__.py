# SPDX-License-Identifier: LGPL-2.1-or-later
"""What the suite costs, and what it holds: parts, promises, guests, and the ledger that is held against
budget.toml."""
