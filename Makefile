# make demo: train, sample and draw the default flow.  make test: the test suite.
# Both need Python 3.10 or newer, make and a C++ compiler; they create .venv themselves.

# The first Python that is new enough; choose another with `make PYTHON=... demo`.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin

.PHONY: demo test lint bench clean

demo: .venv/installed
	$(BIN)/flowmlx train

test: .venv/installed-dev
	$(BIN)/python -m pytest -n auto

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv .bench-venv

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "flowmlx needs Python 3.10 or newer; none found on PATH" >&2; exit 2; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	@touch $@

# Dependency groups need pip 25.1.
.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@
