# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tests need: that they can interrupt."""

import signal

# A shell starts what runs in the background with SIGINT ignored, and children inherit that: cases that
# interrupt a program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
