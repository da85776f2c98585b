# SPDX-License-Identifier: LGPL-2.1-or-later
"""Decide from struct pages which page frames a dump keeps."""
