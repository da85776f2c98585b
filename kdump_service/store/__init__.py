# SPDX-License-Identifier: LGPL-2.1-or-later
"""The dumps that this machine keeps."""
