# SPDX-License-Identifier: LGPL-2.1-or-later
"""The capture image: a small initramfs of our own, built with dracut, proven before it is used, kept
current."""
