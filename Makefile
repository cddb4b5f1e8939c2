# Every target works from a bare checkout with Python 3.11 or newer; nothing else is needed.

PYTHON ?= $(shell for python in python3.11 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin

# Asked for by exact version and in the same command as the project, so that no other build of
# torch (the CUDA one takes gigabytes) can replace it.
TORCH ?= torch==2.13.0

.PHONY: demo test test-slow lint format clean

demo: $(VENV)/.installed-server
	$(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -q -m "not slow"

test-slow: $(VENV)/.installed-all
	$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-all
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# A stamp is older than pyproject.toml exactly when the dependencies may have changed. The install
# is editable, so that sources need no reinstall.
$(VENV)/.installed-server: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) --editable '.[server]'
	@touch $@

$(VENV)/.installed-all: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet $(TORCH) --editable '.[server,training,test]'
	@touch $@ $(VENV)/.installed-server
