# Everything a contributor runs. `make` prints this list. pip only; versions come from constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
EXTRAS ?= dev

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up

# Build tools are pinned as well: older versions of pip read the first variable for them, newer ones the second.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
SEED ?= 1
BENCH ?=

.PHONY: help setup demo test clients test-fast lint docs check bench gpu-check drill two-machines fuzz train-tiny clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv and install the project with its tools

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3.11 setup" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) lacks the venv module (on Debian and Ubuntu: apt-get install python3-venv)" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(STAMP) ## Judge the bundled demo data with the bundled guard, print its table and write its page
	$(BIN)/libra run start demo --guard libra-tiny --out out/demo-report.json --html out/demo-report.html

# Most tests wait for processes, so that two cores run three of them; those that kill processes by the clock run alone.
test: $(STAMP) ## Run the tests
	$(BIN)/pytest -n 3 --dist loadfile --ignore tests/chaos -m "not foreign"
	$(BIN)/pytest tests/chaos

clients: $(STAMP) ## Run the tests that need other projects' clients (installs them into out/clients: 1.8 GB)
	$(BIN)/pytest -n 2 --dist loadfile -m foreign

test-fast: $(STAMP) ## Run the quick tests only: no servers, no training (under a minute)
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow" tests/unit

lint: $(STAMP) ## Style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP) ## Build the documentation site into out/docs/site; any warning fails
	$(BIN)/python -m docs.site

check: lint docs test ## Everything CI checks

bench: $(STAMP) ## Measure everything in tests/benchmarks next to its bar (BENCH: some by name)
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS),peers]'
	$(BIN)/python -m tests.benchmarks $(BENCH) --json out/benchmarks.json --markdown out/benchmarks.md

gpu-check: $(STAMP) ## Check everything that only a GPU shows; out/gpu/report.md is the file to send (DRY=1: on a CPU)
	$(BIN)/python -m tests.gpu out/gpu $(if $(DRY),--dry)

drill: $(STAMP) ## Break a fleet in every way we know, fifty times, and prove that nothing was lost (SEED=1)
	$(BIN)/libra fleet drill --faults 50 --items 10000 --seed $(SEED) --out out/drill-$(SEED).json

two-machines: $(STAMP) ## Judge a run on two machines (network namespaces) and pull a cable; needs root
	$(BIN)/python -m tests.drills.two_machines

fuzz: $(STAMP) ## Feed the readers 100,000 malformed inputs (SEED=1)
	FUZZ_INPUTS=100000 FUZZ_SEED=$(SEED) $(BIN)/pytest tests/fuzz --timeout 0

DATA ?= ../shared/data
OUT ?= out/libra-tiny

train-tiny: $(STAMP) ## Make the bundled guard again from public data (DATA=folder, OUT=folder) and print what it reaches
	$(BIN)/libra train --data $(DATA) --out $(OUT)

clean: ## Remove .venv, caches and out/
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
