# `make demo` and `make test` set up what they need in .venv and ask for nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench gpu clean

demo: .venv/ready
	$(BIN)/rdpnet demo --output demo

test: .venv/ready lint
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/ready
	$(BIN)/rdpnet bench all -o bench

# what wants an accelerator: checks, the paper's tables of accuracies, weights; see recipes/gpu.sh
gpu: .venv/ready
	recipes/gpu.sh

# uv resolves and installs the whole stack in a fraction of pip's time; it comes from the registry, by pip.
.venv/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"the pinned versions need Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.11 (after make clean)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --constraint constraints.txt --build-constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo bench dist .pytest_cache .mypy_cache .ruff_cache
