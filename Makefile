PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, a file of tests in one of them: most tests wait for one core.
IN_TWO := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-aarch64 lint format lock horovod clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## make .venv and install what requirements.lock says

demo: $(VENV)/installed ## train, export, quantise, verify, benchmark and report, in minutes, into runs/demo
	@$(BIN)/python -m scripts.demo

test: $(VENV)/installed lint ## style, types and tests
	$(BIN)/python -m pytest $(IN_TWO)

test-slow: $(VENV)/installed ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not aarch64" $(IN_TWO)

test-aarch64: $(VENV)/installed ## the one file on an arm64 CPU, emulated by qemu
	$(BIN)/python -m pytest -m aarch64

lint: $(VENV)/installed ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## write requirements.lock anew from pyproject.toml, for every Python and platform
	$(PYTHON) -m pip install -q --target $(VENV)/uv uv
	PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv pip compile pyproject.toml --extra dev --universal --upgrade \
	    --python-version 3.10 --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
	    -q -o requirements.lock

horovod: $(VENV)/installed ## build Horovod for the torch in .venv, in minutes, and install it (docs/horovod.md)
	scripts/install_horovod.sh --python $(BIN)/python

clean: ## remove runs, data sets and caches; .venv stays
	rm -rf runs datasets .mypy_cache .pytest_cache .ruff_cache

# pip's own temporary folders and a lock file newer than the environment make it again.
$(VENV)/installed: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 10) and \
	    f"error: Python {v.major}.{v.minor} is too old, 3.10 is the least: make PYTHON=/path/to/python3.12 ...")'
	@echo "Installing into $(VENV): about 7 GB with CUDA's libraries, some minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements.lock
	@touch $@
