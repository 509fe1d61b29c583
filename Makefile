# `make` lists the targets. Every target that needs the environment sets it up first, once: .venv in this folder,
# anew only when pyproject.toml or constraints.txt changed.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON  ?= python3
WORKERS ?= 2
OUT     ?= demo-out
TESTS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.set-up
TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
# pip's warnings about index folders are of no use here; its errors are, and end the set-up.
PIP   := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -q --progress-bar off

# One thread a worker: two workers with two threads each would fight for the same two cores.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST     := $(ONE_THREAD) $(BIN)/python -m pytest -q -n $(WORKERS)

.PHONY: help setup demo test test-deep zoo mutation check lint format types contract docs clean

help:  ## list the targets
	@echo "spikezip: make TARGET"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14
	@echo "Variables: OUT=$(OUT) (demo), TESTS=path (test), WORKERS=$(WORKERS) (test processes), PYTHON=$(PYTHON)"

setup: $(STAMP)  ## create .venv and install spikezip with its development tools, pinned

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "spikezip needs Python 3.11 or later; %s is %d.%d. Try: make PYTHON=python3.12 setup" % (sys.executable, *v[:2]))'
	@test -x $(BIN)/python || { echo "set-up: creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "set-up: installing $(TORCH) (some minutes the first time)"
	@$(PIP) $(TORCH) 2> >(grep -v '^WARNING' >&2)
	@echo "set-up: installing spikezip and its development tools"
	@$(PIP) -c constraints.txt -e '.[dev]' 2> >(grep -v '^WARNING' >&2)
	@touch $@
	@echo "set-up: done"

demo: $(STAMP)  ## the whole road on digits, into OUT (under 3 minutes on 2 cores)
	@$(BIN)/spikezip demo --out $(OUT) --overwrite

test: $(STAMP)  ## the tests (TESTS=tests/cli for a part of them)
	@$(PYTEST) $(TESTS)

test-deep: $(STAMP)  ## more than a thousand random networks in every engine (an hour or so)
	@$(PYTEST) -m deep $(TESTS)

zoo: $(STAMP)  ## the whole zoo: every operation, all published models (an hour on 2 cores)
	@$(PYTEST) -m "zoo or not zoo" tests/zoo

mutation: $(STAMP)  ## mutation testing of what exactness stands on (hours)
	@$(PIP) 'cosmic-ray==8.7.0' 2> >(grep -v '^WARNING' >&2)
	@$(ONE_THREAD) $(BIN)/python experiments/mutation.py

check: lint types contract docs test  ## everything CI checks

lint: $(STAMP)  ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(STAMP)  ## let ruff mend what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(STAMP)  ## pyright
	@$(BIN)/pyright

contract: $(STAMP)  ## the one way imports may fall (import-linter)
	@$(BIN)/lint-imports --no-cache

docs: $(STAMP)  ## the documentation, into docs/_build (warnings are errors)
	@$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

clean:  ## remove what was built (.venv stays)
	rm -rf build dist demo-out docs/_build docs/generated .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -exec rm -rf {} +
