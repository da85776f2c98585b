// SPDX-License-Identifier: GPL-2.0
/*
 * Waits for ever while it is loaded, and cannot be killed: as a driver does whose hardware does not answer after a crash.
 */
#include <linux/module.h>
#include <linux/sched.h>

static int __init never_returns_init(void)
{
	for (;;) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
	return 0;
}

module_init(never_returns_init);
MODULE_DESCRIPTION("Hangs for the tests of kdump-service");
MODULE_LICENSE("GPL");
