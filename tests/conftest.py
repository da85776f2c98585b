# SPDX-License-Identifier: LGPL-2.1-or-later
"""What all tests need: that they can interrupt, and that programs run as they do for users."""

import os
import signal

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.budget.plugin"]

# A shell starts what runs in the background with SIGINT ignored, and children inherit that: cases that
# interrupt a program would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In containers these are often set. Without buffers a program never fails to flush one.
for variable in ("PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"):
    os.environ.pop(variable, None)

# The machine may have other work: else each case with @given would go by a clock.
settings.register_profile("without a clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("without a clock")
