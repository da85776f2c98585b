# SPDX-License-Identifier: LGPL-2.1-or-later
# make help lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory

PYTHON ?= /usr/bin/python3
# That of the installed programs, whatever makes the virtual environment.
SYSTEM_PYTHON := /usr/bin/python3 -I
DESTDIR ?=
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

.PHONY: help setup lint cache test test-all test-unit test-vm demo bench bench-capture deb install uninstall clean

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
	@echo "make deb         make a package for Debian, in build/deb"
	@echo "make install     install on this machine without a package, or for a packager to DESTDIR"
	@echo "make uninstall   remove what make install installed"

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

# As packages are built: DESTDIR=FOLDER; without it, on this machine. What goes where is in packaging/install.py.
install:
	@$(SYSTEM_PYTHON) packaging/install.py install $(if $(DESTDIR),--destdir="$(DESTDIR)")

uninstall:
	@$(SYSTEM_PYTHON) packaging/install.py uninstall $(if $(DESTDIR),--destdir="$(DESTDIR)")

# A package for Debian in build/deb, of what is under version control, as it is now.
deb:
	@packaging/build-deb

clean:
	rm -rf build $(VENV) *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
