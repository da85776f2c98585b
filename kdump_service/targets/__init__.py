# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where dumps go. A target is one module; all of them keep the contract in ``contract``."""
