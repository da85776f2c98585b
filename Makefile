# SPDX-License-Identifier: LGPL-2.1-or-later
# make help lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= /usr/bin/python3
DESTDIR ?=
PREFIX ?= /usr
# Debian: where packages (not pip) put modules of the system's Python.
PYTHON_SITE ?= $(PREFIX)/lib/python3/dist-packages
VENV := .venv
# Virtual machines at once. Each keeps one processor busy most of the time.
VM_JOBS ?= 2
VM_TESTS = $(VENV)/bin/pytest -n $(VM_JOBS) --dist worksteal tests/vm
# What each step of a run took, for tests/budget. Made anew by each run.
LEDGER := build/ledger
PART ?=
PARTS = $(shell sed -n 's/^\[part\.\(.*\)\]$$/\1/p' tests/budget/budget.toml)
UNIT_TESTS = $(VENV)/bin/pytest -n auto --dist worksteal
UNIT_ROOMS = tests/unit tests/fuzz tests/bus

.PHONY: help setup lint cache test test-all test-unit test-vm demo bench bench-capture install clean

help:
	@echo "make setup       install what is needed (apt) and make .venv"
	@echo "make demo        crash a virtual machine, watch it come back, open its dump"
	@echo "make test        what every change passes: lint, unit, bus, virtual machines"
	@echo "make test-unit   only those that need neither root nor a virtual machine"
	@echo "make test-vm     only those in virtual machines"
	@echo "make test-all    make test and all other cases, part by part; PART=NAME: that part alone ($(PARTS))"
	@echo "make cache       fill the cache of make test, and say what each entry cost"
	@echo "make lint        linters and type checks"
	@echo "make bench       measure against makedumpfile: hours; BENCH=--quick: three minutes"
	@echo "make bench-capture  capture boots against kdump-tools: hours; BENCH_CAPTURE=--quick: five minutes"
	@echo "make install     install to DESTDIR as a Debian package would"

# --- setup ---------------------------------------------------------------------------------------------------

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml tests/debian-packages.txt
	@tests/install-debian-packages
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

# --- tests ---------------------------------------------------------------------------------------------------

lint: setup
	$(VENV)/bin/pytest tests/lint

test-unit: setup
	$(UNIT_TESTS) $(UNIT_ROOMS)

cache: setup
	$(VENV)/bin/python -m tests.vm.fill

test-vm: cache
	$(VM_TESTS)

test: export KDUMP_TEST_LEDGER := $(CURDIR)/$(LEDGER)
test: setup
	rm -rf $(LEDGER)
	$(UNIT_TESTS) tests/lint $(UNIT_ROOMS)
	$(VENV)/bin/python -m tests.vm.fill
	$(VM_TESTS)
	$(VENV)/bin/python -m tests.budget $(LEDGER) --tier test

# With PART= that part alone, else make test and then part by part.
test-all: export KDUMP_TEST_LEDGER := $(CURDIR)/$(LEDGER)
test-all: setup $(if $(PART),,test)
	@for part in $(or $(PART),$(PARTS)); do \
	  rm -rf $(LEDGER) && \
	  $(VM_TESTS) --part=$$part && \
	  $(VENV)/bin/python -m tests.budget $(LEDGER) --part $$part || exit; done

demo: setup
	@$(VENV)/bin/python -m tests.vm.demo

# BENCH: its options; BENCH=--help lists them.
bench: setup
	@$(VENV)/bin/python -m tests.bench $(BENCH)

# TRIES: crashes of each machine. BENCH_CAPTURE: further options; BENCH_CAPTURE=--help lists them.
bench-capture: setup
	@$(VENV)/bin/python -m tests.bench.capture_boot $(if $(TRIES),--tries $(TRIES)) $(BENCH_CAPTURE)

# --- installation --------------------------------------------------------------------------------------------

install:
	install -d $(DESTDIR)$(PYTHON_SITE)
	find kdump_service -name '*.py' -printf '%P\0' | while IFS= read -r -d '' file; do \
	  install -D -m 644 "kdump_service/$$file" "$(DESTDIR)$(PYTHON_SITE)/kdump_service/$$file"; done
	install -D -m 755 packaging/bin/kdump-service $(DESTDIR)$(PREFIX)/bin/kdump-service
	install -D -m 755 packaging/bin/kdumpctl $(DESTDIR)$(PREFIX)/bin/kdumpctl
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/lib/systemd/system units/*.service units/*.target
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system/emergency.target.wants
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system/rescue.target.wants
	ln -sf ../kdump-capture.service $(DESTDIR)$(PREFIX)/lib/systemd/system/emergency.target.wants/
	ln -sf ../kdump-capture.service $(DESTDIR)$(PREFIX)/lib/systemd/system/rescue.target.wants/
	install -D -m 644 units/no-prompt-in-capture.conf $(DESTDIR)$(PREFIX)/lib/systemd/system/emergency.service.d/kdump-service.conf
	install -D -m 644 units/no-prompt-in-capture.conf $(DESTDIR)$(PREFIX)/lib/systemd/system/rescue.service.d/kdump-service.conf
	install -D -m 644 units/kdump-service.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/kdump-service.catalog
	install -D -m 644 dbus/org.kdump.Kdump1.conf $(DESTDIR)$(PREFIX)/share/dbus-1/system.d/org.kdump.Kdump1.conf
	install -D -m 644 dbus/org.kdump.Kdump1.service $(DESTDIR)$(PREFIX)/share/dbus-1/system-services/org.kdump.Kdump1.service
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/dbus-1/interfaces dbus/org.kdump.Kdump1.xml dbus/org.kdump.Kdump1.Dump.xml
	install -D -m 644 dbus/org.kdump.Kdump1.policy $(DESTDIR)$(PREFIX)/share/polkit-1/actions/org.kdump.Kdump1.policy
	install -D -m 644 packaging/completion/kdumpctl.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/kdumpctl
	install -D -m 644 packaging/completion/_kdumpctl $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_kdumpctl
	install -D -m 644 packaging/completion/kdumpctl.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/kdumpctl.fish
	install -D -m 644 packaging/kdump-service.conf $(DESTDIR)/etc/kdump-service.conf
	install -d -m 755 $(DESTDIR)/etc/kdump-service.conf.d
	install -D -m 755 packaging/dracut/99kdump-service/module-setup.sh $(DESTDIR)$(PREFIX)/lib/dracut/modules.d/99kdump-service/module-setup.sh
	install -D -m 755 packaging/kernel-hooks/zz-kdump-service $(DESTDIR)/etc/kernel/postinst.d/zz-kdump-service
	install -D -m 755 packaging/kernel-hooks/95-kdump-service.install $(DESTDIR)$(PREFIX)/lib/kernel/install.d/95-kdump-service.install
	install -D -m 644 packaging/specimen.vmcore.zst $(DESTDIR)$(PREFIX)/lib/kdump-service/specimen.vmcore.zst
	install -D -m 644 packaging/man/kdump-service.8 $(DESTDIR)$(PREFIX)/share/man/man8/kdump-service.8
	install -D -m 644 packaging/man/kdumpctl.8 $(DESTDIR)$(PREFIX)/share/man/man8/kdumpctl.8
	install -D -m 644 packaging/man/kdump-service.conf.5 $(DESTDIR)$(PREFIX)/share/man/man5/kdump-service.conf.5
	install -D -m 644 packaging/man/org.kdump.Kdump1.5 $(DESTDIR)$(PREFIX)/share/man/man5/org.kdump.Kdump1.5
	install -D -m 644 packaging/man/kdump-problems.7 $(DESTDIR)$(PREFIX)/share/man/man7/kdump-problems.7

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
