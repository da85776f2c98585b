// SPDX-License-Identifier: GPL-2.0
/*
 * Dereferences NULL when its parameter "trigger" is written, two named calls deep, so that a reader of the dump can be
 * asked for exactly these names. Debian's kernels are built without lkdtm.
 */
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/moduleparam.h>

/* A variable and not the constant: the compiler must not see what is about to happen. */
static int *kdump_test_nowhere;

noinline int kdump_test_null_dereference(void);
noinline int kdump_test_caller(void);

noinline int kdump_test_null_dereference(void)
{
	return READ_ONCE(*READ_ONCE(kdump_test_nowhere));
}

noinline int kdump_test_caller(void)
{
	int value = kdump_test_null_dereference();

	/* Keeps the call above from becoming a jump, which would take this function off the stack. */
	barrier();
	return value + 1;
}

static int trigger_set(const char *value, const struct kernel_param *param)
{
	pr_emerg("kdump_test: about to dereference NULL\n");
	return kdump_test_caller() < 0 ? -EINVAL : 0;
}

static const struct kernel_param_ops trigger_ops = {
	.set = trigger_set,
};

module_param_cb(trigger, &trigger_ops, NULL, 0200);
MODULE_PARM_DESC(trigger, "write anything to crash the kernel");
MODULE_DESCRIPTION("Crashes the kernel for the tests of kdump-service");
MODULE_LICENSE("GPL");
