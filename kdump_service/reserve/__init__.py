# SPDX-License-Identifier: LGPL-2.1-or-later
"""crashkernel= in the boot loader's configuration: plan the change, show it, make it, take it back."""
