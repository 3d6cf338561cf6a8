# Everything runs in .venv, which is built on first use and again whenever its recipe changes. `make help` lists the targets.

PYTHON ?= python3
TORCH ?= 2.13.0
DEVICE_PYTHON ?= python3

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready-torch-$(TORCH)
# Two processes, a file at a time: fixtures of a file are made once, and tests that need two cores still have them.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check bench bench-smoke report profiles device format clean

help: ## this list
	@echo "spacetime: make TARGET [PYTHON=$(PYTHON)] [TORCH=$(TORCH)]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## mixed traffic over 16 tenants under three policies, on whatever device there is
	@$(BIN)/spacetime demo

test: $(READY) ## the test suite, without what is marked slow
	@$(PYTEST) -m 'not slow'

test-all: $(READY) ## the slow tests too: every configuration of every kernel compiled for four chips
	@$(PYTEST)

check: $(READY) ## lint, formatting, types, architecture
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_architecture.py

bench: $(READY) ## measure everything (about an hour), and append to bench/results/
	@$(BIN)/python -m bench

bench-smoke: $(READY) ## run every group of benchmarks as briefly as can be: they must run, nobody judges the figures
	@$(BIN)/python -m bench suite --smoke --device cpu

report: $(READY) ## bench/results/ as docs/results.md, and as one HTML page with pictures under build/report
	@$(BIN)/python -m bench.report

profiles: $(READY) ## write the modelled profiles of the zoo, profiles/model-*, again
	@$(BIN)/python -m bench.shipped

device: ## prove everything on this machine's NVIDIA GPU, with DEVICE_PYTHON's own packages: 9 minutes at most
	@PYTHONPATH=. $(DEVICE_PYTHON) -m bench.device

format: $(READY) ## rewrite the sources in the house format
	@$(BIN)/ruff check --quiet --fix --exit-zero
	@$(BIN)/ruff format

clean: ## remove caches and build outputs; .venv stays
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch comes first and pinned, so that resolving the package's `torch>=...` never replaces it. The stamp carries the
# version: another TORCH= builds again, and the stamp of the previous one goes.
$(READY): pyproject.toml CMakeLists.txt spacetime/_version.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit( \
		"spacetime needs Python 3.11 or newer\n  %s is %d.%d\n  make PYTHON=/path/to/python3.11" \
		% ((sys.executable,) + sys.version_info[:2]))'
	@echo "building $(VENV) with torch $(TORCH): a few minutes, once"
	@rm -f $(VENV)/.ready-torch-*
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch==$(TORCH)
	@$(PIP) -e '.[dev]'
	@touch $@
