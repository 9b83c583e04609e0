# The whole workflow: demo, check, test. Everything lives in .venv; nothing else is touched.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# One process a core; each test runs on one thread, so that they do not fight for cores.
WORKERS ?= auto

NATIVE := src/stepwell/native
KERNELS := $(NATIVE)/_kernels.json

.PHONY: demo test test-all check format bench docs clean

demo: $(VENV)/core.installed $(KERNELS)  ## train a ladder and watch it answer
	$(BIN)/stepwell demo

test: $(VENV)/test.installed $(KERNELS)  ## the suite, a few minutes
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS) -m "not slow"

test-all: $(VENV)/test.installed $(KERNELS)  ## the suite with its long versions
	OMP_NUM_THREADS=1 $(PYTEST) -n $(WORKERS)

check: $(VENV)/dev.installed        ## format, lint and strict types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/core.installed $(KERNELS)  ## speed, beside the peers that STEPWELL_PEERS holds
	$(BIN)/stepwell bench --out benchmarks/results

docs: $(VENV)/docs.installed        ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache $(NATIVE)/_kernels*

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "stepwell needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) \
		|| { echo "No venv module: on Debian or Ubuntu, apt install python3-venv."; exit 1; }

$(VENV)/core.installed: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/%.installed: pyproject.toml $(VENV)/core.installed
	$(BIN)/python -m pip install --quiet --editable ".[$*]"
	touch $@

# Installing has built the kernels; this follows the sources. Without a compiler, torch decodes.
$(KERNELS): $(NATIVE)/build.py $(wildcard $(NATIVE)/source/*) | $(VENV)/core.installed
	-$(BIN)/python -m stepwell.native.build
